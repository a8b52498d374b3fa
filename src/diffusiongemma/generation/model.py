"""DiffusionGemmaModel: prompts in, answers and decisions out."""

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack, overload

import torch
from torch import Tensor

from diffusiongemma.constraints import Gone, Vocabulary
from diffusiongemma.diffusion import CanvasWindow, SamplingParams
from diffusiongemma.engine.events import Done, Event, Result
from diffusiongemma.engine.offline import OfflineEngine
from diffusiongemma.engine.request import Request
from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.generation.answer_form import AnswerForm
from diffusiongemma.generation.asynchronous import events
from diffusiongemma.generation.checkpoint import Checkpoint
from diffusiongemma.generation.context import EditContext, EditOptions, Executor, OnEvent, WriteOptions, context_of
from diffusiongemma.generation.decide import decide_sheets
from diffusiongemma.generation.edit import edit_text
from diffusiongemma.generation.fill import TRIES, Filled, Rank, fill_template
from diffusiongemma.generation.loading import load
from diffusiongemma.generation.recording import Recording, record
from diffusiongemma.generation.requests import ReplyOptions, ReplyPlan, Room
from diffusiongemma.generation.roles import Roles
from diffusiongemma.generation.saving import save
from diffusiongemma.generation.score import Scored, score_texts
from diffusiongemma.generation.template import DEFAULT_MAX_TOKENS, Template
from diffusiongemma.generation.vary import check_vary, vary_text
from diffusiongemma.model.adapters import adapted, fold
from diffusiongemma.model.cache import KVCache
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.options import PromptKeywords, PromptOptions
from diffusiongemma.text.messages import Message
from diffusiongemma.text.prompts import conversations
from diffusiongemma.text.questions import Decisions, Question, sheets
from diffusiongemma.text.tokenizer import Tokenizer
from diffusiongemma.weights.resolve import Hub

__all__ = ["DiffusionGemmaModel"]

M = TypeVar("M")
OnResult = Callable[[int, Result], object]
Prompts = list[str] | tuple[str, ...]


class DiffusionGemmaModel:
    """A DiffusionGemma checkpoint, ready to generate.

    Make one with ``from_pretrained``. ``generate``, ``generate_iter`` and ``stream`` take text; ``new_cache``, ``encode``,
    ``denoise``, ``logits`` and ``soften`` are the passes they are built from.

    Args:
        transformer: the stack of weights, in evaluation mode.
        tokenizer: the checkpoint's tokenizer.
        defaults: sampling defaults of the checkpoint.
        stop_ids: token ids that end an answer.
        folder: where the checkpoint came from; None for a model made in memory.

    Attributes:
        checkpoint: what it was made of.
        engine: where its passes are made.
        roles: what ``mode="auto"`` chooses by.
    """

    def __init__(
        self,
        transformer: Transformer,
        tokenizer: Tokenizer,
        defaults: SamplingParams,
        stop_ids: Sequence[int],
        folder: Path | None = None,
    ) -> None:
        self.checkpoint = Checkpoint(transformer, tokenizer, defaults, tuple(stop_ids), folder)
        self.engine: Executor = OfflineEngine(transformer, tokenizer)
        self.roles = Roles()

    def __repr__(self) -> str:
        return f"DiffusionGemmaModel({self.checkpoint!r})"

    # -- loading and saving ------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        dtype: torch.dtype | str | None = None,
        cache_dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        quantize: str | None = None,
        adapter: str | os.PathLike[str] | None = None,
        batch_invariant: bool = True,
        progress: bool = True,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Load a checkpoint.

        Args:
            name: a built-in name (``nano``, ``sudoku``), a folder as Hugging Face writes it, a GGUF file or a folder with one, or a
                hub id (``owner/name:Q4_K_M`` where a repository has several GGUF files).
            dtype: of the computation: a torch dtype or ``float32``, ``bfloat16``, ``float16``; None or ``auto``: bfloat16 on a GPU,
                and on a CPU float32. Weights are kept in it too, but for those of a quantised checkpoint: their codes stay packed,
                and on a CPU their other matrices stay as they are stored.
            cache_dtype: of the keys and values that are kept of a context, as for ``dtype``; None: that of the computation.
                bfloat16 beside float32 halves their memory; they are rounded once, as they are stored.
            device: None or ``auto``: a CUDA device if there is one, else the CPU.
            quantize: ``int8`` rounds attention, dense MLP, experts and the tied head to int8 as they are loaded, and computes them
                in int8 too: faster on a CPU and half of bfloat16's memory, not exact (docs/quantisation.md). None: as stored.
            adapter: folder of a LoRA adapter in PEFT's format, put beside the weights (docs/finetuning.md). ``name`` may be such a
                folder too, which names its base.
            batch_invariant: in float32 on a CPU a result has the same bits alone and in any batch; False: it may differ by
                rounding, and a causal token alone costs less (decision 0007).
            progress: show a bar while large weights load.
            revision: of a hub id: a branch, tag or commit; None: the main branch.
            token: of a hub id: of an account that may read it; None: the stored one, or ``HF_TOKEN``; False: none.
            cache_dir: where downloads are kept; None: as the Hugging Face library has it (``HF_HOME``).

        Returns:
            The model, in evaluation mode.

        Raises:
            CheckpointError: no such checkpoint, or its files are incomplete, damaged or of a format that is not read.
            ConfigError: a config.json that this runtime does not follow.
            OptionError: an unknown dtype, cache_dtype, quantize or a device that is not there, or int8 off a CPU.
        """
        hub = Hub(revision=revision, token=token, cache_dir=cache_dir)
        parts = load(name, dtype, device, quantize, progress, cache_dtype, adapter, hub)
        parts.transformer.batch_invariant = batch_invariant
        return cls(**vars(parts))

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
            InputError: ``folder`` is no path.
            CheckpointError: the folder cannot be written, the one that was loaded is not there any more or holds other weights, or
                packed weights have no stored form (``quantize="int8"``).
        """
        save(self.checkpoint, folder, dequantize)

    def merge_adapter(self) -> None:
        """Add the adapter to the weights, once, and take it off: what follows is a plain model, which ``save_pretrained`` writes.

        Raises:
            OptionError: there is none, or weights under it are packed and hold no sums.
        """
        pairs = adapted(self.transformer)
        if not pairs:
            raise OptionError("this model has no adapter; load one with adapter=FOLDER")
        if packed := [name for name, _ in self.transformer.packed() if name.removesuffix(".weight") in pairs]:
            raise OptionError(
                f"the weights under the adapter are packed ({packed[0]} and others), and codes hold no sums; merge into the 16-bit "
                "checkpoint, and quantise what comes out"
            )
        fold(self.transformer)

    # -- properties --------------------------------------------------------------------------------------------------

    @property
    def transformer(self) -> Transformer:
        """The stack of weights."""
        return self.checkpoint.transformer

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self.checkpoint.tokenizer

    @property
    def defaults(self) -> SamplingParams:
        """Sampling parameters where a call gives none; may be set."""
        return self.checkpoint.defaults

    @defaults.setter
    def defaults(self, params: SamplingParams) -> None:
        self.checkpoint.defaults = params

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer."""
        return self.checkpoint.stop_ids

    @property
    def folder(self) -> Path | None:
        """Where the checkpoint came from; None: it was made in memory."""
        return self.checkpoint.folder

    @property
    def config(self) -> ModelConfig:
        """The checkpoint's configuration."""
        return self.checkpoint.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.checkpoint.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation."""
        return self.checkpoint.dtype

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens as bytes, for grammars; made once."""
        return self.checkpoint.vocabulary

    # -- the passes (B batch, T tokens, L canvas, D hidden, V vocabulary) ----------------------------------------------

    def new_cache(self, batch_size: int = 1, max_length: int = 4096) -> KVCache:
        """An empty cache.

        Args:
            batch_size: rows.
            max_length: tokens a row can hold; memory is taken as they come.

        Raises:
            OptionError: a size below 1.
        """
        if not all(isinstance(size, int) and size >= 1 for size in (batch_size, max_length)):
            raise OptionError(f"batch_size is {batch_size!r} and max_length is {max_length!r}; both must be integers, at least 1")
        return KVCache(self.config.text, batch_size, max_length, self.transformer.cache_dtype, self.device)

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
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        **options: Unpack[PromptKeywords],
    ) -> list[list[int]]:
        """Token ids of prompts as the model is given them.

        Args:
            prompt: a user's message, or a list of them.
            messages: a whole conversation instead.
            **options: fields of ``PromptOptions`` (``options/prompt.py``): ``tools``, ``enable_thinking``, ``raw`` ...

        Returns:
            A list of ids for each prompt.

        Raises:
            InputError: no prompt, an empty one, both prompt and messages, messages the template refuses, or text the tokenizer
                cannot represent.
            PromptTooLongError: text that is certain to have more tokens than the model has positions.
            OptionError: an unknown option, or one that the chat template does not take.
        """
        return self.checkpoint.prompt_ids(prompt, messages, PromptOptions.only(options))

    # -- answers -------------------------------------------------------------------------------------------------------

    @overload
    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        n: None = None,
        best_of: int | None = None,
        judge: "DiffusionGemmaModel | None" = None,
        on_result: OnResult | None = None,
        **options: Unpack[ReplyOptions],
    ) -> Result: ...
    @overload
    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        n: int,
        on_result: OnResult | None = None,
        **options: Unpack[ReplyOptions],
    ) -> list[Result]: ...
    @overload
    def generate(
        self,
        prompt: Prompts,
        *,
        n: None = None,
        best_of: int | None = None,
        judge: "DiffusionGemmaModel | None" = None,
        on_result: OnResult | None = None,
        **options: Unpack[ReplyOptions],
    ) -> list[Result]: ...
    @overload
    def generate(
        self, prompt: Prompts, *, n: int, on_result: OnResult | None = None, **options: Unpack[ReplyOptions]
    ) -> list[list[Result]]: ...

    @overload
    def generate(
        self,
        prompt: str | None = None,
        *,
        schema: type[M],
        messages: Sequence[Message] | None = None,
        n: None = None,
        best_of: int | None = None,
        judge: "DiffusionGemmaModel | None" = None,
        **options: Unpack[ReplyOptions],
    ) -> M: ...
    @overload
    def generate(
        self,
        prompt: Prompts,
        *,
        schema: type[M],
        n: None = None,
        best_of: int | None = None,
        judge: "DiffusionGemmaModel | None" = None,
        **options: Unpack[ReplyOptions],
    ) -> list[M]: ...

    def generate(
        self,
        prompt: Any = None,
        *,
        messages: Any = None,
        n: int | None = None,
        best_of: int | None = None,
        judge: "DiffusionGemmaModel | None" = None,
        schema: type[Any] | None = None,
        on_result: OnResult | None = None,
        **options: Any,
    ) -> Any:
        """Answer a prompt, or a list of prompts, however long: few of them are requests of the engine at a time.

        Args:
            prompt: a user's message, put into the checkpoint's chat template; or a list of them.
            messages: a whole conversation instead: ``[{"role": ..., "content": ...}, ...]`` (docs/chat.md).
            n: answers to each prompt, from seed, seed + 1, ...; given, 1 too, a prompt's answers are a list.
            best_of: answers to each prompt, from seed, seed + 1, ..., of which the one is returned that the causal role finds most
                probable by token (``Result.confidence``); not together with ``n``.
            judge: another model whose causal role chooses the best instead; its tokenizer and template may be others.
            schema: a pydantic class: the answer is an object of it. It stands for ``response_format``.
            on_result: called with each answer's number (``prompt * n + answer``) and its Result as it is there.
            **options: see ``ReplyOptions``.

        Returns:
            A Result (printing it prints the text), or with ``schema`` an object of that class; with ``n`` a list of them. For a
            list of prompts a list of these, in order.

        Raises:
            InputError, PromptTooLongError, OptionError: see ``stream``.
            ConstraintError: with ``schema``: an answer that was cut by ``max_tokens``, or that the class's own checks refuse.
        """
        form, many = AnswerForm.of(n, best_of, schema, options, judge is not None), isinstance(prompt, list | tuple)
        asked = conversations(prompt, messages, bool(options.get("raw")))
        plan = ReplyPlan(self.checkpoint, self.roles, form.options, rows=len(asked), n=form.each)
        texts = asked if prompt is None else [prompt] if isinstance(prompt, str) else prompt
        results: dict[int, Result] = {}
        for row, result in self._results(plan, texts):
            results[row] = result
            if on_result is not None:
                on_result(row, result)
        if judge is None:
            return form.arranged(results, many)

        def confidence(row: int, text: str) -> float:
            given: Any = texts[row // form.each]
            said = {"prompt": given} if isinstance(given, str) else {"prompt": None, "messages": given}
            said |= {"raw": True} if options.get("raw") else {}
            return judge.score(text=text, end=results[row].finish_reason == "stop", **said).confidence if text else 0.0

        return form.arranged(results, many, {row: confidence(row, result.text) for row, result in results.items()})

    async def agenerate(
        self,
        prompt: Any = None,
        *,
        messages: Any = None,
        n: int | None = None,
        best_of: int | None = None,
        schema: type[Any] | None = None,
        **options: Any,
    ) -> Any:
        """``generate`` for programs of ``asyncio``: calls that wait at the same time share the passes.

        Args:
            prompt, messages, n, best_of, schema, **options: see ``generate``; all answers are requests of the engine at once.

        Returns:
            As ``generate``. A call that is cancelled gives its answers up.

        Raises:
            InputError, PromptTooLongError, OptionError: see ``stream``.
            OverloadedError: 65,536 answers wait already.
        """
        form, results = AnswerForm.of(n, best_of, schema, options), dict[int, Result]()
        async for event in self.astream(prompt, messages=messages, n=form.each, drafts=False, **form.options):
            if isinstance(event, Done):
                results[event.row] = event.result
        return form.arranged(results, isinstance(prompt, list | tuple))

    def astream(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        n: int = 1,
        drafts: bool = True,
        **options: Unpack[ReplyOptions],
    ) -> AsyncIterator[Event]:
        """``stream`` for programs of ``asyncio``: ``async for event in model.astream(...)``.

        Args:
            prompt, messages, n, drafts, **options: see ``stream``.

        Returns:
            An iterator of the events, without the drafts that whoever reads slowly would have waiting. Errors come with its first
            step.
        """
        made = partial(self.requests, prompt, messages=messages, n=n, drafts=drafts, **options)
        return events(self, made)

    def generate_iter(
        self, prompts: Iterable[str | Sequence[Message]], **options: Unpack[ReplyOptions]
    ) -> Iterator[tuple[int, Result]]:
        """Answer a stream of prompts; they are taken from it as the engine has room, and need never be all there.

        Args:
            prompts: users' messages, or whole conversations.
            **options: see ``ReplyOptions``; what may be a list with one for each prompt must be one for all here.

        Yields:
            The prompt's number, from 0, and its Result, as they finish: not always in order.

        Raises:
            InputError, PromptTooLongError, OptionError: see ``stream``; those of a prompt when its turn comes.
        """
        if not isinstance(prompts, Iterable) or isinstance(prompts, str | bytes):
            raise InputError(f"prompts is of type {type(prompts).__name__}; give a list or another iterable of prompts", "prompts")
        return self._results(ReplyPlan(self.checkpoint, self.roles, options, rows=None), prompts)

    def _results(self, plan: ReplyPlan, prompts: Iterable[str | Sequence[Message]]) -> Iterator[tuple[int, Result]]:
        """Results with their requests' numbers, as they finish."""
        texts = ((prompt, None) if isinstance(prompt, str) else (None, prompt) for prompt in prompts)
        requests = plan.requests(self.checkpoint.prompt_ids(prompt, messages, plan.written)[0] for prompt, messages in texts)
        return ((event.row, event.result) for event in self._watched(self.engine.run(requests)) if isinstance(event, Done))

    def stream(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        n: int = 1,
        drafts: bool = True,
        **options: Unpack[ReplyOptions],
    ) -> Iterator[Event]:
        """Generate, and see it happen.

        Args:
            prompt: a user's message or a list of them (one batch; every row draws from seed, whatever its neighbours are).
            messages: a whole conversation instead of a prompt.
            n: answers to each prompt; those of one prompt follow each other and draw from seed, seed + 1, ...
            drafts: False leaves out the Draft events, which cost a little at every step.
            **options: see ``ReplyOptions``.

        Yields:
            Draft (each row and denoising step), Commit (text that is final), Done (the row's Result).

        Raises:
            InputError: no prompt, an empty one, both prompt and messages, messages the chat template refuses, or text the tokenizer
                cannot represent.
            PromptTooLongError: prompt and answer exceed the model's positions.
            OptionError: an unknown option, one that the chat template does not take, or a value outside what is allowed.
            ConstraintError: a schema, regex, list of choices or grammar that is wrong, impossible or cannot be expressed, or that
                the pins contradict.
        """
        return self._watched(self.engine.run(self.requests(prompt, messages=messages, n=n, drafts=drafts, **options)))

    def record(
        self, prompt: str | None = None, *, messages: Sequence[Message] | None = None, **options: Unpack[ReplyOptions]
    ) -> Recording:
        """Answer one prompt and keep every step: in a notebook the answer forms under a slider.

        Args:
            prompt, messages, **options: see ``stream``.

        Raises:
            InputError, PromptTooLongError, OptionError, ConstraintError: see ``stream``.
        """
        if prompt is not None and not isinstance(prompt, str):
            raise InputError(f"prompt is of type {type(prompt).__name__}; one answer is recorded, give a string", "prompt")
        events = self.stream(prompt, messages=messages, **options)
        return record(events, self.tokenizer.token_text, self.config.text.pad_token_id)

    def requests(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        prompt_ids: Sequence[Sequence[int]] | None = None,
        n: int = 1,
        drafts: bool = False,
        room: Room | None = None,
        gone: Gone | None = None,
        **options: Unpack[ReplyOptions],
    ) -> list[Request]:
        """What ``stream`` runs: one request a prompt, or n, which the model can take.

        Args:
            prompt, messages, n, drafts, **options: see ``stream``.
            prompt_ids: prompts as token ids, which are taken as they are; instead of ``prompt`` and ``messages``.
            room, gone: see ``ReplyPlan``.

        Raises:
            InputError, PromptTooLongError, OptionError, ConstraintError: see ``stream``.
        """
        if prompt_ids is not None:
            if prompt is not None or messages is not None:
                raise InputError("prompt_ids stands beside prompt or messages; give one of them", "prompt_ids")
            raw, count = {**options, "raw": True}, len(prompt_ids)
            plan = ReplyPlan(self.checkpoint, self.roles, raw, rows=count, n=n, drafts=drafts, room=room, gone=gone)
            return list(plan.requests(self.checkpoint.checked_ids(ids) for ids in prompt_ids))
        rows = len(conversations(prompt, messages, bool(options.get("raw"))))
        plan = ReplyPlan(self.checkpoint, self.roles, options, rows=rows, n=n, drafts=drafts, room=room, gone=gone)
        return list(plan.requests(self.checkpoint.prompt_ids(prompt, messages, plan.written)))

    def _watched(self, events: Iterator[Event]) -> Iterator[Event]:
        """The same events; what they say of steps is kept for ``mode="auto"``."""
        for event in events:
            if isinstance(event, Done):
                self.roles.saw(event.result)
            yield event

    def with_engine(self, engine: Executor) -> "DiffusionGemmaModel":
        """The same model with its passes made by another engine: one that several callers share, say."""
        other = copy(self)
        other.engine = engine
        return other

    # -- judging ------------------------------------------------------------------------------------------------------

    @overload
    def score(
        self,
        prompt: str | None,
        text: str,
        *,
        messages: Sequence[Message] | None = None,
        end: bool = True,
        **options: Unpack[PromptKeywords],
    ) -> Scored: ...
    @overload
    def score(
        self,
        prompt: str | None,
        text: list[str] | tuple[str, ...],
        *,
        messages: Sequence[Message] | None = None,
        end: bool = True,
        **options: Unpack[PromptKeywords],
    ) -> list[Scored]: ...

    def score(
        self, prompt: str | None, text: Any, *, messages: Sequence[Message] | None = None, end: bool = True, **options: Any
    ) -> Any:
        """How probable the causal role finds a text, token by token; the prompt is encoded once, texts in one batch.

        Args:
            prompt: a user's message that the text answers; None: what ``messages`` say, or plain text.
            text: one, or a list of them.
            messages: a conversation instead of a prompt.
            end: whether the text is to end there: its stop token is scored too.
            **options: how the prompt is written (``PromptOptions``).

        Returns:
            A Scored, or a list of them.

        Raises:
            InputError: no text, an empty one, both prompt and messages, or what the tokenizer cannot represent.
            PromptTooLongError: prompt and text exceed the model's positions.
            OptionError: an option that is none of a prompt.
        """
        PromptOptions.only(options)
        texts = [text] if isinstance(text, str) else text
        scored = score_texts(self._context(prompt, messages, options), texts, end)
        return scored[0] if isinstance(text, str) else scored

    # -- texts that are there already ----------------------------------------------------------------------------------

    def infill(
        self,
        prefix: str,
        suffix: str,
        *,
        min_tokens: int = 1,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        prompt: str | None = None,
        messages: Sequence[Message] | None = None,
        rank: Rank = "total",
        tries: int = TRIES,
        on_event: OnEvent | None = None,
        seed: int | None = None,
        **options: Unpack[WriteOptions],
    ) -> Filled:
        """Write what stands between two texts; several lengths are tried at once.

        Args:
            prefix: text before the span; the encoder reads it.
            suffix: text after it, pinned on the canvas.
            min_tokens: tokens of the span, >= 1.
            max_tokens: tokens of the span.
            prompt: a user's message that the whole text answers; None: it is plain text.
            messages: a conversation instead of a prompt.
            rank: which candidate is best (``generation.fill.fill_template``).
            tries: most rows of a batch, half of them with open borders (``generation.fill``).
            on_event: called with each event.
            seed: None: a random one.
            **options: see ``generation.context.WriteOptions``.

        Returns:
            The best text (prefix and suffix in it unchanged), the span's (``spans["span"]``), and all that were tried.

        Raises:
            InputError: a span of length zero, or texts the tokenizer cannot represent.
            PromptTooLongError, OptionError: see ``stream``.
        """
        template = Template.around(prefix, suffix, min_tokens, max_tokens)
        return fill_template(self._context(prompt, messages, {**options, "seed": seed}), template, rank, tries, on_event)

    def fill(
        self,
        template: str,
        *,
        prompt: str | None = None,
        messages: Sequence[Message] | None = None,
        rank: Rank = "total",
        tries: int = TRIES,
        on_event: OnEvent | None = None,
        seed: int | None = None,
        **options: Unpack[WriteOptions],
    ) -> Filled:
        """Write all spans of a template together.

        Args:
            template: ``"Dear {{name:1-6}}, ... {{reason}}"``: a name, and fewest and most tokens (``generation.template``).
            prompt, messages, rank, tries, on_event, seed, **options: see ``infill``.

        Returns:
            The best text and its spans by name, and all that were tried.

        Raises:
            InputError: a template without spans, a span of length zero or without a name, a name used twice.
            PromptTooLongError, OptionError: see ``stream``.
        """
        parsed = Template.parse(template)
        return fill_template(self._context(prompt, messages, {**options, "seed": seed}), parsed, rank, tries, on_event)

    def edit(
        self,
        text: str,
        instruction: str,
        *,
        in_prompt: bool = True,
        on_event: OnEvent | None = None,
        **options: Unpack[EditOptions],
    ) -> Result:
        """Rewrite a text: the canvas begins with it instead of noise, so that what stays converges at once.

        Args:
            text: what is there.
            instruction: what is to become of it.
            in_prompt: show the text in the user's message, below the instruction; False: the message is the instruction alone.
            on_event: called with each event.
            **options: fields of ``SamplingParams`` and ``PromptOptions``; ``max_tokens`` unset: the checkpoint's own, or room for
                the text and a canvas more, if that is more.

        Raises:
            InputError: an empty text or instruction.
            PromptTooLongError, OptionError: see ``stream``.
        """
        for what, given in (("text to edit", text), ("instruction", instruction)):
            if not isinstance(given, str) or not given:
                raise InputError(f"the {what} is {given!r:.100}; give at least one character")
        message = f"{instruction}\n\n{text}" if in_prompt and instruction.strip() else instruction
        context = self._context(message, None, options, ends=True)
        return edit_text(context, text, grow=options.get("max_tokens") is None, on_event=on_event)

    def vary(
        self,
        text: str,
        strength: float,
        n: int = 1,
        seed: int | None = None,
        *,
        prompt: str | None = None,
        messages: Sequence[Message] | None = None,
        on_event: OnEvent | None = None,
        **options: Unpack[WriteOptions],
    ) -> list[str]:
        """Variants of a text: a share of its tokens is noise again and denoised, the rest is pinned.

        Args:
            text: not empty.
            strength: 0 (the text itself) to 1 (all is written anew, in as many tokens).
            n: variants, one batch.
            seed: None: a random one.
            prompt, messages, on_event, **options: see ``infill``.

        Returns:
            n texts; some may be alike.

        Raises:
            InputError: an empty text, or one the tokenizer cannot represent.
            PromptTooLongError, OptionError: a strength outside 0 to 1, n below 1; see ``stream``.
        """
        check_vary(text, strength, n)
        return vary_text(self._context(prompt, messages, {**options, "seed": seed}), text, strength, n, on_event)

    def _context(
        self, prompt: str | None, messages: Sequence[Message] | None, options: Mapping[str, Any], ends: bool = False
    ) -> EditContext:
        return context_of(self.checkpoint, self.engine, prompt, messages, options, ends)

    # -- decisions -----------------------------------------------------------------------------------------------------

    def decide(
        self,
        prompt: str | None = None,
        questions: Sequence[Question] = (),
        *,
        messages: Sequence[Message] | None = None,
        joint: bool = False,
        template: str | None = None,
        threshold: float = 0.0,
        draws: int = 1,
        seed: int = 0,
        **options: Unpack[PromptKeywords],
    ) -> Decisions:
        """Answer typed questions by what one denoising pass gives each of the allowed answers; nothing is generated.

        Args:
            prompt: a user's message.
            questions: ``Predicate``, ``Choice``, ``Score``, with different names.
            messages: a whole conversation instead of a prompt.
            joint: all questions on one canvas, so that an answer depends on the others; else each is asked alone.
            template: the answer's text, with a slot ``{{name}}`` for each question of a canvas; it stands fixed around them. None:
                the bare answer where a question is alone, else a line ``name: {{name}}`` each.
            threshold: a question whose answer is less probable is left open: its ``answer`` is None.
            draws: of noise, in rows of the same batch; the probabilities are the mean over them.
            seed: of the noise. The same call always decides the same.
            **options: fields of ``PromptOptions``: how the prompt is written (``stream``).

        Returns:
            The decisions, in the order of the questions.

        Raises:
            InputError: no prompt, no questions, names or options that are empty or not different, an answer that the tokenizer
                cannot write, more than 256 answers on a canvas, or one that is longer than it.
            PromptTooLongError: prompt and canvas exceed the model's positions.
            OptionError: a threshold outside 0 to 1, draws or a seed outside what is allowed, an unknown option, or one that the
                chat template does not take.
        """
        asked, written = sheets(questions, joint, template, threshold), PromptOptions.only(options)
        return decide_sheets(self.checkpoint, prompt, messages, asked, written, threshold, seed, draws, self.engine.call)

    def _check_ids(self, ids: Tensor, cache: KVCache) -> None:
        if not isinstance(ids, Tensor):
            raise InputError(f"token ids are of type {type(ids).__name__}; give an int64 tensor [{cache.batch_size}, at least 1]")
        if ids.ndim != 2 or ids.shape[0] != cache.batch_size or ids.shape[1] < 1 or ids.dtype != torch.int64:
            raise InputError(
                f"token ids have shape {list(ids.shape)} and dtype {ids.dtype}; needed: [{cache.batch_size}, at least 1], int64"
            )
        if int(ids.min()) < 0 or int(ids.max()) >= self.config.text.vocab_size:
            raise InputError(f"there are token ids outside 0 to {self.config.text.vocab_size - 1}")
