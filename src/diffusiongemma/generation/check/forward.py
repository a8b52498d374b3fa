"""One denoising step on the weights, compared with the logits that are published of it.

Weights that are not quantised stay in their files, mapped: on a CPU the released 52 GB need no such memory, only time.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusiongemma.errors import CheckpointError
from diffusiongemma.generation.check.published import published
from diffusiongemma.generation.check.report import Row
from diffusiongemma.generation.loading import device_of
from diffusiongemma.generation.machine import free_memory
from diffusiongemma.model.assemble import assemble
from diffusiongemma.model.cache import KVCache
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.expected import text_shapes
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.weights.load import open_weights

__all__ = ["check_forward"]

SIX = 6
"""Layers of the first comparison: the fewest with both types of attention."""
# Largest mean and largest single distance that bfloat16 rounding explains. Source: the same logits of the first six layers are
# published for CUDA and for XPU, and lie 0.32 (mean) and 3.2 (largest) apart; twice that is allowed. All layers are published
# for CUDA alone, and their logits are far from saturated: half of that is allowed.
TOLERANCES = {SIX: (0.64, 6.4), 30: (0.32, 3.2)}
_ROOM = 2 << 30  # bytes besides the weights: the pass, the embedding's rows, Python


def check_forward(
    folder: Path, config: ModelConfig, the_26b: bool, device: str | None, progress: Callable[[str], None]
) -> Iterator[Row]:
    """Rows on the step: on the published prompt for the 26B, else on the first token ids.

    Args:
        folder: the checkpoint.
        config: its configuration.
        the_26b: whether the published logits are those of this model.
        device: of the step; None: a CUDA device that holds the weights if there is one, else the CPU.
        progress: called with what is done now.
    """
    what = "denoising step"
    if holds_no_data(folder):
        yield Row(what, "not checked", "the files hold no data after their headers")
        return
    try:
        weights = open_weights(folder, text_shapes(config.text), config.quantization)
        place = _place(device, weights.nbytes)
        # On a CPU single matrices stay in their files; experts that are stored one by one are put together in memory.
        resident = weights.nbytes if place.type != "cpu" else sum(one.nbytes for one in weights.weights if one.stacked)
        if (needed := resident + _ROOM) > (free := free_memory(place)):
            yield Row(what, "not checked", f"it needs {needed / 2**30:.1f} GiB on {place}, where {free / 2**30:.1f} GiB are free")
            return
        progress("weights")
        model = assemble(config, weights.load(lambda name, _: progress(name)), torch.bfloat16, place, keep=True)
    except CheckpointError as error:
        yield Row(what, "damaged", str(error))
        return
    vocabulary = config.text.vocab_size
    prompt = published().prompt if the_26b else list(range(min(16, vocabulary)))
    canvas = [i % vocabulary for i in range(config.canvas_length)]
    stages = [SIX, config.text.num_hidden_layers] if the_26b else [config.text.num_hidden_layers]
    for layers in stages:
        progress(f"denoising step, {layers} layers")
        logits = _step(_first_layers(model, layers), prompt, canvas)
        yield _row(
            f"{what}, {'all' if layers == stages[-1] else 'first'} {layers} layers", logits, layers, the_26b, weights.quantised
        )


def _row(what: str, logits: Tensor, layers: int, the_26b: bool, quantised: bool) -> Row:
    if not bool(logits.isfinite().all()):
        return Row(what, "differs", "logits that are not finite")
    if not the_26b:
        return Row(what, "agrees", "finite logits; none are published for this model")
    table = published().logits_of_six_layers if layers == SIX else published().logits
    expected = torch.tensor(table)
    apart = (logits[: expected.shape[0], : expected.shape[1]] - expected).abs()
    mean, most = float(apart.mean()), float(apart.max())
    result = f"{mean:.3f} (mean) and {most:.2f} (most) from the {expected.numel()} published logits"
    if quantised:
        return Row(what, "not checked", f"{result}, which are of the weights in bfloat16: what quantising adds is not published")
    allowed = TOLERANCES[layers]
    sound = mean <= allowed[0] and most <= allowed[1]
    return Row(what, "agrees" if sound else "differs", f"{result}; allowed: {allowed[0]} and {allowed[1]}")


@torch.inference_mode()
def _step(model: Transformer, prompt: Sequence[int], canvas: Sequence[int]) -> Tensor:
    """Logits of the first step without self-conditioning, of the first positions: ``[10, V]`` float32."""
    cache = KVCache(model.config.text, 1, len(prompt), model.cache_dtype, model.device)
    model.encode(torch.tensor([list(prompt)], device=model.device), cache)
    hidden = model.denoise(torch.tensor([list(canvas)], device=model.device), cache)
    return model.logits(hidden[:, : len(published().logits)])[0].cpu()


def _first_layers(model: Transformer, layers: int) -> Transformer:
    """The same weights with fewer layers."""
    text = model.config.text
    if layers == text.num_hidden_layers:
        return model
    config = replace(model.config, text=replace(text, num_hidden_layers=layers, layers=text.layers[:layers]))
    with torch.device("meta"):
        short = Transformer(config)
    short.embed_tokens, short.norm, short.self_conditioning = model.embed_tokens, model.norm, model.self_conditioning
    short.layers = nn.ModuleList(list(model.layers)[:layers])
    short.compute_dtype = model.compute_dtype
    return short.eval()


def _place(device: str | None, weights: int) -> torch.device:
    """Where to compute: what was asked for, else a GPU that holds the weights, else the CPU."""
    place = device_of(device)
    return torch.device("cpu") if device is None and place.type != "cpu" and weights + _ROOM > free_memory(place) else place


def holds_no_data(folder: Path) -> bool:
    """Whether the weights are headers alone: sparse files, of which nothing but zeros can be read."""
    return any(_is_hollow(path) for path in folder.glob("*.safetensors"))


def _is_hollow(path: Path) -> bool:
    result = path.stat()
    if result.st_blocks * 512 >= result.st_size // 4:
        return False
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        places = [start + (result.st_size - start) * i // 64 for i in range(64)]
        return not any(any(os.pread(file.fileno(), 4096, at)) for at in places)
