"""The dtypes of weights, of the computation and of the cache are three things."""

import pytest
import torch

from diffusiongemma.errors import OptionError
from diffusiongemma.generation import DiffusionGemmaModel

QUESTION = "How many legs do 3 dogs and 2 birds have?"


def test_a_cache_may_be_narrower_than_the_computation() -> None:
    wide = DiffusionGemmaModel.from_pretrained("nano")
    narrow = DiffusionGemmaModel.from_pretrained("nano", cache_dtype="bfloat16")
    ids = torch.tensor(wide.prompt_ids(QUESTION))
    states, sizes = [], []
    for model in (wide, narrow):
        cache = model.new_cache(1, 64)
        hidden = model.encode(ids, cache)
        assert hidden.dtype == model.dtype == torch.float32
        states.append(hidden)
        sizes.append(cache.bytes)
    assert sizes[0] == 2 * sizes[1]
    assert torch.allclose(*states, atol=0.2) and not torch.equal(*states)
    # Rounded as they are stored, whoever else is there: the engine's answers do not depend on the batch.
    alone = narrow.generate(QUESTION, seed=1, max_tokens=24).token_ids
    assert narrow.generate([QUESTION, "Say hello."], seed=1, max_tokens=24)[0].token_ids == alone
    with pytest.raises(OptionError, match="cache_dtype is 'int3'"):
        DiffusionGemmaModel.from_pretrained("nano", cache_dtype="int3")
