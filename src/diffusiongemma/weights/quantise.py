"""Write a quantised copy of a checkpoint, a part at a time: a 26B needs a few GB of working memory.

Parts are a layer, or several small ones, and become a shard each. A finished shard stays when the work is interrupted, and the
same call goes on with the next.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffusiongemma.errors import CheckpointError, OptionError
from diffusiongemma.options import OWN_SAMPLING
from diffusiongemma.quant.rounding import INT4_GROUP, NVFP4_GROUP, Rounded, round_fp8, round_int4, round_int8, round_nvfp4
from diffusiongemma.text.files import is_there, read_bytes, read_json
from diffusiongemma.weights.companions import companions
from diffusiongemma.weights.headers import FLOATS, Stored, read_header
from diffusiongemma.weights.names import is_tied_copy, to_ours
from diffusiongemma.weights.replacement import Replacement
from diffusiongemma.weights.stream import INDEX, SINGLE, json_bytes, stored_tensors, write_tensors

__all__ = ["FORMATS", "PARTS", "PartError", "PartErrors", "part_of_module", "quantise"]

SHARD_BYTES = 1 << 30
"""Bytes of the source from which a shard is closed: a layer of the 26B has 1.6 GB."""
STATE = "quantize-state.json"
PARTS = {
    "attention": r"self_attn\.[qkvo]_proj",
    "mlp": r"mlp\.(gate|up|down)_proj",
    "experts": r"experts\.\d+\.(gate|up|down)_proj",
}
"""What may be quantised. Router, norms, embedding, self-conditioning and vision stay as they are, as in all published files."""
_FUSED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)")


@dataclass(frozen=True)
class _Format:
    """A published layout.

    Attributes:
        name: ``format`` of its quantization_config.
        round: a matrix to what is stored.
        parts: what the published recipe quantises.
        columns: that a matrix must have a multiple of.
        weights: ``weights`` of its quantization_config.
        activations: ``input_activations`` of it.
    """

    name: str
    round: Callable[[Tensor, bool], Rounded]
    parts: tuple[str, ...]
    columns: int
    weights: Mapping[str, Any]
    activations: Mapping[str, Any] | None


def _bits(bits: int, kind: str, strategy: str, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "dynamic": False, **more}


_ALL = ("attention", "mlp", "experts")
FORMATS = {
    "fp8": _Format("float-quantized", round_fp8, _ALL, 1, _bits(8, "float", "channel"), _bits(8, "float", "token", dynamic=True)),
    "int8": _Format("int-quantized", round_int8, _ALL, 1, _bits(8, "int", "channel"), _bits(8, "int", "token", dynamic=True)),
    "int4": _Format(
        "pack-quantized", round_int4, ("attention", "experts"), INT4_GROUP, _bits(4, "int", "group", group_size=INT4_GROUP), None
    ),
    "nvfp4": _Format(
        "nvfp4-pack-quantized", round_nvfp4, ("mlp", "experts"), NVFP4_GROUP,
        _bits(4, "float", "tensor_group", group_size=NVFP4_GROUP, scale_dtype="torch.float8_e4m3fn"), None,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class PartError:
    """How far the quantised weights of one kind in one layer are from the original's.

    Attributes:
        layer: its number; -1: none.
        part: of ``PARTS``, or of those that a GGUF file has besides.
        error: relative, root of the summed squares.
        absmax_error: the same with scales from the largest values alone.
    """

    layer: int
    part: str
    error: float
    absmax_error: float


class PartErrors:
    """Adds up the squared errors of matrices."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, str], list[float]] = {}

    def add(self, name: str, part: str, *sums: float) -> None:
        """Add those of a matrix.

        Args:
            name: of the matrix or of its module.
            part: it belongs to.
            *sums: squared errors, squared errors with scales from the largest values, squares of the matrix.
        """
        result = self._sums.setdefault((_layer(name), part), [0.0, 0.0, 0.0])
        for at, value in enumerate(sums):
            result[at] += value

    def listed(self) -> list[PartError]:
        """Of what was added."""
        return [
            PartError(layer, part, (error / max(norm, 1e-300)) ** 0.5, (first / max(norm, 1e-300)) ** 0.5)
            for (layer, part), (error, first, norm) in sorted(self._sums.items())
        ]


@dataclass(frozen=True)
class _Shard:
    """Source tensors that become one file."""

    file: str
    names: tuple[str, ...]


def quantise(
    source: Path,
    target: Path,
    kind: str,
    config: Mapping[str, Any],
    *,
    parts: Sequence[str] | None = None,
    search: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[PartError]:
    """Write a quantised copy, in the layout of compressed-tensors.

    Args:
        source: a checkpoint of 16- or 32-bit safetensors.
        target: a folder that is new, empty, or of an interrupted call with the same arguments.
        kind: one of ``FORMATS``.
        config: content of config.json, without quantization_config.
        parts: which of ``PARTS``; None: what the published recipe of the format takes.
        search: whether scales are searched for the least error; False: the largest values decide.
        progress: called with bytes of the source done and in all.

    Returns:
        The error of each part of each layer.

    Raises:
        OptionError: an unknown format or part, or matrices that the format cannot hold.
        CheckpointError: a source that is quantised already or damaged, or a target that holds something else.
        OSError: the target cannot be written.
    """
    if kind not in FORMATS:
        raise OptionError(f"format is {kind!r}; allowed: {', '.join(FORMATS)}")
    chosen = FORMATS[kind].parts if parts is None else tuple(parts)
    if not chosen or set(chosen) - set(PARTS):
        raise OptionError(f"parts are {list(chosen)}; allowed: {', '.join(PARTS)}, at least one")
    stored = {name: tensor for name, tensor in stored_tensors(source).items() if not is_tied_copy(name)}
    _check(stored, kind, chosen)
    shards = _plan(stored)
    state = {"source": _digest(stored, config), "format": kind, "parts": sorted(chosen), "search": search}
    done = _done(target, source, state)
    total = sum(tensor.nbytes for tensor in stored.values())
    finished = sum(stored[name].nbytes for shard in shards if shard.file in done for name in shard.names)
    for shard in shards:
        if shard.file in done:
            continue
        writer = _Writer(FORMATS[kind], chosen, search)
        for name in shard.names:
            writer.add(name, stored[name])
            finished += stored[name].nbytes
            progress(finished, total)
        with Replacement(target) as files:
            write_tensors(files.file(shard.file), writer.tensors)
            done[shard.file] = [asdict(error) for error in writer.errors.listed()]
            files.content(STATE, json_bytes({**state, "shards": done}))
    _finish(target, source, shards, {**config, "quantization_config": _quantization_config(kind, chosen)})
    return [PartError(**error) for shard in shards for error in done[shard.file]]


class _Writer:
    """Collects the tensors of one shard."""

    def __init__(self, layout: _Format, parts: Sequence[str], search: bool) -> None:
        self._layout, self._parts, self._search = layout, parts, search
        self.errors = PartErrors()
        self.tensors: dict[str, Tensor] = {}

    def add(self, name: str, stored: Stored) -> None:
        """Read a tensor and keep what becomes of it."""
        try:
            with safe_open(stored.path, framework="pt") as file:
                part = part_of(name)
                if part not in self._parts:
                    self.tensors[name] = file.get_tensor(name)
                elif len(stored.shape) == 2:
                    self._linear(name.removesuffix(".weight"), file.get_tensor(name), part)
                else:
                    pieces = file.get_slice(name)
                    for base, index, rows in _experts(name, stored.shape):
                        self._linear(base, pieces[index, rows], part)
        except SafetensorError as error:
            raise CheckpointError(f"{stored.path} is damaged or cut short ({error}); download it again") from error

    def _linear(self, base: str, weight: Tensor, part: str) -> None:
        rounded = self._layout.round(weight, self._search)
        self.tensors |= {f"{base}.{suffix}": tensor for suffix, tensor in rounded.tensors.items()}
        self.errors.add(base, part, rounded.error, rounded.absmax_error, rounded.norm)


def part_of(name: str) -> str:
    """The part of ``PARTS`` that a tensor of the source belongs to; empty for what is never quantised."""
    return part_of_module(to_ours(name) or "")


def part_of_module(name: str) -> str:
    """The same of a tensor by our name."""
    fused = _FUSED.fullmatch(name)
    if not fused and not name.endswith(".weight"):
        return ""
    module = f"{fused[1]}.0.down_proj" if fused else name.removesuffix(".weight")
    return next((part for part, pattern in PARTS.items() if re.fullmatch(rf"layers\.\d+\.{pattern}", module)), "")


def _experts(name: str, shape: Sequence[int]) -> Iterator[tuple[str, int, slice]]:
    """Module, expert and rows of each matrix of a fused stack: gate rows come before up rows."""
    fused = _FUSED.fullmatch(name)
    assert fused is not None
    half = shape[1] // 2
    halves = {"down_proj": slice(0, shape[1])}
    if fused[2] == "gate_up_proj":
        halves = {"gate_proj": slice(0, half), "up_proj": slice(half, shape[1])}
    for expert in range(shape[0]):
        for module, rows in halves.items():
            yield f"{fused[1]}.{expert}.{module}", expert, rows


def _layer(name: str) -> int:
    result = re.search(r"\blayers\.(\d+)\.", name)
    return int(result[1]) if result else -1


def _check(stored: Mapping[str, Stored], kind: str, parts: Sequence[str]) -> None:
    """Refuse what cannot be quantised before anything is written."""
    width, any_part = FORMATS[kind].columns, False
    for name, tensor in stored.items():
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{name} is {tensor.dtype}: the checkpoint is quantised already; start from the 16-bit one")
        if part_of(name) not in parts:
            continue
        any_part = True
        if tensor.shape[-1] % width:
            raise OptionError(
                f"{name} has {tensor.shape[-1]} columns; {kind} needs a multiple of {width}. Leave {part_of(name)} out of the parts"
            )
    if not any_part:
        raise CheckpointError(f"no weights of {', '.join(parts)} are in the checkpoint")


def _plan(stored: Mapping[str, Stored]) -> list[_Shard]:
    """Tensors in the order of their layers, in shards of ``SHARD_BYTES`` and a little more."""
    groups: list[list[str]] = [[]]
    size, last = 0, None
    for name in sorted(stored, key=lambda name: (_layer(name), name)):
        if size >= SHARD_BYTES and _layer(name) != last:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size, last = size + stored[name].nbytes, _layer(name)
    if len(groups) == 1:
        return [_Shard(SINGLE, tuple(groups[0]))]
    return [_Shard(f"model-{i:05d}-of-{len(groups):05d}.safetensors", tuple(names)) for i, names in enumerate(groups, 1)]


def _digest(stored: Mapping[str, Stored], config: Mapping[str, Any]) -> str:
    """What tells one source from another without reading it."""
    facts = [[name, t.dtype, t.shape, t.start, t.path.stat().st_mtime_ns] for name, t in sorted(stored.items())]
    return hashlib.sha256(json.dumps([facts, config], sort_keys=True).encode()).hexdigest()[:16]


def _done(target: Path, source: Path, state: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The shards that an interrupted call has finished."""
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is no folder; give the name of a new one")
    if target.exists() and target.samefile(source):
        raise CheckpointError(f"{target} is the source itself; give the name of a new folder")
    if not is_there(target / STATE):
        if target.exists() and any(target.iterdir()):
            raise CheckpointError(f"{target} is not empty; give the name of a new folder")
        return {}
    result = read_json(target / STATE)
    shards = result.pop("shards", None)
    if result != state or not isinstance(shards, dict):
        raise CheckpointError(
            f"{target} holds an unfinished copy with other settings or of another source; remove it, or give a new folder"
        )
    for file in shards:
        read_header(target / file)
    return shards


def _finish(target: Path, source: Path, shards: Sequence[_Shard], config: Mapping[str, Any]) -> None:
    """What belongs beside the weights; the state goes, so that the folder is a checkpoint."""
    headers = {shard.file: read_header(target / shard.file) for shard in shards}
    with Replacement(target) as files:
        for name, path in companions(source, target).items():
            files.content(name, path.read_bytes())
        for name in ("generation_config.json", OWN_SAMPLING):
            if is_there(source / name):
                files.content(name, read_bytes(source / name))
        if len(shards) > 1:
            total = sum(tensor.nbytes for header in headers.values() for tensor in header.values())
            names = {name: file for file, header in headers.items() for name in header}
            files.content(INDEX, json_bytes({"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}))
        files.content("config.json", json_bytes(config))
        files.remove(target / STATE)


def _quantization_config(kind: str, parts: Sequence[str]) -> dict[str, Any]:
    """As compressed-tensors writes it. Source: compressed-tensors 0.20, and config.json of the published files."""
    layout = FORMATS[kind]
    ignored = ["lm_head", "re:.*embed.*", "re:.*router.*", "re:.*self_conditioning.*", "re:.*vision.*"]
    ignored += [f"re:.*{name}.*" for part, name in (("attention", "self_attn"), ("mlp", r"\.mlp\."), ("experts", "experts"))
                if part not in parts]  # fmt: skip
    return {
        "quant_method": "compressed-tensors",
        "format": layout.name,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": ignored,
        "config_groups": {
            "group_0": {
                "format": layout.name,
                "targets": ["Linear"],
                "weights": dict(layout.weights),
                "input_activations": layout.activations,
                "output_activations": None,
            }
        },
    }
