"""``diffusiongemma info``: what a checkpoint is, and whether it fits here."""

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from diffusiongemma.cli import common
from diffusiongemma.errors import InputError, OptionError

if TYPE_CHECKING:
    from pathlib import Path

    from diffusiongemma.generation.resident import Published, Resident

__all__ = ["info", "memory_report"]

CONTEXT = 4096
"""Tokens of context that the memory estimate allows for."""
CONTEXTS = (CONTEXT, 32_768, 131_072)
"""Contexts whose cache is stated, besides the model's longest."""
PASS_BYTES = 256 << 20
"""What a pass over one canvas may take besides: activations and the head's tiles (97 MiB were measured at a hidden size of 768
and the released vocabulary, docs/lab-log.md)."""


_LARGE = 100_000_000
"""Parameters from which the time that a product takes is that of its weights."""
_EMBEDDING_26B, _LAYERS_26B = (262_144, 2816), 30
"""What the shape of the published 26B is known by."""


def info(
    model: Annotated[
        str, typer.Argument(help="A built-in name, a checkpoint folder, a GGUF file, or a hub id.")
    ] = common.DEFAULT_MODEL,
    quantize: common.QuantizeOption = None,
    roles: Annotated[
        bool,
        typer.Option("--roles", help="Also predict the tokens a second of both roles here, from measured rates: seconds of work."),
    ] = False,
    steps: Annotated[
        int | None, typer.Option("--steps", "-n", help="Of --roles: denoising steps a canvas; unset: the checkpoint's most.", min=1)
    ] = None,
    json: common.JsonOption = False,
) -> None:
    """Show a checkpoint's configuration, its parameters, the memory it needs, and whether it fits on this machine.

    Of the weights only headers are read; a hub id downloads config.json alone. Of the 26B's shape, it also says which of the
    published files fit.
    """
    with common.reporting(json):
        from diffusiongemma.generation.check.layout import layout_of
        from diffusiongemma.generation.resident import planned_weights, stored_weights
        from diffusiongemma.opened import read_config
        from diffusiongemma.weights.resolve import has_weights, resolve

        if quantize not in (None, "int8"):
            raise OptionError(f"quantize is {quantize!r}; allowed: 'int8', or nothing for the weights as they are stored")
        path = resolve(model, config_only=True)
        config = read_config(path)
        layout = layout_of(config)
        weights = stored_weights(path, config) if has_weights(path) else planned_weights(layout, config)
        form = "GGUF" if path.is_file() else layout.format
        report = {"model": model, "format": form, **memory_report(config, weights, quantize), "config": config.to_dict()}
        if roles:
            if weights is None:
                raise InputError(f"the formats of the weights of {model} are not known from config.json alone; download it first")
            report["roles"] = _roles(path, config, weights, quantize, steps)
        report["next"] = _next(report, quantize)
        if json:
            common.print_json(report)
        else:
            common.out.print(_table(report))
            common.out.print(report["next"], markup=False, soft_wrap=True)


def memory_report(config: Any, weights: "list[Resident] | None" = None, quantize: str | None = None) -> dict[str, Any]:
    """Parameters, bytes and fit of a configuration (a ``ModelConfig``).

    Args:
        config: the configuration.
        weights: as they are stored; None: in the dtype of the computation.
        quantize: as for ``from_pretrained``.

    Returns:
        parameters and active parameters a token; bytes of weights for each dtype, once all have been used, and with what this
        process has besides; bytes of cache that a token takes, in all layers and in those that keep it for good; the most that
        a row's cache takes at some lengths; free memory here; fit; of the 26B's shape, the published files that fit.
    """
    import torch

    from diffusiongemma.generation.machine import free_memory, resident
    from diffusiongemma.generation.resident import PUBLISHED, Resident, resident_bytes
    from diffusiongemma.model.cache import KVCache
    from diffusiongemma.model.expected import text_shapes

    text = config.text
    shapes = text_shapes(text)
    # The two scalars of each layer are buffers.
    sizes = {name: math.prod(shape) for name, shape in shapes.items() if not name.endswith("layer_scalar")}
    total = sum(sizes.values())
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    active = total - experts + experts * text.top_k_experts // max(1, text.num_experts)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    known = weights or [Resident(name, shapes[name], 0, "plain") for name in sizes]
    taken = {name: resident_bytes(known, dtype, quantize=quantize) for name, dtype in dtypes.items()}

    def cache(tokens: int) -> dict[str, int]:
        return {name: KVCache.bytes_of(text, tokens, dtype, canvas=config.canvas_length) for name, dtype in dtypes.items()}

    longest = text.max_position_embeddings
    kept = sum(2 * layer.num_key_value_heads * layer.head_dim for layer in text.layers if not layer.is_sliding)
    needed = {name: taken[name] + cache_bytes + PASS_BYTES for name, cache_bytes in cache(min(CONTEXT, longest)).items()}
    free = {"cpu": free_memory("cpu")}
    if torch.cuda.is_available():
        free["cuda"] = free_memory("cuda")
    stored = _stored(weights)
    of_the_26b = shapes["embed_tokens.weight"] == _EMBEDDING_26B and text.num_hidden_layers == _LAYERS_26B
    beside = needed["bfloat16"] - taken["bfloat16"]
    return {
        "parameters": total,
        "active_parameters": active,
        "layers": text.num_hidden_layers,
        "canvas_length": config.canvas_length,
        "vocab_size": text.vocab_size,
        "weight_bytes": taken,
        "resident_bytes": {name: size + resident() for name, size in taken.items()},
        **({"stored": stored} if stored else {}),
        "cache_bytes_per_token": cache(1),
        "cache_bytes_per_token_before_the_window": {name: kept * dtype.itemsize for name, dtype in dtypes.items()},
        "cache_bytes": [{"tokens": tokens, **cache(tokens)} for tokens in (*(n for n in CONTEXTS if n < longest), longest)],
        "needed_bytes": needed,
        "needed_for": f"weights, {min(CONTEXT, longest)} tokens of context and {PASS_BYTES >> 20} MiB for a pass over one canvas",
        "free_bytes": free,
        "fits": {place: {name: need <= there for name, need in needed.items()} for place, there in free.items()},
        **({"published": [_published(one, text, beside, free) for one in PUBLISHED]} if of_the_26b else {}),
    }


def _roles(path: "Path", config: Any, weights: "list[Resident]", quantize: str | None, steps: int | None) -> dict[str, Any]:
    """What both roles are predicted to do on this machine, in the dtype that is taken here unless another is asked for."""
    import torch

    from diffusiongemma.generation.loading import device_of
    from diffusiongemma.generation.roles import measure_roles
    from diffusiongemma.opened import sampling_of

    device = device_of("cpu" if quantize else None)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    rates = measure_roles(config, weights, dtype, device, quantize=quantize)
    taken = steps or sampling_of(path, config).num_diffusion_steps
    return {
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "steps": taken,
        "step_ms": 1000 * rates.step,
        "commit_ms": 1000 * rates.commit,
        "token_ms": 1000 * rates.token,
        "tokens_per_second": {mode: rates.tokens_per_second(mode, taken) for mode in ("diffusion", "causal")},
        "faster": rates.faster(taken),
        "diffusion_is_faster_up_to_steps": rates.max_steps(),
    }


def _published(one: "Published", text: Any, beside: int, free: dict[str, int]) -> dict[str, Any]:
    """A published file: its size, what its weights take in memory, and where they fit with all that is needed beside them."""
    size = one.resident(text)
    fits = {place: size + beside <= there for place, there in free.items()}
    return {"name": one.name, "bytes": int(one.nbytes), "weight_bytes": size, "fits": fits}


def _stored(weights: "list[Resident] | None") -> dict[str, dict[str, int]]:
    """Weights and bytes for each kind of packing, where some are packed."""
    result: dict[str, dict[str, int]] = {}
    for weight in weights or []:
        kind = result.setdefault(weight.kind, {"tensors": 0, "bytes": 0})
        kind["tensors"] += 1
        kind["bytes"] += weight.nbytes
    return result if result.keys() - {"plain"} else {}


def _next(report: dict[str, Any], quantize: str | None) -> str:
    """What to do with a checkpoint on this machine."""
    model, fits = report["model"], report["fits"]
    ran = f"diffusiongemma chat -m {model}"
    if fits.get("cuda", {}).get("bfloat16"):
        return f"It fits the GPU: {ran}"
    published = report.get("published", [])
    if not any(fits["cpu"].values()):
        fitting = [one for one in published if any(one["fits"].values())]
        if fitting:
            best = max(fitting, key=lambda one: one["weight_bytes"])
            where = "the GPU" if best["fits"].get("cuda") else "this machine's memory"
            return f"It does not fit here. The largest published file that fits {where}: diffusiongemma chat -m {best['name']}"
        least = min(published, key=lambda one: one["weight_bytes"], default=None)
        short = f"; the smallest published file, {least['name']}, takes {_size(least['weight_bytes'])} of weights" if least else ""
        return f"It does not fit here: {_size(min(report['needed_bytes'].values()))} are needed{short}."
    dtype = "" if fits["cpu"]["float32"] else " --dtype bfloat16"
    faster = "" if quantize or report["parameters"] < _LARGE else " (--quantize int8 is faster on a CPU, and not exact)"
    return f"It fits this machine's memory: {ran}{' --quantize ' + quantize if quantize else dtype}{faster}"


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
    resident = (f"{name} {_size(size)}" for name, size in sorted(report["resident_bytes"].items()))
    table.add_row("this process, loaded", ", ".join(resident))
    for name in ("bfloat16", "float32"):
        needed = f"{_size(report['needed_bytes'][name])} in all, {_size(report['weight_bytes'][name])} of it weights"
        table.add_row(f"memory, {name}", needed)
    table.add_row("", report["needed_for"])
    caches = (f"{row['tokens']:,} tokens {_size(row['bfloat16'])}" for row in report["cache_bytes"])
    table.add_row("cache of a row, bfloat16", ", ".join(caches))
    for place, free in report["free_bytes"].items():
        verdict = ", ".join(f"{name}: {'fits' if ok else 'does not fit'}" for name, ok in report["fits"][place].items())
        table.add_row(f"free, {place}", f"{_size(free)} ({verdict})")
    if roles := report.get("roles"):
        rates = ", ".join(f"{mode} {rate:,.1f}" for mode, rate in roles["tokens_per_second"].items())
        table.add_row("tokens a second, predicted", f"{rates} at {roles['steps']} steps a canvas: {roles['faster']} is faster")
        table.add_row("", f"diffusion is the faster up to {roles['diffusion_is_faster_up_to_steps']:.1f} steps a canvas")
    for one in report.get("published", []):
        verdict = ", ".join(f"{place}: {'fits' if ok else 'does not fit'}" for place, ok in one["fits"].items())
        table.add_row(one["name"], f"{_size(one['weight_bytes'])} of weights ({verdict})")
    return table
