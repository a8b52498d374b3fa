"""What was loaded: weights, tokenizer, sampling defaults. The parts of a model that computing with it does not change."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diffusiongemma.constraints import Vocabulary
from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.errors import InputError
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.options import PromptOptions
from diffusiongemma.text.messages import Message
from diffusiongemma.text.prompts import Prompts, prompt_ids
from diffusiongemma.text.tokenizer import Tokenizer

__all__ = ["Checkpoint"]


@dataclass
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        transformer: the stack of weights, in evaluation mode.
        tokenizer: the checkpoint's tokenizer.
        defaults: sampling parameters where a call gives none.
        stop_ids: token ids that end an answer.
        folder: where it came from: a folder or a GGUF file; None: it was made in memory.
    """

    transformer: Transformer
    tokenizer: Tokenizer
    defaults: SamplingParams
    stop_ids: tuple[int, ...]
    folder: Path | None = None

    def __repr__(self) -> str:
        packed = dict(self.transformer.packed())
        kinds = ", ".join(sorted({record.kind for record in packed.values()})) or "plain"
        dtype = str(self.transformer.dtype).removeprefix("torch.")
        return (
            f"{'in memory' if self.folder is None else self.folder.name}: {self.parameters:,} parameters, {dtype} on "
            f"{self.transformer.device}, canvas of {self.config.canvas_length}, weights {kinds}"
        )

    @property
    def parameters(self) -> int:
        """How many weights there are, packed ones by what they stand for."""
        plain = sum(tensor.numel() for tensor in self.transformer.state_dict().values())
        return int(plain + sum(math.prod(record.shape) for _, record in self.transformer.packed()))

    @property
    def bytes(self) -> int:
        """Memory of the weights."""
        plain = sum(tensor.numel() * tensor.element_size() for tensor in self.transformer.state_dict().values())
        return int(plain + sum(record.nbytes for _, record in self.transformer.packed()))

    @property
    def config(self) -> ModelConfig:
        """The configuration."""
        return self.transformer.config

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens as bytes, for grammars; made once."""
        return self.vocabulary_with(self.stop_ids)

    def vocabulary_with(self, stop_ids: Sequence[int]) -> Vocabulary:
        """The same where answers end with these tokens."""
        return Vocabulary.of(self.tokenizer, stop_ids, self.config.text.vocab_size)

    def prompt_ids(
        self, prompt: Prompts, messages: Sequence[Message] | None = None, options: PromptOptions | None = None
    ) -> list[list[int]]:
        """Token ids of prompts (``text.prompts.prompt_ids``)."""
        text = self.config.text
        return prompt_ids(self.tokenizer, prompt, messages, options, text.bos_token_id, text.max_position_embeddings)

    def checked_ids(self, ids: Sequence[int], name: str = "prompt") -> list[int]:
        """A prompt that came as token ids.

        Args:
            ids: the tokens.
            name: of the field they came in.

        Raises:
            InputError: there is none, or one that the vocabulary does not have.
        """
        most = self.config.text.vocab_size
        if not ids:
            raise InputError(f"{name} has no token; give at least one", name)
        for at, token in enumerate(ids):
            if not isinstance(token, int) or not 0 <= token < most:
                raise InputError(f"{name} has {token!r:.40} as token {at}; token ids of this model are 0 to {most - 1}", name)
        return list(ids)

    @property
    def turn_end(self) -> tuple[int, ...]:
        """The stop token that the chat template puts after an answer; the first there is where it puts none."""
        if self.tokenizer.template is None:
            return self.stop_ids[:1]
        said = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
        ids = self.tokenizer.encode(self.tokenizer.template.render(said))
        return (*[token for token in reversed(ids) if token in self.stop_ids], *self.stop_ids)[:1]

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return self.transformer.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.device
