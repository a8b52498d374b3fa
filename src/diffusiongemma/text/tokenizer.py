"""String <-> ids."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from tokenizers import Tokenizer as Backend

from diffusiongemma.errors import CheckpointError, InputError, PromptTooLongError
from diffusiongemma.text.chat import ChatTemplate
from diffusiongemma.text.control import ControlTokens, Segment
from diffusiongemma.text.files import is_inside, is_there, read_json, read_text
from diffusiongemma.text.markup import Markup
from diffusiongemma.text.spelling import byte_decoder, widest_token

__all__ = ["Tokenizer"]

_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "chat_template.json",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_TOKENIZER_BYTES = 256 << 20  # Gemma's has 33 MB


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
        adds_bos: whether a text that no template writes begins with the token that begins texts (``add_bos_token``).
    """

    def __init__(
        self, backend: Backend, template: ChatTemplate | None, folder: Path, settings: Mapping[str, Any] | None = None
    ) -> None:
        # A prompt is taken whole or refused: what tokenizer.json says of cutting and padding is for training.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.template = template
        self._folder = folder
        self._unknown = backend.token_to_id("<unk>")
        self.markup = Markup.of(backend, settings or {})
        self.adds_bos = (settings or {}).get("add_bos_token") is True
        self.special_ids = frozenset(index for index, token in backend.get_added_tokens_decoder().items() if token.special)

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Read ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``.

        Raises:
            CheckpointError: no tokenizer.json, or a file that cannot be read, or a template that cannot be compiled.
        """
        path = folder / "tokenizer.json"
        content = read_text(path, _TOKENIZER_BYTES)
        try:
            backend = Backend.from_str(content)
        except Exception as error:  # the library raises bare Exception for every damage
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        settings = read_json(config) if is_there(config := folder / "tokenizer_config.json") else {}
        source = _template_source(folder, settings)
        template = None if source is None else ChatTemplate(source, _special_tokens(settings))
        return cls(backend, template, folder, settings)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._backend.get_vocab_size()

    @cached_property
    def control(self) -> ControlTokens:
        """The control tokens: those that tokenizer.json calls special, and added ones that the chat template writes."""
        return ControlTokens(self._control_ids)

    @cached_property
    def _control_ids(self) -> dict[str, int]:
        written = "" if self.template is None else self.template.source
        added = self._backend.get_added_tokens_decoder().items()
        return {
            token.content: number
            for number, token in added
            if token.special or (token.content in written and not token.content.isspace())
        }

    @cached_property
    def _widest(self) -> int | None:
        return widest_token(self._backend)

    def fewest_tokens(self, characters: int) -> int:
        """How many tokens a text has at least, by its length alone; 0 where this tokenizer may leave parts of it out."""
        return 0 if self._widest is None else -(-characters // self._widest)

    def encode(self, text: str, allow_special: bool = True, most: int | None = None) -> list[int]:
        """Token ids of a text; nothing is put before or after it.

        Args:
            text: what to encode.
            allow_special: whether texts of control tokens become control tokens. False, for text that a user wrote: they stay text.
            most: tokens that are of any use, the model's positions: a text that is certain to have more is not looked at.

        Raises:
            InputError: the text has words that this tokenizer cannot represent at all.
            PromptTooLongError: it has more than ``most`` tokens, seen from its length.
        """
        segments = [Segment(text, literal=False)] if allow_special else self.control.segments(text)
        return self.encode_segments([segments], most)[0]

    def encode_segments(self, prompts: Sequence[Sequence[Segment]], most: int | None = None) -> list[list[int]]:
        """Token ids of prompts in pieces; all that is not literal is encoded as one batch.

        Args:
            prompts: pieces of each.
            most: see ``encode``; of one prompt.

        Raises:
            InputError: see ``encode``; or a literal piece in which the tokenizer sees a control token all the same.
            PromptTooLongError: see ``encode``.
        """
        for prompt in prompts:
            size = sum(len(text) for text, _ in prompt)
            if most is not None and self.fewest_tokens(size) > most:
                raise PromptTooLongError(
                    f"the text has {size:,} characters, which are {self.fewest_tokens(size):,} tokens at the very least; the model "
                    f"has {most:,} positions. Shorten it"
                )
        ordinary = iter(self._encode_batch([text for prompt in prompts for text, literal in prompt if not literal]))
        return [
            [i for text, literal in prompt for i in (self._encode_literal(text) if literal else next(ordinary))]
            for prompt in prompts
        ]

    def _encode_batch(self, texts: list[str]) -> Iterable[list[int]]:
        try:
            # A batch, even of one: it lets other threads run meanwhile, where ``encode`` does not.
            encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"the tokenizer of this checkpoint cannot represent the text: {error}") from error
        for text, encoding in zip(texts, encodings, strict=True):
            if self._unknown is not None and self._unknown in encoding.ids:
                self._refuse([text[a:b] for i, (a, b) in zip(encoding.ids, encoding.offsets, strict=True) if i == self._unknown])
            yield encoding.ids

    def _encode_literal(self, text: str) -> list[int]:
        """The same without looking for added tokens."""
        backend, ids = self._backend, list[int]()
        try:
            text = backend.normalizer.normalize_str(text) if backend.normalizer is not None else text
            words = (
                [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer is not None else [text]
            )
            for word in words:
                ids += [token.id for token in backend.model.tokenize(word)]
        except Exception as error:  # as above
            raise InputError(f"the tokenizer of this checkpoint cannot represent the text: {error}") from error
        if self._unknown is not None and self._unknown in ids:
            self._refuse(self.control.whole.findall(text))
        if not set(self._control_ids.values()).isdisjoint(ids):
            result = ", ".join(map(repr, self.control.whole.findall(text)[:5]))
            raise InputError(
                f"this tokenizer makes control tokens of {result} even where it is text; take it out, or give allow_special=True"
            )
        return ids

    def _refuse(self, words: Sequence[str]) -> NoReturn:
        raise InputError(
            f"the tokenizer of this checkpoint has no token for {', '.join(map(repr, words[:5]))}"
            f"{' and more' if len(words) > 5 else ''}; it knows {self.vocab_size} tokens only"
        )

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of token ids; incomplete UTF-8 at the end shows as U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def content(self, token_id: int) -> str:
        """How the vocabulary spells a token; empty where there is none."""
        return self._backend.id_to_token(token_id) or ""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for, of which a character may need several tokens; of a special one its name's."""
        if token_id not in self.special_ids and self._to_bytes is not None:
            return self._to_bytes(self.content(token_id))
        return self.token_text(token_id).encode("utf-8", "replace")

    @cached_property
    def _to_bytes(self) -> Callable[[str], bytes] | None:
        try:
            return byte_decoder(self._backend)
        except InputError:
            return None

    def token_text(self, token_id: int) -> str:
        """What one token looks like alone, for drawing a canvas."""
        text = self.decode([token_id], skip_special=False)
        return text or (self._backend.id_to_token(token_id) or "")

    def files(self) -> dict[str, bytes]:
        """The tokenizer's files by name: what a copy of the checkpoint needs, as it is read."""
        there = [path for name in _FILES if (path := self._folder / name).is_file() and is_inside(path, self._folder)]
        result = {path.name: path.read_bytes() for path in there}
        return {"tokenizer.json": self._backend.to_str().encode(), **result}

    def save(self, folder: Path) -> None:
        """Copy the tokenizer's files into another folder."""
        for name, content in self.files().items():
            (folder / name).write_bytes(content)


def _template_source(folder: Path, settings: dict[str, Any]) -> str | None:
    """The chat template: the file's, else that of tokenizer_config.json; None where there is none."""
    if is_there(jinja := folder / "chat_template.jinja"):
        return read_text(jinja)
    source = settings.get("chat_template")
    if isinstance(source, list):
        # Several by name, as older checkpoints have them; transformers takes this one where none is asked for.
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default", source)
    if source is not None and not isinstance(source, str):
        raise CheckpointError(
            f"chat_template in {folder / 'tokenizer_config.json'} is no text, and no list with one named 'default'"
        )
    return source


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """Every ``..._token`` by its name, those of the model's family too: as transformers gives them to a template."""
    own = settings.get("model_specific_special_tokens")
    tokens = {}
    for name, value in [*settings.items(), *(own.items() if isinstance(own, dict) else ())]:
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens
