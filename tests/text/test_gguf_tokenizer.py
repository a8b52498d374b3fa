"""The tokenizer of a GGUF file gives the ids of the tokenizer.json that it was made from."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from diffusiongemma.errors import CheckpointError
from diffusiongemma.text.gguf_tokenizer import CONTROL_TEXTS, GGUFTokenizer
from diffusiongemma.text.tokenizer import Tokenizer
from diffusiongemma.weights.gguf import GGUFFile

CONTROL = [
    "<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>",
    "<tool_call|>", "<|tool_response>", '<|"|>', "<|think|>",
]  # fmt: skip
USER_DEFINED = ["\n\n\n", "<b>", "▁▁▁▁▁"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]
TEMPLATE = "{{ bos_token }}{% for m in messages %}<|turn>{{ m.role }}\n{{ m.content }}<turn|>\n{% endfor %}<|turn>model\n"


def gemma_like(model: models.BPE) -> Backend:
    backend = Backend(model)
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


@pytest.fixture(scope="module")
def original() -> Backend:
    """Trained on this repository's sources and docs, in the form of Gemma's."""
    root = Path(__file__).parents[2]
    texts = [path.read_text("utf-8") for folder in ("src", "docs") for path in sorted((root / folder).rglob("*.[pm][yd]"))[:60]]
    trained = gemma_like(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=3000, show_progress=False))
    content = json.loads(trained.to_str())["model"]
    words = sorted(content["vocab"], key=content["vocab"].get)
    tokens = dict.fromkeys([*CONTROL, *BYTES, *USER_DEFINED, *words])
    merges = [tuple(merge) for merge in content["merges"]]
    model = models.BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = gemma_like(model)
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in CONTROL])
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in USER_DEFINED])
    return backend


def keys_of(backend: Backend) -> dict[str, Any]:
    """The metadata that llama.cpp's converter writes for a tokenizer.json."""
    content = json.loads(backend.to_str())
    vocab = backend.get_vocab()
    tokens = sorted(vocab, key=vocab.get)  # type: ignore[arg-type]
    added = {token["content"]: token["special"] for token in content["added_tokens"]}
    # Gemma 4's converter marks these as user-defined, so that chat parsers see them.
    shown = {"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", '<|"|>'}

    def kind(token: str) -> int:
        if token in added:
            return 3 if added[token] and token not in shown else 4
        return 6 if token in BYTES else 1

    return {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-1000.0] * len(tokens),
        "tokenizer.ggml.token_type": [kind(token) for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in content["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": vocab["<bos>"],
        "tokenizer.ggml.eos_token_id": vocab["<eos>"],
        "tokenizer.ggml.unknown_token_id": vocab["<unk>"],
        "tokenizer.ggml.padding_token_id": vocab["<pad>"],
        "tokenizer.ggml.mask_token_id": vocab["<mask>"],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": TEMPLATE,
    }


@pytest.fixture(scope="module")
def rebuilt(original: Backend, tmp_path_factory: pytest.TempPathFactory) -> GGUFTokenizer:
    """Through a file, as a user has it."""
    path = tmp_path_factory.mktemp("gguf") / "tokenizer.gguf"
    writer = gguf.GGUFWriter(path, "diffusion-gemma")
    keys = keys_of(original)
    writer.add_tokenizer_model(keys["tokenizer.ggml.model"])
    writer.add_token_list(keys["tokenizer.ggml.tokens"])
    writer.add_token_scores(keys["tokenizer.ggml.scores"])
    writer.add_token_types(keys["tokenizer.ggml.token_type"])
    writer.add_token_merges(keys["tokenizer.ggml.merges"])
    for name in ("bos", "eos", "unk", "pad", "mask"):
        theirs = {"unk": "unknown", "pad": "padding"}.get(name, name)
        getattr(writer, f"add_{name}_token_id")(keys[f"tokenizer.ggml.{theirs}_token_id"])
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(TEMPLATE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFTokenizer.from_metadata(GGUFFile(path).metadata, path)


TEXTS = [
    "", " ", "  ", "a", " a", "a ", "  a  b   c    d     e      f", "\n", "\n\n", "\n\n\n", "\n\n\n\n\n", "\t\t", " \n \n ",
    "Hello, world!", "def f(x):\n    return x + 1\n",
    "naïve café – “quotes” … ﬁne", "日本語のテキスト", "العربية", "emoji 🙂👩‍👩‍👧 flag 🇩🇪",
    "\u0000\u0001\u007f", "e\u0301 combining", "▁ literal ▁▁", "<b>bold</b>", "<0x41> is text", "</s><s>",
    "<bos><|turn>user\nHi<turn|>\n<|turn>model\n", "<|tool_call>call:f{a:<|\"|>b<|\"|>}<tool_call|><|tool_response>",
    "a<eos>b<pad>c<unk>d<mask>", "<|channel>thought\n<channel|>", "<|turn", "turn|>", "\r\n\r\n", "x" * 500, "\ufeffbom", "\u2581",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_the_same_ids_and_the_same_text(text: str, original: Backend, rebuilt: GGUFTokenizer) -> None:
    ids = original.encode(text, add_special_tokens=False).ids
    assert rebuilt._backend.encode(text, add_special_tokens=False).ids == ids
    for skip in (True, False):
        assert rebuilt.decode(ids, skip_special=skip) == original.decode(ids, skip_special_tokens=skip)


@given(st.text(max_size=200))
def test_any_text(original: Backend, rebuilt: GGUFTokenizer, text: str) -> None:
    ids = original.encode(text, add_special_tokens=False).ids
    assert rebuilt._backend.encode(text, add_special_tokens=False).ids == ids
    assert rebuilt.decode(ids) == original.decode(ids)


@given(st.lists(st.sampled_from([*CONTROL, *USER_DEFINED, " ", "\n", "the", "ß", "🙂", "  ", "<", "|>"]), max_size=30))
def test_control_tokens_among_text(original: Backend, rebuilt: GGUFTokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    assert rebuilt._backend.encode(text, add_special_tokens=False).ids == original.encode(text, add_special_tokens=False).ids


def test_whole_files(original: Backend, rebuilt: GGUFTokenizer) -> None:
    for path in sorted((Path(__file__).parents[2] / "docs").glob("*.md")):
        text = path.read_text("utf-8")
        assert rebuilt.encode(text) == original.encode(text, add_special_tokens=False).ids


def test_control_tokens_are_special_whatever_their_type(original: Backend, rebuilt: GGUFTokenizer) -> None:
    """A converter marks channel and call tokens as user-defined; decoding drops them as the original does."""
    ids = rebuilt.encode("<|channel>thought\n<channel|>said<turn|>")
    assert rebuilt.decode(ids) == original.decode(ids) == "thought\nsaid"
    assert set(CONTROL) <= CONTROL_TEXTS
    assert len(CONTROL_TEXTS) == 24


def test_the_template_is_there_and_knows_the_special_tokens(rebuilt: GGUFTokenizer) -> None:
    assert rebuilt.template is not None
    text = rebuilt.template.render([{"role": "user", "content": "Hi"}])
    assert text == "<bos><|turn>user\nHi<turn|>\n<|turn>model"  # jinja drops the last newline, as it does for transformers
    # No second <bos>, though the file's flag asks for one: the template writes it.
    assert rebuilt.encode(text).count(2) == 1


def test_it_saves_as_files_that_we_and_transformers_load(original: Backend, rebuilt: GGUFTokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    rebuilt.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS[1:]:
        ids = original.encode(text, add_special_tokens=False).ids
        assert again._backend.encode(text, add_special_tokens=False).ids == ids
        assert theirs.encode(text, add_special_tokens=False) == ids
    assert again.template is not None
    assert again.template.render([{"role": "user", "content": "Hi"}]).startswith("<bos><|turn>user")
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token, theirs.unk_token) == ("<bos>", "<eos>", "<pad>", "<unk>")


def test_a_tokenizer_json_in_the_metadata_is_taken_whole(original: Backend) -> None:
    tokenizer = GGUFTokenizer.from_metadata({"tokenizer.huggingface.json": original.to_str()}, Path("x.gguf"))
    assert tokenizer.encode("Hello") == original.encode("Hello", add_special_tokens=False).ids
    with pytest.raises(CheckpointError, match=r"x.gguf: tokenizer.huggingface.json cannot be read"):
        GGUFTokenizer.from_metadata({"tokenizer.huggingface.json": "{"}, Path("x.gguf"))


def test_no_template(original: Backend) -> None:
    keys = keys_of(original)
    del keys["tokenizer.chat_template"]
    assert GGUFTokenizer.from_metadata(keys, Path("x.gguf")).template is None


def test_a_vocabulary_without_merges_gets_those_of_its_scores() -> None:
    """As files of Gemma 3 have it: the better token wins, and of equal ones the longer left part."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *BYTES, "▁", "a", "b", "c", "ab", "bc", "abc", "  "]
    scores = [0.0] * 260 + [-10.0, -11.0, -12.0, -13.0, -2.0, -1.0, -3.0, -1000.0]
    types = [3] * 4 + [6] * 256 + [1] * 7 + [4]
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
    }
    tokenizer = GGUFTokenizer.from_metadata(keys, Path("x.gguf"))

    def spelled(text: str) -> list[str]:
        return [words[i] for i in tokenizer.encode(text)]

    assert spelled("abc") == ["abc"]  # a, bc -> abc
    assert spelled("ab") == ["ab"]
    assert spelled("bcab") == ["bc", "ab"]
    assert spelled("a  b") == ["a", "  ", "b"]
    assert spelled("d") == ["<0x64>"]


def test_a_vocabulary_of_single_characters_has_no_merges() -> None:
    """And no key for them: the format has no empty lists."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *BYTES, "a", "b", "<turn|>"]
    keys = {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [3] * 4 + [6] * 256 + [1] * 3,
    }
    assert GGUFTokenizer.from_metadata(keys, Path("x.gguf")).encode("ab<turn|>") == [260, 261, 262]


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"tokenizer.ggml.model": None}, "has no tokenizer; read are 'gemma4', 'llama'"),
    "another kind": ({"tokenizer.ggml.model": "gpt2"}, "of the kind 'gpt2'"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "tokens is missing"),
    "tokens that are numbers": ({"tokenizer.ggml.tokens": [1, 2]}, "tokens is missing or no list of strings"),
    "no merges": ({"tokenizer.ggml.merges": None}, "merges is missing"),
    "too few types": ({"tokenizer.ggml.token_type": [1, 1]}, "token_type must hold a number for each"),
    "no types": ({"tokenizer.ggml.token_type": None}, "token_type must hold a number for each"),
    "a merge of one": ({"tokenizer.ggml.merges": ["ab"]}, "the merge 'ab' is not of two tokens"),
    "a merge of three": ({"tokenizer.ggml.merges": ["a b c"]}, "the merge 'a b c' is not of two tokens"),
    "a merge of strangers": ({"tokenizer.ggml.merges": ["no such"]}, "merges do not fit its vocabulary"),
    "an unknown token outside": ({"tokenizer.ggml.unknown_token_id": 1 << 20}, "unknown_token_id is 1048576"),
    "a template that is none": ({"tokenizer.chat_template": "{% if %}"}, "chat template cannot be compiled"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_tokenizer_that_is_broken(case: str, original: Backend) -> None:
    change, message = BROKEN[case]
    keys = {key: value for key, value in {**keys_of(original), **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        GGUFTokenizer.from_metadata(keys, Path("x.gguf"))


def test_a_token_twice(original: Backend) -> None:
    keys = keys_of(original)
    keys["tokenizer.ggml.tokens"][-1] = "<b>"
    with pytest.raises(CheckpointError, match="the token '<b>' twice"):
        GGUFTokenizer.from_metadata(keys, Path("x.gguf"))
