"""The two losses of one batch: denoising on the canvases, next token for the causal role.

Shapes: P prompts, C canvases a prompt, B = P * C, T prompt tokens, L canvas, D hidden, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusiongemma.finetune.data import TrainBatch
from diffusiongemma.model.cache import SharedPrompt
from diffusiongemma.model.layers import Role
from diffusiongemma.model.masks import Masks, denoise_masks, encode_masks
from diffusiongemma.model.transformer import Transformer

__all__ = ["losses"]


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
    ids = torch.cat((batch.prompt_PT, batch.answer_PL[:, :-1]), dim=1) if causal else batch.prompt_PT
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    hidden = model.stack(model.embed(ids), Role.ENCODE, positions, _prompt_masks(model, batch, ids.shape[1]), context)
    causal_loss = hidden.new_zeros(())
    if causal:
        causal_loss = _cross_entropy(model.logits(hidden[:, prompt_length - 1 :]), batch, 1)

    # 2. A first look without gradient gives part of the canvases their self-conditioning.
    canvas_positions = torch.arange(prompt_length, prompt_length + length, device=ids.device)[None]
    soft = torch.zeros(prompts, canvases, length, model.embed_tokens.weight.shape[1], device=ids.device, dtype=hidden.dtype)
    if conditioned:
        with torch.no_grad():
            first = noisy_BL.view(prompts, canvases, length)[:, :conditioned].reshape(-1, length)
            masks = _canvas_masks(model, batch, conditioned)
            looked = model.stack(model.canvas_embeds(first, None), Role.DENOISE, canvas_positions, masks, context)
            believed = model.soften(model.logits(looked)).view(prompts, conditioned, length, -1)
        soft = torch.cat((believed, soft[:, conditioned:]), dim=1)

    # 3. The denoising loss: the clean token at every position, corrupted or not.
    embeds = model.canvas_embeds(noisy_BL, soft.flatten(0, 1))
    denoised = model.stack(embeds, Role.DENOISE, canvas_positions, _canvas_masks(model, batch, canvases), context)
    return _cross_entropy(model.logits(denoised), batch, canvases), causal_loss


def _cross_entropy(logits_BLV: Tensor, batch: TrainBatch, copies: int) -> Tensor:
    target = batch.answer_PL.repeat_interleave(copies, 0).flatten()
    if batch.weight_PL is None:
        return F.cross_entropy(logits_BLV.flatten(0, 1), target)
    weight = batch.weight_PL.repeat_interleave(copies, 0).flatten()
    return (F.cross_entropy(logits_BLV.flatten(0, 1), target, reduction="none") * weight).sum() / weight.sum()


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
