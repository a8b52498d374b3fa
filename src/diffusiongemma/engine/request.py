"""One prompt and all that is asked of its answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from diffusiongemma.constraints import Grammar, ReplyGrammar
from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.engine.constraint import ConstraintState, Rules, approximated
from diffusiongemma.engine.pinned import constraint_state
from diffusiongemma.engine.pins import last_set
from diffusiongemma.errors import InputError, OptionError, PromptTooLongError
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.transformer import Transformer

__all__ = [
    "ATTEMPTS",
    "MAX_LOGPROBS",
    "REST",
    "Checked",
    "Mode",
    "Request",
    "canvas_length",
    "check",
    "later_seed",
    "max_steps",
    "unit_of",
]

ATTEMPTS = 4
"""Answers that are written at most until one is valid for a schema that its grammar could not express."""
REST = 16
"""Tokens that an exact answer writes token by token after a draft that cost more passes than it gave tokens."""
Mode = Literal["diffusion", "causal", "exact"]
MAX_LOGPROBS = 20
"""Most alternatives a token that can be asked for (as in OpenAI's API)."""


@dataclass(eq=False)
class Checked:
    """What is known of a request that can run.

    Attributes:
        config: of the model that it was checked for.
        slots: tokens that its cache must hold.
    """

    config: ModelConfig
    slots: int
    _state: ConstraintState | None = None

    def take_state(self, request: "Request", row: int = 0) -> ConstraintState | None:
        """The place at the beginning of its constraint: the one that the check made, and a new one whenever it runs again."""
        state, self._state = self._state, None
        return _state(request, row) if state is None else state


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one row of the engine has to do.

    Attributes:
        prompt: token ids; not empty.
        params: sampling parameters, its own seed and ``max_tokens`` among them.
        stop_ids: token ids that end the answer.
        mode: ``diffusion``; ``causal``: token by token with the encoder role of the same weights; ``exact``: the tokens of the
            causal mode, drafted on canvases (``SequenceState.draft``).
        pins: token ids to hold fixed from the start of the answer over as many canvases as it takes, -1 where open.
        init_tokens: token ids that the canvases begin with instead of noise, -1 where noise.
        grammar: what the answer must be, or rules that it keeps; None: it is free.
        drafts: whether Draft events are wanted. Without them the host learns of a step only whether rows are done.
        logprobs: alternatives a token whose log-probabilities by the causal role come with the commits; None: no
            log-probabilities at all.
        client: who asks: on a shared engine clients take turns (``engine.turns``), and each has bounds; None: a caller without
            bounds.
        checked: what ``check`` came to; a request that differs in anything but its client is another one, and not checked.
    """

    prompt: list[int]
    params: SamplingParams
    stop_ids: tuple[int, ...] = ()
    mode: Mode = "diffusion"
    pins: list[int] | None = None
    init_tokens: list[int] | None = None
    grammar: Grammar | ReplyGrammar | Rules | None = None
    drafts: bool = False
    logprobs: int | None = None
    client: str | None = None
    checked: Checked | None = field(default=None, init=False, compare=False, repr=False)

    def of_client(self, client: str | None) -> "Request":
        """The same request, asked by somebody."""
        other = replace(self, client=client)
        object.__setattr__(other, "checked", self.checked)
        return other


def later_seed(seed: int, steps: int) -> int:
    """A seed so many steps later; after the largest they go on from 0."""
    return (seed + steps) & (2**63 - 1)


def unit_of(model: Transformer, request: Request) -> int:
    """Tokens of an answer that are committed at a time: a canvas's, or one in the causal mode."""
    return 1 if request.mode == "causal" else canvas_length(model, request.params)


def canvas_length(model: Transformer, params: SamplingParams) -> int:
    """Positions of a canvas: the checkpoint's, unless fewer are asked for.

    Raises:
        OptionError: more than the checkpoint's.
    """
    most = model.config.canvas_length
    if params.canvas_length is not None and params.canvas_length > most:
        raise OptionError(f"canvas_length is {params.canvas_length}; this checkpoint's is {most}, and fewer are allowed")
    return params.canvas_length or most


def max_steps(model: Transformer, request: Request) -> int:
    """Passes that a request takes at most: denoising steps of all its canvases, or tokens of a causal answer."""
    params = request.params
    if request.mode == "exact":
        return params.max_tokens + (params.max_tokens // REST + 1) * (params.num_diffusion_steps + 1)
    rounds = 1 + (params.repair if request.mode == "diffusion" else 0)
    steps = 1 if request.mode == "causal" else params.num_diffusion_steps * rounds + (rounds if rounds > 1 else 0)
    attempts = 1 if approximated(request.grammar) is None else ATTEMPTS
    return -(-params.max_tokens // unit_of(model, request)) * steps * attempts


def check(model: Transformer, request: Request, row: int = 0) -> Checked:
    """Check a request against the model, once: it keeps what comes of it, its constraint at the beginning of a text included.

    Args:
        model: the stack.
        request: what was asked.
        row: its number, for messages.

    Raises:
        InputError: an empty prompt, an id outside the vocabulary, pins or starts that do not fit.
        ConstraintError: pins and grammar contradict each other.
        PromptTooLongError: prompt and answer exceed the model's positions.
        OptionError: a canvas longer than the checkpoint's, or logprobs outside what is allowed.
    """
    if request.checked is not None and request.checked.config is model.config:
        return request.checked
    config, params, ids = model.config, request.params, request.prompt
    canvas_length(model, params)  # checked in the causal mode too, where it means nothing
    unit = unit_of(model, request)
    room = params.max_tokens + unit if request.mode == "exact" else -(-params.max_tokens // unit) * unit
    if not ids:
        raise InputError(f"prompt {row} is empty; give it at least one token")
    if min(ids) < 0 or max(ids) >= config.text.vocab_size:
        raise InputError(f"prompt {row} has a token id outside 0 to {config.text.vocab_size - 1}")
    if config.image_token_id in ids and config.vision is not None and config.image_token_id < config.text.vocab_size:
        raise InputError(f"prompt {row} has the image token {config.image_token_id}; images are not supported yet")
    if len(ids) + room > config.text.max_position_embeddings:
        raise PromptTooLongError(
            f"prompt {row} has {len(ids)} tokens and max_tokens {params.max_tokens} takes {room} more, in steps of "
            f"{unit}: {len(ids) + room} positions; the model has {config.text.max_position_embeddings}. "
            "Shorten the prompt or lower max_tokens"
        )
    if request.init_tokens is not None and model.process.keeps:
        raise InputError(
            f"this checkpoint's diffusion process ({config.process['name']}) keeps every token of a text as it is, so that a text "
            "cannot be edited; generate anew, or fill spans of it"
        )
    if request.logprobs is not None and not 0 <= request.logprobs <= MAX_LOGPROBS:
        raise OptionError(f"logprobs is {request.logprobs}; alternatives a token may be 0 to {MAX_LOGPROBS}")
    if request.mode != "diffusion" and (request.grammar is not None or request.pins is not None or request.init_tokens is not None):
        raise InputError("pins, init_tokens and a grammar need mode 'diffusion'; leave them out")
    words = isinstance(request.grammar, ReplyGrammar) and request.grammar.body is None  # in which a stop string ends the reply
    if request.grammar is not None and ((params.stop and not words) or not request.stop_ids):
        what = "stop strings" if params.stop else "a checkpoint without stop tokens"
        raise InputError(f"an answer cannot be constrained to a grammar and have {what}; leave one of the two out")
    for what, given in (("pins", request.pins), ("init_tokens", request.init_tokens)):
        _check_fixed(what, given or [], row, params.max_tokens, config.text.vocab_size)
    checked = Checked(config, len(ids) + room, _state(request, row))
    object.__setattr__(request, "checked", checked)
    return checked


def _state(request: Request, row: int) -> ConstraintState | None:
    return constraint_state(request.grammar, request.params.max_tokens, request.stop_ids, request.pins, row)


def _check_fixed(what: str, given: Sequence[int], row: int, most: int, vocab_size: int) -> None:
    if (end := last_set(given)) > most:
        raise InputError(f"row {row} {what} {end} positions; max_tokens {most} ends the answer before them")
    if any(not -1 <= token < vocab_size for token in given):
        raise InputError(f"row {row} {what} a token id outside 0 to {vocab_size - 1} (-1 leaves a position open)")
