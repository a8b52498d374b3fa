"""Adapters on disk, in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``.

transformers keeps two stacks whose weights are tied; PEFT wraps each on its own. Here one stack serves both roles, so a
file holds each adapter of a layer twice, once under each stack's name. Source: PEFT 0.21 ``LoraConfig``, ``save_pretrained``.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from diffusiongemma.errors import CheckpointError
from diffusiongemma.text.files import read_json
from diffusiongemma.weights.headers import read_header
from diffusiongemma.weights.names import DECODER, ENCODER
from diffusiongemma.weights.replacement import Replacement
from diffusiongemma.weights.stream import json_bytes

__all__ = ["CONFIG", "StoredAdapter", "is_adapter", "read_adapter", "with_base", "write_adapter"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
_PLACES = r".*\.(?:language_model|decoder)\.(?:layers\.\d+\.)?(?:{parts})\.(?:{leaves})"
# Fields that change the computation, with the values under which it is followed.
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "use_dora": (False, None), "bias": ("none", None), "modules_to_save": (None, []),
    "alpha_pattern": (None, {}), "target_parameters": (None, []), "trainable_token_indices": (None,),
    "fan_in_fan_out": (False, None), "layer_replication": (None,), "lora_bias": (False, None),
    "alora_invocation_tokens": (None,), "use_qalora": (False, None), "use_bdlora": (None, False), "arrow_config": (None,),
}  # fmt: skip


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as a file has it.

    Attributes:
        pairs: our name of a linear -> ``A [R, K]``, ``B [N, R]`` and the factor on ``B @ A``.
        base: name of the checkpoint that it was made for, as written; empty: not written.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor, float]]
    base: str


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def with_base(name: str | os.PathLike[str], adapter: str | os.PathLike[str] | None) -> tuple[Any, Any]:
    """A checkpoint and its adapter; the folder of an adapter alone stands for both.

    Args:
        name: of a checkpoint, or the folder of an adapter, whose base is then loaded.
        adapter: a folder; None: none, or what ``name`` is.

    Raises:
        CheckpointError: an adapter that does not name its base, or names one that is not there.
    """
    try:
        folder = Path(name)
        alone = adapter is None and is_adapter(folder) and not (folder / "config.json").exists()
    except (OSError, TypeError, ValueError):  # a hub id, no name of a file, or no name at all
        alone = False
    if not alone:
        return name, adapter
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{folder / CONFIG} does not name its base; load that one, with adapter={str(folder)!r}")
    beside = folder / base
    return (beside if not Path(base).exists() and beside.exists() else base), folder


def write_adapter(
    folder: Path, pairs: Mapping[str, tuple[Tensor, Tensor, float]], base: str, files: Mapping[str, bytes] = {}
) -> None:
    """Write an adapter; all of it or nothing.

    Args:
        folder: made if it is not there.
        pairs: see ``StoredAdapter``; all of one rank and factor.
        base: name of the checkpoint that it belongs to.
        files: more small files of the folder.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    ranks = {(a.shape[0], scale) for a, _, scale in pairs.values()}
    assert len(ranks) == 1, "adapters of several ranks or factors"
    rank, scale = ranks.pop()
    tensors = {}
    for name, (a, b, _) in pairs.items():
        for stack in _stacks(name):
            for letter, tensor in (("A", a), ("B", b)):
                tensors[f"{_PREFIX}{stack}{name}.lora_{letter}.weight"] = tensor.detach().float().cpu().clone().contiguous()
    leaves = sorted({name.rpartition(".")[2] for name in pairs})
    parts = sorted({name.split(".")[-2] for name in pairs})
    config = {
        "peft_type": "LORA", "base_model_name_or_path": base, "r": rank, "lora_alpha": _whole(scale * rank), "lora_dropout": 0.0,
        "bias": "none", "target_modules": _PLACES.format(parts="|".join(parts), leaves="|".join(leaves)),
        "fan_in_fan_out": False, "inference_mode": True, "task_type": None, "use_rslora": False, "use_dora": False,
        "modules_to_save": None, "init_lora_weights": True,
    }  # fmt: skip
    try:
        with Replacement(folder) as new:
            new.content(WEIGHTS, save(tensors, metadata={"format": "pt"}))
            new.content(CONFIG, json_bytes(config))
            for name, content in files.items():
                new.content(name, content)
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder} cannot be written: {error}") from error


def read_adapter(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> StoredAdapter:
    """Read an adapter, PEFT's own too.

    Args:
        folder: with both files.
        shapes: our name -> shape of the weights of the model that it is for.

    Raises:
        CheckpointError: files that are missing or damaged; a kind of adapter, or a part of the model, that is not followed; shapes
            of another model; the two roles' stacks differ, which one stack cannot hold.
    """
    if not is_adapter(folder):
        raise CheckpointError(f"{folder} has no {CONFIG}; an adapter is a folder as PEFT writes it")
    config = read_json(folder / CONFIG)
    for name, allowed in _MUST_BE.items():
        if config.get(name) not in allowed:
            raise CheckpointError(f"{folder / CONFIG} has {name} {config.get(name)!r:.200}; followed is only {allowed[0]!r}")
    alpha: Any = config.get("lora_alpha")
    rank: Any = config.get("r")
    if not all(
        isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) and one > 0 for one in (alpha, rank)
    ):
        raise CheckpointError(f"{folder / CONFIG} has lora_alpha {alpha!r:.50} and r {rank!r:.50}; both must be numbers above 0")
    stacks = _read_stacks(folder)
    pairs: dict[str, tuple[Tensor, Tensor, float]] = {}
    for name, by_stack in stacks.items():
        wanted = shapes.get(f"{name}.weight")
        if wanted is None:
            raise CheckpointError(f"{folder} adapts {name}, which this model does not have; it belongs to another base")
        expected = _stacks(name)
        if set(by_stack) != set(expected):
            lacking = next(stack for stack in expected if stack not in by_stack)
            raise CheckpointError(
                f"{folder} adapts {name} in one role only ({lacking}{name} is not there); this runtime keeps one stack for both"
            )
        first = by_stack[expected[0]]
        if set(first) != {"A", "B"}:
            raise CheckpointError(f"{folder} has only lora_{min(first)} of {name}; it is damaged")
        for other in expected[1:]:
            if set(by_stack[other]) != {"A", "B"} or not all(torch.equal(first[one], by_stack[other][one]) for one in "AB"):
                raise CheckpointError(
                    f"{folder}: the adapters of {name} differ between the two roles; this runtime keeps one stack for both, and "
                    "one checkpoint cannot hold their difference. Train it with both tied, or use it with peft and transformers"
                )
        a, b = first["A"], first["B"]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or (b.shape[0], a.shape[1]) != wanted:
            raise CheckpointError(
                f"{folder}: {name} has A {list(a.shape)}, B {list(b.shape)}, the model {list(wanted)}; it belongs to another base"
            )
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise CheckpointError(f"{folder}: the adapter of {name} has a value that is NaN or infinite")
        pairs[name] = (a, b, float(alpha) / (math.sqrt(a.shape[0]) if config.get("use_rslora") else a.shape[0]))
    return StoredAdapter(pairs, str(config.get("base_model_name_or_path") or ""))


def _read_stacks(folder: Path) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Our name of a linear -> prefix of a stack -> A and B."""
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS}; of other kinds of files nothing is read")
    result: dict[str, dict[str, dict[str, Tensor]]] = {}
    try:
        read_header(path)
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                match = _KEY.fullmatch(key)
                stack = next((one for one in (DECODER, ENCODER) if match and match[1].startswith(one)), None)
                if match is None or stack is None:
                    raise CheckpointError(f"{path} has {key[:200]}, which adapts nothing that this runtime can adapt")
                name = match[1].removeprefix(stack)
                result.setdefault(name, {}).setdefault(stack, {})[match[2]] = file.get_tensor(key).float()
    except (SafetensorError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged or cut short ({error}); download it again") from error
    if not result:
        raise CheckpointError(f"{path} is empty")
    return result


def _stacks(name: str) -> tuple[str, ...]:
    """The stacks of a checkpoint that have a linear: both, or the decoder alone."""
    return (DECODER,) if name.startswith("self_conditioning.") else (DECODER, ENCODER)


def _whole(number: float) -> float | int:
    return int(number) if number == int(number) else number
