import pytest
import torch

from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.errors import OptionError


@pytest.fixture(scope="module")
def models() -> tuple[DiffusionGemmaModel, DiffusionGemmaModel]:
    return DiffusionGemmaModel.from_pretrained("nano"), DiffusionGemmaModel.from_pretrained("nano", quantize="int8")


def test_both_roles_are_near_the_exact_ones(models: tuple[DiffusionGemmaModel, DiffusionGemmaModel]) -> None:
    exact, fast = models
    ids = torch.tensor([exact.tokenizer.encode("Extract as JSON: name (string)\nKalrin is 31.")])
    canvas = torch.randint(0, exact.config.text.vocab_size, (1, 64), generator=torch.Generator().manual_seed(0))
    hidden = []
    for model in (exact, fast):
        cache = model.new_cache(1, 256)
        hidden.append((model.encode(ids, cache), model.denoise(canvas, cache)))
    for wanted, result in zip(*hidden, strict=True):
        assert 0 < (result - wanted).norm() / wanted.norm() < 0.06


def test_weights_take_a_quarter_of_float32(models: tuple[DiffusionGemmaModel, DiffusionGemmaModel]) -> None:
    exact, fast = models
    names = {name for name, _ in fast.transformer.packed()}
    assert "embed_tokens.weight" in names and "layers.0.experts.gate_up_proj" in names
    assert not any("router" in name or "self_conditioning" in name or "norm" in name for name in names)
    packed = sum(record.nbytes for _, record in fast.transformer.packed())
    plain = sum(value.nbytes for name, value in exact.transformer.state_dict().items() if name in names)
    assert packed < 0.27 * plain


def test_an_answer_is_the_same_alone_and_in_company(models: tuple[DiffusionGemmaModel, DiffusionGemmaModel]) -> None:
    fast = models[1]
    prompts = ["Extract as JSON: name (string)\nAda is 36.", "Reverse the words: one two three", "Is it late?"]
    together = fast.generate(prompts, seed=5, max_tokens=32)
    assert [fast.generate(prompt, seed=5, max_tokens=32).token_ids for prompt in prompts] == [r.token_ids for r in together]


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(OptionError, match="quantize is 'int3'; allowed: 'int8'"):
        DiffusionGemmaModel.from_pretrained("nano", quantize="int3")
    with pytest.raises(OptionError, match="computes on a CPU"):
        DiffusionGemmaModel.from_pretrained("nano", quantize="int8", device="meta")
