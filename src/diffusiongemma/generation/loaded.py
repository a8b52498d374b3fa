"""A checkpoint in memory: loading and saving, what it is, its passes, and how its prompts are written."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from torch import Tensor

from diffusiongemma.constraints import Vocabulary
from diffusiongemma.diffusion import CanvasWindow, SamplingParams
from diffusiongemma.diffusion.params import OWN_FIELD
from diffusiongemma.engine.offline import OfflineEngine
from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.generation.context import Executor
from diffusiongemma.generation.machine import give_back, keep_freed
from diffusiongemma.generation.opened import generation_config, open_checkpoint
from diffusiongemma.generation.roles import Roles
from diffusiongemma.generation.saving import save_packed
from diffusiongemma.model.assemble import assemble
from diffusiongemma.model.cache import KVCache
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.fast import rounded_to_int8
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.text.messages import Message
from diffusiongemma.text.prompts import PromptOptions, Prompts, prompt_ids
from diffusiongemma.text.tokenizer import Tokenizer
from diffusiongemma.weights.companions import companions
from diffusiongemma.weights.load import save, vision_tensors
from diffusiongemma.weights.resolve import resolve
from diffusiongemma.weights.stream import json_bytes

__all__ = ["Loaded", "device_of", "empty_transformer"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PROGRESS_FROM = 1 << 28
"""Bytes of weights from which loading shows a progress bar."""


class Loaded:
    """The part of ``DiffusionGemmaModel`` that generates nothing.

    Args: see ``DiffusionGemmaModel``.
    """

    def __init__(
        self,
        transformer: Transformer,
        tokenizer: Tokenizer,
        defaults: SamplingParams,
        stop_ids: Sequence[int],
        folder: Path | None = None,
    ) -> None:
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.defaults = defaults
        self.stop_ids = tuple(stop_ids)
        self.folder = folder
        self.engine: Executor = OfflineEngine(transformer, tokenizer)
        self.roles = Roles()

    # -- loading and saving ------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        quantize: str | None = None,
        progress: bool = True,
    ) -> Self:
        """Load a checkpoint.

        Args:
            name: a built-in name (``nano``, ``sudoku``), a folder as Hugging Face writes it, a GGUF file or a folder with one, or a
                hub id (``owner/name:Q4_K_M`` where a repository has several GGUF files).
            dtype: of the computation: a torch dtype or ``float32``, ``bfloat16``, ``float16``; None: bfloat16 on a GPU, and on a
                CPU float32 (in which a result depends on the batch by rounding only). Weights are kept in it too, but for those of
                a quantised checkpoint: their codes stay packed, and on a CPU their other matrices stay as they are stored.
            device: None: a CUDA device if there is one, else the CPU.
            quantize: ``int8`` rounds attention, dense MLP, experts and the tied head to int8 as they are loaded, and computes them
                in int8 too: faster on a CPU and half of bfloat16's memory, not exact (docs/quantisation.md). None: as stored.
            progress: show a bar while large weights load.

        Returns:
            The model, in evaluation mode.

        Raises:
            CheckpointError: no such checkpoint, or its files are incomplete, damaged or of a format that is not read.
            ConfigError: a config.json that this runtime does not follow.
            OptionError: an unknown dtype, quantize or a device that is not there, or int8 off a CPU.
        """
        chosen_device = device_of(device)
        if quantize not in (None, "int8"):
            raise OptionError(f"quantize is {quantize!r}; allowed: 'int8', or None for the weights as they are stored")
        if quantize and chosen_device.type != "cpu":
            raise OptionError(f"quantize='int8' computes on a CPU, not on {chosen_device}; leave it out there")
        chosen_dtype = _dtype(dtype, chosen_device)
        opened = open_checkpoint(resolve(name))
        with _loading_bar(opened.nbytes, progress) as advance:
            weights = opened.load(advance)
            transformer = assemble(
                opened.config, rounded_to_int8(weights) if quantize else weights, chosen_dtype, chosen_device, keep=opened.quantised
            )
        transformer.int8_products = quantize == "int8"
        if quantize:
            give_back()  # what rounding used
        keep_freed()
        return cls(transformer, opened.tokenizer, opened.defaults, opened.stop_ids, opened.path)

    def save_pretrained(self, folder: str | os.PathLike[str], *, dequantize: bool = False) -> None:
        """Write a folder that ``from_pretrained`` and, where it reads the format, transformers load.

        It gets every field of config.json and generation_config.json and every small file that the checkpoint was loaded with:
        processor settings, templates, README. Packed weights are written as they are stored, from the checkpoint that they were
        loaded from, which must still be there; a GGUF file's stay one file. No tensor is expanded and none is held.

        Args:
            folder: made if it is not there; a checkpoint in it is replaced, all of it or, after an error, nothing.
            dequantize: packed weights are expanded, and everything is then bfloat16: the memory that takes is needed here. Notes
                on how weights were quantised are left out.

        Raises:
            CheckpointError: the folder cannot be written, the one that was loaded is not there any more or holds other weights, or
                packed weights have no stored form (``quantize="int8"``).
        """
        target = Path(folder)
        packed = not dequantize and next(self.transformer.packed(), None) is not None
        source = self._source()
        files: dict[str, Path | bytes] = {}
        if source is not None:
            files |= companions(source, target)
        files |= self.tokenizer.files()
        files["generation_config.json"] = json_bytes(self._generation_config())
        if packed:
            files["config.json"] = json_bytes(self.config.to_dict())
            save_packed(self.transformer, self.folder, target, files, (self.defaults, self.stop_ids))
            return
        extra = {} if source is None else vision_tensors(source)
        save(target, self._weights(), replace(self.config, quantization=None).to_dict(), extra, files)

    def _generation_config(self) -> dict[str, Any]:
        """The content of generation_config.json: what was read, but for what says something else now."""
        folder = self._source()
        source = {} if folder is None else generation_config(folder, self.config)
        ours = {"eos_token_id": list(self.stop_ids), **self.defaults.to_generation_config()}
        if not source:
            return {"bos_token_id": self.config.text.bos_token_id, "pad_token_id": self.config.text.pad_token_id, **ours}
        said = dict(source)
        if isinstance(said.get("eos_token_id"), int):
            said["eos_token_id"] = [said["eos_token_id"]]
        changed = {name: value for name, value in ours.items() if value != said.get(name)}
        # What transformers has no name for stands in a field of its own, which goes where nothing is left to say.
        return {**{name: value for name, value in source.items() if name != OWN_FIELD or name in ours}, **changed}

    def _source(self) -> Path | None:
        """The folder that was loaded; a GGUF file has none that belongs to it."""
        return self.folder if self.folder is not None and not self.folder.is_file() else None

    def _weights(self) -> dict[str, Tensor]:
        weights = self.transformer.state_dict()
        if packed := dict(self.transformer.packed()):
            weights = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
            weights |= {name: record.expanded(torch.bfloat16) for name, record in packed.items()}
        return weights

    # -- properties --------------------------------------------------------------------------------------------------

    @property
    def config(self) -> ModelConfig:
        """The checkpoint's configuration."""
        return self.transformer.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.device

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens as bytes, for grammars; made once."""
        return Vocabulary.of(self.tokenizer, self.stop_ids, self.config.text.vocab_size)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.transformer.dtype

    # -- the passes (B batch, T tokens, L canvas, D hidden, V vocabulary) ----------------------------------------------

    def new_cache(self, batch_size: int = 1, max_length: int = 4096) -> KVCache:
        """An empty cache.

        Args:
            batch_size: rows.
            max_length: tokens a row can hold; memory is taken as they come.

        Raises:
            OptionError: a size below 1.
        """
        if batch_size < 1 or max_length < 1:
            raise OptionError(f"batch_size is {batch_size} and max_length is {max_length}; both must be at least 1")
        return KVCache(self.config.text, batch_size, max_length, self.dtype, self.device)

    @torch.inference_mode()
    def encode(self, token_ids: Tensor, cache: KVCache, lengths: Tensor | None = None) -> Tensor:
        """Append tokens to the cache through the causal role.

        Args:
            token_ids: ``[B, T]`` int64, right-padded where rows differ.
            cache: of B rows; each row goes on at its own length.
            lengths: ``[B]`` int64, real tokens a row; None: T.

        Returns:
            ``[B, T, D]`` final hidden states in the model's dtype.

        Raises:
            InputError: wrong shape, ids outside the vocabulary, or no room in the cache.
        """
        self._check_ids(token_ids, cache)
        if lengths is not None:
            rows, tokens = token_ids.shape
            if lengths.shape != (rows,) or lengths.dtype != torch.int64 or int(lengths.min()) < 0 or int(lengths.max()) > tokens:
                raise InputError(
                    f"lengths is {lengths.tolist()} of {lengths.dtype}; needed: {rows} of int64, each from 0 to {tokens}"
                )
        return self.transformer.encode(token_ids, cache, lengths)

    @torch.inference_mode()
    def denoise(
        self, canvas: Tensor, cache: KVCache, soft: Tensor | None = None, canvas_window: CanvasWindow | None = None
    ) -> Tensor:
        """One bidirectional pass over a canvas; the cache is only read.

        Args:
            canvas: ``[B, L]`` int64.
            cache: of B rows.
            soft: ``[B, L, D]``, ``soften`` of the last step's shaped logits; None at the first step.
            canvas_window: ``shared`` or ``per_position`` (``SamplingParams``); None: the checkpoint's.

        Returns:
            ``[B, L, D]`` final hidden states in the model's dtype.

        Raises:
            InputError: wrong shape or ids outside the vocabulary.
            OptionError: an unknown ``canvas_window``.
        """
        self._check_ids(canvas, cache)
        window = self.defaults.replaced(canvas_window=canvas_window).canvas_window
        expected = (*canvas.shape, self.config.text.hidden_size)
        if soft is not None and soft.shape != expected:
            raise InputError(f"soft has shape {list(soft.shape)}; the canvas needs {list(expected)}")
        return self.transformer.denoise(canvas, cache, soft, window)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Soft-capped logits, float32 ``[B, T, V]``, of hidden states ``[B, T, D]``."""
        return self.transformer.logits(hidden)

    @torch.inference_mode()
    def soften(self, shaped_logits: Tensor) -> Tensor:
        """The expected embedding ``[B, L, D]`` under the softmax of ``[B, L, V]`` logits."""
        return self.transformer.soften(shaped_logits)

    # -- prompts -------------------------------------------------------------------------------------------------------

    def prompt_ids(
        self, prompt: str | Sequence[str] | None = None, *, messages: Sequence[Message] | None = None, **options: Any
    ) -> list[list[int]]:
        """Token ids of prompts as the model is given them.

        Args:
            prompt: a user's message, or a list of them.
            messages: a whole conversation instead.
            **options: fields of ``PromptOptions`` (``text/prompts.py``): ``tools``, ``enable_thinking``, ``raw`` ...

        Returns:
            A list of ids for each prompt.

        Raises:
            InputError: no prompt, an empty one, both prompt and messages, messages the template refuses, or text the tokenizer
                cannot represent.
            PromptTooLongError: text that is certain to have more tokens than the model has positions.
            OptionError: an unknown option, or one that the chat template does not take.
        """
        ours, others = PromptOptions.split(options)
        if ours.thinking_budget is not None:
            raise OptionError("thinking_budget bounds the thoughts of a reply, and here is none; leave it out")
        if others:
            raise OptionError(
                f"{', '.join(others)}: not an option of a prompt; there are {', '.join(PromptOptions.__annotations__)}"
            )
        return self._prompt_ids(prompt, messages, ours)

    def _prompt_ids(self, prompt: Prompts, messages: Sequence[Message] | None, options: PromptOptions) -> list[list[int]]:
        text = self.config.text
        return prompt_ids(self.tokenizer, prompt, messages, options, text.bos_token_id, text.max_position_embeddings)

    def _turn_end(self) -> tuple[int, ...]:
        """The stop token that the chat template puts after an answer; the first there is where it puts none."""
        if self.tokenizer.template is None:
            return self.stop_ids[:1]
        said = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
        ids = self.tokenizer.encode(self.tokenizer.template.render(said))
        return (*[token for token in reversed(ids) if token in self.stop_ids], *self.stop_ids)[:1]

    def _check_ids(self, ids: Tensor, cache: KVCache) -> None:
        if ids.ndim != 2 or ids.shape[0] != cache.batch_size or ids.shape[1] < 1 or ids.dtype != torch.int64:
            raise InputError(
                f"token ids have shape {list(ids.shape)} and dtype {ids.dtype}; needed: [{cache.batch_size}, at least 1], int64"
            )
        if int(ids.min()) < 0 or int(ids.max()) >= self.config.text.vocab_size:
            raise InputError(f"there are token ids outside 0 to {self.config.text.vocab_size - 1}")


@contextmanager
def _loading_bar(total: int, wanted: bool) -> Iterator[Callable[[str, int], None]]:
    """A bar for so many bytes of weights; few of them show none. What it gives is told each tensor's name and size."""
    columns = (TextColumn("loading"), BarColumn(), DownloadColumn())
    with Progress(*columns, disable=not wanted or total < _PROGRESS_FROM, transient=True) as bar:
        task = bar.add_task("loading", total=total)
        yield lambda _, size: bar.advance(task, size)


def empty_transformer(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Transformer:
    """A stack whose weights are allocated and not initialised: they must all be filled."""
    with torch.device("meta"):
        transformer = Transformer(config)
    return transformer.to(dtype).to_empty(device=device)


def device_of(device: torch.device | str | None) -> torch.device:
    """The device that is meant: None is a CUDA device if there is one, else the CPU.

    Raises:
        OptionError: it is not there.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise OptionError(f"device {str(device)!r:.100} cannot be used here: {str(error).splitlines()[0]}") from error
    return chosen


def _dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    chosen = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in _DTYPES.values():
        raise OptionError(f"dtype is {dtype!r}; allowed: {', '.join(_DTYPES)}")
    return chosen
