"""``diffusiongemma info``: what a checkpoint is, and whether it fits here."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from diffusiongemma.cli import common

__all__ = ["info", "memory_report"]

CONTEXT = 4096
"""Tokens of context that the memory estimate allows for."""
CONTEXTS = (CONTEXT, 32_768, 131_072)
"""Contexts whose cache is stated, besides the model's longest."""
PASS_BYTES = 256 << 20
"""What a pass over one canvas may take besides: activations and the head's tiles (97 MiB were measured at a hidden size of 768
and the released vocabulary, docs/lab-log.md)."""


def info(
    model: Annotated[
        str, typer.Argument(help="A built-in name, a checkpoint folder, a GGUF file, or a hub id.")
    ] = common.DEFAULT_MODEL,
    json: common.JsonOption = False,
) -> None:
    """Show a checkpoint's configuration, its parameters, the memory it needs, and whether it fits on this machine.

    Only config.json is read, or the header of a GGUF file; a hub id downloads nothing else.
    """
    with common.reporting(json):
        from diffusiongemma.api.check.layout import layout_of
        from diffusiongemma.api.opened import read_config
        from diffusiongemma.weights.resolve import resolve

        path = resolve(model, config_only=True)
        config = read_config(path)
        layout = layout_of(config)
        stored = _stored(path) if path.is_file() else layout.text_bytes if config.quantization is not None else None
        form = "GGUF" if path.is_file() else layout.format
        report = {"model": model, "format": form, **memory_report(config, stored), "config": config.to_dict()}
        if json:
            common.print_json(report)
        else:
            common.out.print(_table(report))


def memory_report(config: Any, stored: dict[str, dict[str, int]] | None = None) -> dict[str, Any]:
    """Parameters, bytes and fit of a configuration (a ``ModelConfig``).

    Args:
        config: the configuration.
        stored: of a file that is computed with as it is: for each type its tensors and their bytes; None: of what is converted.

    Returns:
        parameters and active parameters a token; bytes of weights for each dtype; bytes of cache that a token takes, in all layers
        and in those that keep it for good; the most that a row's cache takes at some lengths; free memory here; fit.
    """
    import torch

    from diffusiongemma.api.machine import free_memory
    from diffusiongemma.model.cache import KVCache
    from diffusiongemma.model.expected import text_shapes

    sizes = {name: math.prod(shape) for name, shape in text_shapes(config.text).items() if not name.endswith("layer_scalar")}
    total = sum(sizes.values())
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    text = config.text
    active = total - experts + experts * text.top_k_experts // text.num_experts
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    packed = sum(kind["bytes"] for kind in stored.values()) if stored else None
    weights = {name: total * dtype.itemsize if packed is None else packed for name, dtype in dtypes.items()}

    def cache(tokens: int) -> dict[str, int]:
        return {name: KVCache.bytes_of(text, tokens, dtype, canvas=config.canvas_length) for name, dtype in dtypes.items()}

    longest = text.max_position_embeddings
    kept = sum(2 * layer.num_key_value_heads * layer.head_dim for layer in text.layers if not layer.is_sliding)
    needed = {name: weights[name] + cache_bytes + PASS_BYTES for name, cache_bytes in cache(min(CONTEXT, longest)).items()}
    free = {"cpu": free_memory("cpu")}
    if torch.cuda.is_available():
        free["cuda"] = free_memory("cuda")
    return {
        "parameters": total,
        "active_parameters": active,
        "layers": text.num_hidden_layers,
        "canvas_length": config.canvas_length,
        "vocab_size": text.vocab_size,
        "weight_bytes": weights,
        **({"stored": stored} if stored else {}),
        "cache_bytes_per_token": cache(1),
        "cache_bytes_per_token_before_the_window": {name: kept * dtype.itemsize for name, dtype in dtypes.items()},
        "cache_bytes": [{"tokens": tokens, **cache(tokens)} for tokens in (*(n for n in CONTEXTS if n < longest), longest)],
        "needed_bytes": needed,
        "needed_for": f"weights, {min(CONTEXT, longest)} tokens of context and {PASS_BYTES >> 20} MiB for a pass over one canvas",
        "free_bytes": free,
        "fits": {place: {name: need <= there for name, need in needed.items()} for place, there in free.items()},
    }


def _stored(path: Path) -> dict[str, dict[str, int]] | None:
    """Tensors and bytes for each block type of a GGUF file that has quantised ones; None for what is converted when loaded."""
    from diffusiongemma.weights.gguf import GGUFFile

    tensors = GGUFFile(path).tensors.values()
    if all(tensor.block.weights == 1 for tensor in tensors):
        return None
    found: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        kind = found.setdefault(tensor.block.name, {"tensors": 0, "bytes": 0})
        kind["tensors"] += 1
        kind["bytes"] += tensor.nbytes
    return found


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.1f} {unit}" if unit != "B" else f"{count:,.0f} B"
        count /= 1024
    return f"{count:,.2f} TiB"


def _table(report: dict[str, Any]) -> Table:
    table = Table(show_header=False, title=report["model"], title_justify="left", box=None)
    table.add_row("parameters", f"{report['parameters']:,} ({report['active_parameters']:,} active a token)")
    table.add_row("weights", report["format"])
    table.add_row("layers", str(report["layers"]))
    table.add_row("canvas", f"{report['canvas_length']} tokens")
    table.add_row("vocabulary", f"{report['vocab_size']:,} tokens")
    if stored := report.get("stored"):
        kinds = (f"{name} {_size(kind['bytes'])}" for name, kind in sorted(stored.items(), key=lambda one: -one[1]["bytes"]))
        table.add_row("stored as", ", ".join(kinds))
    for name in ("bfloat16", "float32"):
        needed = f"{_size(report['needed_bytes'][name])} in all, {_size(report['weight_bytes'][name])} of it weights"
        table.add_row(f"memory, {name}", needed)
    table.add_row("", report["needed_for"])
    caches = (f"{row['tokens']:,} tokens {_size(row['bfloat16'])}" for row in report["cache_bytes"])
    table.add_row("cache of a row, bfloat16", ", ".join(caches))
    for place, free in report["free_bytes"].items():
        verdict = ", ".join(f"{name}: {'fits' if ok else 'does not fit'}" for name, ok in report["fits"][place].items())
        table.add_row(f"free, {place}", f"{_size(free)} ({verdict})")
    return table
