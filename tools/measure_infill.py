"""How well spans are filled, and how many passes an edit takes: what docs/canvas.md reports.

``python -m tools.measure_infill --model nano`` prints it.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from diffusiongemma.engine.events import Done
from diffusiongemma.engine.request import Request
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.generation.context import context_of
from diffusiongemma.tasks.base import EVAL_SEED
from diffusiongemma.tasks.human_eval import HumanEvalInfill
from diffusiongemma.tasks.json_extract import JsonExtract
from diffusiongemma.tasks.python_code import InfillPython

__all__ = ["CASES", "Case", "edits", "infills", "variants"]

_MAX = 16
"""Tokens of a span: the default of ``infill``."""


@dataclass(frozen=True)
class Case:
    """A text with a part cut out.

    Attributes:
        prompt: the message it answers; None: plain text.
        prefix: before the span.
        span: what was cut out.
        suffix: after it.
    """

    prompt: str | None
    prefix: str
    span: str
    suffix: str


def _python(count: int, seed: int) -> list[Case]:
    """Spans of infill-python, as plain text."""
    examples = InfillPython().examples(count, seed)
    return [Case(None, example.detail["prefix"], example.answer or "", example.detail["suffix"]) for example in examples]


def _human_eval(count: int, seed: int) -> list[Case]:
    """A line of a HumanEval solution, as plain text; judged by the line, not by running it."""
    examples = HumanEvalInfill().examples(count, seed)
    return [Case(None, example.detail["before"], example.answer or "", example.detail["after"]) for example in examples]


def _json(part: str) -> Callable[[int, int], list[Case]]:
    """A value, or a key without its quotes, out of an answer of json-extract, after its question."""

    def cases(count: int, seed: int) -> list[Case]:
        result = []
        for index, example in enumerate(JsonExtract().examples(count, seed)):
            answer = example.answer or ""
            data = json.loads(answer)
            key = random.Random(index).choice(list(data))
            at = answer.index(f"{json.dumps(key)}: ") + 1
            span = key if part == "key" else json.dumps(data[key], ensure_ascii=False)
            at += 0 if part == "key" else len(json.dumps(key)) + 1
            result.append(Case(example.prompt, answer[:at], span, answer[at + len(span) :]))
        return result

    return cases


CASES: dict[str, Callable[[int, int], list[Case]]] = {
    "infill-python": _python,
    "human-eval": _human_eval,
    "json-value": _json("value"),
    "json-key": _json("key"),
}


def infills(model: DiffusionGemmaModel, cases: Sequence[Case], seed: int) -> dict[str, float]:
    """Shares of the cases, by exact match up to white space at the ends.

    Args:
        model: any checkpoint.
        cases: of ``CASES``.
        seed: of the sampler; case i draws from seed + i.

    Returns:
        ``infill``: the candidate that won; ``borders apart``: the best of those whose borders stayed pinned; ``any row``: one of
        all tried is right; ``causal``: the causal role, which does not see the suffix, goes on after the prefix with the span's
        text (it need not know where to end); ``causal, open border``: after the prefix without its last token; and the means
        ``steps`` (of the slowest row) and ``seconds``.
    """
    sums: Counter[str] = Counter()
    for index, case in enumerate(cases):
        filled = model.infill(case.prefix, case.suffix, max_tokens=_MAX, prompt=case.prompt, seed=seed + index)
        right = [candidate.spans["span"].strip() == case.span.strip() for candidate in filled.tried]
        apart = [ok for ok, candidate in zip(right, filled.tried, strict=True) if not candidate.open_borders]
        sums.update({"infill": right[0], "borders apart": apart[0], "any row": any(right)})
        sums.update({"causal": _goes_on(model, case, 0), "causal, open border": _goes_on(model, case, 1)})
        sums.update({"steps": max(candidate.steps for candidate in filled.tried), "seconds": filled.seconds})
    return {name: total / len(cases) for name, total in sums.items()}


def _goes_on(model: DiffusionGemmaModel, case: Case, opened: int) -> bool:
    """Whether the causal role goes on with the span, from the prefix less some tokens."""
    context = context_of(model.checkpoint, model.engine, case.prompt, None, {"seed": 0})
    ids = model.tokenizer.encode(case.prefix)
    kept = len(ids) - min(opened, len(ids))
    whole = model.tokenizer.decode(ids[kept:]) + case.span
    params = model.defaults.replaced(max_tokens=len(model.tokenizer.encode(whole)) + 4)
    events = model.engine.run(
        [Request(prompt=[*context.prompt, *ids[:kept]], params=params, stop_ids=model.stop_ids, mode="causal")]
    )
    return next(event.result.text for event in events if isinstance(event, Done)).startswith(whole)


def edits(model: DiffusionGemmaModel, count: int, seed: int) -> dict[str, float]:
    """Steps and exact answers of json-extract written anew, begun with a right answer, and with one value wrong."""
    sums: Counter[str] = Counter()
    for index, example in enumerate(JsonExtract().examples(count, seed)):
        right = example.answer or ""
        init_tokens = {"right": right, "one value wrong": _spoilt(right, random.Random(index))}
        results = {
            name: model.edit(text, example.prompt, in_prompt=False, seed=seed + index) for name, text in init_tokens.items()
        } | {"anew": model.generate(example.prompt, seed=seed + index)}
        for name, result in results.items():
            sums.update({f"{name}: exact": result.text == right, f"{name}: steps": result.usage.denoising_steps})
    return {name: total / count for name, total in sums.items()}


def _spoilt(answer: str, rng: random.Random) -> str:
    data: dict[str, Any] = json.loads(answer)
    key = rng.choice(list(data))
    value = data[key]
    if isinstance(value, bool):
        data[key] = not value
    else:
        data[key] = rng.randint(100, 999) if isinstance(value, int | float) else "".join(rng.sample("abcdefgh", 4)).title()
    return json.dumps(data, ensure_ascii=False)


def variants(model: DiffusionGemmaModel, count: int, seed: int) -> dict[str, float]:
    """Of eight variants of an answer of json-extract, with its question and without: how many are new, and of those JSON."""
    sums: Counter[str] = Counter()
    for strength in (0.1, 0.3, 0.5):
        for index, example in enumerate(JsonExtract().examples(count, seed)):
            for name, prompt in (("with its question", example.prompt), ("plain", None)):
                result = set(model.vary(example.answer or "", strength, 8, seed + index, prompt=prompt)) - {example.answer}
                sums.update({f"{strength} {name}: new": len(result), f"{strength} {name}: JSON": sum(map(_is_json, result))})
    return {name: total / count for name, total in sums.items()}


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(prog="python -m tools.measure_infill", description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--n", type=int, default=100, help="examples of each kind")
    parser.add_argument("--seed", type=int, default=EVAL_SEED)
    parser.add_argument("--only", choices=[*CASES, "edit", "vary"], action="append")
    given = parser.parse_args()
    model = DiffusionGemmaModel.from_pretrained(given.model)
    for name in given.only or [*CASES, "edit", "vary"]:
        if name == "edit":
            result = edits(model, given.n, given.seed)
        elif name == "vary":
            result = variants(model, given.n, given.seed)
        else:
            result = infills(model, CASES[name](given.n, given.seed), given.seed)
        print(f"{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in result.items()), flush=True)


if __name__ == "__main__":
    main()
