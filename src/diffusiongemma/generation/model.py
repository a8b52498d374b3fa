"""DiffusionGemmaModel: prompts in, answers and decisions out."""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, Literal, get_args, overload

from diffusiongemma.constraints import Constraint, Gone, Grammar, ReplyGrammar, Vocabulary
from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.engine.constraint import Rules
from diffusiongemma.engine.events import Done, Event, Result
from diffusiongemma.engine.pins import Pins, pins_by_row
from diffusiongemma.engine.request import Mode, Request, canvas_length, check
from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.generation.context import Executor
from diffusiongemma.generation.decide import Alternatives, check_alternatives, decide
from diffusiongemma.generation.replying import ReplyRules, Tools, is_skeleton
from diffusiongemma.generation.rewriting import Rewriting
from diffusiongemma.generation.roles import AUTO
from diffusiongemma.text.messages import Message
from diffusiongemma.text.prompts import PromptOptions
from diffusiongemma.text.questions import Decisions, Question, Sheet, sheets

__all__ = ["DiffusionGemmaModel", "constrained_params"]

Room = Callable[[int, int, int], int]
MAX_ANSWERS = 128
"""To one prompt at a time (as in OpenAI's API)."""
CONSTRAINED_CONFIDENCE = 2.5
"""A constrained answer stops at the first canvas that is read to its end and whose mean entropy is below so many times the
checkpoint's confidence, stable or not, unless ``stability`` or ``confidence`` are given: its skeleton cannot go wrong.
nano, json-extract, 200 examples: 93.3% in 3.1 steps; 94.7% in 4.5 with the stop rule of free answers; free answers 88.8% in 4.6."""


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

    @overload
    def generate(self, prompt: str | None = None, *, messages: Sequence[Message] | None = None, **options: Any) -> Result: ...
    @overload
    def generate(self, prompt: Sequence[str], **options: Any) -> list[Result]: ...

    def generate(self, prompt: Any = None, *, messages: Any = None, **options: Any) -> Any:
        """Answer a prompt, or a list of prompts as one batch.

        Args:
            prompt: a user's message, put into the checkpoint's chat template; or a list of them.
            messages: a whole conversation instead: ``[{"role": ..., "content": ...}, ...]`` (docs/chat.md).
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
        mode: Mode | Literal["auto"] = "diffusion",
        pins: Pins | Sequence[Pins] | None = None,
        seeds: Sequence[int] | None = None,
        drafts: bool = True,
        response_format: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        grammar: str | None = None,
        rules: Rules | Sequence[Rules] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        logprobs: int | None = None,
        **options: Any,
    ) -> Iterator[Event]:
        """Generate, and see it happen.

        Args:
            prompt: a user's message or a list of them (one batch; every row draws from seed, whatever its neighbours are).
            messages: a whole conversation instead of a prompt.
            mode: ``diffusion``; ``causal``: token by token with the encoder role of the same weights; or ``auto``: the one that is
                the faster on this machine at the steps a canvas that this model has taken so far (diffusion at first, and for what
                ``causal`` cannot do).
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
            rules: rules of another kind that the answer keeps (``examples.sudoku.rules.SudokuRules``), one for all or one for each
                prompt.
            tool_choice: of the ``tools`` (docs/chat.md): ``"auto"`` (the default): words or calls; ``"required"``, or ``{"type":
                "function", "function": {"name": ...}}``: calls, of any tool or of that one; ``"none"``: no calls. A call can always
                be read, and its arguments are valid for the tool's parameters.
            parallel_tool_calls: False: one call at most.
            drafts: False leaves out the Draft events, which cost a little at every step.
            logprobs: alternatives a token, 0 to 20: the commits carry the log-probabilities that the causal role gives the
                answer's tokens; None: they do not.
            **options: how the prompt is written, fields of ``PromptOptions``: ``tools``, ``enable_thinking``,
                ``preserve_thinking``, ``reasoning_effort``, ``chat_template_kwargs``, ``allow_special``, ``raw``. And fields of
                ``SamplingParams``: ``max_tokens``, ``canvas_length``, ``canvas_window``, ``num_diffusion_steps``, ``seed``,
                ``entropy_bound``, ``t_min``, ``t_max``, ``schedule``, ``self_conditioning``, ``stability``, ``confidence``,
                ``early_stop``, ``stop_rule``, ``commit``, ``stop``, ``temperature``. Unset ones come from the checkpoint; ``seed``
                unset is drawn at random.

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
        asked = self.requests(
            prompt, messages=messages, mode=mode, pins=pins, seeds=seeds, drafts=drafts, response_format=response_format,
            regex=regex, choices=choices, grammar=grammar, rules=rules, tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls, logprobs=logprobs, **options,
        )  # fmt: skip
        return self._watched(self.engine.run(asked))

    def requests(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        n: int = 1,
        mode: Mode | Literal["auto"] = "diffusion",
        pins: Pins | Sequence[Pins] | None = None,
        seeds: Sequence[int] | None = None,
        drafts: bool = False,
        response_format: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        grammar: str | None = None,
        rules: Rules | Sequence[Rules] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        logprobs: int | None = None,
        room: Room | None = None,
        gone: Gone | None = None,
        **options: Any,
    ) -> list[Request]:
        """What ``stream`` runs: one request a prompt, or n, which the model can take.

        Args:
            n: answers to each prompt; those of one prompt follow each other and draw from seed, seed + 1, ...
            room: what ``max_tokens`` is where it is not given, of a prompt's tokens, the tokens of a canvas and its steps; None:
                the checkpoint's, however many the prompt leaves.
            gone: whether whoever asked has left, so that what may take seconds is given up; None: nobody leaves.
            prompt, messages, mode, pins, seeds, drafts, response_format, regex, choices, grammar, rules, tool_choice,
                parallel_tool_calls, logprobs, **options: see ``stream``.

        Raises:
            InputError, PromptTooLongError, OptionError, ConstraintError: see ``stream``.
        """
        if mode not in (*get_args(Mode), AUTO):
            raise OptionError(f"mode is {mode!r}; allowed: {', '.join((*get_args(Mode), AUTO))}")
        if mode == "causal" and pins is not None:
            raise OptionError("pins need mode 'diffusion': token by token nothing to the right can be held fixed")
        if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MAX_ANSWERS:
            raise OptionError(f"n is {n!r}; answers to a prompt may be 1 to {MAX_ANSWERS}")
        formats = [response_format] if response_format is None or isinstance(response_format, Mapping) else response_format
        constraints = [Constraint.of(each, regex, choices, grammar) for each in formats]
        written, options = PromptOptions.split(options)
        tools = Tools.of(written.tools, tool_choice, parallel_tool_calls)
        if mode == "auto":
            bound = any(constraints) or rules is not None or pins is not None or written.thinking_budget is not None
            calls = tools is not None and tools.choice != "auto"
            mode = "diffusion" if bound or calls else self.roles.choose(self.transformer)
        self._check_reply(mode, any(constraints), rules is not None, tools, written.thinking_budget)
        if options.get("seed") is None:
            options["seed"] = secrets.randbits(32)
        params = self.defaults.replaced(**options)
        constrained = constrained_params(params, options)
        prompts = self._prompt_ids(prompt, messages, written)
        if not prompts:
            raise InputError("there is no prompt; give at least one")
        if seeds is not None and (not isinstance(seeds, Sequence) or len(seeds) != len(prompts)):
            raise InputError(
                f"seeds is {seeds!r:.100}; give a list with one for each of the {len(prompts)} prompts, or seed for all"
            )
        if seeds is not None and not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
            raise InputError(f"seeds is {seeds!r:.100}; each must be a whole number, 0 or more")
        most = [params.max_tokens] * len(prompts)
        if room is not None and options.get("max_tokens") is None:
            canvas, steps = (canvas_length(self.transformer, params), params.num_diffusion_steps) if mode == "diffusion" else (1, 1)
            most = [room(len(ids), canvas, steps) for ids in prompts]
        fixed = [None] * len(prompts) if pins is None else pins_by_row(pins, len(prompts), max(most))
        stop_ids = self._reply_stops(tools, prompts)
        grammars: Sequence[Grammar | ReplyGrammar | Rules | None] = [None] * len(prompts)
        if rules is not None:
            grammars = _each(rules, len(prompts))
        elif mode == "diffusion":
            grammars = self._grammars(constraints, prompts, stop_ids, tools, written, gone)
        asked = [
            Request(
                prompt=ids,
                params=(constrained if is_skeleton(grammars[row]) else params).replaced(
                    seed=(params.seed if seeds is None else seeds[row]) + answer, max_tokens=most[row]
                ),
                stop_ids=stop_ids,
                mode=mode,
                pins=fixed[row],
                grammar=grammars[row],
                drafts=drafts,
                logprobs=logprobs,
            )
            for row, ids in enumerate(prompts)
            for answer in range(n)
        ]
        for number, request in enumerate(asked):
            check(self.transformer, request, number)
        return asked

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

    def _check_reply(self, mode: Mode, constrained: bool, ruled: bool, tools: Tools | None, budget: int | None) -> None:
        """What is asked of a reply must go together."""
        if ruled and (constrained or tools is not None or budget is not None):
            raise InputError(
                "rules may not be combined with a response format, regex, choices, grammar, tools or a thinking budget; give one"
            )
        if constrained and tools is not None and tools.choice == "required":
            raise OptionError("tool_choice asks for a call, and a response format, regex, choices or grammar for a text; give one")
        if mode == "causal" and budget is not None:
            raise OptionError("thinking_budget needs mode 'diffusion'; bound the answer with max_tokens")
        if mode == "causal" and (ruled or constrained or (tools is not None and tools.choice != "auto")):
            raise OptionError(
                "rules, a response format, regex, choices, grammar and a tool_choice other than 'auto' need mode 'diffusion'"
            )
        markup = self.tokenizer.markup
        if budget is not None and not markup.thoughts:
            raise OptionError("thinking_budget is given, and this checkpoint's tokenizer marks no thoughts; leave it out")
        if tools is not None and tools.choice != "auto" and not markup.calls:
            raise OptionError("tool_choice is given, and this checkpoint's tokenizer has no tokens for calls; leave it out")

    def _reply_stops(self, tools: Tools | None, prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Stop tokens of replies: after its calls the model waits for their results, whatever the checkpoint says of that token."""
        markup = self.tokenizer.markup
        waits, used = markup.response_open, {markup.call_open, markup.response_open}
        if waits is None or not markup.calls or (tools is None and not any(used.intersection(ids) for ids in prompts)):
            return self.stop_ids
        return (*self.stop_ids, *({waits} - set(self.stop_ids)))

    def _grammars(
        self,
        constraints: Sequence[Constraint | None],
        prompts: Sequence[Sequence[int]],
        stop_ids: Sequence[int],
        tools: Tools | None,
        written: PromptOptions,
        gone: Gone | None,
    ) -> Sequence[Grammar | ReplyGrammar | Rules | None]:
        """A grammar a row, None where it is free."""
        if len(constraints) not in (1, len(prompts)):
            raise InputError(
                f"there are {len(constraints)} response formats for {len(prompts)} prompts; give one for all, or one each"
            )
        if not any(constraints) and written.thinking_budget is None and (tools is None or not self.tokenizer.markup.calls):
            return [None] * len(prompts)
        vocabulary = Vocabulary.of(self.tokenizer, stop_ids, self.config.text.vocab_size)
        thinks = not written.raw and written.thinks(self.tokenizer.template)
        rules = ReplyRules(self.tokenizer.markup, vocabulary, tools, written.thinking_budget, thinks, gone)
        each = constraints if len(constraints) == len(prompts) else list(constraints) * len(prompts)
        return [rules.grammar(ids, one) for ids, one in zip(prompts, each, strict=True)]

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
        **options: Any,
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
        began = time.perf_counter()
        asked = sheets(questions, joint, template, threshold)
        alternatives = self._alternatives(prompt, messages, asked, options)
        result = decide(
            self.transformer,
            alternatives,
            seed=seed,
            draws=draws,
            canvas_window=self.defaults.canvas_window,
            call=self.engine.call,
        )
        pairs = zip(asked, result.probabilities, strict=True)
        decisions = [decision for sheet, probs in pairs for decision in sheet.decisions(probs, threshold)]
        return Decisions(tuple(decisions), result.passes, result.rows, time.perf_counter() - began)

    def _alternatives(
        self,
        prompt: str | None,
        messages: Sequence[Message] | None,
        asked: Sequence[Sheet],
        options: Mapping[str, Any] | None = None,
    ) -> list[Alternatives]:
        """The tokens of each sheet's prompt and of its answers, with the stop token that ends a turn."""
        result, end = [], self._turn_end()
        for sheet in asked:
            text, said = _with(prompt, messages, sheet.instructions)
            (ids,) = self.prompt_ids(text, messages=said, **options or {})
            answers = [self.tokenizer.encode(answer) for answer in sheet.answers]
            for answer, tokens in zip(sheet.answers, answers, strict=True):
                if (read := self.tokenizer.decode(tokens)) != answer:
                    raise InputError(f"this checkpoint cannot write {answer!r}: its tokens read {read!r}")
            result.append(Alternatives(ids, [[*tokens, *end] for tokens in answers]))
            check_alternatives(self.transformer, result[-1], len(result) - 1)  # before more prompts are tokenised
        return result


def _each(rules: Rules | Sequence[Rules], rows: int) -> Sequence[Rules]:
    """Rules a row."""
    if not isinstance(rules, Sequence):
        return [rules] * rows
    if len(rules) != rows:
        raise InputError(f"there are rules for {len(rules)} rows and {rows} prompts; give one for all, or one each")
    return rules


def constrained_params(params: SamplingParams, given: Mapping[str, Any]) -> SamplingParams:
    """Sampling parameters of a constrained answer: its own stop rule (``CONSTRAINED_CONFIDENCE``), where none is given."""
    sooner = {"stability": 0, "confidence": CONSTRAINED_CONFIDENCE * params.confidence}
    return params.replaced(**{name: value for name, value in sooner.items() if given.get(name) is None})


def _with(prompt: str | None, messages: Sequence[Message] | None, text: str) -> tuple[str | None, Sequence[Message] | None]:
    """The prompt, or the last of the messages, with a text after it."""
    if not text or (prompt is None) == (messages is None):
        return prompt, messages
    if prompt is not None:
        return f"{prompt}\n\n{text}", None
    return None, [*(messages or ()), {"role": "user", "content": text}]
