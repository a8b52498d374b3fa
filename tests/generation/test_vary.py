"""Variants keep what was not renewed, to the character, and draw what to renew from their seed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.generation import vary
from tests.engine.test_constraint import model_of

QUICK = {"num_diffusion_steps": 2}
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)


@pytest.fixture(scope="module", name="model")
def _model() -> DiffusionGemmaModel:
    return model_of()


@settings(max_examples=25, deadline=None)
@given(TEXTS, st.integers(0, 2**32))
def test_strength_0_changes_nothing(model: DiffusionGemmaModel, text: str, seed: int) -> None:
    assert model.vary(text, 0, 2, seed, **QUICK) == [text, text]


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.floats(0, 1), st.integers(0, 2**63 - 1))
def test_what_is_not_renewed_stays(model: DiffusionGemmaModel, text: str, strength: float, seed: int) -> None:
    units = vary._units(model.tokenizer, model.tokenizer.encode(text))
    assert "".join(part for _, part in units) == text
    variants = model.vary(text, strength, 3, seed, **QUICK)
    for number, variant in enumerate(variants):
        drawn = vary._drawn(units, strength, seed, number)
        assert len(drawn) == min(len(units), max(round(strength * len(units)), int(strength > 0)))
        rest = variant
        for at, (_, part) in enumerate(units):
            if at not in drawn:
                assert part in rest, "kept parts come in order"
                rest = rest[rest.index(part) + len(part) :]


def test_variants_draw_places_and_noise_of_their_own(model: DiffusionGemmaModel) -> None:
    text = "The quick brown fox jumps over the lazy dog, and then it sleeps."
    variants = model.vary(text, 0.3, 6, 1, **QUICK)
    assert len(set(variants)) > 1 and variants == model.vary(text, 0.3, 6, 1, **QUICK)
    assert variants != model.vary(text, 0.3, 6, 2, **QUICK)


def test_many_variants_come_in_batches_and_are_the_same(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model.transformer.double()
    is_complete = model.vary("Some text of a few words.", 0.5, 7, 1, **QUICK)
    monkeypatch.setattr(vary, "ROWS", 3)
    assert model.vary("Some text of a few words.", 0.5, 7, 1, **QUICK) == is_complete
    model.transformer.float()


def test_a_text_over_several_canvases(model: DiffusionGemmaModel) -> None:
    text = "Zeilen über Zeilen, früh und spät.\n" * 12
    (variant,) = model.vary(text, 0.05, 1, 3, **QUICK)
    assert variant != text and variant[:5] != "" and len(variant) > len(text) / 2
