"""The published files of google/diffusiongemma-26B-A4B-it and its quantised copies, field for field, without weights.

``released_files/`` holds them as they are downloaded, formatted anew. Of the FP8 copy's ``quantization_config`` the list ``ignore``
(255 names of modules) is made here.
"""

import json
from pathlib import Path
from typing import Any

FILES = Path(__file__).parent / "released_files"


def read(name: str) -> dict[str, Any]:
    """One of the files."""
    data: dict[str, Any] = json.loads((FILES / name).read_text())
    return data


def config(kind: str = "bf16") -> dict[str, Any]:
    """The config.json of the checkpoint in ``bf16`` (Google), ``fp8`` (RedHatAI) or ``nvfp4`` (NVIDIA)."""
    data = read("config.json")
    if kind != "bf16":
        data["quantization_config"] = read(f"quantization_{kind}.json")
    if kind == "fp8":
        data["quantization_config"]["ignore"] = _fp8_ignore()
    return data


def write(folder: Path, kind: str = "bf16") -> None:
    """Write the small JSON files into a folder."""
    (folder / "config.json").write_text(json.dumps(config(kind)))
    for name in ("generation_config.json", "tokenizer_config.json", "processor_config.json"):
        (folder / name).write_bytes((FILES / name).read_bytes())


def _fp8_ignore() -> list[str]:
    stacks = ("model.encoder.language_model", "model.decoder")
    tower = "model.encoder.vision_tower."
    linears = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    return [
        *(f"{stack}.layers.{i}.router.proj" for stack in stacks for i in range(30)),
        *(f"{tower}encoder.layers.{i}.{linear}.linear" for i in range(27) for linear in linears),
        f"{tower}patch_embedder.input_proj",
        "model.encoder.embed_vision.embedding_projection",
        *(f"model.decoder.self_conditioning.{name}_proj" for name in ("gate", "up", "down")),
        "lm_head",
    ]
