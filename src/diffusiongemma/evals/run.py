"""A model, a task, examples -> outcomes -> scores."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.engine.events import Done, Draft, Result
from diffusiongemma.engine.request import Request, check
from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.evals.results import Outcome, ResultsFile, TaskReport, fingerprint, summarise
from diffusiongemma.generation import DiffusionGemmaModel, Mode, constrained_params
from diffusiongemma.tasks.base import EVAL_SEED, Example, PinnedTask, SchemaTask, Task, ToolTask
from diffusiongemma.text.markup import spell_call

__all__ = ["evaluate"]

_BATCH = 50
_LOGITS_BYTES, _LOGITS_BYTES_CPU = 512 << 20, 8 << 20
"""Bytes of a batch's logits in float32, were they held: measured when they were, and kept since larger batches win little on a CPU
(docs/lab-log.md)."""


def evaluate(
    model: DiffusionGemmaModel,
    task: Task,
    examples: Sequence[Example],
    *,
    mode: Mode = "diffusion",
    seed: int = EVAL_SEED,
    pinned: bool = False,
    constrained: bool = False,
    judged: bool = False,
    batch_size: int | None = None,
    results: ResultsFile | None = None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    **options: Any,
) -> TaskReport:
    """Let a model answer examples, and score the answers.

    Args:
        model: any checkpoint.
        task: judges.
        examples: ``task.examples(count, seed)``, or a part of them from the beginning.
        mode: the role that answers.
        seed: of the sampler; example i draws from seed + i.
        pinned: hold what is known of an answer fixed on the canvas; for tasks that are a ``PinnedTask``, diffusion only.
        constrained: hold each answer to its example's JSON schema; for tasks that are a ``SchemaTask``, diffusion only.
        judged: also note how sure the causal role and the canvas are of each answer (``judging.SIGNALS``).
        batch_size: examples at a time; None: 50, or fewer where their logits would be large. In float32 on a CPU results
            depend on it by rounding only.
        results: where outcomes are kept; examples that an earlier run finished there under the same settings are not run again.
        on_outcome: called with each outcome as it is there, those of an earlier run first.
        **options: sampling parameters; ``max_tokens`` is the task's own unless given.

    Returns:
        Scores of all examples and by group. An example the model cannot take (too long for its positions, or with
        characters its tokenizer does not have) scores 0 with the finish reason ``refused``.

    Raises:
        InputError: no examples, or the checkpoint's tokens do not allow pins.
        OptionError: an unknown option, a value outside what is allowed, or pins where there can be none.
    """
    if mode not in get_args(Mode):
        raise OptionError(f"mode is {mode!r}; allowed: {', '.join(get_args(Mode))}")
    if pinned and (mode != "diffusion" or not isinstance(task, PinnedTask)):
        raise OptionError(f"nothing can be pinned with the task {task.name} in mode {mode!r}; leave pinning out")
    if constrained and (pinned or mode != "diffusion" or not isinstance(task, SchemaTask)):
        raise OptionError(f"answers of {task.name} cannot be constrained to a schema in mode {mode!r}, or beside pins")
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}; it must be at least 1")
    given = {name: value for name, value in options.items() if value is not None}
    params = model.defaults.replaced(**{"max_tokens": task.max_tokens, **given, "seed": seed})
    params = constrained_params(params, given) if constrained else params
    together = 1 if isinstance(task, ToolTask) else batch_size or _batch_size(model)
    run = _Run(model, task, params, mode, pinned, constrained, judged, together)
    blank = run.blank(fingerprint(model) if results else "")
    blanks = [replace(blank, index=i, example=_example_key(example), group=example.group) for i, example in enumerate(examples)]
    outcomes = {index: done for index, empty in enumerate(blanks) if results and (done := results.get(empty.key))}
    for outcome in outcomes.values():
        on_outcome(outcome)
    resumed = len(outcomes)
    for outcome in run.outcomes(
        [(example, empty) for example, empty in zip(examples, blanks, strict=True) if empty.index not in outcomes]
    ):
        if results:
            results.add(outcome)
        outcomes[outcome.index] = outcome
        on_outcome(outcome)
    return summarise([outcomes[index] for index in range(len(examples))], resumed)


_Waiting = tuple[Example, Outcome]
"""An example and its outcome with nothing in it yet."""


@dataclass(frozen=True)
class _Run:
    model: DiffusionGemmaModel
    task: Task
    params: SamplingParams
    mode: Mode
    pinned: bool
    constrained: bool
    judged: bool
    batch_size: int

    def blank(self, model: str) -> Outcome:
        """An outcome of this run with nothing in it yet."""
        sampling = asdict(self.params)
        decides = ["seed + index", model, self.mode, self.pinned, str(self.model.dtype), self.model.device.type, sampling]
        decides += ["held"] if self.constrained else []
        decides += ["judged"] if self.judged else []
        decides += ["int8"] if self.model.transformer.int8_products else []
        return Outcome(
            task=self.task.name, index=-1, example="", group="", score=0.0, exact=None, text="", finish_reason="",
            model=model, mode=self.mode, settings=_hash(json.dumps(decides, sort_keys=True)), sampling=sampling,
        )  # fmt: skip

    def outcomes(self, waiting: Sequence[_Waiting]) -> Iterator[Outcome]:
        """The refused first, then batch after batch, each batch in the order its rows finish."""
        admitted = []
        for example, blank in waiting:
            if reason := self._refusal(example):
                yield replace(blank, finish_reason="refused", reason=reason)
            else:
                admitted.append((example, blank))
        for start in range(0, len(admitted), self.batch_size):
            yield from self._batch(admitted[start : start + self.batch_size])

    def _batch(self, batch: Sequence[_Waiting]) -> Iterator[Outcome]:
        # A seed for each example: with one for all, every canvas begins with the same noise, and the score is that noise's luck.
        options: dict[str, Any] = asdict(self.params) | {"seeds": [self.params.seed + blank.index for _, blank in batch]}
        if self.pinned:
            assert isinstance(self.task, PinnedTask)
            options["pins"] = [self.task.pins(self.model.tokenizer.encode, example) for example, _ in batch]
        if self.constrained:
            assert isinstance(self.task, SchemaTask)
            schemas = [self.task.schema(example) for example, _ in batch]
            options["response_format"] = [{"type": "json_schema", "json_schema": {"schema": schema}} for schema in schemas]
        if isinstance(self.task, ToolTask):
            options["tools"] = self.task.tools(batch[0][0])  # alone: tools are those of a whole batch
        if self.judged:
            options["logprobs"] = 0
        mark, unsure = time.perf_counter(), dict[tuple[int, int], float]()
        for event in self.model.stream([example.prompt for example, _ in batch], mode=self.mode, drafts=self.judged, **options):
            if isinstance(event, Draft):
                unsure[event.row, event.canvas] = sum(event.entropy) / len(event.entropy)
            elif isinstance(event, Done):
                seconds = time.perf_counter() - mark
                example, blank = batch[event.row]
                entropies = [nats for (row, _), nats in unsure.items() if row == event.row]
                blank = _with_signals(replace(blank, seconds=seconds), event.result, entropies)
                yield self._judged(example, blank, event.result)
                # Judging and writing down are not generating.
                mark = time.perf_counter()

    def _judged(self, example: Example, blank: Outcome, result: Result) -> Outcome:
        calls = result.tool_calls if isinstance(self.task, ToolTask) else []
        text = "".join([result.text, *(f"<|tool_call>{spell_call(call.name, call.arguments)}<tool_call|>" for call in calls)])
        return replace(
            blank,
            score=self.task.score(example, text),
            exact=None if example.answer is None else text.strip() == example.answer.strip(),
            text=text,
            finish_reason=result.finish_reason,
            steps=result.usage.denoising_steps,
            canvases=len(result.canvases),
            completion_tokens=result.usage.completion_tokens,
            commit_passes=result.usage.commit_passes,
        )

    def _refusal(self, example: Example) -> str:
        """Why the model cannot take an example; empty where it can."""
        try:
            (ids,) = self.model.prompt_ids(example.prompt)
            check(self.model.transformer, Request(prompt=ids, params=self.params, mode=self.mode))
        except InputError as error:
            return str(error)
        return ""


def _with_signals(blank: Outcome, result: Result, entropies: Sequence[float]) -> Outcome:
    """An outcome with how sure the roles are of its answer, where that was asked for."""
    logprobs = [one.logprob for one in result.logprobs]
    if not logprobs:
        return blank
    mean = sum(entropies) / len(entropies) if entropies else None
    return replace(blank, confidence=sum(logprobs) / len(logprobs), least=min(logprobs), entropy=mean)


def _example_key(example: Example) -> str:
    return _hash(f"{example.prompt}\0{example.answer}")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]


def _batch_size(model: DiffusionGemmaModel) -> int:
    row = 4 * model.config.canvas_length * model.config.text.vocab_size
    most = _LOGITS_BYTES_CPU if model.device.type == "cpu" else _LOGITS_BYTES
    return max(1, min(_BATCH, most // row))
