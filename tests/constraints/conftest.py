"""Two vocabularies: nano's byte-level BPE, and a BPE with byte fallback as Gemma's is."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

import diffusiongemma
from diffusiongemma.constraints import Cursor, Grammar, Vocabulary
from diffusiongemma.tasks.json_extract import JsonExtract
from diffusiongemma.text.tokenizer import Tokenizer
from tests.native import native_tokenizer
from tests.unmarked import unmarked_tokenizer

NANO = Path(diffusiongemma.__file__).parent / "checkpoints" / "nano"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(NANO)


@pytest.fixture(scope="session")
def nano(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary.of(tokenizer, [1, 5])


@pytest.fixture(scope="session")
def fallback_tokenizer() -> Tokenizer:
    """Merges over whole characters, one token for each byte that no merge covers, blanks spelled as U+2581."""
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    first = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=first, show_progress=False)
    texts = [example.answer for example in JsonExtract().examples(300, 1)]
    backend.train_from_iterator([*texts, "".join(map(chr, range(32, 127))), "é😀"], trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = state["added_tokens"][:4]  # bytes are plain tokens, as in Gemma's file
    backend = Backend.from_str(json.dumps(state))
    backend.add_special_tokens([AddedToken("<turn|>", special=True)])
    return Tokenizer(backend, None, NANO)


@pytest.fixture(scope="session")
def fallback(fallback_tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary.of(fallback_tokenizer, [1])


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """The released model's way: byte fallback, and tokens for the native markup."""
    tokenizer = native_tokenizer(tmp_path_factory.mktemp("native"))
    return Vocabulary.of(tokenizer, tokenizer.encode("<eos><turn|>"), tokenizer.vocab_size)


@pytest.fixture(scope="session")
def unmarked(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """nano's, as if it had no tokens for native markup."""
    tokenizer = unmarked_tokenizer(tmp_path_factory.mktemp("unmarked"))
    return Vocabulary.of(tokenizer, tokenizer.encode("<eos><turn|>"), tokenizer.vocab_size)


def walk(grammar: Grammar, rng: random.Random, budget: int) -> Cursor:
    """A text of tokens drawn evenly among those allowed, within a budget: the end stays in reach, as a canvas must keep it."""
    cursor = grammar.start()
    plan = cursor.ending(budget)
    assert plan is not None
    for used in range(budget + 1):
        tokens = cursor.allowed().nonzero()[:, 0].tolist()
        assert tokens or cursor.finished, f"a dead end after {cursor.text[-60:]!r}"
        token = rng.choice(tokens) if tokens else None
        if token is None or token in grammar.vocabulary.stop_ids:
            break
        following = cursor.copy()
        following.advance(token)
        further = following.ending(budget - used - 1) if used < budget else None
        if further is None:
            for token in plan:
                cursor.advance(token)
            break
        cursor, plan = following, further
    assert cursor.accepting
    return cursor
