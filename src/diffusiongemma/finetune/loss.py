"""The two losses of one batch: denoising on the canvases, next token for the causal role.

Shapes: P prompts, C canvases a prompt, B = P * C, T prompt tokens, L canvas, D hidden, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusiongemma.finetune.data import TrainBatch
from diffusiongemma.model.cache import Role, SharedPrompt
from diffusiongemma.model.masks import Masks, denoise_masks, encode_masks
from diffusiongemma.model.transformer import Transformer, View

__all__ = ["causal_loss", "losses"]


def losses(model: Transformer, batch: TrainBatch, noisy_BL: Tensor, conditioned: int, causal: bool) -> tuple[Tensor, Tensor]:
    """Denoising and causal loss of a batch.

    One encoder pass serves the C canvases of a prompt, and the causal loss too: what stands behind the prompt does not
    change the prompt's keys and values. Prompts are padded on the left and positions counted from the padding's begin:
    rotary attention knows only differences of positions.

    Args:
        model: the stack.
        batch: prompts and clean canvases.
        noisy_BL: ``[P * C, L]`` int64, canvases of one prompt side by side.
        conditioned: how many of each prompt's C canvases get self-conditioning from a first pass without gradient.
        causal: whether to encode the answer too and take the causal loss.

    Returns:
        denoising loss and causal loss (zero without ``causal``): weighted mean cross-entropy in nats a token.
    """
    prompts, prompt_length = batch.prompt_PT.shape
    canvases = noisy_BL.shape[0] // prompts
    length = batch.answer_PL.shape[1]
    context = SharedPrompt(prompt_length)

    # 1. Encode the prompt once, with the answer behind it when the causal role learns too.
    if causal:
        hidden, next_token = _causal(model, batch, context)
    else:
        hidden = _encode(model, batch, batch.prompt_PT, context)
        next_token = hidden.new_zeros(())

    # 2. A first look without gradient gives part of the canvases their self-conditioning.
    canvas_positions = torch.arange(prompt_length, prompt_length + length, device=hidden.device)[None]
    tables = model.rotary(canvas_positions, hidden.dtype)
    soft = torch.zeros(prompts, canvases, length, hidden.shape[-1], device=hidden.device, dtype=hidden.dtype)
    if conditioned:
        with torch.no_grad():
            first = noisy_BL.view(prompts, canvases, length)[:, :conditioned].reshape(-1, length)
            view = View(tables, _canvas_masks(model, batch, conditioned))
            looked = model.stack(model.canvas_embeds(first, None), Role.DENOISE, view, context)
            believed = model.soften(model.logits(looked)).view(prompts, conditioned, length, -1)
        soft = torch.cat((believed, soft[:, conditioned:]), dim=1)

    # 3. The denoising loss: the clean token at every position, corrupted or not.
    embeds = model.canvas_embeds(noisy_BL, soft.flatten(0, 1))
    view = View(tables, _canvas_masks(model, batch, canvases))
    denoised = model.stack(embeds, Role.DENOISE, view, context)
    target = batch.answer_PL.repeat_interleave(canvases, 0)
    weight = None if batch.weight_PL is None else batch.weight_PL.repeat_interleave(canvases, 0)
    return _cross_entropy(model.logits(denoised), target, weight), next_token


def causal_loss(model: Transformer, batch: TrainBatch) -> Tensor:
    """The causal loss alone; see ``losses``."""
    return _causal(model, batch, SharedPrompt(batch.prompt_PT.shape[1]))[1]


def _causal(model: Transformer, batch: TrainBatch, context: SharedPrompt) -> tuple[Tensor, Tensor]:
    """Hidden states of prompt and answer, and the next-token loss over the answer (and the prompt, where it has weight)."""
    ids = torch.cat((batch.prompt_PT, batch.answer_PL), dim=1)
    hidden = _encode(model, batch, ids[:, :-1], context)
    begin = batch.prompt_PT.shape[1] - 1
    weight = batch.weight_PL
    if batch.prompt_weight:
        answer_weight = torch.ones_like(batch.answer_PL, dtype=hidden.dtype) if weight is None else weight
        place = torch.arange(1, begin + 1, device=ids.device)
        pads = torch.zeros_like(ids[:, 0]) if batch.padding_P is None else batch.padding_P
        weight = torch.cat(((place > pads[:, None]) * batch.prompt_weight, answer_weight), dim=1)
        begin = 0
    return hidden, _cross_entropy(model.logits(hidden[:, begin:]), ids[:, begin + 1 :], weight)


def _encode(model: Transformer, batch: TrainBatch, ids_PT: Tensor, context: SharedPrompt) -> Tensor:
    positions = torch.arange(ids_PT.shape[1], device=ids_PT.device)[None]
    embeds = model.embed(ids_PT)
    view = View(model.rotary(positions, embeds.dtype), _prompt_masks(model, batch, ids_PT.shape[1]))
    return model.stack(embeds, Role.ENCODE, view, context)


def _cross_entropy(logits_BLV: Tensor, target_BL: Tensor, weight_BL: Tensor | None) -> Tensor:
    if weight_BL is None:
        return F.cross_entropy(logits_BLV.flatten(0, 1), target_BL.flatten())
    each = F.cross_entropy(logits_BLV.flatten(0, 1), target_BL.flatten(), reduction="none")
    return (each * weight_BL.flatten()).sum() / weight_BL.sum()


def _prompt_masks(model: Transformer, batch: TrainBatch, tokens: int) -> Masks:
    """Causal masks; with padding, a pad token sees itself alone and nobody else sees it."""
    start = torch.zeros(1, dtype=torch.int64, device=batch.prompt_PT.device)
    masks = encode_masks(model.config.text, start, tokens, tokens)
    if batch.padding_P is None:
        return masks
    key = torch.arange(tokens, device=start.device)
    real = (key >= batch.padding_P[:, None])[:, None, None]
    itself = key == key[:, None]
    return {kind: (mask & real) | itself for kind, mask in masks.items() if mask is not None}


def _canvas_masks(model: Transformer, batch: TrainBatch, copies: int) -> Masks:
    """The masks of generation; none where everything is seen, which lets attention take its quickest way."""
    config, prompt_length, length = model.config.text, batch.prompt_PT.shape[1], batch.answer_PL.shape[1]
    if batch.padding_P is None and prompt_length < config.sliding_window:
        return dict.fromkeys(config.layer_types)
    masks = denoise_masks(config, torch.tensor([prompt_length], device=model.device), length, prompt_length)
    if batch.padding_P is None:
        return masks
    key = torch.arange(prompt_length + length, device=model.device)
    real = (key >= batch.padding_P[:, None])[:, None, None].repeat_interleave(copies, 0)
    return {kind: mask & real for kind, mask in masks.items() if mask is not None}
