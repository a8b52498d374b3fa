"""The two losses of one batch: denoising on the canvases, next token for the causal role.

Shapes: P prompts, C canvases a prompt, B = P * C, T prompt tokens, L canvas, D hidden, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusiongemma.model.cache import SharedPrompt
from diffusiongemma.model.layers import Role
from diffusiongemma.model.masks import Masks, denoise_masks, encode_masks
from diffusiongemma.model.transformer import Transformer

__all__ = ["losses"]


def losses(
    model: Transformer,
    prompt_PT: Tensor,
    answer_PL: Tensor,
    noisy_BL: Tensor,
    conditioned: int,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """Denoising and causal loss of a batch whose prompts have one length.

    One encoder pass serves the C canvases of a prompt, and the causal loss too: what stands behind the prompt does not
    change the prompt's keys and values.

    Args:
        model: the stack.
        prompt_PT: ``[P, T]`` int64.
        answer_PL: ``[P, L]`` int64, the clean canvas.
        noisy_BL: ``[P * C, L]`` int64, canvases of one prompt side by side.
        conditioned: how many of each prompt's C canvases get self-conditioning from a first pass without gradient.
        causal: whether to encode the answer too and take the causal loss.

    Returns:
        denoising loss and causal loss (zero without ``causal``): mean cross-entropy in nats a token.
    """
    prompts, prompt_length = prompt_PT.shape
    canvases = noisy_BL.shape[0] // prompts
    length = answer_PL.shape[1]
    context = SharedPrompt(prompt_length)

    # 1. Encode the prompt once, with the answer behind it when the causal role learns too.
    ids = torch.cat((prompt_PT, answer_PL[:, :-1]), dim=1) if causal else prompt_PT
    tokens = ids.shape[1]
    start = torch.zeros(1, dtype=torch.int64, device=ids.device)
    positions = torch.arange(tokens, device=ids.device)[None]
    hidden = model.stack(model.embed(ids), Role.ENCODE, positions, encode_masks(model.config.text, start, tokens, tokens), context)
    causal_loss = hidden.new_zeros(())
    if causal:
        logits = model.logits(hidden[:, prompt_length - 1 :])
        causal_loss = F.cross_entropy(logits.flatten(0, 1), answer_PL.flatten())

    # 2. A first look without gradient gives part of the canvases their self-conditioning.
    canvas_positions = torch.arange(prompt_length, prompt_length + length, device=ids.device)[None]
    masks = _canvas_masks(model, prompt_length, length)
    soft = torch.zeros(prompts, canvases, length, model.embed_tokens.weight.shape[1], device=ids.device, dtype=hidden.dtype)
    if conditioned:
        with torch.no_grad():
            first = noisy_BL.view(prompts, canvases, length)[:, :conditioned].reshape(-1, length)
            looked = model.stack(model.canvas_embeds(first, None), Role.DENOISE, canvas_positions, masks, context)
            believed = model.soften(model.logits(looked)).view(prompts, conditioned, length, -1)
        soft = torch.cat((believed, soft[:, conditioned:]), dim=1)

    # 3. The denoising loss: the clean token at every position, corrupted or not.
    embeds = model.canvas_embeds(noisy_BL, soft.flatten(0, 1))
    denoised = model.stack(embeds, Role.DENOISE, canvas_positions, masks, context)
    target = answer_PL.repeat_interleave(canvases, 0)
    return F.cross_entropy(model.logits(denoised).flatten(0, 1), target.flatten()), causal_loss


def _canvas_masks(model: Transformer, prompt_length: int, canvas: int) -> Masks:
    """The masks of generation; none where the window holds the whole prompt, which lets attention take its quickest way."""
    config = model.config.text
    if prompt_length < config.sliding_window:
        return dict.fromkeys(config.layer_types)
    lengths = torch.tensor([prompt_length], device=model.device)
    return denoise_masks(config, lengths, canvas, prompt_length)
