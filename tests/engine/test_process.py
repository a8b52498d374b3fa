"""Whole generations under another process than uniform noise: what a checkpoint's config names is what the engine follows."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusiongemma.diffusion import Uniform, process, register_process
from diffusiongemma.engine.events import Draft
from diffusiongemma.errors import ConfigError, InputError
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.kernels import random_ids
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.transformer import Transformer
from tests.tiny import config_dict, tiny_model, tiny_transformer

MASK = 63


def stack(scale: float = 0.5, **fields: object) -> Transformer:
    config = ModelConfig.from_dict({**config_dict(), "diffusiongemma": {"process": fields}})
    return tiny_transformer(config, scale=scale)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> DiffusionGemmaModel:
    return tiny_model(tmp_path_factory.mktemp("masked"), stack(0.4, name="absorbing", mask_token_id=MASK), max_tokens=24)


def test_a_position_that_was_kept_never_changes_again(masked: DiffusionGemmaModel) -> None:
    drafts: dict[int, list[Draft]] = {}
    for event in masked.stream("abc", seed=3, drafts=True):
        if isinstance(event, Draft):
            drafts.setdefault(event.canvas, []).append(event)
    steps = [len(each) for each in drafts.values()]
    assert len(drafts) == 3 and max(steps) > 3
    for each in drafts.values():
        kept: dict[int, int] = {}
        for draft in each:
            assert all(draft.argmax_ids[at] == token for at, token in kept.items())
            kept |= {at: token for at, (token, is_kept) in enumerate(zip(draft.argmax_ids, draft.accepted, strict=True)) if is_kept}


def test_it_is_the_same_alone_and_in_company(masked: DiffusionGemmaModel) -> None:
    prompts = ["abc", "Zz0", "abc"]
    alone = [masked.generate(prompt, seed=1 + row).token_ids for row, prompt in enumerate(prompts)]
    assert [one.token_ids for one in masked.generate(prompts, seeds=[1, 2, 3])] == alone and alone[0] != alone[2]


def test_pins_and_grammars_have_their_way(masked: DiffusionGemmaModel, tmp_path: Path) -> None:
    pinned = masked.generate("abc", pins={2: 5, 17: 9}, seed=1).token_ids
    assert (pinned[2], pinned[17]) == (5, 9)
    ending = tiny_model(tmp_path, masked.transformer, stop_ids=(60,), max_tokens=24)
    assert re.fullmatch("(xy|zw){6}", ending.generate("abc", regex="(xy|zw){6}", seed=1).text)


def test_a_text_cannot_be_edited(masked: DiffusionGemmaModel) -> None:
    with pytest.raises(InputError, match=r"\(absorbing\) keeps every token"):
        masked.edit("abcdef", "xyz", in_prompt=False)


def test_a_process_from_outside_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PROCESSES", dict(process._PROCESSES))
    with pytest.raises(ConfigError, match="'lower' is not known"):
        stack(name="lower", share=2)

    @dataclass(frozen=True)
    class Lower(Uniform):
        """Noise from the first part of the vocabulary."""

        share: int

        def prior(self, keys_BL: Tensor, excluded_E: Tensor | None = None) -> Tensor:
            return random_ids(keys_BL, self.vocab_size // self.share)

        def renoise(self, drawn_BL: Tensor, keys_BL: Tensor) -> Tensor:
            return random_ids(keys_BL, self.vocab_size // self.share)

    register_process("lower", Lower)
    model = tiny_model(tmp_path, stack(name="lower", share=4), num_diffusion_steps=3, entropy_bound=1e-6)
    read: list[Tensor] = []
    denoise = model.transformer.denoise_rows
    monkeypatch.setattr(model.transformer, "denoise_rows", lambda tokens, *rest: read.extend(tokens) or denoise(tokens, *rest))
    assert len(model.generate("abc", seed=1, max_tokens=8).token_ids) == 8
    assert len(read) == 3 and all((tokens >= 16).sum() <= at * 8 / 8 for at, tokens in enumerate(read))
    assert torch.cat(read).unique().numel() > 8
