"""Adapters in PEFT's format: what PEFT writes is read, what is written PEFT and transformers compute with, and what one stack
cannot hold is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusiongemma.errors import CheckpointError
from diffusiongemma.generation.loading import load
from diffusiongemma.model.adapters import Pair, adapted, attach, fold, new_pairs
from diffusiongemma.model.cache import KVCache
from diffusiongemma.model.expected import text_shapes
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.weights.adapter_files import read_adapter, write_adapter
from diffusiongemma.weights.resolve import builtin_folder
from tests.parity.reference import CACHE, load_ours, load_reference, write_checkpoint

IDS = torch.randint(3, 32, (1, 12), generator=torch.Generator().manual_seed(1))
CANVAS = torch.randint(3, 32, (1, 8), generator=torch.Generator().manual_seed(2))
SOFT = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(3))


def random_pairs(model: Transformer, targets: tuple[str, ...], rank: int = 3, alpha: float = 6) -> dict[str, Pair]:
    generator = torch.Generator().manual_seed(5)
    pairs = new_pairs(model, rank, alpha, targets, generator)
    return {name: pair._replace(b_NR=torch.randn(pair.b_NR.shape, generator=generator) * 0.2) for name, pair in pairs.items()}


@torch.inference_mode()
def both_roles(model: Transformer) -> tuple[Tensor, Tensor]:
    cache = KVCache(model.config.text, 1, 64, model.dtype, torch.device("cpu"))
    causal = model.logits(model.encode(IDS, cache))
    return causal, model.logits(model.denoise(CANVAS, cache))


@torch.inference_mode()
def reference_roles(model: Any) -> tuple[Tensor, Tensor]:
    from transformers import DynamicCache

    inner = model.get_base_model()
    cache = DynamicCache(config=inner.config.get_text_config())
    encoded = inner.model.encoder(input_ids=IDS, use_cache=True, **{CACHE: cache})
    causal = torch.tanh(inner.lm_head(encoded.last_hidden_state) / 30) * 30
    output = inner(decoder_input_ids=CANVAS, **{CACHE: cache})
    return causal, output.logits


@pytest.mark.parametrize("targets", [("attention",), ("attention", "mlp"), ("attention", "mlp", "self_conditioning")])
def test_peft_computes_the_same_with_what_we_write(tmp_path: Path, targets: tuple[str, ...]) -> None:
    write_checkpoint(tmp_path / "base")
    ours = load_ours(tmp_path / "base")
    plain = both_roles(ours)
    attach(ours, random_pairs(ours, targets))
    wanted = both_roles(ours)
    assert all((one - two).abs().max() > 0.01 for one, two in zip(plain, wanted, strict=True))
    write_adapter(tmp_path / "adapter", adapted(ours), str(tmp_path / "base"))
    theirs = peft.PeftModel.from_pretrained(load_reference(tmp_path / "base"), str(tmp_path / "adapter"))
    for one, two in zip(reference_roles(theirs), wanted, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_what_peft_writes_is_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", vocab_size=832)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base" / name).write_bytes((builtin_folder() / "sudoku" / name).read_bytes())
    reference = load_reference(tmp_path / "base")
    config = peft.LoraConfig(
        r=4, lora_alpha=8, use_rslora=True, target_modules=r".*(language_model|decoder)\.layers\.\d+\.self_attn\.[qo]_proj"
    )
    theirs = peft.get_peft_model(reference, config)
    generator = torch.Generator().manual_seed(7)
    values: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_" in name:  # the two stacks tied, as one stack needs them
                key = name.replace("encoder.language_model.", "").replace("decoder.", "")
                weight.copy_(values.setdefault(key, torch.randn(weight.shape, generator=generator) * 0.2))
    theirs.save_pretrained(tmp_path / "adapter")
    checkpoint = load(tmp_path / "base", "float32", "cpu", None, False, adapter=tmp_path / "adapter")
    assert next(iter(adapted(checkpoint.transformer).values())).scale == 8 / 4**0.5
    for one, two in zip(reference_roles(theirs), both_roles(checkpoint.transformer), strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_folded_once_it_computes_the_same(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base")
    model = load_ours(tmp_path / "base")
    attach(model, random_pairs(model, ("attention", "mlp")))
    wanted = both_roles(model)
    fold(model)
    assert not adapted(model)
    for one, two in zip(both_roles(model), wanted, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_new_adapters_change_nothing(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base")
    model = load_ours(tmp_path / "base")
    plain = both_roles(model)
    attach(model, new_pairs(model, 2, 4, ("attention", "mlp"), torch.Generator().manual_seed(1)))
    assert all(torch.equal(one, two) for one, two in zip(plain, both_roles(model), strict=True))


def _config(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def _tensors(edit: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return change


STACKS = ("decoder.", "encoder.language_model.")
FIRST = "base_model.model.model.{}layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_config(peft_type="IA3"), "peft_type 'IA3'"),
        (_config(use_dora=True), "use_dora True"),
        (_config(alora_invocation_tokens=[5, 6]), "alora_invocation_tokens"),
        (_config(use_qalora=True), "use_qalora True"),
        (_config(modules_to_save=["lm_head"]), "modules_to_save"),
        (_config(lora_alpha=None), "lora_alpha None"),
        (_tensors(lambda t: t[FIRST.format("decoder.", "B")].mul_(2)), "differ between the two roles"),
        (_tensors(lambda t: [t.pop(FIRST.format("encoder.language_model.", one)) for one in "AB"]), "one role only"),
        (_tensors(lambda t: t.update({FIRST.format("decoder.", "A"): torch.ones(3, 5)})), "differ|another base"),
        (_tensors(lambda t: [t[FIRST.format(s, "A")].fill_(math.inf) for s in STACKS]), "infinite"),
        (_tensors(lambda t: t.update({"base_model.model.model.decoder.layers.0.router.scale.x": torch.ones(2)})), "adapts nothing"),
        (_tensors(lambda t: t.update({FIRST.format("decoder.", "A").replace(".0.", ".9."): torch.ones(3, 32)})), "another base"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 99), "damaged|header"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config.json"),
    ],
)  # fmt: skip
def test_what_is_not_followed_is_refused(tmp_path: Path, change: Callable[[Path], None], says: str) -> None:
    write_checkpoint(tmp_path / "base")
    model = load_ours(tmp_path / "base")
    write_adapter(tmp_path / "adapter", random_pairs(model, ("attention",)), "base")
    change(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=says):
        read_adapter(tmp_path / "adapter", text_shapes(model.config.text))
