"""String <-> ids."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from diffusiongemma.errors import CheckpointError, InputError
from diffusiongemma.text.chat import ChatTemplate
from diffusiongemma.text.markup import Markup

__all__ = ["Tokenizer"]


class Tokenizer:
    """A checkpoint's ``tokenizer.json`` with its chat template.

    Args:
        backend: the loaded ``tokenizers.Tokenizer``.
        template: the chat template, or None where the checkpoint has none.
        folder: where both came from; copied by ``save``.
        settings: content of ``tokenizer_config.json``.

    Attributes:
        markup: the tokens that mark the parts of a reply.
        special_ids: tokens that are no text.
    """

    def __init__(
        self, backend: Backend, template: ChatTemplate | None, folder: Path, settings: Mapping[str, Any] | None = None
    ) -> None:
        self._backend = backend
        self.template = template
        self._folder = folder
        self._unknown = backend.token_to_id("<unk>")
        self.markup = Markup.of(backend, settings or {})
        self.special_ids = frozenset(index for index, token in backend.get_added_tokens_decoder().items() if token.special)

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Read ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``.

        Raises:
            CheckpointError: no tokenizer.json, or one that cannot be read.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{folder} has no tokenizer.json; it belongs beside config.json")
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every damage
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        settings = {}
        if (config := folder / "tokenizer_config.json").is_file():
            try:
                settings = json.loads(config.read_text("utf-8"))
            except ValueError as error:
                raise CheckpointError(f"{config} cannot be read as JSON: {error}") from error
            if not isinstance(settings, dict):
                raise CheckpointError(f"{config} holds {type(settings).__name__}; it must hold a JSON object")
        source = settings.get("chat_template")
        if (jinja := folder / "chat_template.jinja").is_file():
            source = jinja.read_text("utf-8")
        template = ChatTemplate(source, _special_tokens(settings)) if isinstance(source, str) else None
        return cls(backend, template, folder, settings)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; nothing is put before or behind it.

        Raises:
            InputError: the text has words that this tokenizer cannot represent at all.
        """
        try:
            # A batch of one: it lets other threads run meanwhile, where ``encode`` does not.
            encoding = self._backend.encode_batch([text], add_special_tokens=False)[0]
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"the tokenizer of this checkpoint cannot represent the text: {error}") from error
        if self._unknown is not None and self._unknown in encoding.ids:
            spans = [text[a:b] for i, (a, b) in zip(encoding.ids, encoding.offsets, strict=True) if i == self._unknown]
            raise InputError(
                f"the tokenizer of this checkpoint has no token for {', '.join(map(repr, spans[:5]))}"
                f"{' and more' if len(spans) > 5 else ''}; it knows {self.vocab_size} tokens only"
            )
        ids: list[int] = encoding.ids
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of token ids; incomplete UTF-8 at the end shows as U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def content(self, token_id: int) -> str:
        """How the vocabulary spells a token; empty where there is none."""
        return self._backend.id_to_token(token_id) or ""

    def token_text(self, token_id: int) -> str:
        """What one token looks like alone, for drawing a canvas."""
        text = self.decode([token_id], skip_special=False)
        return text or (self._backend.id_to_token(token_id) or "")

    def save(self, folder: Path) -> None:
        """Copy the tokenizer's files into another folder."""
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
            if (source := self._folder / name).is_file() and source.resolve() != (folder / name).resolve():
                (folder / name).write_bytes(source.read_bytes())


def _special_tokens(settings: dict[str, object]) -> dict[str, str]:
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = settings.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens
