"""A transformer whose matrices are all packed equals the one that holds their values as parameters."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffusiongemma import kernels
from diffusiongemma.kernels import RngPurpose, position_keys
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.quant import Routing
from tests.quant.records import packed, values
from tests.tiny import tiny_config, tiny_model, tiny_transformer

IDS = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(3))


def twins(num_experts: int = 4, **options: object) -> tuple[Transformer, Transformer]:
    """A packed stack, and a plain one with the packed one's values."""
    config = tiny_config(num_experts=num_experts, **options)
    ours, plain = tiny_transformer(config, scale=0.2), tiny_transformer(config, scale=0.2)
    for prefix, module in ours.named_modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.ndim > 1:
                record = packed(weight.data)
                module.pack(name, record)
                plain.get_parameter(f"{prefix}.{name}").data.copy_(values(record))
    return ours, plain


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=2e-5, rtol=2e-5)


@torch.inference_mode()
@pytest.mark.parametrize("num_experts", [4, 12], ids=["dense", "grouped"])
@pytest.mark.parametrize("bias", [False, True])
def test_every_pass(num_experts: int, bias: bool) -> None:
    from diffusiongemma.model.cache import KVCache

    ours, plain = twins(num_experts, attention_bias=bias)
    outs = []
    for model in (ours, plain):
        cache = KVCache(model.config.text, 2, 64, model.dtype, model.device)
        hidden = model.encode(IDS, cache)
        soft = model.soften(model.logits(hidden)[:, :8])
        denoised = model.denoise(IDS[:, :8], cache, soft)
        keys = position_keys(torch.arange(2), torch.arange(2), torch.arange(2), RngPurpose.DRAW, 8)
        result = model.canvas_head(denoised, torch.tensor([0.8, 0.4]), keys, IDS[:, :8], soft={None: None})
        few = torch.zeros(64, dtype=torch.bool)
        few[[3, 17]] = True
        best = [model.best_of(denoised[1, 2], allowed) for allowed in (few, torch.ones(64, dtype=torch.bool))]
        outs.append((hidden, soft, denoised, result, best))
    for mine, theirs in zip(outs[0][:3], outs[1][:3], strict=True):
        assert close(mine, theirs)
    assert torch.equal(outs[0][3].argmax_ids_BL, outs[1][3].argmax_ids_BL) and torch.equal(outs[0][3].drawn_BL, outs[1][3].drawn_BL)
    assert close(outs[0][3].soft_BLD, outs[1][3].soft_BLD)
    assert outs[0][4] == outs[1][4]


def test_a_whole_generation(tmp_path: Path) -> None:
    ours, plain = twins(12)
    said = [tiny_model(tmp_path, model, max_tokens=24).generate("abc", seed=5).token_ids for model in (ours, plain)]
    assert said[0] == said[1] and len(said[0]) == 24


def test_records_are_no_parameters_and_keep_their_dtypes() -> None:
    ours, plain = twins()
    left = {name for name, weight in plain.named_parameters() if weight.ndim == 1}
    assert {name for name, _ in ours.named_parameters()} == left
    names = dict(ours.packed())
    assert set(names) == {name for name, weight in plain.named_parameters() if weight.ndim > 1}
    ours.to(torch.bfloat16)
    assert ours.dtype == torch.bfloat16
    assert {t.dtype for record in dict(ours.packed()).values() for t in record.tensors().values()} == {torch.int8, torch.float32}
    ours.to("meta")
    assert {record.device.type for _, record in ours.packed()} == {"meta"}


def test_the_dtypes_of_weights_and_of_computation_are_apart() -> None:
    """bfloat16 matrices computed in float32 are the float32 matrices of the same values."""
    narrow = tiny_transformer(dtype=torch.bfloat16)
    wide = tiny_transformer(dtype=torch.bfloat16).float()
    for module in narrow.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.ndim == 1:
                setattr(module, name, nn.Parameter(weight.float(), requires_grad=False))
    for scalar in narrow.buffers():
        scalar.data = scalar.data.float()
    narrow.compute_dtype = torch.float32
    with torch.inference_mode():
        from diffusiongemma.model.cache import KVCache

        hidden = [m.encode(IDS, KVCache(m.config.text, 2, 64, m.dtype, m.device)) for m in (narrow, wide)]
        assert hidden[0].dtype == torch.float32 and close(*hidden)
        assert close(narrow.logits(hidden[0]), wide.logits(hidden[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 7, 200])
def test_linear_in_any_pair_of_dtypes(dtype: torch.dtype, weights: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.dispatch, "TILE", 100)
    made = torch.Generator().manual_seed(rows)
    x, w = torch.randn(rows, 48, generator=made).to(dtype), torch.randn(150, 48, generator=made).to(weights)
    bias = torch.randn(150, generator=made).to(dtype)
    out = kernels.linear(x, w, bias)
    assert out.dtype == dtype
    exact = x.double() @ w.double().T + bias.double()
    assert (out.double() - exact).abs().max() < 8 * torch.finfo(dtype).eps * exact.abs().max()


def test_a_packed_product_goes_tile_by_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.dispatch, "TILE", 100)
    record, x = packed(torch.randn(150, 48)), torch.randn(2, 3, 48)
    seen = []
    monkeypatch.setattr(type(record), "operand", lambda self, rows: seen.append((rows.start, rows.stop)) or self.values(rows))
    assert close(record.apply(x, torch.ones(150)), x @ record.values(slice(0, 150)).T + 1)
    assert seen == [(0, 64), (64, 128), (128, 150)]
    assert record.apply(x.bfloat16()).dtype == torch.bfloat16


def test_only_experts_with_tokens_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    record, down = packed(torch.randn(12, 12, 16)), packed(torch.randn(12, 16, 6))
    made: list[int] = []
    of_one = type(record).expert
    monkeypatch.setattr(type(record), "expert", lambda self, i: made.append(i) or of_one(self, i))
    index = torch.tensor([[1, 6], [6, 1], [1, 3]])
    record.apply_experts(torch.randn(3, 16), Routing(index, torch.rand(3, 2)), down, torch.tanh)
    assert made == [1, 1, 3, 3, 6, 6]


def test_a_few_small_experts_are_computed_as_plain_ones_are() -> None:
    """To the bit: a twin of plain weights then draws the same tokens."""
    record, down = packed(torch.randn(8, 12, 16)), packed(torch.randn(8, 16, 6))
    x, index, weight = torch.randn(3, 16), torch.tensor([[1, 6], [6, 1], [1, 3]]), torch.rand(3, 2)
    plain = kernels.experts(x, index, weight, values(record), values(down), torch.tanh)
    assert torch.equal(record.apply_experts(x, Routing(index, weight), down, torch.tanh), plain)


def test_an_expert_is_a_view_and_rows_are_taken_by_number() -> None:
    record = packed(torch.randn(4, 6, 8))
    one = record.expert(2)
    assert one.shape == (6, 8) and one.codes.data_ptr() == record.codes[2].data_ptr()
    assert torch.equal(one.dequantize(1, 4), values(record)[2, 1:4])
    ids = torch.tensor([[5, 0], [0, 3]])
    assert torch.equal(one.take(ids), values(record)[2][ids])
    assert record.nbytes == 4 * 6 * 8 + 4 * 4 * 6
