"""``/v1/decisions``: OpenAI's shape over ``DiffusionGemmaModel.decide``."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fastapi import Request as HttpRequest
from starlette.responses import Response

from diffusiongemma.engine.blocking import BlockingClient
from diffusiongemma.engine.events import Event
from diffusiongemma.server.bridge import EventBridge, Returned, unless_gone
from diffusiongemma.server.endpoint import ModelEndpoint
from diffusiongemma.server.errors import ApiError, JSONAnswer
from diffusiongemma.server.protocol import ChoiceQuestion, DecisionsRequest, PredicateQuestion, Question, text_of
from diffusiongemma.server.security import client_name
from diffusiongemma.text.questions import Choice, Decision, Decisions, Predicate

__all__ = ["decisions"]


async def decisions(http: HttpRequest, endpoint: ModelEndpoint, body: DecisionsRequest) -> Response:
    """Answer typed questions about an input, all in one pass where it can be."""
    if (twice := _twice(question.name for question in body.questions if question.name is not None)) is not None:
        raise ApiError(400, f"two questions have the name {twice!r}; names must differ", "questions")
    asked = [_question(question, place) for place, question in enumerate(body.questions)]
    source = _source(body)
    options = {name: value for name in ("joint", "draws", "seed") if (value := getattr(body, name)) is not None}

    def work(on_event: Callable[[Event], None], client: BlockingClient) -> Decisions:
        return endpoint.model.with_engine(client).decide(questions=asked, **source, **options)

    bridge = EventBridge.call(endpoint.engine, endpoint.rewriting, work, client_name(http.scope))
    try:
        (result,) = await unless_gone(http, _returned(bridge))
    finally:
        bridge.close()
    pairs = zip(body.questions, asked, result.decisions, strict=True)
    return JSONAnswer(
        {
            "object": "decision",
            "model": endpoint.name,
            "answers": [_answer(question, texts.texts, decision, body.threshold) for question, texts, decision in pairs],
            "usage": {
                "input_tokens": result.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": 0,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": result.prompt_tokens,
                "diffusion": {"passes": result.passes, "rows": result.rows},
            },
        }
    )


async def _returned(bridge: EventBridge) -> list[Decisions]:
    return [item.value async for item in bridge if isinstance(item, Returned)]


def _twice(texts: Iterable[str]) -> str | None:
    """A text that is there more than once."""
    return next((text for text, times in Counter(texts).items() if times > 1), None)


def _source(body: DecisionsRequest) -> dict[str, Any]:
    if isinstance(body.input, str):
        if not body.input.strip():
            raise ApiError(400, "input is empty; give it at least one character that is not a space", "input")
        return {"prompt": body.input}
    said = enumerate(body.input)
    return {"messages": [{"role": message.role, "content": text_of(message.content, f"input[{i}].content")} for i, message in said]}


def _question(question: Question, place: int) -> Predicate | Choice:
    """Our question for OpenAI's, whose names are optional; descriptions are put below the instructions."""
    instructions, name = text_of(question.instructions), f"q{place}"
    if isinstance(question, PredicateQuestion):
        return Predicate(name, instructions)
    if isinstance(question, ChoiceQuestion):
        options = [(_text(option.value), option.description) for option in question.choices]
    else:
        options = [(level.label, level.description) for level in question.levels]
    texts = [text for text, _ in options]
    if (twice := _twice(texts)) is not None:
        raise ApiError(400, f"questions[{place}] has the option {twice!r} twice; options must differ", f"questions[{place}]")
    lines = [instructions, *(f"{text}: {said}" for text, said in options if said)]
    return Choice(name, texts, "\n".join(line for line in lines if line))


def _text(value: str | bool) -> str:
    return value if isinstance(value, str) else str(value).lower()


def _answer(question: Question, texts: Sequence[str], decision: Decision, threshold: float | None) -> dict[str, Any]:
    """An answer in OpenAI's shape; below the threshold it is a refusal."""
    probabilities = [decision.probabilities[text] for text in texts]
    best = max(range(len(texts)), key=probabilities.__getitem__)
    base = {"type": question.type, "name": question.name}
    if threshold is not None and probabilities[best] < threshold:
        return base | {"type": "refusal"}
    if isinstance(question, PredicateQuestion):
        return base | {"probability": probabilities[0]}
    pairs: list[dict[str, Any]]
    if isinstance(question, ChoiceQuestion):
        values = [option.value for option in question.choices]
        pairs = [{"value": value, "probability": p} for value, p in zip(values, probabilities, strict=True)]
        return base | {"choice": values[best], "confidence": probabilities[best], "probabilities": pairs}
    levels = [level.label for level in question.levels]
    pairs = [{"value": v, "label": label, "probability": p} for v, (label, p) in enumerate(zip(levels, probabilities, strict=True))]
    mean = sum(pair["value"] * pair["probability"] for pair in pairs)
    return base | {"score": mean, "confidence": probabilities[best], "probabilities": pairs}
