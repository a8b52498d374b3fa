"""``/v1/decisions``: OpenAI's shape over ``DiffusionGemmaModel.decide``."""

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import Request as HttpRequest
from starlette.responses import Response

from diffusiongemma.engine.events import Event
from diffusiongemma.engine.shared import Tenant
from diffusiongemma.server.errors import ApiError, JSONAnswer
from diffusiongemma.server.feed import Feed, Returned, unless_gone
from diffusiongemma.server.protocol import ChoiceQuestion, DecisionsRequest, PredicateQuestion, Question, text_of
from diffusiongemma.server.served import Served
from diffusiongemma.text.questions import Choice, Decision, Decisions, Predicate

__all__ = ["decisions"]

_AT_ONCE = 32
"""Options, times draws, of the questions that are decided before others have a turn: about 0.3 s on ``nano``."""


async def decisions(http: HttpRequest, served: Served, body: DecisionsRequest) -> Response:
    """Answer typed questions about an input, all in one pass where it can be."""
    names = [question.name for question in body.questions if question.name is not None]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ApiError(400, f"two questions have the name {twice[0]!r}; names must differ", "questions")
    asked = [_question(question, place) for place, question in enumerate(body.questions)]
    source = _source(body)
    options = {name: value for name in ("joint", "draws", "seed") if (value := getattr(body, name)) is not None}

    def work(on_event: Callable[[Event], None], tenant: Tenant) -> tuple[list[Decisions], int]:
        model = served.model.served(tenant)
        found = [model.decide(questions=group, **source, **options) for group in _groups(asked, bool(body.joint), body.draws or 1)]
        prompts = [asked] if body.joint else [[question] for question in asked]
        return found, sum(_tokens(served, source, group) for group in prompts)

    feed = Feed.call(served.engine, served.rewriting, work)
    try:
        ((found, tokens),) = await unless_gone(http, _returned(feed))
    finally:
        feed.close()
    decided = [decision for group in found for decision in group.decisions]
    pairs = zip(body.questions, asked, decided, strict=True)
    return JSONAnswer(
        {
            "object": "decision",
            "model": served.name,
            "answers": [_answer(question, texts.texts, decision, body.threshold) for question, texts, decision in pairs],
            "usage": {
                "input_tokens": tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": 0,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": tokens,
                "diffusion": {"passes": sum(group.passes for group in found), "rows": sum(group.rows for group in found)},
            },
        }
    )


async def _returned(feed: Feed) -> list[tuple[list[Decisions], int]]:
    return [item.value async for item in feed if isinstance(item, Returned)]


def _groups(asked: Sequence[Predicate | Choice], joint: bool, draws: int) -> list[list[Predicate | Choice]]:
    """Questions that are decided together. Each is decided as if it were alone; in one go the engine would serve nobody else."""
    if joint:
        return [list(asked)]
    groups: list[list[Predicate | Choice]] = []
    room = 0
    for question in asked:
        room -= len(question.texts) * draws
        if room < 0 or not groups:
            groups.append([])
            room = _AT_ONCE - len(question.texts) * draws
        groups[-1].append(question)
    return groups


def _source(body: DecisionsRequest) -> dict[str, Any]:
    if isinstance(body.input, str):
        if not body.input.strip():
            raise ApiError(400, "input is empty; give it at least one character that is not a space", "input")
        return {"prompt": body.input}
    return {"messages": [{"role": message.role, "content": text_of(message.content)} for message in body.input]}


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
    if twice := [text for text in texts if texts.count(text) > 1]:
        raise ApiError(400, f"questions[{place}] has the option {twice[0]!r} twice; options must differ", f"questions[{place}]")
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


def _tokens(served: Served, source: dict[str, Any], group: Sequence[Predicate | Choice]) -> int:
    """Tokens of the prompt that a group of questions is read from."""
    said = "\n".join(question.instructions for question in group if question.instructions)
    if not said:
        (request,) = served.model.requests(**source, max_tokens=1)
    elif "prompt" in source:
        (request,) = served.model.requests(f"{source['prompt']}\n\n{said}", max_tokens=1)
    else:
        (request,) = served.model.requests(messages=[*source["messages"], {"role": "user", "content": said}], max_tokens=1)
    return len(request.prompt)
