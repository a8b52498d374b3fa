"""The training loop: a run is a folder, and a killed run goes on from it exactly.

A folder holds ``recipe.json`` (what was asked), ``state.pt`` (weights, optimisers, step), ``log.jsonl`` (a line a step,
evaluations among them), ``loss.png`` and ``model/`` (a checkpoint that ``from_pretrained`` loads).
Every batch and every random number is a function of (recipe seed, step): a resumed run computes what an unbroken one would.
"""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusiongemma.diffusion import Corrupted, noise_levels
from diffusiongemma.errors import InputError, TrainingError
from diffusiongemma.lines import LinesFile, json_line
from diffusiongemma.training.data import HeldOut, TrainBatch, TrainData
from diffusiongemma.training.loss import causal_loss, compiled_parts, losses
from diffusiongemma.training.plot import plot_losses
from diffusiongemma.training.recipe import Recipe, data_kinds
from diffusiongemma.training.subject import make_subject
from diffusiongemma.weights.stream import write_json

__all__ = ["Hooks", "TrainRun", "learning_rate"]

_HELD_OUT = 64
"""Examples that the held-out losses are taken on."""
Evaluate = Callable[[Path], dict[str, Any]]


@dataclass(frozen=True)
class Hooks:
    """What a caller wants to see of a run.

    Attributes:
        evaluate: judges the checkpoint folder it is given; its numbers go into the log.
        on_step: called with each line of the log.
        on_data: called with (done, of) while data is made.
    """

    evaluate: Evaluate | None = None
    on_step: Callable[[dict[str, Any]], None] = field(default=lambda line: None)
    on_data: Callable[[int, int], None] = field(default=lambda done, of: None)


class TrainRun:
    """A training run in a folder; made anew, or picked up where it was left.

    Args:
        recipe: what to train.
        folder: of the run; made if it is not there.
        device: where to train; on CUDA the passes run in bfloat16 autocast.
        compile_model: whether to compile the losses (a minute or two at the start, faster after it: docs/lab-log.md).
        hooks: see ``Hooks``.

    Raises:
        TrainingError: the folder holds a run of another recipe or one that is under way, a state that cannot be read, or cannot be
            written to.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        device: str = "cpu",
        compile_model: bool = False,
        hooks: Hooks | None = None,
    ) -> None:
        self.recipe, self.folder, self.hooks = recipe, folder, hooks or Hooks()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{folder} cannot be the folder of a run: {error.strerror or error}; give another one") from error
        self._log().close()  # who finds another run here learns it before the data is made
        self._claim()
        self._data = _data(recipe, folder, self.hooks.on_data)
        resumed = (folder / "state.pt").exists()
        self._subject = make_subject(recipe, self._data, device, resumed)
        self.model = self._subject.model
        self._trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        self._average = {name: weight.detach().clone() for name, weight in self._trained.items()} if recipe.train.average else {}
        self._optimisers = _optimisers(self._trained, recipe)
        self._parts = compiled_parts(self.model) if compile_model else None
        self.step = self._kept = 0
        self._line: dict[str, Any] | None = None
        self._stamp: tuple[int, int] | None = None
        if resumed:
            self._restore()

    def train(self) -> Path:
        """Run to the recipe's last step, or until SIGINT or SIGTERM, which stop after the step in hand and keep the state.

        Returns:
            The checkpoint folder.
        """
        t = self.recipe.train
        with self._log() as log, _stop_requested() as stop:
            self._go_on(log)
            while self.step < t.steps and not stop.is_set():
                began = time.perf_counter()
                self._line = self._step() | {"step": self.step + 1}
                self.step += 1
                if self.step % t.checkpoint_every == 0 or self.step == t.steps:
                    self._keep()
                self._tell(log, began)
            if self.step != self._kept:
                self._keep()
            plot_losses(self.folder / "log.jsonl", self.folder / "loss.png")
            return self.export()

    def _log(self) -> LinesFile[dict[str, Any]]:
        """The log, and with it the folder: one run at a time."""
        try:
            return LinesFile(self.folder / "log.jsonl", "the log", _log_line)
        except InputError as error:
            raise TrainingError(str(error)) from error

    def _go_on(self, log: LinesFile[dict[str, Any]]) -> None:
        """Make the log that of the state: lines of steps after it are of work that was lost and is done again."""
        if _stamp(self.folder / "state.pt") != self._stamp:
            raise TrainingError(f"another run has gone on in {self.folder} since this one was begun; begin it again")
        log.keep(next((at for at, line in enumerate(log.entries) if line["step"] > self.step), len(log.entries)))
        if self._line is not None and (not log.entries or log.entries[-1]["step"] < self.step):
            self._tell(log, time.perf_counter())  # the state was kept, and its line not yet written

    def _tell(self, log: LinesFile[dict[str, Any]], began: float) -> None:
        """Evaluate where it is due, and write the line of the last step."""
        assert self._line is not None
        line = dict(self._line)
        if self.step % self.recipe.eval.every == 0 or self.step == self.recipe.train.steps:
            line |= self._evaluate()
        line |= {"step": self.step, "seconds": time.perf_counter() - began}
        log.append(json_line(line))
        self.hooks.on_step(line)

    def export(self) -> Path:
        """Write the weights as they are now: a checkpoint in bfloat16, or adapters."""
        target = self.folder / "model"
        target.mkdir(exist_ok=True)
        tensors = {**self.model.state_dict(), **self._average}
        if not self._subject.partial:
            tensors = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
        self._subject.export(target, tensors)
        return target

    def _step(self) -> dict[str, Any]:
        """One update: data, noise, both losses, gradient, optimisers."""
        t = self.recipe.train
        for optimiser, peak in zip(self._optimisers, (t.adamw_lr, t.muon_lr), strict=False):
            for group in optimiser.param_groups:
                group["lr"] = peak * learning_rate(
                    self.step, t.steps, t.warmup, t.decay, t.floor if t.schedule == "cosine" else None
                )
        parts = self._backward()
        norm = torch.nn.utils.clip_grad_norm_(self._trained.values(), t.clip)
        if not torch.isfinite(norm):
            said = ", ".join(f"{name} {loss.item():.4g}" for name, loss in parts.items())
            raise TrainingError(
                f"the gradient is not finite at step {self.step} ({said}; batch {self.step * t.accumulate} of the data); lower the "
                f"learning rates. The state of step {self._kept} is kept"
            )
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad()
        if self._average:
            kept = min(t.average, (1 + self.step) / (10 + self.step))
            named = dict(self.model.named_parameters())
            torch._foreach_lerp_(list(self._average.values()), [named[name].detach() for name in self._average], 1 - kept)
        return {name: loss.item() for name, loss in parts.items()}

    def _backward(self) -> dict[str, Tensor]:
        """Losses of this step's batches, on average, and their gradients on the weights."""
        t, device = self.recipe.train, self.model.device
        narrow = device.type == "cuda" or t.compute == "bfloat16"
        summed: dict[str, Tensor] = {}
        for number in range(self.step * t.accumulate, (self.step + 1) * t.accumulate):
            with torch.autocast(device.type, torch.bfloat16) if narrow else nullcontext():
                parts = self._losses(number)
                weights = {"causal": t.causal_weight if self.step >= t.causal_steps else 1.0}
                total = sum((loss * weights.get(name, 1.0) for name, loss in parts.items()), torch.zeros((), device=device))
            torch.autograd.backward(total / t.accumulate)
            for name, loss in parts.items():
                summed[name] = summed.get(name, torch.zeros((), device=device)) + loss.detach() / t.accumulate
        return summed

    def _losses(self, number: int) -> dict[str, Tensor]:
        """The losses of a batch of the data."""
        t = self.recipe.train
        if self.step < t.causal_steps:
            return {
                "causal": causal_loss(self.model, self._data.batch(number, t.causal_prompts).to(self.model.device), self._parts)
            }
        batch, corrupted = self._noisy_batch(self._data.batch(number, t.prompts), number)
        causal = t.causal_every > 0 and self.step % t.causal_every == 0
        conditioned = round(t.canvases * t.self_conditioning)
        if 0 < t.canvases * t.self_conditioning < 1:  # one canvas a prompt: by chance
            conditioned = int(torch.rand((), generator=torch.Generator().manual_seed(number)) < t.self_conditioning)
        denoising, next_token = losses(self.model, batch, corrupted, conditioned, causal, self._parts)
        return {"denoising": denoising, "causal": next_token} if causal else {"denoising": denoising}

    def _noisy_batch(self, batch: TrainBatch, number: int) -> tuple[TrainBatch, Corrupted]:
        t, device, process = self.recipe.train, self.model.device, self.model.process
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + number)
        clean = batch.answer_PL.repeat_interleave(t.canvases, 0)
        levels = noise_levels(len(clean), generator, max(process.min_level, t.min_noise), t.high_noise)
        keep = torch.zeros_like(clean, dtype=torch.bool)
        if batch.pinned_PL is not None:
            every_other = torch.arange(len(clean)) % 2 == 0
            keep = batch.pinned_PL.repeat_interleave(t.canvases, 0) & every_other[:, None]
        corrupted = process.corrupt(clean, levels, keep, generator)
        if t.loss_weighting != "plain":
            factor = 1 / (1 - levels).clamp(min=1e-3)
            weight = (factor / factor.mean())[:, None].expand(clean.shape)
            corrupted = corrupted._replace(weight_BL=weight if corrupted.weight_BL is None else weight * corrupted.weight_BL)
        return batch.to(device), corrupted.to(device)

    @torch.no_grad()
    def _held_out(self) -> dict[str, Any]:
        """Both losses on examples that are not learnt, with the same noise each time; nothing where there are none."""
        if not isinstance(self._data, HeldOut) or not self._data.held_out:
            return {}
        examples, t = self._data.held_out[:_HELD_OUT], self.recipe.train
        parts: dict[str, list[float]] = {"denoising": [], "causal": []}
        for start in range(0, len(examples), t.prompts):
            batch = self._data.batch_of(examples[start : start + t.prompts], torch.Generator().manual_seed(start))
            moved, corrupted = self._noisy_batch(batch, start)
            for name, loss in zip(parts, losses(self.model, moved, corrupted, 0, True), strict=True):
                parts[name].append(loss.item())
        return {"held_out": {name: sum(each) / len(each) for name, each in parts.items()}}

    def _evaluate(self) -> dict[str, Any]:
        folder = self.export()
        plot_losses(self.folder / "log.jsonl", self.folder / "loss.png")
        return self._held_out() | (self.hooks.evaluate(folder) if self.hooks.evaluate else {})

    def _claim(self) -> None:
        asked = self.recipe.model_dump(mode="json")
        path = self.folder / "recipe.json"
        if path.is_file():
            try:
                there = _what_decides(Recipe(**json.loads(path.read_text("utf-8"))).model_dump(mode="json"))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise TrainingError(f"{path} cannot be read ({error}); remove it if the folder holds the run you mean") from error
            if there != _what_decides(asked):
                raise TrainingError(
                    f"{self.folder} holds a run of another recipe (see {path}); give another folder, or remove this one"
                )
        write_json(path, asked)

    def _keep(self) -> None:
        state = {
            "step": self.step,
            "model": dict(self._trained) if self._subject.partial else self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
            "line": json.dumps(self._line),
            "average": self._average,
        }
        target, part = self.folder / "state.pt", self.folder / "state.pt.part"
        try:
            with part.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise TrainingError(f"{target} cannot be kept ({error}); the one before stays. Free space and go on") from error
        self._stamp, self._kept = _stamp(target), self.step

    def _restore(self) -> None:
        path = self.folder / "state.pt"
        self._stamp = _stamp(path)
        try:
            state = torch.load(path, map_location=self.model.device, weights_only=True)
            missing, odd = self.model.load_state_dict(state["model"], strict=not self._subject.partial)
            if odd or set(missing) & set(self._trained):
                raise ValueError(f"it has other weights: {', '.join([*odd, *missing][:3])}")
            for optimiser, kept in zip(self._optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(kept)
            for name, tensor in self._average.items():
                tensor.copy_(state["average"][name])
            self.step = self._kept = int(state["step"])
            self._line = json.loads(state.get("line", "null"))
        except Exception as error:  # whatever pickle, zip and torch make of a damaged file
            raise TrainingError(f"{path} cannot be resumed ({_first_line(error)}); remove it to begin anew") from error


def _log_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        result = json.loads(line)
        int(result["step"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{where} is no line of a training log; take it and all lines after it out") from error
    assert isinstance(result, dict)
    return result


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells a file from another of its name; None: there is none."""
    try:
        result = path.stat()
    except FileNotFoundError:
        return None
    return result.st_ino, result.st_mtime_ns


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _what_decides(recipe: dict[str, Any]) -> dict[str, Any]:
    """What makes a run another run: not its length, which one may change on the way, nor how it is looked at."""
    uniform = {"process": {"name": "uniform"}}  # of recipes from before there was another
    return {**uniform, **recipe, "eval": {}, "train": {**recipe["train"], "steps": 0, "checkpoint_every": 0}}


def _data(recipe: Recipe, folder: Path, progress: Callable[[int, int], None]) -> TrainData:
    kind: Callable[..., TrainData] = data_kinds()[recipe.data.kind]
    return kind(recipe.data, recipe.seed, folder, progress)


def learning_rate(step: int, steps: int, warmup: int, decay: float, floor: float | None = None) -> float:
    """Factor on the peak learning rate: a linear warm-up, flat, then over the last ``decay`` of the steps linear to zero, or by
    half a cosine to ``floor``."""
    up = min(1.0, (step + 1) / max(warmup, 1))
    down = min(1.0, (steps - step) / max(decay * steps, 1))
    return up * (down if floor is None else floor + (1 - floor) * (1 - math.cos(math.pi * down)) / 2)


def _optimisers(weights: Mapping[str, Tensor], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for vectors, embeddings, routers and experts; Muon for the matrices of attention and dense layers. Or AdamW for all."""
    t = recipe.train
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, weight in weights.items():
        hidden_matrix = weight.ndim == 2 and "embed" not in name and "router" not in name and t.optimiser == "muon"
        (matrices if hidden_matrix else rest).append(weight)
    adamw = torch.optim.AdamW(rest, lr=t.adamw_lr, betas=t.betas, weight_decay=t.weight_decay)
    if not matrices:
        return [adamw]
    return [adamw, torch.optim.Muon(matrices, lr=t.muon_lr, weight_decay=t.weight_decay, adjust_lr_fn="match_rms_adamw")]


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set (in the main thread), so that a step is never cut in the middle."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.signal(number, lambda *_: event.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
