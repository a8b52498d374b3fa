"""Text from growing ids: the same however they come, in time that grows with the ids alone."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

import diffusiongemma
from diffusiongemma.text.deltas import StopStrings, TextDeltas
from diffusiongemma.text.tokenizer import Tokenizer
from tests.text.test_tokenizer import BYTES

NANO = Tokenizer.from_folder(Path(diffusiongemma.__file__).parent / "checkpoints" / "nano")


def words(decoder: decoders.Decoder | None) -> Tokenizer:
    """Words, which decoders put together in ways of their own: with blanks between them, or with one at the start left out."""
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(["a", "▁b", "▁", "##c", "<0x41>"])}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    if decoder is not None:
        backend.decoder = decoder
    return Tokenizer(backend, None, Path())


TOKENIZERS = {
    "bytes": BYTES,
    "nano": NANO,
    "joined by blanks": words(None),
    "first blank left out": words(decoders.Metaspace()),
    "pieces of words": words(decoders.WordPiece()),
}


def pushed(tokenizer: Tokenizer, ids: Sequence[int], cuts: Sequence[int]) -> str:
    deltas, text, at = TextDeltas(tokenizer), "", 0
    for size in cuts:
        text += deltas.push(ids[at : at + size])
        at += size
    return text + deltas.push(ids[at:], last=True)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(data=st.data())
def test_however_they_come(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=300))
    cuts = data.draw(st.lists(st.integers(0, 9), max_size=300))
    assert pushed(tokenizer, ids, cuts) == tokenizer.decode(ids)


@settings(deadline=None)
@given(st.lists(st.integers(0, 400), max_size=300), st.lists(st.integers(0, 9), max_size=300))
def test_rows_of_bytes(native: Tokenizer, ids: list[int], cuts: list[int]) -> None:
    """A byte that fits nowhere spoils all bytes around it, those before it too."""
    assert pushed(native, ids, cuts) == native.decode(ids)


def test_bytes_that_are_spoilt_later(native: Tokenizer) -> None:
    good = native.encode("é😀")
    bad = [*native.encode("é"), next(i for i in range(native.vocab_size) if native.content(i) == "<0x80>")]
    for ids in (good, bad, [*good, *bad, *native.encode("a")]):
        assert pushed(native, ids, [1] * len(ids)) == native.decode(ids)


class Counting:
    """Counts the tokens that are decoded."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.special_ids, self.content = tokenizer, tokenizer.special_ids, tokenizer.content
        self.decoded = 0

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        self.decoded += len(ids)
        return self._tokenizer.decode(ids, skip_special)


@pytest.mark.parametrize("text", ["It is sunny. ", "日本語😀", "\ufffd"])
@pytest.mark.parametrize("name", ["bytes", "native", "broken"])
def test_the_work_grows_with_the_ids(native: Tokenizer, name: str, text: str) -> None:
    tokenizer = native if name == "native" else BYTES
    ids = tokenizer.encode(text * 400) if name != "broken" else tokenizer.encode("é" * 3000)[1::2]
    counting = Counting(tokenizer)
    deltas = TextDeltas(counting)
    parts = [deltas.push([token]) for token in ids] + [deltas.push((), last=True)]
    assert "".join(parts) == tokenizer.decode(ids)
    assert counting.decoded < 130 * len(ids)


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 4), max_size=30),
)
def test_the_first_stop_string_wins(text: str, stops: list[str], cuts: list[int]) -> None:
    """However the text comes: it ends before the stop string that begins first."""
    strings, sent, at = StopStrings(stops), "", 0
    for size in cuts:
        sent += strings.push(text[at : at + size])
        at += size
        assert text.startswith(sent)
    sent += strings.push(text[at:], last=True)
    places = [text.find(stop) for stop in stops if stop in text]
    assert sent == text[: min(places, default=len(text))]
    assert strings.matched == bool(places)


def test_nothing_comes_behind_a_stop_string() -> None:
    strings = StopStrings(["b"])
    assert strings.push("abc") == "a"
    assert strings.push("abc", last=True) == ""
