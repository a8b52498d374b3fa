"""The two losses of one batch: denoising on the canvases, next token for the causal role.

Shapes: P prompts, C canvases a prompt, B = P * C, T prompt tokens, L canvas, D hidden, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusiongemma.diffusion import Corrupted
from diffusiongemma.model.attention import PromptCanvases, Role, SharedPrompt
from diffusiongemma.model.masks import plain_denoise_masks, plain_encode_masks
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.training.data import TrainBatch

__all__ = ["Parts", "causal_loss", "compiled_parts", "losses"]

_Context = TypeVar("_Context", SharedPrompt, PromptCanvases)


@dataclass(frozen=True)
class Parts:
    """How the parts of a loss are computed; ``compiled_parts`` gives others.

    Attributes:
        head_loss: the head and the cross-entropy of its logits.
        believed: the expected embeddings of hidden states.
        outside: keeps a function out of compiled layers.
    """

    head_loss: Callable[..., Tensor]
    believed: Callable[[Transformer, Tensor], Tensor]
    outside: Callable[[Any], Any]


def compiled_parts(model: Transformer) -> Parts:
    """Compile what repeats: a layer, and the head with its loss; a few small graphs for each size of batch.

    One graph of all passes takes minutes for each size of batch, since every layer stands in it several times; here the layers
    share what was compiled for the first. Attention is one kernel already; its context stays
    outside, since what it keeps would make each call another.
    """
    torch._dynamo.config.recompile_limit = 512
    torch._dynamo.config.accumulated_recompile_limit = 4096
    for layer in model.layers:
        layer.compile(dynamic=False)
    disable: Any = torch.compiler.disable
    return Parts(torch.compile(_head_loss, dynamic=False), torch.compile(_believed, dynamic=False), disable)


def losses(
    model: Transformer, batch: TrainBatch, corrupted: Corrupted, conditioned: int, causal: bool, parts: Parts | None = None
) -> tuple[Tensor, Tensor]:
    """Denoising and causal loss of a batch.

    One encoder pass serves the C canvases of a prompt, and the causal loss too: what stands after the prompt does not
    change the prompt's keys and values. Prompts are padded on the left and positions counted from the padding's begin:
    rotary attention knows only differences of positions.

    Args:
        model: the stack.
        batch: prompts and clean canvases.
        corrupted: the canvases ``[P * C, L]``, those of one prompt side by side.
        conditioned: how many of each prompt's C canvases get self-conditioning from a first pass without gradient.
        causal: whether to encode the answer too and take the causal loss.
        parts: compiled ones (``compiled_parts``); None: plain.

    Returns:
        denoising loss and causal loss (zero without ``causal``): weighted mean cross-entropy in nats a token.
    """
    parts = parts or _PLAIN
    noisy_BL, prompts, prompt_length = corrupted.noisy_BL, *batch.prompt_PT.shape
    canvases = noisy_BL.shape[0] // prompts
    length = batch.answer_PL.shape[1]

    # 1. Encode the prompt once, with the answer after it when the causal role learns too.
    if causal:
        hidden, context, next_token = _causal(model, batch, parts)
    else:
        hidden, context = _encode(model, batch, batch.prompt_PT, parts)
        next_token = hidden.new_zeros(())

    # 2. A first look without gradient gives part of the canvases their self-conditioning.
    canvas_positions = torch.arange(prompt_length, prompt_length + length, device=hidden.device)[None]
    tables = model.rotary(canvas_positions, hidden.dtype)
    soft = torch.zeros(prompts, canvases, length, hidden.shape[-1], device=hidden.device, dtype=hidden.dtype)
    if conditioned:
        with torch.no_grad():
            first = noisy_BL.view(prompts, canvases, length)[:, :conditioned].reshape(-1, length)
            seen = _apart(parts, context.canvases(_canvas_masks(model, batch, conditioned)))
            looked = model.stack(model.canvas_embeds(first, None), Role.DENOISE, tables, seen)
            believed = parts.believed(model, looked).view(prompts, conditioned, length, -1)
            if corrupted.kept_BL is not None:  # a position known to be clean is believed to be what it is, as in sampling
                kept = corrupted.kept_BL.view(prompts, canvases, length, 1)[:, :conditioned]
                believed = torch.where(kept, model.embed(first).view_as(believed), believed)
        soft = torch.cat((believed, soft[:, conditioned:]), dim=1)

    # 3. The denoising loss: the clean token, at the positions and with the weights of the process.
    embeds = model.canvas_embeds(noisy_BL, soft.flatten(0, 1))
    denoised = model.stack(embeds, Role.DENOISE, tables, _apart(parts, context.canvases(_canvas_masks(model, batch, canvases))))
    target = batch.answer_PL.repeat_interleave(canvases, 0)
    weight = None if batch.weight_PL is None else batch.weight_PL.repeat_interleave(canvases, 0)
    return parts.head_loss(model, denoised, target, weight, corrupted.weight_BL), next_token


def causal_loss(model: Transformer, batch: TrainBatch, parts: Parts | None = None) -> Tensor:
    """The causal loss alone; see ``losses``."""
    return _causal(model, batch, parts or _PLAIN)[2]


def _causal(model: Transformer, batch: TrainBatch, parts: Parts) -> tuple[Tensor, SharedPrompt, Tensor]:
    """Hidden states of prompt and answer, the prompt as a context, and the next-token loss over the answer (and the prompt, where
    it has weight)."""
    ids = torch.cat((batch.prompt_PT, batch.answer_PL), dim=1)
    hidden, context = _encode(model, batch, ids[:, :-1], parts)
    begin = batch.prompt_PT.shape[1] - 1
    weight = batch.weight_PL
    if batch.prompt_weight:
        answer_weight = torch.ones_like(batch.answer_PL, dtype=hidden.dtype) if weight is None else weight
        place = torch.arange(1, begin + 1, device=ids.device)
        pads = torch.zeros_like(ids[:, 0]) if batch.padding_P is None else batch.padding_P
        weight = torch.cat(((place > pads[:, None]) * batch.prompt_weight, answer_weight), dim=1)
        begin = 0
    return hidden, context, parts.head_loss(model, hidden[:, begin:], ids[:, begin + 1 :], weight)


def _encode(model: Transformer, batch: TrainBatch, ids_PT: Tensor, parts: Parts) -> tuple[Tensor, SharedPrompt]:
    positions = torch.arange(ids_PT.shape[1], device=ids_PT.device)[None]
    embeds = model.embed(ids_PT)
    context = _apart(parts, SharedPrompt(batch.prompt_PT.shape[1], _prompt_masks(model, batch, ids_PT.shape[1])))
    return model.stack(embeds, Role.ENCODE, model.rotary(positions, embeds.dtype), context), context


def _apart(parts: Parts, context: _Context) -> _Context:
    context.attend = parts.outside(_wide(context.attend) if torch.is_autocast_enabled("cpu") else context.attend)  # type: ignore[method-assign]
    return context


def _wide(attend: Callable[[int, Role, Tensor, Tensor, Tensor], Tensor]) -> Callable[[int, Role, Tensor, Tensor, Tensor], Tensor]:
    """Attention in float32: a CPU's kernel for it is slower in bfloat16, several times at small heads (docs/lab-log.md)."""

    def attended(layer: int, role: Role, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return attend(layer, role, q.float(), k.float(), v.float())

    return attended


def _believed(model: Transformer, hidden_BLD: Tensor) -> Tensor:
    return model.soften(model.logits(hidden_BLD))


def _head_loss(
    model: Transformer, hidden_BLD: Tensor, target_BL: Tensor, weight_BL: Tensor | None, factor_BL: Tensor | None = None
) -> Tensor:
    return _cross_entropy(model.logits(hidden_BLD), target_BL, weight_BL, factor_BL)


def _cross_entropy(logits_BLV: Tensor, target_BL: Tensor, weight_BL: Tensor | None, factor_BL: Tensor | None = None) -> Tensor:
    """The mean over positions, weighted by the data; a process's factors, 1 on average, do not enter the sum of the weights."""
    if weight_BL is None and factor_BL is None:
        return F.cross_entropy(logits_BLV.flatten(0, 1), target_BL.flatten())
    each = F.cross_entropy(logits_BLV.flatten(0, 1), target_BL.flatten(), reduction="none")
    weight = torch.ones_like(each) if weight_BL is None else weight_BL.flatten()
    return (each * (weight if factor_BL is None else weight * factor_BL.flatten())).sum() / weight.sum()


def _prompt_masks(model: Transformer, batch: TrainBatch, tokens: int) -> list[Tensor]:
    """A causal mask a layer; with padding, a pad token sees itself alone and nobody else sees it."""
    masks = plain_encode_masks(model.config.text, tokens, model.device)
    if batch.padding_P is not None:
        key = torch.arange(tokens, device=model.device)
        real = (key >= batch.padding_P[:, None])[:, None, None]
        itself = key == key[:, None]
        masks = {kind: (mask & real) | itself for kind, mask in masks.items()}
    return [masks[kind] for kind in model.config.text.layer_types]


def _canvas_masks(model: Transformer, batch: TrainBatch, copies: int) -> list[Tensor | None]:
    """The masks of generation, one a layer; none where everything is seen, which lets attention take its quickest way."""
    config, prompt_length, length = model.config.text, batch.prompt_PT.shape[1], batch.answer_PL.shape[1]
    if batch.padding_P is None and prompt_length < config.sliding_window:
        return [None] * config.num_hidden_layers
    masks = plain_denoise_masks(config, prompt_length, length, model.device)
    if batch.padding_P is not None:
        key = torch.arange(prompt_length + length, device=model.device)
        real = (key >= batch.padding_P[:, None])[:, None, None].repeat_interleave(copies, 0)
        masks = {kind: mask & real for kind, mask in masks.items()}
    return [masks[kind] for kind in config.layer_types]


_PLAIN = Parts(_head_loss, _believed, lambda function: function)
