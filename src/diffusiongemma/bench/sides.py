"""The sides that are compared, each loaded in a process of its own and driven through its public streaming loop."""

import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from diffusiongemma.bench.memory import peak_of
from diffusiongemma.bench.recorder import Recorder, Sample, sample_of
from diffusiongemma.bench.roofline import measure_rates
from diffusiongemma.bench.settings import Case, SideSpec
from diffusiongemma.engine.events import Commit, Draft
from diffusiongemma.engine.offline import OfflineEngine
from diffusiongemma.engine.request import Mode, Request
from diffusiongemma.errors import BenchError
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.generation.machine import synchroniser
from diffusiongemma.generation.roles import RoleRates, measure_roles, weights_of
from diffusiongemma.model.transformer import Transformer

__all__ = ["LoadedSide", "Side"]

THEIR_LOOP = "transformers.models.diffusion_gemma.generation_diffusion_gemma"
PAGE_ELEMENTS = 1024
"""At most a page of memory of any dtype."""


class Side(Protocol):
    """One implementation with its weights."""

    @property
    def model(self) -> nn.Module:
        """The weights; its ``config`` has ``canvas_length``."""

    def generate(self, case: Case, recorder: Recorder) -> None:
        """Generate once, telling the recorder what happens when."""

    def rehearse(self, case: Case) -> None:
        """Generate once without compiling anything."""


class OurSide:
    """``engine`` as ``generate`` and ``stream`` use it, told by its events.

    Args:
        spec: kind ``ours``, ``exact`` (not quantised), ``plain`` (our plain canvas head) or ``causal`` (token by token with the
            encoder role).
    """

    def __init__(self, spec: SideSpec) -> None:
        self._mode: Mode = "causal" if spec.kind == "causal" else "diffusion"
        # Token by token at its best: nothing is filled up for the sake of neighbours.
        exact = self._mode == "diffusion"
        loaded = DiffusionGemmaModel.from_pretrained(
            spec.folder, dtype=spec.dtype, device=spec.device, quantize=spec.quantize, batch_invariant=exact, progress=False
        )
        self._model = loaded.transformer
        if spec.kind == "plain":
            self._model.kernels = "plain"
        self._tokenizer = loaded.tokenizer
        self._defaults = loaded.defaults

    @property
    def model(self) -> nn.Module:
        """The stack."""
        return self._model

    def rehearse(self, case: Case) -> None:
        """Generate once."""
        self.generate(case, Recorder(lambda: None))

    def generate(self, case: Case, recorder: Recorder) -> None:
        """One generation without early stops and stop tokens; greedy where it is causal."""
        params = self._defaults.replaced(
            num_diffusion_steps=case.steps, max_tokens=case.new_tokens, early_stop=False, seed=case.seed
        )
        requests = [Request(prompt=list(ids), params=params, mode=self._mode, drafts=True) for ids in case.prompts]
        timed = cast(Transformer, _Timed(self._model, recorder))
        for event in OfflineEngine(timed, self._tokenizer).run(requests):
            if isinstance(event, Draft):
                recorder.draft(event.canvas, event.step)
            elif isinstance(event, Commit):
                recorder.commit()


class _Timed:
    """The stack as the engine uses it, its encoder passes timed."""

    def __init__(self, model: Transformer, recorder: Recorder) -> None:
        self._model, self._recorder = model, recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode_rows(self, *arguments: Any, **options: Any) -> Any:
        self._recorder.encode_began()
        hidden = self._model.encode_rows(*arguments, **options)
        self._recorder.encode_ended()
        return hidden


class TheirSide:
    """transformers' own ``generate``, told by a streamer.

    Where an encoder pass begins and ends no streamer says; two methods that ``generate`` calls just before and just after it
    do (transformers 5.23), in a class derived from theirs. They are outside what it compiles.
    """

    def __init__(self, spec: SideSpec) -> None:
        transformers: Any = import_module("transformers")
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._cache, _, experts = spec.setting.partition("+")
        options = {"experts_implementation": experts} if experts else {}
        dtype = getattr(torch, spec.dtype or "float32")
        theirs = transformers.DiffusionGemmaForBlockDiffusion
        if not all(hasattr(theirs, name) for name in ("_prepare_encoder_inputs", "_prepare_denoiser_inputs")):
            raise BenchError(f"transformers {transformers.__version__} has another generation loop than 5.23; install 5.23")
        self.model = _timed(theirs).from_pretrained(spec.folder, dtype=dtype, **options).to(spec.device).eval()
        self._configuration = import_module(THEIR_LOOP).DiffusionGemmaGenerationConfig

    def rehearse(self, case: Case) -> None:
        """Generate once with the dynamic cache, which compiles nothing: compiled code keeps to the first shapes it sees."""
        cache, self._cache = self._cache, "dynamic"
        self.generate(case, Recorder(lambda: None))
        self._cache = cache

    def generate(self, case: Case, recorder: Recorder) -> None:
        """One generation with every step taken and no stop token."""
        self.model.recorder = recorder
        torch.manual_seed(case.seed)
        self.model.generate(
            torch.tensor(case.prompts, device=self.model.device),
            streamer=_Watch(recorder, case),
            generation_config=self._configuration(
                max_new_tokens=case.new_tokens,
                max_denoising_steps=case.steps,
                # There is no switch for the early stop: a history longer than the steps is never all equal.
                stability_threshold=case.steps + 1,
                eos_token_id=[],
                pad_token_id=0,
                cache_implementation=None if self._cache == "dynamic" else "static",
                disable_compile=self._cache != "compile",
            ),
        )


def _timed(theirs: Any) -> Any:
    """Their model, whose encoder passes are told to its ``recorder``."""

    class Timed(theirs):  # type: ignore[misc]
        recorder = Recorder(lambda: None)

        def _prepare_encoder_inputs(self, *arguments: Any, **options: Any) -> Any:
            self.recorder.encode_began()
            return super()._prepare_encoder_inputs(*arguments, **options)

        def _prepare_denoiser_inputs(self, *arguments: Any, **options: Any) -> Any:
            self.recorder.encode_ended()
            return super()._prepare_denoiser_inputs(*arguments, **options)

    return Timed


class _Watch:
    """A streamer of transformers: the prompt comes first, then a draft a step and the final tokens a canvas."""

    def __init__(self, recorder: Recorder, case: Case) -> None:
        self._recorder = recorder
        self._steps = case.steps
        self._drafts = 0
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        """Final tokens."""
        if self._prompt_seen:
            self._recorder.commit()
        self._prompt_seen = True

    def put_draft(self, value: Tensor) -> None:
        """A step's draft, all rows."""
        canvas, step = divmod(self._drafts, self._steps)
        self._recorder.draft(canvas, step + 1)
        self._drafts += 1

    def end(self) -> None:
        """Nothing is left to say."""


class LoadedSide:
    """A side in memory, with the means to measure it.

    Args:
        spec: what to load.
    """

    def __init__(self, spec: SideSpec) -> None:
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        self._side: Side = TheirSide(spec) if spec.kind == "transformers" else OurSide(spec)
        tensors = {item.data_ptr(): item for item in [*self._side.model.parameters(), *self._side.model.buffers()]}
        for tensor in tensors.values():
            # A loader may map files: every page must be there before what comes later is called a peak.
            tensor.detach().view(-1)[::PAGE_ELEMENTS].sum()
        weight = next(self._side.model.parameters())
        self._device, self._dtype = weight.device, weight.dtype
        self._peak = peak_of(self._device)
        # The first generation brings code and its workspaces into memory, which is not what a later one needs.
        config: Any = self._side.model.config
        self._side.rehearse(Case(prompts=((0, 0),), steps=2, canvases=2, canvas_length=config.canvas_length, seed=0))
        self._loaded = self._peak.now()
        self.facts = {
            "device": str(self._device),
            "dtype": str(self._dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "weight_bytes": sum(tensor.nbytes for tensor in tensors.values()) + _packed_bytes(self._side.model),
            "loaded_bytes": self._loaded,
            "memory_method": self._peak.method,
            "gpu": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else None,
        }

    def answer(self, request: Case | str) -> Any:
        """A Sample for a Case, the machine's rates for ``"rates"``, what both roles should take for ``"roles"`` (our side)."""
        if isinstance(request, Case):
            return self._measure(request)
        if request == "roles":
            return self._roles()
        rates = asdict(measure_rates(self._device, self._dtype))
        # What the matrix product's library keeps for itself is no generation's doing.
        self._loaded = self._peak.now()
        return rates

    def _roles(self) -> RoleRates:
        stack = self._side.model
        assert isinstance(stack, Transformer)
        quantize = "int8" if stack.int8_products else None
        rates = measure_roles(stack.config, weights_of(stack), stack.dtype, self._device, quantize=quantize, batch_invariant=False)
        self._loaded = self._peak.now()
        return rates

    def _measure(self, case: Case) -> Sample:
        wait: Callable[[], None] = synchroniser(self._device)
        recorder = Recorder(wait)
        self._peak.now()
        self._peak.start()
        wait()
        began = time.perf_counter()
        self._side.generate(case, recorder)
        wait()
        ended = time.perf_counter()
        return sample_of(recorder, case, began, ended, max(0, self._peak.stop() - self._loaded))


def _packed_bytes(model: nn.Module) -> int:
    """Of quantised weights, which are no parameters."""
    return sum(record.nbytes for _, record in model.packed()) if isinstance(model, Transformer) else 0
