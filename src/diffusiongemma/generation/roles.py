"""Which role of a checkpoint is faster on this machine: tokens a second of diffusion and of the causal role, before either has run.

A sample of the stack is built and timed: one and three layers of random weights in the checkpoint's widths and formats, with part
of its experts and of its vocabulary. A whole pass is what a pass over the sample takes, plus what the layers, experts and rows of
the head that it lacks take by the same rates. All of it is one row alone, in this process's threads.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models

from diffusiongemma import quant
from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.engine.events import Commit, Draft, Result
from diffusiongemma.engine.offline import OfflineEngine
from diffusiongemma.engine.request import Mode, Request
from diffusiongemma.generation.machine import synchroniser
from diffusiongemma.generation.resident import Resident
from diffusiongemma.model.assemble import assemble
from diffusiongemma.model.cache import KVCache, RowCache
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.expected import text_shapes
from diffusiongemma.model.fast import TABLE, rounds_to_int8
from diffusiongemma.model.layers import Layer
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.quant.fast_int8 import KIND as INT8_PRODUCTS
from diffusiongemma.quant.fast_int8 import FastPacked
from diffusiongemma.quant.samples import sample
from diffusiongemma.text.tokenizer import Tokenizer

__all__ = ["AUTO", "RoleRates", "Roles", "measure_roles", "touched_experts", "weights_of"]

AUTO = "auto"
"""The mode that is chosen here."""
_LAYERS = 2
"""What the larger sample has more than the smaller."""
_MAX_EXPERT_WEIGHTS = 1 << 25
"""Of a layer of the sample."""
_MAX_ROWS = 1 << 15
"""Of its vocabulary: many, since what a call costs besides is multiplied with what is lacking."""
_STEPS, _TOKENS = 3, 9
"""Of the sample that are timed, after one more that warms up; the middle one counts: the shortest of short passes fall where
nothing else runs, which long passes cannot."""
_ATTEMPTS = 3
_NOWHERE = Path()


@dataclass(frozen=True)
class RoleRates:
    """Seconds of one row alone.

    Attributes:
        canvas_length: tokens of a canvas.
        step: a denoising step with all that belongs to it.
        commit: the encoder pass over a finished canvas.
        token: a token of the causal role.
    """

    canvas_length: int
    step: float
    commit: float
    token: float

    def tokens_per_second(self, mode: Mode, steps: float, tokens: float | None = None) -> float:
        """New tokens a second.

        Args:
            mode: the role.
            steps: denoising steps a canvas.
            tokens: of a canvas that belong to the answer; None: all.
        """
        if mode == "causal":
            return 1 / self.token
        return (self.canvas_length if tokens is None else tokens) / (steps * self.step + self.commit)

    def max_steps(self, tokens: float | None = None) -> float:
        """Steps a canvas up to which diffusion is the faster; below 1: never."""
        return ((self.canvas_length if tokens is None else tokens) * self.token - self.commit) / self.step

    def faster(self, steps: float, tokens: float | None = None) -> Mode:
        """The role with more tokens a second."""
        return "diffusion" if steps <= self.max_steps(tokens) else "causal"


class Roles:
    """Which role ``mode="auto"`` takes of a loaded model: the faster, at the steps and tokens a canvas that were seen of it.

    Attributes:
        rates: measured when they are first needed, and kept; or given.
    """

    def __init__(self) -> None:
        self.rates: RoleRates | None = None
        self._measuring = threading.Lock()
        self._canvases = self._steps = self._tokens = 0

    def saw(self, result: Result) -> None:
        """Count the canvases of an answer."""
        for canvas in result.canvases:
            self._canvases += 1
            self._steps += canvas.steps
            self._tokens += canvas.tokens

    def choose(self, model: Transformer) -> Mode:
        """The role; diffusion as long as no canvas has been seen."""
        if not self._canvases:
            return "diffusion"
        with self._measuring:
            if self.rates is None:
                self.rates = measure_roles(
                    model.config,
                    weights_of(model),
                    model.dtype,
                    model.device,
                    quantize="int8" if model.int8_products else None,
                    batch_invariant=model.batch_invariant,
                )
        return self.rates.faster(self._steps / self._canvases, self._tokens / self._canvases)


def weights_of(model: Transformer) -> list[Resident]:
    """What is known of the weights of a loaded stack."""
    kinds = {name: record.packed if isinstance(record, FastPacked) else record for name, record in model.packed()}
    result = [Resident(name, record.shape, record.nbytes, record.kind) for name, record in kinds.items()]
    return result + [Resident(name, tuple(one.shape), one.nbytes, "plain") for name, one in model.state_dict().items()]


def measure_roles(
    config: ModelConfig,
    weights: Iterable[Resident],
    dtype: torch.dtype,
    device: torch.device | None = None,
    *,
    quantize: str | None = None,
    context: int = 128,
    batch_invariant: bool = True,
) -> RoleRates:
    """Measure a sample of a checkpoint's stack, a few seconds at most, and tell what the whole one takes.

    Args:
        config: of the checkpoint.
        weights: how they are stored.
        dtype: of the computation.
        device: None: the CPU.
        quantize: as for ``from_pretrained``.
        context: tokens before the canvas; fewer where the model has no room.
        batch_invariant: see ``Transformer``.
    """
    place = device or torch.device("cpu")
    context = max(1, min(context, config.text.max_position_embeddings - 2 * config.canvas_length))
    kinds = {weight.name: weight for weight in weights}
    small, large = (_Sample(config, kinds, layers, dtype, place, quantize, batch_invariant) for layers in (1, 1 + _LAYERS))
    more = (config.text.num_hidden_layers - 1) / _LAYERS
    first, second = (one.rates(context) for one in (small, large))
    step, commit, token = (a + more * max(b - a, 0.0) for a, b in zip(first, second, strict=True))
    lacking = large.lacking()
    return RoleRates(config.canvas_length, step + lacking[0], commit + lacking[1], token + lacking[2])


class _Sample:
    """A stack of few layers, experts and tokens.

    Args: see ``measure_roles``; layers: how many.
    """

    def __init__(
        self, config: ModelConfig, kinds: dict[str, Resident], layers: int, dtype: torch.dtype, device: torch.device,
        quantize: str | None, batch_invariant: bool,
    ) -> None:  # fmt: skip
        text = config.text
        expert = max(1, 3 * text.hidden_size * text.moe_intermediate_size)
        experts = min(text.num_experts, max(text.top_k_experts, _MAX_EXPERT_WEIGHTS // expert))
        self._whole, self._device, self._dtype = config, device, dtype
        self._text = replace(
            text, num_hidden_layers=layers, num_experts=experts, vocab_size=min(text.vocab_size, _MAX_ROWS),
            layers=(*text.layers[: layers - 1], text.layers[-1]),
        )  # fmt: skip
        keeps = device.type == "cpu" and any(one.kind != "plain" for one in kinds.values())
        made = replace(config, text=self._text, source={}, image_token_id=None)
        weights = (
            (name, self._weight(name, shape, kinds, layers, quantize, keeps)) for name, shape in text_shapes(self._text).items()
        )
        self._model = assemble(made, weights, dtype, device, keep=keeps)
        self._model.int8_products = quantize == "int8"
        self._model.batch_invariant = batch_invariant
        words = Tokenizer(Backend(models.WordLevel({"<unk>": 0}, unk_token="<unk>")), None, _NOWHERE)
        self._engine = OfflineEngine(self._model, words)
        self._wait = synchroniser(device)

    def _weight(
        self, name: str, shape: tuple[int, ...], kinds: dict[str, Resident], layers: int, quantize: str | None, keeps: bool
    ) -> quant.StoredWeight:
        # The sample's last layer is the checkpoint's last: a full one.
        last = self._whole.text.num_hidden_layers - 1
        like = kinds[name.replace(f"layers.{layers - 1}.", f"layers.{last}.") if name.startswith("layers.") else name]
        dtype = {2: torch.bfloat16, 4: torch.float32}.get(like.nbytes // max(math.prod(like.shape), 1), torch.float32)
        if quantize == "int8" and rounds_to_int8(name):
            stored = "plain" if like.kind == INT8_PRODUCTS else like.kind
            return quant.fast_int8(sample(stored, shape, torch.float32), table=name == TABLE)
        return sample(like.kind, shape, dtype if keeps else self._dtype)

    def rates(self, context: int) -> tuple[float, float, float]:
        """Seconds of a step, a commit and a causal token: the middle of a few."""
        length = self._whole.canvas_length
        steps = self._gaps("diffusion", context, length, _STEPS + 1, Draft)
        commit = self._best(lambda: self._model.encode_rows([[0] * length], [self._model_cache(length)]))
        tokens = self._gaps("causal", context, _TOKENS + 2, 1, Commit)
        return median(steps), commit, median(tokens[1:])

    def _gaps(self, mode: Mode, context: int, tokens: int, steps: int, told: type[Draft] | type[Commit]) -> list[float]:
        """Seconds between the events of a generation; what is new at its beginning is before the first."""
        params = SamplingParams(num_diffusion_steps=steps, early_stop=False, max_tokens=tokens)
        request = Request(prompt=[0] * context, params=params, mode=mode, drafts=True)
        times = []
        for event in self._engine.run([request]):
            if isinstance(event, told):
                self._wait()
                times.append(time.perf_counter())
        return [after - before for before, after in pairwise(times)]

    def _model_cache(self, length: int) -> RowCache:
        return KVCache(self._text, 1, length, self._dtype, self._device).rows[0]

    def lacking(self) -> tuple[float, float, float]:
        """What a step, a commit and a token of the whole model take for the experts and the rows of the head that are not here."""
        length, layers = self._whole.canvas_length, self._whole.text.num_hidden_layers
        rows = self._whole.text.vocab_size / self._text.vocab_size - 1
        head, logits = (self._head(length), self._logits()) if rows else (0.0, 0.0)
        canvas, token = layers * self._experts(length), layers * self._experts(1)
        return rows * head + canvas, canvas, rows * logits + token

    def _head(self, length: int) -> float:
        hidden = torch.randn(1, length, self._text.hidden_size, device=self._device).to(self._dtype)
        temperature_, keys = torch.ones(1, device=self._device), torch.zeros(1, length, dtype=torch.int64, device=self._device)
        return self._best(lambda: self._model.canvas_head(hidden, temperature_, keys, keys, soft={None: None}))

    def _logits(self) -> float:
        hidden = torch.randn(1, self._text.hidden_size, device=self._device).to(self._dtype)
        return self._best(lambda: self._model.logits(hidden).argmax())

    def _experts(self, tokens: int) -> float:
        """What a layer's experts take more in the whole model."""
        whole, text = self._whole.text, self._text
        if whole.num_experts == text.num_experts:  # all of them, or none
            return 0.0
        layer = self._model.layers[0]
        assert isinstance(layer, Layer)
        touched = touched_experts(whole.num_experts, whole.top_k_experts, tokens)
        # Here all are touched, by as many tokens each as in the whole model.
        each = max(1, round(tokens * whole.top_k_experts / touched))
        used = min(text.num_experts, math.ceil(touched))
        here = self._best(lambda: self._apply(layer, tokens, text.top_k_experts, text.num_experts))
        there = self._best(lambda: self._apply(layer, each * used, 1, used))
        return touched / used * there - here

    def _apply(self, layer: Layer, tokens: int, chosen: int, used: int) -> None:
        x_TD = torch.ones(tokens, self._text.hidden_size, device=self._device, dtype=self._dtype)
        index_TX = (torch.arange(tokens * chosen, device=self._device) % used).view(tokens, chosen)
        layer.experts(x_TD, quant.Routing(index_TX, torch.ones(tokens, chosen, device=self._device)))

    @torch.inference_mode()
    def _best(self, work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(1 + _ATTEMPTS):
            self._wait()
            began = time.perf_counter()
            work()
            self._wait()
            seconds.append(time.perf_counter() - began)
        return median(seconds[1:])


def touched_experts(experts: int, chosen: int, tokens: int) -> float:
    """How many of a layer's experts get a token if each token chooses at random and evenly."""
    return float(experts * (1 - (1 - chosen / experts) ** tokens))
