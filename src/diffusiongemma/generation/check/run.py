"""The whole check, one part after the other."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from diffusiongemma.errors import CheckpointError, ConfigError, DiffusionGemmaError
from diffusiongemma.generation.check.forward import check_forward
from diffusiongemma.generation.check.layout import Layout, layout_of
from diffusiongemma.generation.check.published import differences, is_the_26b, published
from diffusiongemma.generation.check.report import Report, Row, listed
from diffusiongemma.generation.check.tensors import Headers, compare, download_headers, read_headers
from diffusiongemma.generation.check.texts import check_generation, check_texts
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.expected import text_shapes
from diffusiongemma.weights.checkpoint import SafetensorsWeights
from diffusiongemma.weights.load import modelopt_config
from diffusiongemma.weights.names import VISION_PREFIXES
from diffusiongemma.weights.resolve import download_small, is_hub_id, resolve
from diffusiongemma.weights.schemes import scheme_of
from diffusiongemma.weights.stream import read_json, tensor_files

__all__ = ["check"]


def check(
    name: str | os.PathLike[str],
    *,
    forward: bool = True,
    device: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Compare a checkpoint with what its config.json asks for and with what is published of the released 26B.

    Args:
        name: a built-in name, a folder of safetensors files, or a hub id, of which headers and small files are
            downloaded (weights that an earlier download left in the cache are used).
        forward: compute one denoising step.
        device: of the step; None: a CUDA device if there is one, else the CPU.
        progress: called with what is done now.

    Raises:
        CheckpointError: no checkpoint of that name, or a GGUF file.
        OptionError: a device that is not there.
    """
    report = Report(os.fspath(name))
    hub = is_hub_id(name)
    progress("small files")
    folder = download_small(os.fspath(name)) if hub else resolve(name)
    hub = hub and not _is_whole(folder)
    if folder.is_file():
        raise CheckpointError(f"{folder} is a GGUF file, whose names and sizes are checked when it is loaded; give safetensors")
    try:
        config = ModelConfig.from_dict(read_json(folder / "config.json"))
        config = replace(config, quantization=config.quantization or modelopt_config(folder))
    except DiffusionGemmaError as error:
        report.add("config.json", "differs" if isinstance(error, ConfigError) else "damaged", str(error))
        return report
    report.published = is_the_26b(config.text)
    layout = layout_of(config)
    report.format = layout.format
    report.take(_config(config, layout, report.published))
    headers = download_headers(os.fspath(name)) if hub else read_headers(folder, lambda file: progress(f"header of {file}"))
    report.take(compare(headers, layout, config.vision is not None))
    if headers.sound:
        report.take(_planned(headers, config, folder))
    report.take(_count(headers, layout, report.published))
    progress("tokenizer")
    report.take(check_texts(folder, config, report.published))
    report.take(check_generation(folder, config, report.published))
    if not forward:
        report.add("denoising step", "not checked", "left out as asked")
    elif hub:
        report.add("denoising step", "not checked", "headers alone were downloaded; check the folder of the whole checkpoint")
    elif not report.agrees:
        report.add("denoising step", "not checked", "what is above has to agree first")
    else:
        report.take(check_forward(folder, config, report.published, device, progress))
    return report


def _is_whole(folder: Path) -> bool:
    """Whether what was downloaded before has the weights too."""
    try:
        return bool(tensor_files(folder))
    except CheckpointError:
        return False


def _config(config: ModelConfig, layout: Layout, the_26b: bool) -> Iterator[Row]:
    yield Row("config.json", "agrees", f"can be followed; weights: {layout.format}")
    if not the_26b:
        yield Row("published config.json", "not applicable", "this is another model than google/diffusiongemma-26B-A4B-it")
        return
    wrong = differences(config)
    yield Row("published config.json", "differs" if wrong else "agrees", listed(wrong) if wrong else "all fields of the text part")


def _planned(headers: Headers, config: ModelConfig, folder: Path) -> Iterator[Row]:
    """What the loader makes of the same headers."""
    try:
        if config.quantization is not None:
            scheme_of(config.quantization)
    except CheckpointError as error:
        yield Row("loader", "not checked", f"it does not read this format: {error}")
        return
    try:
        plan = SafetensorsWeights(headers.tensors, text_shapes(config.text), config.quantization, folder)
    except CheckpointError as error:
        yield Row("loader", "differs", str(error))
        return
    kinds = ", ".join(f"{count:,} matrices in {kind}" for kind, count in plan.kinds.most_common()) or "nothing quantised"
    yield Row("loader", "agrees", f"every weight has its place; {kinds}")


def _count(headers: Headers, layout: Layout, the_26b: bool) -> Iterator[Row]:
    """The number of tensors, which is known of three published copies."""
    what, expected = "published number of tensors", published().tensors.get(layout.format)
    if not the_26b:
        yield Row(what, "not applicable", "published for the 26B")
    elif expected is None:
        yield Row(what, "not checked", f"not known for {layout.format}")
    elif headers.sound and not any(name.startswith(VISION_PREFIXES) for name in headers.tensors):
        yield Row(what, "not checked", f"{expected:,} with the vision tower, which this copy does not have")
    else:
        result = len(headers.tensors)
        yield Row(
            what,
            "agrees" if result == expected else "differs",
            f"{result:,}" if result == expected else f"{result:,}, not {expected:,}",
        )
