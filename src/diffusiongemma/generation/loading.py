"""From a name to a checkpoint in memory."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from diffusiongemma.errors import OptionError
from diffusiongemma.generation.checkpoint import Checkpoint
from diffusiongemma.generation.machine import give_back, keep_freed
from diffusiongemma.model.adapters import Pair, attach
from diffusiongemma.model.assemble import assemble
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.expected import text_shapes
from diffusiongemma.model.fast import rounded_to_int8
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.opened import open_checkpoint
from diffusiongemma.weights.adapter_files import read_adapter, with_base
from diffusiongemma.weights.resolve import Hub, resolve

__all__ = ["device_of", "empty_transformer", "load"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PROGRESS_FROM = 1 << 28
"""Bytes of weights from which loading shows a progress bar."""


def load(
    name: str | os.PathLike[str],
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    quantize: str | None,
    progress: bool,
    cache_dtype: torch.dtype | str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    hub: Hub | None = None,
) -> Checkpoint:
    """Load a checkpoint (``DiffusionGemmaModel.from_pretrained``)."""
    chosen_device = device_of(device)
    if quantize not in (None, "int8"):
        raise OptionError(f"quantize is {quantize!r}; allowed: 'int8', or None for the weights as they are stored", "quantize")
    if quantize and chosen_device.type != "cpu":
        raise OptionError(f"quantize='int8' computes on a CPU, not on {chosen_device}; leave it out there", "quantize")
    chosen_dtype = _dtype(dtype, chosen_device)
    stored_dtype = None if cache_dtype is None else _dtype(cache_dtype, chosen_device, "cache_dtype")
    name, adapter = with_base(name, adapter)
    opened = open_checkpoint(resolve(name, hub=hub or Hub()))
    pairs = {} if adapter is None else read_adapter(Path(adapter), text_shapes(opened.config.text)).pairs
    with _loading_bar(opened.nbytes, progress) as advance:
        weights = opened.load(advance)
        transformer = assemble(
            opened.config, rounded_to_int8(weights) if quantize else weights, chosen_dtype, chosen_device, keep=opened.quantised
        )
    attach(transformer, {linear: Pair(*pair) for linear, pair in pairs.items()})
    transformer.int8_products, transformer.stored_dtype = quantize == "int8", stored_dtype
    if quantize:
        give_back()  # what rounding used
    keep_freed()
    return Checkpoint(transformer, opened.tokenizer, opened.defaults, opened.stop_ids, opened.path)


@contextmanager
def _loading_bar(total: int, wanted: bool) -> Iterator[Callable[[str, int], None]]:
    """A bar for so many bytes of weights; few of them show none. What it gives is told each tensor's name and size."""
    columns = (TextColumn("loading"), BarColumn(), DownloadColumn())
    with Progress(*columns, disable=not wanted or total < _PROGRESS_FROM, transient=True) as bar:
        task = bar.add_task("loading", total=total)
        yield lambda _, size: bar.advance(task, size)


def empty_transformer(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Transformer:
    """A stack whose weights are allocated and not initialised: they must all be filled."""
    with torch.device("meta"):
        transformer = Transformer(config)
    return transformer.to(dtype).to_empty(device=device)


def device_of(device: torch.device | str | None) -> torch.device:
    """The device that is meant: None, or "auto", is a CUDA device if there is one, else the CPU.

    Raises:
        OptionError: it is not there.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise OptionError(f"device {str(device)!r:.100} cannot be used here: {str(error).splitlines()[0]}", "device") from error
    return chosen


def _dtype(dtype: torch.dtype | str | None, device: torch.device, name: str = "dtype") -> torch.dtype:
    if dtype is None or dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    chosen = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in _DTYPES.values():
        raise OptionError(f"{name} is {dtype!r}; allowed: auto, {', '.join(_DTYPES)}", name)
    return chosen
