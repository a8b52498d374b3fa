"""What answers have in common: usage, log-probabilities, and the events that show a canvas."""

import codecs
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from diffusiongemma.engine.events import Commit, Done, Draft, Result, TokenLogprob
from diffusiongemma.server.endpoint import ModelEndpoint

__all__ = ["Canvases", "TextLogprobs", "chat_logprobs", "head", "usage"]


def head(kind: str, prefix: str, endpoint: ModelEndpoint) -> dict[str, Any]:
    """The first fields of an answer."""
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": endpoint.name}


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
    halted = [canvas.halted for result in results for canvas in result.canvases]
    halting = sum(halted) / len(halted) if halted else None
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
            **({} if halting is None else {"halting_rate": round(halting, 3)}),
        },
    }


def checked(result: Result) -> dict[str, Any]:
    """What an answer says of a schema that no grammar expresses; nothing where one does."""
    return {"attempts": result.attempts, "approximated": list(result.approximated)} if result.approximated else {}


def _canvases(results: Sequence[Result]) -> list[dict[str, Any]]:
    return [
        {"index": index, "steps": canvas.steps, "tokens": canvas.tokens, "seconds": round(canvas.seconds, 6)}
        for index, result in enumerate(results)
        for canvas in result.canvases
    ]


def chat_logprobs(endpoint: ModelEndpoint, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """OpenAI's ``logprobs`` of a chat answer; a stop token is no text and has no entry."""
    content = [
        {**_token(endpoint, token.token_id, token.logprob), "top_logprobs": [_token(endpoint, *pair) for pair in token.top]}
        for token in tokens
        if token.token_id not in endpoint.model.stop_ids
    ]
    return {"content": content, "refusal": None, "source": "causal"}


class TextLogprobs:
    """OpenAI's ``logprobs`` of a growing text completion: of those tokens that begin in it.

    A stop token, and what a stop string cuts off, is no text and has no entry.

    Args:
        endpoint: the model.
    """

    def __init__(self, endpoint: ModelEndpoint) -> None:
        self._endpoint = endpoint
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0
        self._length = 0
        self._waiting: list[tuple[int, TokenLogprob]] = []

    def push(self, tokens: Sequence[TokenLogprob], text: str) -> dict[str, Any]:
        """Add tokens, and what became certain of the text; returns the entries of the tokens that begin in the text so far.

        ``text_offset`` counts characters: a token that begins within one stands where that stands.
        """
        tokenizer = self._endpoint.model.tokenizer
        for token in tokens:
            if token.token_id not in tokenizer.special_ids and token.token_id not in self._endpoint.model.stop_ids:
                self._waiting.append((self._offset, token))
                self._offset += len(self._decoder.decode(tokenizer.token_bytes(token.token_id)))
        self._length += len(text)
        count = sum(offset < self._length for offset, _ in self._waiting)
        shown, self._waiting = self._waiting[:count], self._waiting[count:]
        return {
            "tokens": [self._text(token.token_id) for _, token in shown],
            "token_logprobs": [token.logprob for _, token in shown],
            "top_logprobs": [{self._text(other): logprob for other, logprob in token.top} for _, token in shown],
            "text_offset": [offset for offset, _ in shown],
            "source": "causal",
        }

    def of_all(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The entries of a prompt's tokens and an answer's: all, those that are no text too; null where there is none (NaN)."""
        tokenizer, offsets = self._endpoint.model.tokenizer, []
        for token in tokens:
            offsets.append(self._offset)
            if token.token_id not in tokenizer.special_ids:
                self._offset += len(self._decoder.decode(tokenizer.token_bytes(token.token_id)))
        known = [token.logprob == token.logprob for token in tokens]
        tops = [{self._text(other): logprob for other, logprob in token.top} for token in tokens]
        return {
            "tokens": [self._text(token.token_id) for token in tokens],
            "token_logprobs": [token.logprob if there else None for token, there in zip(tokens, known, strict=True)],
            "top_logprobs": [top if there else None for top, there in zip(tops, known, strict=True)],
            "text_offset": offsets,
            "source": "causal",
        }

    def _text(self, token: int) -> str:
        text, broken = _token_text(self._endpoint, token)
        return f"bytes:{text}" if broken else text


def _token(endpoint: ModelEndpoint, token: int, logprob: float) -> dict[str, Any]:
    return {
        "token": _token_text(endpoint, token)[0],
        "logprob": logprob,
        "bytes": list(endpoint.model.tokenizer.token_bytes(token)),
    }


def _token_text(endpoint: ModelEndpoint, token: int) -> tuple[str, bool]:
    r"""A token's text, and whether it is none but a part of a character, which is written as ``\xe2\x82``."""
    data = endpoint.model.tokenizer.token_bytes(token)
    try:
        data.decode()
    except UnicodeDecodeError:
        return "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in data), True
    return endpoint.token_text(token), False


class Canvases:
    """Events of a request as ``diffusing: true`` shows them.

    Args:
        endpoint: for the tokens' texts.
        name: the answer's id.
    """

    def __init__(self, endpoint: ModelEndpoint, name: str) -> None:
        self._endpoint = endpoint
        self._name = name
        self._done: dict[int, int] = {}

    def show(self, event: Draft | Commit | Done) -> tuple[dict[str, Any], str]:
        """An event's data and its name. ``choices`` is empty, so that a client which reads every event finds nothing in it."""
        kind = type(event).__name__.lower().replace("done", "finish")
        base = {"object": f"diffusion.{kind}", "id": self._name, "choices": [], "index": event.row}
        if isinstance(event, Draft):
            said = {
                "canvas": event.canvas, "step": event.step, "tokens": event.argmax_ids, "texts": self._texts(event.argmax_ids),
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
        return [self._endpoint.token_text(token) for token in tokens]
