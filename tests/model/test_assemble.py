"""Weights put in place one by one make the transformer they came from."""

import pytest
import torch

from diffusiongemma.model.assemble import assemble
from tests.quant.records import packed, values
from tests.tiny import tiny_config, tiny_transformer

CPU = torch.device("cpu")


def test_plain_weights() -> None:
    source = tiny_transformer()
    state = source.state_dict()
    made = assemble(source.config, state.items(), torch.float32, CPU, keep=False)
    assert not made.training and not any(weight.requires_grad for weight in made.parameters())
    assert set(made.state_dict()) == set(state)
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, state[name]) and tensor.data_ptr() != state[name].data_ptr(), name


@pytest.mark.parametrize("keep", [True, False])
def test_dtypes(keep: bool) -> None:
    source = tiny_transformer(dtype=torch.bfloat16)
    state = dict(source.state_dict())
    name = "layers.0.experts.gate_up_proj"
    record = packed(state[name].float())
    made = assemble(source.config, {**state, name: record}.items(), torch.float32, CPU, keep=keep)
    (result,) = made.packed()
    assert result[0] == name and torch.equal(values(result[1]), values(record)) and made.dtype == torch.float32
    for other, tensor in made.state_dict().items():
        assert (tensor.data_ptr() == state[other].data_ptr()) == (keep and tensor.ndim > 1), "taken as it is"
        assert tensor.dtype == (torch.bfloat16 if keep and tensor.ndim > 1 else torch.float32), other


def test_a_weight_that_is_not_there() -> None:
    state = tiny_transformer().state_dict()
    del state["norm.weight"]
    with pytest.raises(AssertionError, match=r"no weights for norm\.weight"):
        assemble(tiny_config(), state.items(), torch.float32, CPU, keep=True)
