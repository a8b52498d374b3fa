"""What ``info`` advises: to run the checkpoint, or which published file fits instead."""

from typing import Any

from diffusiongemma.cli.info import _next


def report(cpu: bool, cuda: bool | None = None, published: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    fits = {"cpu": {"float32": False, "bfloat16": cpu}}
    if cuda is not None:
        fits["cuda"] = {"float32": False, "bfloat16": cuda}
    needed = {"bfloat16": 52 << 30}
    return {"model": "m", "fits": fits, "published": published or [], "needed_bytes": needed, "parameters": 10**9}


def file(name: str, size: int, **fits: bool) -> dict[str, Any]:
    return {"name": name, "weight_bytes": size << 30, "fits": fits}


def test_what_fits_is_run() -> None:
    assert _next(report(cpu=False, cuda=True), None) == "It fits the GPU: diffusiongemma chat -m m"
    said = _next(report(cpu=True), None)
    assert said.startswith("It fits this machine's memory: diffusiongemma chat -m m --dtype bfloat16") and "--quantize int8" in said
    assert _next(report(cpu=True), "int8") == "It fits this machine's memory: diffusiongemma chat -m m --quantize int8"


def test_else_the_largest_published_file_that_fits() -> None:
    files = [file("a/fp8", 27, cpu=False), file("a/nvfp4", 18, cpu=True), file("a/int4", 16, cpu=True)]
    assert _next(report(cpu=False, published=files), None).endswith("fits this machine's memory: diffusiongemma chat -m a/nvfp4")
    none = _next(report(cpu=False, published=files[:1]), None)
    assert "52.0 GiB are needed" in none and "a/fp8, takes 27.0 GiB" in none
    assert _next(report(cpu=False), None) == "It does not fit here: 52.0 GiB are needed."
