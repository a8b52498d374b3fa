"""The bytes of tokens join to the text's, and a text's length tells a lower bound of its tokens, whatever the text is."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from diffusiongemma.errors import PromptTooLongError
from diffusiongemma.text.spelling import widest_token
from diffusiongemma.text.tokenizer import Tokenizer
from diffusiongemma.weights.resolve import resolve

TEXTS = st.one_of(st.text(max_size=200), st.text(alphabet=" \n\ta1\u00a0\u2028é€💥", max_size=200))


def gemma_like(added: AddedToken | None = None) -> Tokenizer:
    """Blanks as a mark of their own, bytes where there is no token: as Gemma's tokenizer is made."""
    texts = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"abn\u2581é", "ab", "\u2581a", "\u2581\u2581"]
    vocab = {text: place for place, text in enumerate(texts)}
    merges = [("a", "b"), ("\u2581", "a"), ("\u2581", "\u2581")]
    backend = Backend(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    if added is not None:
        backend.add_special_tokens([added])
    return Tokenizer(backend, None, Path())


MADE = {"byte level": Tokenizer.from_folder(resolve("nano")), "byte fallback": gemma_like()}


@pytest.mark.parametrize("kind", MADE)
@given(text=TEXTS)
def test_the_bytes_of_tokens_join_to_the_text(kind: str, text: str) -> None:
    ids = MADE[kind].encode(text, allow_special=False)
    assert b"".join(map(MADE[kind].token_bytes, ids)) == text.encode()


@pytest.mark.parametrize("kind", MADE)
@given(text=TEXTS, times=st.integers(1, 50))
def test_a_text_has_no_fewer_tokens_than_its_length_tells(kind: str, text: str, times: int) -> None:
    tokenizer, text = MADE[kind], text * times
    count = len(tokenizer.encode(text, allow_special=False))
    assert tokenizer.fewest_tokens(len(text)) <= count
    assert tokenizer.encode(text, allow_special=False, most=count) == tokenizer.encode(text, allow_special=False)


def test_what_is_certainly_too_long_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = gemma_like()
    widest = max(map(len, tokenizer._backend.get_vocab()))
    monkeypatch.setattr(tokenizer, "_encode_batch", lambda texts: pytest.fail("it was tokenised"))
    with pytest.raises(PromptTooLongError, match=r"1,000,000 characters, which are 166,667 tokens at .* has 9 positions"):
        tokenizer.encode("a" * 1_000_000, most=9)
    assert tokenizer.fewest_tokens(widest * 9) == 9


@pytest.mark.parametrize(
    "changed",
    [
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "a"}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "aa"}, "content": ""}},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}},
    ],
)
def test_no_bound_where_characters_get_lost(changed: dict[str, object]) -> None:
    described = json.loads(gemma_like()._backend.to_str())
    assert widest_token(Backend.from_str(json.dumps(described))) == 6
    assert widest_token(Backend.from_str(json.dumps(described | changed))) is None


def test_no_bound_where_one_token_takes_any_number() -> None:
    assert widest_token(gemma_like(AddedToken("<x>"))._backend) == 6
    assert widest_token(gemma_like(AddedToken("<x>", lstrip=True))._backend) is None
    assert widest_token(Backend(models.WordLevel({"<unk>": 0, "a": 1}, "<unk>"))) is None
    assert widest_token(Backend(models.BPE(vocab={"a": 0}, merges=[]))) is None  # others are dropped
