"""What answers have in common: usage, log-probabilities, and the events that show a canvas."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from diffusiongemma.engine.events import Commit, Done, Draft, Result, TokenLogprob
from diffusiongemma.server.served import Served

__all__ = ["Canvases", "chat_logprobs", "head", "text_logprobs", "usage"]


def head(kind: str, prefix: str, served: Served) -> dict[str, Any]:
    """The first fields of an answer."""
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": served.name}


def usage(results: Sequence[Result], each: int = 1) -> dict[str, Any]:
    """True counts of one request.

    Args:
        results: of all its answers.
        each: answers a prompt; a prompt counts once.
    """
    prompt = sum(result.usage.prompt_tokens for result in results[::each])
    completion = sum(result.usage.completion_tokens for result in results)
    steps = sum(result.usage.denoising_steps for result in results)
    commits = sum(result.usage.commit_passes for result in results)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "completion_tokens_details": {"reasoning_tokens": sum(result.usage.thinking_tokens for result in results)},
        "diffusion": {
            "denoising_steps": steps,
            "commit_passes": commits,
            "tokens_per_forward": round(completion / max(steps or commits, 1), 3),
            "canvases": _canvases(results),
        },
    }


def _canvases(results: Sequence[Result]) -> list[dict[str, Any]]:
    return [
        {"index": index, "steps": canvas.steps, "tokens": canvas.tokens, "seconds": round(canvas.seconds, 6)}
        for index, result in enumerate(results)
        for canvas in result.canvases
    ]


def chat_logprobs(served: Served, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """OpenAI's ``logprobs`` of a chat answer; a stop token is no text and has no entry."""
    content = [
        {**_token(served, token.token_id, token.logprob), "top_logprobs": [_token(served, *pair) for pair in token.top]}
        for token in tokens
        if token.token_id not in served.model.stop_ids
    ]
    return {"content": content, "refusal": None, "source": "causal"}


def text_logprobs(served: Served, tokens: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """OpenAI's ``logprobs`` of a text completion.

    Args:
        served: the model.
        tokens: of this piece of the answer.
        offset: characters of the answer before it.
    """
    shown = [token for token in tokens if token.token_id not in served.model.stop_ids]
    texts, offsets = [served.token_text(token.token_id) for token in shown], []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [token.logprob for token in shown],
        "top_logprobs": [{served.token_text(other): logprob for other, logprob in token.top} for token in shown],
        "text_offset": offsets,
        "source": "causal",
    }


def _token(served: Served, token: int, logprob: float) -> dict[str, Any]:
    text = served.token_text(token)
    return {"token": text, "logprob": logprob, "bytes": list(text.encode(errors="replace"))}


class Canvases:
    """Events of a request as ``diffusing: true`` shows them.

    Args:
        served: for the tokens' texts.
        name: the answer's id.
    """

    def __init__(self, served: Served, name: str) -> None:
        self._served = served
        self._name = name
        self._done: dict[int, int] = {}

    def show(self, event: Draft | Commit | Done) -> tuple[dict[str, Any], str]:
        """An event's data and its name. ``choices`` is empty, so that a client which reads every event finds nothing in it."""
        kind = type(event).__name__.lower().replace("done", "finish")
        base = {"object": f"diffusion.{kind}", "id": self._name, "choices": [], "index": event.row}
        if isinstance(event, Draft):
            said = {
                "canvas": event.canvas, "step": event.step, "tokens": event.tokens, "texts": self._texts(event.tokens),
                "entropy": [round(nats, 4) for nats in event.entropy], "accepted": event.accepted, "pinned": event.pinned,
                "text": event.text,
            }  # fmt: skip
        elif isinstance(event, Commit):
            canvas = self._done.get(event.row, 0)
            self._done[event.row] = canvas + 1
            said = {"canvas": canvas, "text": event.text, "token_ids": event.token_ids, "texts": self._texts(event.token_ids)}
            if event.thinking:
                said["reasoning_content"] = event.thinking
        else:
            result = event.result
            said = {
                "finish_reason": result.finish_reason,
                "usage": usage([result]),
                "canvases": [asdict(c) for c in result.canvases],
            }
        return base | said, kind

    def _texts(self, tokens: Sequence[int]) -> list[str]:
        return [self._served.token_text(token) for token in tokens]
