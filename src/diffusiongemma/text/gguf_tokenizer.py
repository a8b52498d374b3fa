"""The tokenizer that a GGUF file's metadata describes, rebuilt so that it gives the ids of the original ``tokenizer.json``.

Gemma's is a byte-pair encoding without word boundaries: spaces become ``▁``, the whole text is one piece, and what the
vocabulary cannot spell falls back to byte tokens ``<0xNN>``. Files of Gemma 4 and DiffusionGemma list its merges; those of
Gemma 1 to 3 do not, and their merges follow from the tokens' scores. Sources: transformers 5.24 ``tokenization_gemma.py``
and ``gguf_tokenizer_mapping.py``; llama.cpp ``conversion/gemma.py``.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from diffusiongemma.errors import CheckpointError
from diffusiongemma.text.chat import ChatTemplate
from diffusiongemma.text.tokenizer import Tokenizer

__all__ = ["GGUFTokenizer"]

# Token types of a file. Source: llama.cpp ``llama_token_type``.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_MODELS = {"gemma4": "with its merges", "llama": "without"}
_SPACE = "▁"
CONTROL_TEXTS = frozenset(
    {
        "<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>",
        "<tool_response|>", '<|"|>', "<|think|>", "<|channel>", "<channel|>", "<|turn>", "<turn|>", "<|image>", "<|audio>",
        "<|image|>", "<|audio|>", "<image|>", "<audio|>", "<|video|>",
    }
)  # fmt: skip
"""The added tokens of the released tokenizer, all special there; llama.cpp's converter marks some of them as user-defined."""


class GGUFTokenizer(Tokenizer):
    """A tokenizer from metadata; ``save`` writes it as files, which a GGUF does not have.

    Args:
        backend: the tokenizer.
        source: the chat template's text, or None.
        special: ``bos_token`` ... and their texts.
        folder: where the GGUF file is.
        adds_bos: see ``Tokenizer``.
    """

    def __init__(
        self, backend: Backend, source: str | None, special: Mapping[str, str], folder: Path, adds_bos: bool = False
    ) -> None:
        super().__init__(backend, None if source is None else ChatTemplate(source, special), folder)
        self.adds_bos = adds_bos
        self._source = source
        self._special = dict(special)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], path: Path) -> "GGUFTokenizer":
        """Build the tokenizer of a GGUF file.

        Args:
            metadata: of the file.
            path: of the file, for messages.

        Raises:
            CheckpointError: no tokenizer in it, one of another kind, or lists that do not belong together.
        """
        whole = metadata.get("tokenizer.huggingface.json")
        if isinstance(whole, str):
            try:
                backend = Backend.from_str(whole)
            except Exception as error:  # the library raises bare Exception for every damage
                raise CheckpointError(f"{path}: tokenizer.huggingface.json cannot be read: {error}") from error
        else:
            backend = _backend(metadata, path)
        source = metadata.get("tokenizer.chat_template")
        adds_bos = metadata.get("tokenizer.ggml.add_bos_token") is True
        return cls(backend, source if isinstance(source, str) else None, _special_texts(metadata, backend), path.parent, adds_bos)

    def files(self) -> dict[str, bytes]:
        """``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``, made from what the file says."""
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **self._special}
        settings |= {"add_bos_token": True} if self.adds_bos else {}
        result = {
            "tokenizer.json": self._backend.to_str(pretty=True).encode(),
            "tokenizer_config.json": (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode(),
        }
        return result if self._source is None else {**result, "chat_template.jinja": self._source.encode()}


def _backend(metadata: Mapping[str, Any], path: Path) -> Backend:
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in _MODELS:
        result = "has no tokenizer" if kind is None else f"has a tokenizer of the kind {kind!r}"
        raise CheckpointError(f"{path} {result}; read are {', '.join(map(repr, _MODELS))}")
    tokens = _strings(metadata, "tokens", path)
    if kind == "llama":
        # These files write tokens of several spaces as spaces.
        tokens = [_SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if ids[token] != i)
        raise CheckpointError(f"{path}: the vocabulary has the token {twice!r} twice")
    types = _numbers(metadata, "token_type", len(tokens), path)
    if kind == "gemma4":
        merges = _merges(metadata, tokens, types, path)
    else:
        merges = _implied_merges(ids, _numbers(metadata, "scores", len(tokens), path), types)
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 3)
    if not isinstance(unknown, int) or not 0 <= unknown < len(tokens):
        raise CheckpointError(f"{path}: tokenizer.ggml.unknown_token_id is {unknown!r}; there are {len(tokens)} tokens")
    try:
        model = models.BPE(vocab=ids, merges=merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True)
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path}: the tokenizer's merges do not fit its vocabulary: {error}") from error
    backend = Backend(model)
    backend.normalizer = normalizers.Replace(" ", _SPACE)
    # As in the original; it never cuts, since no space is left.
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    _add_tokens(backend, tokens, types)
    return backend


def _add_tokens(backend: Backend, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Tokens that are cut out of a text before anything else: by their text, and by their type where the text is not known."""
    special, plain = [], []
    for token, kind in zip(tokens, types, strict=True):
        if token in CONTROL_TEXTS or kind in (_UNKNOWN, _CONTROL):
            special.append(AddedToken(token, normalized=False, special=True))
        elif kind == _USER_DEFINED:
            plain.append(AddedToken(token, normalized=False, special=False))
    backend.add_special_tokens(special)
    backend.add_tokens(plain)


def _merges(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], path: Path) -> list[tuple[str, str]]:
    # The format has no empty lists: a vocabulary of single characters has no merges, and no key for them.
    normal = (token for token, kind in zip(tokens, types, strict=True) if kind == _NORMAL and token not in CONTROL_TEXTS)
    if "tokenizer.ggml.merges" not in metadata and all(len(token) <= 1 for token in normal):
        return []
    pairs = []
    for merge in _strings(metadata, "merges", path):
        left, space, right = merge.partition(" ")
        if not (left and space and right) or " " in right:
            raise CheckpointError(f"{path}: the merge {merge!r} is not of two tokens with a space between")
        pairs.append((left, right))
    return pairs


def _implied_merges(ids: Mapping[str, int], scores: Sequence[float], types: Sequence[int]) -> list[tuple[str, str]]:
    """All ways to put a token together from two others, better tokens first, then longer left parts.

    User-defined tokens have the best score, 0, in the original, whatever the file says: with it, this gives the 514,906 merges
    of Gemma 3 in their order.
    """
    ranked = []
    for token, i in ids.items():
        score = 0.0 if types[i] == _USER_DEFINED else scores[i]
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                ranked.append((-score, -cut, cut - len(token), left, right))
    ranked.sort(key=lambda entry: entry[:3])
    return [entry[3:] for entry in ranked]


def _strings(metadata: Mapping[str, Any], key: str, path: Path) -> list[str]:
    result = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(result, list) or (result and not isinstance(result[0], str)):
        raise CheckpointError(f"{path}: tokenizer.ggml.{key} is missing or no list of strings; the file has no whole tokenizer")
    return result


def _numbers(metadata: Mapping[str, Any], key: str, count: int, path: Path) -> list[Any]:
    result = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(result, list) or len(result) != count or (result and not isinstance(result[0], int | float)):
        raise CheckpointError(f"{path}: tokenizer.ggml.{key} must hold a number for each of {count} tokens")
    return result


def _special_texts(metadata: Mapping[str, Any], backend: Backend) -> dict[str, str]:
    names = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
    result = {}
    for theirs, ours in names.items():
        token = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        text = backend.id_to_token(token) if isinstance(token, int) and token >= 0 else None
        if text is not None:
            result[ours] = text
    return result
