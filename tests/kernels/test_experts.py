"""Both forms of the experts against a loop over tokens, and the choice between them."""

import pytest
import torch
from torch.nn import functional as F

from diffusiongemma.kernels import experts, experts_choice
from diffusiongemma.kernels.dispatch import DENSE_LIMIT
from diffusiongemma.kernels.reference import experts_dense, experts_grouped_mm, experts_loop

SIZES = [(1, 1, 1), (7, 4, 2), (9, 8, 3), (5, 16, 1), (3, 4, 4)]


def example(tokens: int, number: int, chosen: int, hidden: int = 6) -> tuple[torch.Tensor, ...]:
    """Tokens, distinct experts for each, weights, and the experts' matrices, in float64."""
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, hidden, dtype=torch.float64, generator=generator)
    index = torch.stack([torch.randperm(number, generator=generator)[:chosen] for _ in range(tokens)])
    weight = torch.rand(tokens, chosen, dtype=torch.float64, generator=generator)
    gate_up = torch.randn(number, 10 if hidden == 6 else 2 * hidden, hidden, dtype=torch.float64, generator=generator)
    down = torch.randn(number, hidden, 5 if hidden == 6 else hidden, dtype=torch.float64, generator=generator)
    return x, index, weight, gate_up, down


@pytest.mark.parametrize("run", [experts_dense, experts_loop, experts])
@pytest.mark.parametrize(("tokens", "number", "chosen"), SIZES)
def test_each_form_is_the_loop(run, tokens: int, number: int, chosen: int) -> None:
    x, index, weight, gate_up, down = example(tokens, number, chosen)
    expected = torch.zeros_like(x)
    for t in range(tokens):
        for slot in range(chosen):
            expert = int(index[t, slot])
            gate, up = (gate_up[expert] @ x[t]).split(5)
            expected[t] += weight[t, slot] * (down[expert] @ (F.silu(gate) * up))
    assert torch.allclose(run(x, index, weight, gate_up, down, F.silu), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("run", [experts_dense, experts_loop])
def test_each_form_has_the_loops_gradient(run) -> None:
    x, index, weight, gate_up, down = example(7, 4, 2)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, gate_up, down)]
    assert torch.autograd.gradcheck(lambda a, w, g, d: run(a, index, w, g, d, F.silu), leaves)


def test_the_choice_goes_by_size_and_says_why() -> None:
    assert experts_choice(4, 2, 100).name == "dense"
    assert experts_choice(16, 2, 100).name == "grouped"
    assert experts_choice(4, 2, DENSE_LIMIT + 1).name == "grouped"
    assert "16 experts" in experts_choice(16, 2, 100).reason


def test_the_librarys_grouped_product_is_the_loop_in_bfloat16() -> None:
    """Its own path is for bfloat16: an expert nobody chose, and one that all chose, among them."""
    for tokens, number, chosen in SIZES:
        x, index, weight, gate_up, down = (
            t.bfloat16() if t.is_floating_point() else t for t in example(tokens, number, chosen, 16)
        )
        if not hasattr(F, "grouped_mm"):
            pytest.skip("this torch has no grouped product")
        ours = experts_grouped_mm(x, index, weight.float(), gate_up, down, F.silu)
        wide = experts_loop(x.double(), index, weight.double(), gate_up.double(), down.double(), F.silu)
        assert (ours.double() - wide).norm() <= 0.02 * wide.norm()
    assert experts_choice(16, 2, 100, torch.bfloat16).name == "product"
