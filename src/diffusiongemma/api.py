"""DiffusionGemmaModel: the one place where text and engine meet."""

import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, cast, get_args, overload

import torch
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from torch import Tensor

from diffusiongemma.constraints import Constraint, Grammar, Vocabulary, compile_grammar
from diffusiongemma.engine.decide import Alternatives, decide
from diffusiongemma.engine.engine import Local
from diffusiongemma.engine.events import Done, Event, Result
from diffusiongemma.engine.frame import Executor
from diffusiongemma.engine.held import Rules
from diffusiongemma.engine.pins import Pins, pins_by_row
from diffusiongemma.engine.request import Mode, Request, check
from diffusiongemma.engine.rewriting import Rewriting
from diffusiongemma.errors import CheckpointError, ConfigError, InputError, OptionError
from diffusiongemma.model.cache import KVCache
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.sampler import SamplingParams
from diffusiongemma.text.chat import Message
from diffusiongemma.text.questions import Decisions, Question, Sheet, sheets
from diffusiongemma.text.tokenizer import Tokenizer
from diffusiongemma.weights.load import fill, save, vision_tensors
from diffusiongemma.weights.resolve import resolve
from diffusiongemma.weights.stream import read_json, write_json

__all__ = ["DiffusionGemmaModel", "Mode", "held_params"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MOST_ANSWERS = 128
"""To one prompt at a time (as in OpenAI's API)."""
HELD_CONFIDENCE = 2.5
"""A held answer stops at the first canvas that is read to its end and whose mean entropy is below so many times the checkpoint's
confidence, stable or not, unless ``stability`` or ``confidence`` are given: its skeleton cannot go wrong. nano, json-extract, 200
examples: 93.3% in 3.1 steps; 94.7% in 4.5 with the stop rule of free answers; free answers 88.8% in 4.6."""
_PROGRESS_FROM = 1 << 28
"""Bytes of weights from which loading shows a progress bar."""


class DiffusionGemmaModel(Rewriting):
    """A DiffusionGemma checkpoint, ready to generate.

    Make one with ``from_pretrained``. ``generate`` and ``stream`` take text; ``new_cache``, ``encode``, ``denoise``,
    ``logits`` and ``soften`` are the passes they are built from.

    Args:
        transformer: the stack of weights, in evaluation mode.
        tokenizer: the checkpoint's tokenizer.
        defaults: sampling defaults of the checkpoint.
        stop_ids: token ids that end an answer.
        folder: where the checkpoint came from; None for a model made in memory.
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
        self.engine: Executor = Local(transformer, tokenizer)

    # -- loading and saving ------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        progress: bool = True,
    ) -> "DiffusionGemmaModel":
        """Load a checkpoint.

        Args:
            name: a built-in name (``nano``, ``sudoku``), a folder as Hugging Face writes it, or a hub id.
            dtype: of the weights: a torch dtype or ``float32``, ``bfloat16``, ``float16``; None: bfloat16 on a GPU, and on a
                CPU float32 (in which a result depends on the batch by rounding only).
            device: None: a CUDA device if there is one, else the CPU.
            progress: show a bar while large weights load.

        Returns:
            The model, in evaluation mode.

        Raises:
            CheckpointError: no such checkpoint, or its files are incomplete, damaged or of a format that is not read.
            ConfigError: a config.json that this runtime does not follow.
            OptionError: an unknown dtype or a device that is not there.
        """
        chosen_device = _device(device)
        chosen_dtype = _dtype(dtype, chosen_device)
        folder = resolve(name)
        config = ModelConfig.from_dict(read_json(folder / "config.json"))
        generation = read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
        defaults = SamplingParams.from_generation_config(generation)
        tokenizer = Tokenizer.from_folder(folder)
        if tokenizer.vocab_size > config.text.vocab_size:
            raise CheckpointError(
                f"{folder}: tokenizer.json has {tokenizer.vocab_size} tokens, config.json a vocabulary of {config.text.vocab_size}"
            )
        transformer = empty_transformer(config, chosen_dtype, chosen_device)
        total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        with Progress(
            TextColumn("loading"),
            BarColumn(),
            DownloadColumn(),
            disable=not progress or total < _PROGRESS_FROM,
            transient=True,
        ) as bar:
            task = bar.add_task("loading", total=total)
            fill(transformer.state_dict(keep_vars=True), folder, lambda _, size: bar.advance(task, size))
        return cls(transformer.eval().requires_grad_(False), tokenizer, defaults, _stop_ids(generation, config), folder)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that ``from_pretrained`` and transformers load.

        Args:
            folder: made if it is not there; a checkpoint in it is replaced.
        """
        target = Path(folder)
        extra = vision_tensors(self.folder) if self.folder is not None else {}
        save(target, self.transformer.state_dict(), self.config.to_dict(), extra)
        write_json(
            target / "generation_config.json",
            {
                "bos_token_id": self.config.text.bos_token_id,
                "eos_token_id": list(self.stop_ids),
                "pad_token_id": self.config.text.pad_token_id,
                **self.defaults.to_generation_config(),
            },
        )
        self.tokenizer.save(target)

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
            max_length: tokens a row can hold.

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
    def denoise(self, canvas: Tensor, cache: KVCache, soft: Tensor | None = None) -> Tensor:
        """One bidirectional pass over a canvas; the cache is only read.

        Args:
            canvas: ``[B, L]`` int64.
            cache: of B rows.
            soft: ``[B, L, D]``, ``soften`` of the last step's shaped logits; None at the first step.

        Returns:
            ``[B, L, D]`` final hidden states in the model's dtype.

        Raises:
            InputError: wrong shape or ids outside the vocabulary.
        """
        self._check_ids(canvas, cache)
        expected = (*canvas.shape, self.config.text.hidden_size)
        if soft is not None and soft.shape != expected:
            raise InputError(f"soft has shape {list(soft.shape)}; the canvas needs {list(expected)}")
        return self.transformer.denoise(canvas, cache, soft)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Soft-capped logits, float32 ``[B, T, V]``, of hidden states ``[B, T, D]``."""
        return self.transformer.logits(hidden)

    @torch.inference_mode()
    def soften(self, shaped_logits: Tensor) -> Tensor:
        """The expected embedding ``[B, L, D]`` under the softmax of ``[B, L, V]`` logits."""
        return self.transformer.soften(shaped_logits)

    # -- text ----------------------------------------------------------------------------------------------------------

    @overload
    def generate(self, prompt: str | None = None, *, messages: Sequence[Message] | None = None, **options: Any) -> Result: ...
    @overload
    def generate(self, prompt: Sequence[str], **options: Any) -> list[Result]: ...

    def generate(self, prompt: Any = None, *, messages: Any = None, **options: Any) -> Any:
        """Answer a prompt, or a list of prompts as one batch.

        Args:
            prompt: a user's message, put into the checkpoint's chat template; or a list of them.
            messages: a whole conversation instead: ``[{"role": ..., "content": ...}, ...]``.
            **options: see ``stream``.

        Returns:
            A Result (printing it prints the text); for a list of prompts a list of them, in order.

        Raises:
            InputError, PromptTooLongError, OptionError: see ``stream``.
        """
        many = isinstance(prompt, list | tuple)
        results: dict[int, Result] = {}
        for event in self.stream(prompt, messages=messages, **{"drafts": False} | options):
            if isinstance(event, Done):
                results[event.row] = event.result
        return [results[row] for row in sorted(results)] if many else results[0]

    def stream(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        mode: Mode = "diffusion",
        pins: Pins | Sequence[Pins] | None = None,
        seeds: Sequence[int] | None = None,
        drafts: bool = True,
        response_format: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        grammar: str | None = None,
        rules: Rules | Sequence[Rules] | None = None,
        logprobs: int | None = None,
        **options: Any,
    ) -> Iterator[Event]:
        """Generate, and see it happen.

        Args:
            prompt: a user's message or a list of them (one batch; every row draws from seed, whatever its neighbours are).
            messages: a whole conversation instead of a prompt.
            mode: ``diffusion``, or ``causal``: token by token with the encoder role of the same weights.
            pins: what stays fixed of the answer, over as many canvases as it takes: a list of token ids from its start, -1 where
                the model writes; or a mapping of position to token, or (position, token) pairs. One for all rows, or a list
                with one for each. Nothing ends the answer before its last pin.
            seeds: a seed for each row instead of one for all: rows of one seed begin with the same noise.
            response_format: ``{"type": "json_schema", "json_schema": {"schema": ...}}`` (or the schema itself) or
                ``{"type": "json_object"}``, one for all or one for each prompt: the answer is valid JSON, always, unless it
                ends with ``"length"``.
            regex: the answer matches it as a whole (syntax: ``constraints.regex``).
            choices: the answer is one of them.
            grammar: the answer is a text of this context-free grammar, in Lark's syntax as llguidance reads it.
            rules: rules of another kind that the answer keeps (``tasks.sudoku_rules.SudokuRules``), one for all or one for each
                prompt.
            drafts: False leaves out the Draft events, which cost a little at every step.
            logprobs: alternatives a token, 0 to 20: the commits carry the log-probabilities that the causal role gives the
                answer's tokens; None: they do not.
            **options: fields of ``SamplingParams``: ``max_tokens``, ``canvas_length``, ``num_diffusion_steps``, ``seed``,
                ``entropy_bound``,
                ``t_min``, ``t_max``, ``schedule``, ``self_conditioning``, ``stability``, ``confidence``, ``early_stop``,
                ``stop_rule``, ``commit``, ``stop``, ``temperature``. Unset
                ones come from the checkpoint; ``seed`` unset is drawn at random.

        Yields:
            Draft (each row and denoising step), Commit (text that is final), Done (the row's Result).

        Raises:
            InputError: no prompt, an empty one, both prompt and messages, or text the tokenizer cannot represent.
            PromptTooLongError: prompt and answer exceed the model's positions.
            OptionError: an unknown option, or a value outside what is allowed.
            ConstraintError: a schema, regex, list of choices or grammar that is wrong, impossible or cannot be expressed, or that
                the pins contradict.
        """
        asked = self.requests(
            prompt, messages=messages, mode=mode, pins=pins, seeds=seeds, drafts=drafts, response_format=response_format,
            regex=regex, choices=choices, grammar=grammar, rules=rules, logprobs=logprobs, **options,
        )  # fmt: skip
        return self.engine.run(asked)

    def requests(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        n: int = 1,
        mode: Mode = "diffusion",
        pins: Pins | Sequence[Pins] | None = None,
        seeds: Sequence[int] | None = None,
        drafts: bool = False,
        response_format: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        grammar: str | None = None,
        rules: Rules | Sequence[Rules] | None = None,
        logprobs: int | None = None,
        **options: Any,
    ) -> list[Request]:
        """What ``stream`` runs: one request a prompt, or n, which the model can take.

        Args:
            n: answers to each prompt; those of one prompt follow each other and draw from seed, seed + 1, ...
            prompt, messages, mode, pins, seeds, drafts, response_format, regex, choices, grammar, rules, logprobs, **options: see
                ``stream``.

        Raises:
            InputError, PromptTooLongError, OptionError, ConstraintError: see ``stream``.
        """
        if mode not in get_args(Mode):
            raise OptionError(f"mode is {mode!r}; allowed: {', '.join(get_args(Mode))}")
        if mode == "causal" and pins is not None:
            raise OptionError("pins need mode 'diffusion': token by token nothing to the right can be held fixed")
        if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MOST_ANSWERS:
            raise OptionError(f"n is {n!r}; answers to a prompt may be 1 to {MOST_ANSWERS}")
        formats = [response_format] if response_format is None or isinstance(response_format, Mapping) else response_format
        constraints = [Constraint.of(each, regex, choices, grammar) for each in formats]
        if rules is not None and any(constraints):
            raise InputError("an answer can be held to rules, or to a response format, regex, choices or grammar; give one")
        if mode == "causal" and (rules is not None or any(constraints)):
            raise OptionError("rules, a response format, regex, choices or grammar needs mode 'diffusion'")
        if options.get("seed") is None:
            options["seed"] = secrets.randbits(32)
        params = self.defaults.replaced(**options)
        held = held_params(params, options)
        prompts = [self.tokenizer.encode(text) for text in self._prompt_texts(prompt, messages)]
        if not prompts:
            raise InputError("there is no prompt; give at least one")
        if seeds is not None and len(seeds) != len(prompts):
            raise InputError(f"there are {len(seeds)} seeds for {len(prompts)} prompts; give one each, or seed for all")
        fixed = [None] * len(prompts) if pins is None else pins_by_row(pins, len(prompts), params.max_tokens)
        grammars = self._grammars(constraints, len(prompts)) if rules is None else _each(rules, len(prompts))
        asked = [
            Request(
                prompt=ids,
                params=(held if constraints[row % len(constraints)] else params).replaced(
                    seed=(params.seed if seeds is None else seeds[row]) + answer
                ),
                stop_ids=self.stop_ids,
                mode=mode,
                pins=fixed[row],
                grammar=None if grammars is None else grammars[row],
                drafts=drafts,
                logprobs=logprobs,
            )
            for row, ids in enumerate(prompts)
            for answer in range(n)
        ]
        for number, request in enumerate(asked):
            check(self.transformer, request, number)
        return asked

    def served(self, engine: Executor) -> "DiffusionGemmaModel":
        """The same model with its passes made by another engine: one that several callers share, say."""
        other = copy(self)
        other.engine = engine
        return other

    def _grammars(self, constraints: Sequence[Constraint | None], rows: int) -> Sequence[Grammar | Rules | None] | None:
        """A grammar a row; None where all rows are free."""
        if not any(constraints):
            return None
        if len(constraints) not in (1, rows):
            raise InputError(f"there are {len(constraints)} response formats for {rows} prompts; give one for all, or one each")
        each = constraints if len(constraints) == rows else list(constraints) * rows
        return [None if one is None else compile_grammar(one, self.vocabulary) for one in each]

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

        Returns:
            The decisions, in the order of the questions.

        Raises:
            InputError: no prompt, no questions, names or options that are empty or not different, an answer that the tokenizer
                cannot write, more than 256 answers on a canvas, or one that is longer than it.
            PromptTooLongError: prompt and canvas exceed the model's positions.
            OptionError: a threshold outside 0 to 1, or draws or a seed outside what is allowed.
        """
        began = time.perf_counter()
        asked = sheets(questions, joint, template, threshold)
        alternatives = self._alternatives(prompt, messages, asked)
        found = self.engine.call(lambda: decide(self.transformer, alternatives, seed=seed, draws=draws))
        pairs = zip(asked, found.probabilities, strict=True)
        decisions = [decision for sheet, probs in pairs for decision in sheet.decisions(probs, threshold)]
        return Decisions(tuple(decisions), found.passes, found.rows, time.perf_counter() - began)

    def _alternatives(self, prompt: str | None, messages: Sequence[Message] | None, asked: Sequence[Sheet]) -> list[Alternatives]:
        """The tokens of each sheet's prompt and of its answers, with the stop token that ends a turn."""
        found = []
        for sheet in asked:
            (text,) = self._prompt_texts(*_with(prompt, messages, sheet.instructions))
            answers = [self.tokenizer.encode(answer) for answer in sheet.answers]
            for answer, ids in zip(sheet.answers, answers, strict=True):
                if (read := self.tokenizer.decode(ids)) != answer:
                    raise InputError(f"this checkpoint cannot write {answer!r}: its tokens read {read!r}")
            found.append(Alternatives(self.tokenizer.encode(text), [[*ids, *self._turn_end()] for ids in answers]))
        return found

    def _prompt_texts(self, prompt: str | Sequence[str] | None, messages: Sequence[Message] | None) -> list[str]:
        if (prompt is None) == (messages is None):
            raise InputError("give either prompt or messages, not both and not neither")
        if messages is not None:
            conversations: list[Sequence[Message]] = [messages]
        else:
            texts = [prompt] if isinstance(prompt, str) else list(cast(Sequence[str], prompt))
            for i, text in enumerate(texts):
                if not isinstance(text, str):
                    raise InputError(f"prompt {i} is of type {type(text).__name__}; give a string, or a list of strings")
                if not text.strip():
                    raise InputError(f"prompt {i} is empty; give it at least one character that is not a space")
            conversations = [[{"role": "user", "content": text}] for text in texts]
        if self.tokenizer.template is None:
            if messages is not None:
                raise InputError("this checkpoint has no chat template; give prompt instead of messages")
            return [conversation[0]["content"] for conversation in conversations]
        return [self.tokenizer.template.render(conversation) for conversation in conversations]

    def _check_ids(self, ids: Tensor, cache: KVCache) -> None:
        if ids.ndim != 2 or ids.shape[0] != cache.batch_size or ids.shape[1] < 1 or ids.dtype != torch.int64:
            raise InputError(
                f"token ids have shape {list(ids.shape)} and dtype {ids.dtype}; needed: [{cache.batch_size}, at least 1], int64"
            )
        if int(ids.min()) < 0 or int(ids.max()) >= self.config.text.vocab_size:
            raise InputError(f"there are token ids outside 0 to {self.config.text.vocab_size - 1}")


def _each(rules: Rules | Sequence[Rules], rows: int) -> Sequence[Rules]:
    """Rules a row."""
    if not isinstance(rules, Sequence):
        return [rules] * rows
    if len(rules) != rows:
        raise InputError(f"there are rules for {len(rules)} rows and {rows} prompts; give one for all, or one each")
    return rules


def held_params(params: SamplingParams, given: Mapping[str, Any]) -> SamplingParams:
    """Sampling parameters of an answer held to a constraint: its own stop rule (``HELD_CONFIDENCE``), where none is given."""
    sooner = {"stability": 0, "confidence": HELD_CONFIDENCE * params.confidence}
    return params.replaced(**{name: value for name, value in sooner.items() if given.get(name) is None})


def empty_transformer(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Transformer:
    """A stack whose weights are allocated and not initialised: they must all be filled."""
    with torch.device("meta"):
        transformer = Transformer(config)
    return transformer.to(dtype).to_empty(device=device)


def _with(prompt: str | None, messages: Sequence[Message] | None, text: str) -> tuple[str | None, Sequence[Message] | None]:
    """The prompt, or the last of the messages, with a text behind it."""
    if not text or (prompt is None) == (messages is None):
        return prompt, messages
    if prompt is not None:
        return f"{prompt}\n\n{text}", None
    return None, [*(messages or ()), {"role": "user", "content": text}]


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return chosen


def _stop_ids(generation: Mapping[str, object], config: ModelConfig) -> tuple[int, ...]:
    """Stop tokens: generation_config.json's where it names any, else config.json's."""
    stop = generation.get("eos_token_id")
    found = list(config.text.eos_token_id) if stop is None else stop if isinstance(stop, list) else [stop]
    ids = tuple(token for token in found if isinstance(token, int) and 0 <= token < config.text.vocab_size)
    if len(ids) != len(found):
        raise ConfigError(f"eos_token_id is {stop!r}; it must hold token ids from 0 to {config.text.vocab_size - 1}")
    return ids


def _dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    chosen = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in _DTYPES.values():
        raise OptionError(f"dtype is {dtype!r}; allowed: {', '.join(_DTYPES)}")
    return chosen
