"""Results as lines of a file: one an example, appended as it finishes, found again by a later run; and what they add up to."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.lines import LinesFile, json_line

__all__ = ["Outcome", "ResultsFile", "Score", "TaskReport", "default_path", "fingerprint", "summarise"]

_HASHED_BYTES = 1 << 30
"""Up to here weights are told apart by their bytes, above by name, size and time: reading 50 GB would take minutes."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one example: a line of a results file.

    Attributes:
        task: its name.
        index: of the example, from 0.
        example: hash of its prompt and answer, so that a line is never taken for another example's.
        group: the part of the task it is also reported under; empty: none.
        score: 0 to 1.
        exact: whether the text is the example's answer up to white space at the ends; None where it has none.
        text: what the model wrote.
        finish_reason: ``stop``, ``length``, or ``refused``: the model was not asked.
        reason: why it was refused; empty otherwise.
        steps: denoising passes, all canvases (causal mode: 0).
        canvases: how many.
        completion_tokens: of the answer, its stop token included.
        commit_passes: see ``Usage``.
        confidence, least: mean and least log-probability of its tokens by the causal role, in nats; None where it was not judged.
        entropy: mean nats of the canvases' last step; None where it was not judged, or there is no canvas.
        seconds: wall time since the example before it finished: a batch shares its time, and the sum over all is that of the run.
        model: fingerprint of the checkpoint.
        mode: ``diffusion`` or ``causal``.
        settings: key of everything that decides the answer: checkpoint, mode, dtype, device, pins, sampling parameters.
        sampling: the sampling parameters.
    """

    task: str
    index: int
    example: str
    group: str
    score: float
    exact: bool | None
    text: str
    finish_reason: str
    reason: str = ""
    steps: int = 0
    canvases: int = 0
    completion_tokens: int = 0
    commit_passes: int = 0
    confidence: float | None = None
    least: float | None = None
    entropy: float | None = None
    seconds: float = 0.0
    model: str = ""
    mode: str = "diffusion"
    settings: str = ""
    sampling: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What tells a line from all others."""
        return self.settings, self.task, self.index, self.example


class ResultsFile:
    """Lines of results that several runs share, one after the other (``lines.LinesFile``).

    A file of other settings keeps its lines. A last line that was cut short (the machine stopped) is taken away.

    Args:
        path: made with its folders.
        fresh: know nothing of the lines that are there; of two lines for one example the later counts.

    Raises:
        InputError: the file cannot be read or made, another run writes to it, or a line other than a cut last one is not a result.
    """

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.path = path
        self._file = LinesFile(path, "results", _outcome)
        outcomes = [] if fresh else self._file.entries
        self._known = {outcome.key: outcome for outcome in outcomes}

    def get(self, key: tuple[str, str, int, str]) -> Outcome | None:
        """The line of a key, if an earlier run wrote it."""
        return self._known.get(key)

    def add(self, outcome: Outcome) -> None:
        """Append a line: it is in the file when this returns, even if the process is killed next.

        Raises:
            InputError: it cannot be written (a full disk).
        """
        self._file.append(json_line(asdict(outcome)))
        self._known[outcome.key] = outcome

    def close(self) -> None:
        """Let another run write to the file."""
        self._file.close()


def _outcome(line: bytes, where: str) -> Outcome:
    wrong = f"{where} is not a result of an evaluation; name another file with --out, or take the line out"
    try:
        return Outcome(**json.loads(line))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(wrong) from error


def default_path(model: str, mode: str) -> Path:
    """Where results of a checkpoint are kept unless told otherwise: ``runs/eval/MODEL-MODE.jsonl``."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", model).strip("-.") or "model"
    return Path("runs") / "eval" / f"{name}-{mode}.jsonl"


def fingerprint(model: DiffusionGemmaModel) -> str:
    """A hash of a checkpoint's files: configuration, tokenizer, chat template and weights.

    Raises:
        OptionError: the model was made in memory.
    """
    if model.folder is None:
        raise OptionError("a model made in memory has no files to know it by; save it and load it, or keep no results")
    digest = hashlib.sha256()
    paths = [path for pattern in ("*.json", "*.jinja", "*.safetensors") for path in sorted(model.folder.glob(pattern))]
    if model.folder.is_file():
        paths = [model.folder]
    large = sum(path.stat().st_size for path in paths) > _HASHED_BYTES
    for path in paths:
        digest.update(f"\n{path.name}\n".encode())
        if large and path.suffix in (".safetensors", ".gguf"):
            digest.update(f"{path.stat().st_size} {path.stat().st_mtime_ns}".encode())
        else:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Score:
    """What some outcomes add up to.

    Attributes:
        examples: how many.
        score: their mean.
        right: share of them with score 1.
        exact: share with the very text of the answer; None where the task has no single answer.
        mean_steps: denoising passes a canvas; None without canvases (causal mode).
        tokens_per_forward: completion tokens / denoising passes (causal mode: / tokens decoded); None where nothing ran.
        tokens_per_forward_with_commits: the same, passes that write a canvas into the cache counted too.
        completion_tokens: all of them.
        finish_reasons: how often each, most frequent first.
    """

    examples: int
    score: float
    right: float
    exact: float | None
    mean_steps: float | None
    tokens_per_forward: float | None
    tokens_per_forward_with_commits: float | None
    completion_tokens: int
    finish_reasons: dict[str, int]


@dataclass(frozen=True)
class TaskReport:
    """Scores of a task.

    Attributes:
        task: its name.
        mode: ``diffusion`` or ``causal``.
        seconds: wall time of generating, all runs that took part (a batch mixes groups, so groups have none).
        tokens_per_second: completion tokens / ``seconds``; None where nothing ran.
        total: of all examples.
        groups: by group, in alphabetical order; empty where the task has none.
        resumed: how many examples were taken from an earlier run.
        refusal: why examples were refused (the first reason); empty: none was.
    """

    task: str
    mode: str
    seconds: float
    tokens_per_second: float | None
    total: Score
    groups: dict[str, Score]
    resumed: int
    refusal: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, the total's beside the task's."""
        data = asdict(self)
        return {"task": data.pop("task"), "mode": data.pop("mode"), **data.pop("total"), **data}


def summarise(outcomes: Sequence[Outcome], resumed: int = 0) -> TaskReport:
    """Add up the outcomes of one task, whichever run they come from.

    Raises:
        InputError: there are none.
    """
    if not outcomes:
        raise InputError("there are no examples; ask for at least one")
    groups = sorted({outcome.group for outcome in outcomes} - {""})
    total, seconds = _score(outcomes), sum(outcome.seconds for outcome in outcomes)
    return TaskReport(
        task=outcomes[0].task,
        mode=outcomes[0].mode,
        seconds=seconds,
        tokens_per_second=_ratio(total.completion_tokens, seconds),
        total=total,
        groups={group: _score([outcome for outcome in outcomes if outcome.group == group]) for group in groups},
        resumed=resumed,
        refusal=next((outcome.reason for outcome in outcomes if outcome.reason), ""),
    )


def _score(outcomes: Sequence[Outcome]) -> Score:
    count = len(outcomes)
    exact = [outcome.exact for outcome in outcomes if outcome.exact is not None]
    steps, canvases = sum(outcome.steps for outcome in outcomes), sum(outcome.canvases for outcome in outcomes)
    commits = sum(outcome.commit_passes for outcome in outcomes)
    tokens = sum(outcome.completion_tokens for outcome in outcomes)
    return Score(
        examples=count,
        score=sum(outcome.score for outcome in outcomes) / count,
        right=sum(outcome.score == 1 for outcome in outcomes) / count,
        exact=sum(exact) / len(exact) if exact else None,
        mean_steps=_ratio(steps, canvases),
        tokens_per_forward=_ratio(tokens, steps or commits),
        tokens_per_forward_with_commits=_ratio(tokens, steps + commits),
        completion_tokens=tokens,
        finish_reasons=dict(Counter(outcome.finish_reason for outcome in outcomes).most_common()),
    )


def _ratio(over: float, under: float) -> float | None:
    return over / under if under else None
