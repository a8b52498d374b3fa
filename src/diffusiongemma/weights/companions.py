"""What belongs to a checkpoint besides config.json, weights and tokenizer, and what an old one leaves behind."""

import logging
from collections.abc import Collection
from pathlib import Path

from diffusiongemma.errors import CheckpointError
from diffusiongemma.options import OWN_SAMPLING
from diffusiongemma.text.files import is_inside, is_there, read_json
from diffusiongemma.weights.headers import read_header
from diffusiongemma.weights.stream import INDEX, INDEX_BYTES, SINGLE

__all__ = ["companions", "left_behind"]

log = logging.getLogger(__name__)
# Settings of processors and pipelines, templates, vocabularies; texts about the model.
_PATTERNS = ("*.json", "*.jinja", "*.model", "scheduler/*.json", "additional_chat_templates/*.jinja")
_TEXTS = ("README*", "LICENSE*", "NOTICE*")
_MAX_BYTES = 64 << 20
# Written anew, or true only of weights that are stored as they were.
_NOT_COPIED = frozenset({"config.json", "generation_config.json", OWN_SAMPLING, INDEX})
_TEMPLATE = "chat_template.jinja"
_OF_QUANTISED = frozenset({"hf_quant_config.json", "quant_config.json", "quantize_config.json", "quantization_config.json"})


def companions(source: Path, target: Path) -> dict[str, Path]:
    """The small files of a checkpoint that a copy with weights of its own needs: where they go, where they come from.

    Left out are what ``save`` writes, notes on how weights were quantised, indices of weights, links that lead out of the
    checkpoint, and texts (README, LICENSE) where the target has its own.

    Args:
        source: the checkpoint.
        target: the folder of the copy.
    """
    result = {}
    for pattern in (*_PATTERNS, *_TEXTS):
        for path in sorted(source.glob(pattern)):
            name = str(path.relative_to(source))
            if name in _NOT_COPIED | _OF_QUANTISED or name.endswith(".index.json") or name in result or not path.is_file():
                continue
            if is_there(target / name) and (pattern in _TEXTS or path.samefile(target / name)):
                continue
            if not is_inside(path, source):
                log.warning("%s leads out of %s and is not copied", path, source)
            elif path.stat().st_size > _MAX_BYTES:
                log.warning("%s has more than %d MiB and is not copied", path, _MAX_BYTES >> 20)
            else:
                result[name] = path
    return result


def left_behind(folder: Path, written: Collection[str] = ()) -> list[Path]:
    """Files of an older checkpoint that would be loaded in place of new ones, or speak of older weights.

    Of what an index names, only shards are among them: safetensors files in the folder itself that hold what it says they hold.

    Args:
        folder: where a new checkpoint takes its place.
        written: names of its small files: a chat template stays only where a tokenizer without one does not replace its own.
    """
    result = [folder / name for name in sorted(_OF_QUANTISED) if (folder / name).is_file()]
    if "tokenizer.json" in written and _TEMPLATE not in written and (folder / _TEMPLATE).is_file():
        result.append(folder / _TEMPLATE)
    if "generation_config.json" in written and OWN_SAMPLING not in written and (folder / OWN_SAMPLING).is_file():
        result.append(folder / OWN_SAMPLING)
    if not is_there(folder / INDEX):
        return result
    try:
        weight_map = read_json(folder / INDEX, INDEX_BYTES).get("weight_map")
    except CheckpointError:
        weight_map = None
    names: dict[str, set[str]] = {}
    for name, file in weight_map.items() if isinstance(weight_map, dict) else ():
        if isinstance(file, str) and file != SINGLE and Path(file).name == file and file.endswith(".safetensors"):
            names.setdefault(file, set()).add(name)
    return [*result, folder / INDEX, *(folder / file for file in sorted(names) if _is_shard(folder / file, names[file]))]


def _is_shard(path: Path, names: set[str]) -> bool:
    try:
        return not path.is_symlink() and set(read_header(path)) == names
    except (CheckpointError, ValueError):
        return False
