"""Rows that a user has, as training data for a checkpoint that is there: conversations, prompts with completions, plain texts.

A row becomes examples, one for each answer of the model in it. What is learnt is what the model says, from the end of its turn's
header to its stop token; an answer longer than a canvas is learnt canvas by canvas, each after the ones before it. Prompts are
written the one way in which generation writes them (``text.prompts``). Shapes: P prompts, T prompt tokens, L canvas.
"""

import hashlib
import json
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from diffusiongemma.errors import InputError, TrainingError
from diffusiongemma.opened import open_checkpoint
from diffusiongemma.options import PromptOptions
from diffusiongemma.text.messages import REASONING, Message
from diffusiongemma.text.prompts import prompt_ids
from diffusiongemma.text.tokenizer import Tokenizer
from diffusiongemma.training.data import TrainBatch
from diffusiongemma.weights.resolve import resolve
from diffusiongemma.weights.stream import write_json

__all__ = ["Example", "Rows", "RowsReport", "read_rows"]

_MODEL = ("assistant", "model")
_EMPTY_THOUGHT = "<|channel>thought\n<channel|>"
_SHOWN = 5
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")
"""Parts of a reason that differ from row to row."""
_WHY = 3
"""Rows that are named for each reason why rows are left out."""


class RowsData(BaseModel):
    """Rows of a file for a checkpoint (``training.rows``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["rows"]
    base: str
    """The checkpoint whose tokenizer and template write the prompts."""
    path: str
    """A file of JSON Lines, or what the library ``datasets`` loads: a Parquet or CSV file, a folder, a hub id."""
    split: str = "train"
    """Of what ``datasets`` loads."""
    eval_path: str = ""
    """Rows that are not learnt; empty: a part of ``path``."""
    eval_share: float = Field(0.05, ge=0, lt=1)
    """Of the rows of ``path``, the last ones in a random order, where there is no ``eval_path``."""
    max_prompt: int = Field(1024, ge=1)
    """Most tokens before a canvas; examples with more are left out and reported."""
    pad_weight: float = Field(0.1, ge=0)
    """Weight of the padding after an answer; an answer's tokens have 1. The published recipes have 1."""


@dataclass(frozen=True)
class Example:
    """An answer and what stands before it.

    Attributes:
        prompt: token ids, ready for the answer.
        answer: token ids, the stop token last.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def context(self, canvas: int) -> int:
        """Tokens before the answer's last canvas: the prompt, and the canvases before it."""
        return len(self.prompt) + (len(self.answer) - 1) // canvas * canvas


@dataclass(frozen=True)
class RowsReport:
    """What became of a file's rows.

    Attributes:
        rows: in the file.
        examples: answers to learn.
        canvases: that they fill.
        held_out: examples that are not learnt.
        prompt_tokens: least, median, 95th percentile and most.
        answer_tokens: the same.
        context_tokens: the same, of what stands before an answer's last canvas.
        left_out: reason -> how many, and where the first are.
        digest: of all examples' tokens; a run goes on with the same ones alone.
        shown: the first examples, decoded: prompt and answer.
    """

    rows: int
    examples: int
    canvases: int
    held_out: int
    prompt_tokens: tuple[int, int, int, int]
    answer_tokens: tuple[int, int, int, int]
    context_tokens: tuple[int, int, int, int]
    left_out: Mapping[str, tuple[int, tuple[str, ...]]]
    digest: str
    shown: tuple[tuple[str, str], ...]


class Rows:
    """Batches of a user's rows.

    Args:
        recipe: the data part of a recipe.
        seed: of the run.
        folder: of the run; ``data.json`` in it gets the report.
        progress: called with (done, of) while rows are read.

    Attributes:
        held_out: examples that are not learnt.
        report: what became of the rows.

    Raises:
        TrainingError: a file that cannot be read, no row that can be learnt, or a tokenizer or template that do not fit.
    """

    Recipe = RowsData

    def __init__(self, recipe: RowsData, seed: int, folder: Path, progress: Callable[[int, int], None]) -> None:
        opened = open_checkpoint(resolve(recipe.base))
        self._recipe, self._seed = recipe, seed
        self.text_tokenizer, self.canvas_length = opened.tokenizer, opened.config.canvas_length
        text = opened.config.text
        self._pad, self._stop_ids = text.pad_token_id, opened.stop_ids
        writer = _Writer(
            opened.tokenizer, opened.stop_ids, text.bos_token_id, recipe.max_prompt, text.vocab_size, self.canvas_length
        )
        made = _examples(recipe.path, recipe.split, writer, progress)
        learnt = [example for row in made.rows for example in row]
        if recipe.eval_path:
            held = _examples(recipe.eval_path, recipe.split, writer, progress)
            self.held_out = [example for row in held.rows for example in row]
            made.left_out.update({f"held out: {why}": at for why, at in held.left_out.items()})
        else:
            # By rows: answers of one conversation stay on one side.
            order = torch.randperm(len(made.rows), generator=torch.Generator().manual_seed(seed)).tolist()
            count = int(len(order) * recipe.eval_share)
            self.held_out = [example for at in order[len(order) - count :] for example in made.rows[at]]
            learnt = [example for at in sorted(order[: len(order) - count]) for example in made.rows[at]]
        if not learnt:
            why = "; ".join(f"{why} ({', '.join(where)})" for why, (_, where) in made.left_out.items()) or "it is empty"
            raise TrainingError(f"{recipe.path} has no row that can be learnt: {why}")
        self._examples = learnt
        self.report = _report(made, learnt, self.held_out, self.canvas_length, opened.tokenizer)
        self._orders: dict[int, list[int]] = {}
        _keep_report(folder, self.report, recipe.path)

    def batch(self, step: int, prompts: int) -> TrainBatch:
        """The examples of a step, in a new random order each time all have come; of each answer one canvas, chosen at random."""
        count = len(self._examples)
        picked = []
        for place in range(step * prompts, (step + 1) * prompts):
            epoch, at = divmod(place, count)
            picked.append(self._examples[self._order(epoch)[at]])
        return self.batch_of(picked, torch.Generator().manual_seed(self._seed * 1_000_003 + step))

    def _order(self, epoch: int) -> list[int]:
        """The examples of an epoch in its order; a batch may stand in two epochs."""
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            kept = {known: order for known, order in self._orders.items() if known == epoch - 1}
            self._orders = kept | {epoch: torch.randperm(len(self._examples), generator=generator).tolist()}
        return self._orders[epoch]

    def batch_of(self, examples: Sequence[Example], generator: torch.Generator) -> TrainBatch:
        """A batch of these examples, a random canvas of each."""
        length, pairs = self.canvas_length, []
        for example in examples:
            start = length * int(torch.randint((len(example.answer) - 1) // length + 1, (), generator=generator))
            pairs.append(((*example.prompt, *example.answer[:start]), example.answer[start : start + length]))
        longest = max(len(prompt) for prompt, _ in pairs)
        prompt_PT = torch.full((len(pairs), longest), self._pad)
        answer_PL = torch.full((len(pairs), length), self._pad)
        weight_PL = torch.full((len(pairs), length), self._recipe.pad_weight)
        padding = []
        for row, (prompt, answer) in enumerate(pairs):
            prompt_PT[row, longest - len(prompt) :] = torch.tensor(prompt)
            answer_PL[row, : len(answer)] = torch.tensor(answer)
            weight_PL[row, : len(answer)] = 1.0
            padding.append(longest - len(prompt))
        return TrainBatch(prompt_PT, answer_PL, torch.tensor(padding) if any(padding) else None, weight_PL)


@dataclass
class _Made:
    rows: list[list[Example]]
    count: int
    left_out: dict[str, tuple[int, tuple[str, ...]]]


def _examples(path: str, split: str, writer: "_Writer", progress: Callable[[int, int], None]) -> _Made:
    rows = read_rows(path, split)
    made, reasons = _Made([], len(rows), {}), dict[str, str]()
    for number, (where, row) in enumerate(rows):
        try:
            if isinstance(row, Exception):
                raise row
            made.rows.append(writer.examples(row))
        except InputError as error:
            # One line for each kind of reason, told as it was the first time.
            why = reasons.setdefault(_VARYING.sub("...", str(error)), str(error))
            count, named = made.left_out.get(why, (0, ()))
            made.left_out[why] = (count + 1, (*named, where)[:_WHY])
        if number % 100 == 0 or number + 1 == len(rows):
            progress(number + 1, len(rows))
    return made


def read_rows(path: str, split: str = "train") -> list[tuple[str, Any]]:
    """Rows of a file or data set, each with where it stands; a line that is no JSON comes as the error that it is.

    Args:
        path: see ``RowsData``.
        split: see ``RowsData``.

    Raises:
        TrainingError: it cannot be read, or the library that reads it is not installed.
    """
    file = Path(path)
    if file.suffix in (".jsonl", ".json", ".ndjson") and file.is_file():
        return list(_lines(file))
    try:
        import datasets  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        there = "is read" if file.exists() else "is no file of JSON Lines here, and else a data set"
        raise TrainingError(f"{path} {there} with the library datasets: pip install datasets") from error
    kinds = {".parquet": "parquet", ".csv": "csv"}
    try:
        if file.suffix in kinds:
            loaded = datasets.load_dataset(kinds[file.suffix], data_files=path, split="train")
        elif (file / "dataset_info.json").is_file():
            loaded = datasets.load_from_disk(path)
        else:
            loaded = datasets.load_dataset(path, split=split)
    except Exception as error:  # whatever the library raises for damage, absence and the network
        raise TrainingError(f"{path} cannot be loaded ({type(error).__name__}: {str(error)[:300]})") from error
    return [(f"row {number + 1}", row) for number, row in enumerate(loaded)]


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        content = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError):
                yield f"line {number}", InputError("the line is no JSON")


class _Writer:
    """From a row to examples, in the way of a checkpoint."""

    def __init__(
        self, tokenizer: Tokenizer, stop_ids: Sequence[int], bos: int | None, most: int, vocab_size: int, canvas: int
    ) -> None:
        self._tokenizer, self._stop_ids, self._bos = tokenizer, tuple(stop_ids), bos
        self._most, self._vocab, self._canvas = most, vocab_size, canvas

    def examples(self, row: Any) -> list[Example]:
        """The answers of a row, each after what stands before it.

        Raises:
            InputError: why it is left out.
        """
        if not isinstance(row, Mapping):
            raise InputError("the row is no object")
        if row.get("messages") is not None:
            result = list(self._conversation(row["messages"], row.get("tools")))
        elif row.get("prompt") is not None or row.get("completion") is not None:
            result = list(self._completion(row.get("prompt"), row.get("completion"), row.get("tools")))
        elif isinstance(row.get("text"), str):
            result = [self._made([] if self._bos is None else [self._bos], self._tokenizer.encode(row["text"]))]
        else:
            raise InputError("the row has neither messages, nor prompt and completion, nor text")
        if not result:
            raise InputError("the row has no answer of the assistant")
        for example in result:
            if len(example.prompt) > self._most:
                raise InputError(f"the prompt has more than {self._most} tokens (max_prompt)")
            if example.context(self._canvas) > self._most:
                raise InputError(
                    f"the prompt and the canvases of the answer before its last have more than {self._most} tokens (max_prompt)"
                )
            if max(example.prompt + example.answer) >= self._vocab:
                raise InputError("the tokenizer has more tokens than the model")
        return result

    def _completion(self, prompt: Any, completion: Any, tools: Any) -> Iterator[Example]:
        if isinstance(prompt, list) and isinstance(completion, list):  # TRL's conversational form
            yield from self._conversation([*prompt, *completion], tools)
        elif not isinstance(prompt, str) or not isinstance(completion, str):
            raise InputError("prompt and completion must both be texts, or both lists of messages")
        elif self._tokenizer.template is None:
            [ids] = prompt_ids(self._tokenizer, prompt, bos=self._bos)
            yield self._made(ids, self._tokenizer.encode(completion))
        else:
            said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            yield from self._conversation(said, tools)

    def _conversation(self, messages: Any, tools: Any) -> Iterator[Example]:
        template = self._tokenizer.template
        if template is None:
            raise InputError("the checkpoint has no chat template, so conversations cannot be learnt; give prompt and completion")
        if not isinstance(messages, list) or not all(
            isinstance(one, Mapping) and isinstance(one.get("role"), str) for one in messages
        ):
            raise InputError("messages must be a list of objects with a role")
        declared = _declared(tools)
        known: dict[str, Any] = {"tools": declared} if declared else {}
        for at, message in enumerate(messages):
            if message["role"] in _MODEL and at and message.get("weight", 1) != 0:
                before: list[Message] = messages[:at]
                # Thoughts follow the prompt that asks for them.
                asks: dict[str, Any] = (
                    {"enable_thinking": True} if _thinks(message) and "enable_thinking" in template.options else {}
                )
                options = PromptOptions(tools=declared, enable_thinking=True if asks else None)
                [ids] = prompt_ids(self._tokenizer, None, before, options, self._bos)
                opening = template.render(before, **known, **asks)
                whole = template.render(messages[: at + 1], add_generation_prompt=False, **known, **asks)
                yield self._made(ids, self._tokenizer.encode(_said(opening, whole)))

    def _made(self, prompt: Sequence[int], answer: Sequence[int]) -> Example:
        ends = [at for at, token in enumerate(answer) if token in self._stop_ids]
        # What a template writes after the end of a turn belongs to the next one.
        said = list(answer[: ends[-1] + 1]) if ends else [*answer, *self._stop_ids[:1]]
        if len(said) < 2:
            raise InputError("the answer is empty")
        if not prompt:
            raise InputError("there is nothing before the answer")
        return Example(tuple(prompt), tuple(said))


def _said(opening: str, whole: str) -> str:
    """What the model says: a rendered conversation with an answer, after its rendering ready for that answer.

    A template may open a turn with an empty thought, which it does not write again in the conversation (the released model's of
    2026-06-16): the answer then stands where that would.
    """
    closed = opening.removesuffix(_EMPTY_THOUGHT)
    for start in (opening, closed):
        if whole.startswith(start):
            return whole[len(start) :]
    raise InputError("the chat template begins a turn otherwise than it writes it, so an answer cannot be cut out")


def _thinks(message: Mapping[str, Any]) -> bool:
    return any(message.get(name) for name in REASONING)


def _declared(tools: Any) -> Any:
    """A row's tools; data sets of one column type keep them as JSON text."""
    try:
        declared = json.loads(tools) if isinstance(tools, str) and tools.strip() else tools
    except (ValueError, RecursionError) as error:
        raise InputError("tools is text that is no JSON") from error
    if declared and not isinstance(declared, list):
        raise InputError(f"tools is of type {type(declared).__name__}; give a list of declarations")
    return declared or None


def _digest(learnt: Sequence[Example], held: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for one in (*learnt, Example((), ()), *held):
        for ids in (one.prompt, one.answer):
            digest.update(array("q", ids).tobytes() + b"|")
    return digest.hexdigest()[:16]


def _keep_report(folder: Path, report: "RowsReport", path: str) -> None:
    """Write the report into a run's folder; a run that goes on must have the rows that it began with."""
    target = folder / "data.json"
    if target.is_file() and (folder / "state.pt").is_file():
        try:
            before = json.loads(target.read_text("utf-8")).get("digest")
        except (ValueError, AttributeError, RecursionError):
            before = None
        if before is not None and before != report.digest:
            raise TrainingError(
                f"{path} holds other rows than when the run in {folder} began, or another tokenizer writes them; put them back, "
                "or give another folder for a new run"
            )
    try:
        write_json(target, vars(report))
    except OSError as error:
        raise TrainingError(
            f"{target} cannot be written ({error.strerror or error}); free space, or give another folder"
        ) from error


def _report(made: _Made, learnt: Sequence[Example], held: Sequence[Example], canvas: int, tokenizer: Tokenizer) -> RowsReport:
    def spread(sizes: list[int]) -> tuple[int, int, int, int]:
        ordered = sorted(sizes)
        return ordered[0], ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.95)], ordered[-1]

    return RowsReport(
        rows=made.count,
        examples=len(learnt),
        canvases=sum((len(one.answer) - 1) // canvas + 1 for one in learnt),
        held_out=len(held),
        prompt_tokens=spread([len(one.prompt) for one in learnt]),
        answer_tokens=spread([len(one.answer) for one in learnt]),
        context_tokens=spread([one.context(canvas) for one in learnt]),
        left_out=made.left_out,
        digest=_digest(learnt, held),
        shown=tuple(
            (tokenizer.decode(one.prompt, skip_special=False), tokenizer.decode(one.answer, skip_special=False))
            for one in learnt[:_SHOWN]
        ),
    )
