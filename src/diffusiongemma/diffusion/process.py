"""Noise: what a canvas begins as, how training spoils clean tokens, and what sampling puts where nothing was accepted.

A process is plain data with three methods. The sampler and the training loss use the same object, made from the ``process`` of a
checkpoint's config.json, so that a model is sampled as it was trained. ``register_process`` adds one of your own
(docs/diffusion.md).
Shapes: B rows, L canvas, E excluded ids.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from diffusiongemma.errors import ConfigError
from diffusiongemma.kernels import random_ids

__all__ = ["Absorbing", "Corrupted", "NoiseProcess", "Uniform", "make_process", "register_process"]


class Corrupted(NamedTuple):
    """Clean tokens after ``corrupt``, and how training reads them.

    Attributes:
        noisy_BL: int64 token ids.
        weight_BL: float32, factor on each position's loss; None: 1 everywhere.
        kept_BL: bool, positions known to be clean, as ``Canvas.kept_BL``; None: nothing on the canvas says so.
    """

    noisy_BL: Tensor
    weight_BL: Tensor | None = None
    kept_BL: Tensor | None = None

    def to(self, device: torch.device) -> "Corrupted":
        """The same on another device."""
        weight, kept = (None if tensor is None else tensor.to(device) for tensor in self[1:])
        return Corrupted(self.noisy_BL.to(device), weight, kept)


class NoiseProcess(Protocol):
    """How clean tokens become noise and noise becomes tokens; frozen, made by ``make_process``.

    Attributes:
        keeps: whether a position that was accepted stays as it is until the canvas is done. False: every position that is not
            pinned is open again at each step.
        min_level: the least noise level that training draws.
    """

    keeps: ClassVar[bool]
    min_level: ClassVar[float]

    def prior(self, keys_BL: Tensor, excluded_E: Tensor | None = None) -> Tensor:
        """Pure noise ``[B, L]`` int64: what a canvas begins as.

        Args:
            keys_BL: ``[B, L]`` int64 keys of random numbers (``Canvas.keys``).
            excluded_E: ``[E]`` int64 ascending, ids that the noise may not have.
        """

    def renoise(self, drawn_BL: Tensor, keys_BL: Tensor) -> Tensor:
        """What a step leaves at positions whose draw was not accepted: ``[B, L]`` int64, read there only.

        Args:
            drawn_BL: ``[B, L]`` int64, the draws of this step.
            keys_BL: ``[B, L]`` int64 keys of random numbers.
        """

    def corrupt(self, clean_BL: Tensor, level_B: Tensor, pinned_BL: Tensor, generator: torch.Generator) -> Corrupted:
        """The forward process: clean tokens at a noise level.

        Args:
            clean_BL: ``[B, L]`` int64.
            level_B: ``[B]`` float32 in ``[min_level, 1]``, the share that becomes noise.
            pinned_BL: ``[B, L]`` bool, positions that stay clean.
            generator: the training step's random stream.
        """


@dataclass(frozen=True)
class Uniform:
    """Noise is a uniformly random token, which nothing tells from a clean one; the loss is taken at every position.

    Source: google-deepmind/gemma ``gemma/diffusion`` (fine-tuning adapter: linear schedule, epsilon 1e-4); transformers 5.23
    ``generation_diffusion_gemma.py`` (renoising).
    """

    vocab_size: int
    keeps: ClassVar[bool] = False
    min_level: ClassVar[float] = 1e-4

    def prior(self, keys_BL: Tensor, excluded_E: Tensor | None = None) -> Tensor:
        """See ``NoiseProcess``."""
        if excluded_E is None:
            return random_ids(keys_BL, self.vocab_size)
        ids_BL = random_ids(keys_BL, self.vocab_size - len(excluded_E))
        below_E = excluded_E - torch.arange(len(excluded_E), device=excluded_E.device)  # allowed ids below each excluded one
        return ids_BL + torch.searchsorted(below_E, ids_BL, right=True)

    def renoise(self, drawn_BL: Tensor, keys_BL: Tensor) -> Tensor:
        """See ``NoiseProcess``."""
        return random_ids(keys_BL, self.vocab_size)

    def corrupt(self, clean_BL: Tensor, level_B: Tensor, pinned_BL: Tensor, generator: torch.Generator) -> Corrupted:
        """See ``NoiseProcess``."""
        hit = torch.rand(clean_BL.shape, generator=generator) < level_B[:, None]
        noise = torch.randint(0, self.vocab_size, clean_BL.shape, generator=generator)
        return Corrupted(torch.where(hit & ~pinned_BL, noise, clean_BL))


@dataclass(frozen=True)
class Absorbing:
    """Noise is one token, the mask; what is not masked is clean, and is kept. The loss is that of masked positions, over the level.

    Source: MDLM (arXiv 2406.07524, equation 10: the weight 1 / t of the linear schedule); LLaDA (arXiv 2502.09992, least level
    1e-3). As in LLaDA the mask token stays among the logits: training never asks for it.
    """

    vocab_size: int
    mask_token_id: int
    keeps: ClassVar[bool] = True
    min_level: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        if not isinstance(self.mask_token_id, int) or not 0 <= self.mask_token_id < self.vocab_size:
            raise ConfigError(f"mask_token_id is {self.mask_token_id!r}; it must be a token id, 0 to {self.vocab_size - 1}")

    def prior(self, keys_BL: Tensor, excluded_E: Tensor | None = None) -> Tensor:
        """See ``NoiseProcess``; the mask is no token of a text, so nobody excludes it."""
        return torch.full_like(keys_BL, self.mask_token_id)

    def renoise(self, drawn_BL: Tensor, keys_BL: Tensor) -> Tensor:
        """See ``NoiseProcess``."""
        return torch.full_like(keys_BL, self.mask_token_id)

    def corrupt(self, clean_BL: Tensor, level_B: Tensor, pinned_BL: Tensor, generator: torch.Generator) -> Corrupted:
        """See ``NoiseProcess``."""
        masked = (torch.rand(clean_BL.shape, generator=generator) < level_B[:, None]) & ~pinned_BL
        return Corrupted(clean_BL.masked_fill(masked, self.mask_token_id), masked / level_B[:, None], ~masked)


_PROCESSES: dict[str, Callable[..., NoiseProcess]] = {"uniform": Uniform, "absorbing": Absorbing}


def register_process(name: str, process: Callable[..., NoiseProcess]) -> None:
    """Make a process known by the name that a checkpoint's config.json and a recipe give it.

    Args:
        name: any but those that are taken.
        process: called with ``vocab_size`` and the other fields of the config's ``process`` as keywords.

    Raises:
        ConfigError: the name is taken by another process.
    """
    if _PROCESSES.setdefault(name, process) is not process:
        raise ConfigError(f"a diffusion process named {name!r} is registered already; give this one another name")


def make_process(process: Mapping[str, Any], vocab_size: int) -> NoiseProcess:
    """The process that a config names.

    Args:
        process: ``{"name": "uniform"}``, ``{"name": "absorbing", "mask_token_id": 4}``, or a registered name with its own fields.
        vocab_size: of the model.

    Raises:
        ConfigError: a name that is not registered, or fields that its process does not take.
    """
    name, options = process.get("name"), {key: value for key, value in process.items() if key != "name"}
    if name not in _PROCESSES:
        raise ConfigError(
            f"the diffusion process {name!r} is not known; known are {', '.join(_PROCESSES)}. Another one is made known with "
            "diffusiongemma.diffusion.register_process before its checkpoint is loaded"
        )
    try:
        return _PROCESSES[name](vocab_size=vocab_size, **options)
    except TypeError as error:
        raise ConfigError(f"the diffusion process {name!r} does not take the fields {sorted(options)}: {error}") from error
