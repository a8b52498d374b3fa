"""A model from nothing: initial weights, and the files around them that a checkpoint folder needs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from diffusiongemma.errors import TrainingError
from diffusiongemma.model.expected import vision_shapes
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.training.data import MASK
from diffusiongemma.weights.names import to_ours
from diffusiongemma.weights.stream import stream_tensors, write_json

__all__ = ["blank_vision", "initialise", "start_from", "write_tokenizer"]


def initialise(model: Transformer, generator: torch.Generator) -> None:
    """Fill a model with initial weights.

    Matrices are normal with variance 1 / fan-in; the norms that close a branch start small, so that each of the n layers
    adds about 1 / n of the residual's variance. Gemma 4 does not divide attention scores by ``sqrt(H)``; the norms of queries
    and keys start at ``H^(-1/4)`` each, so that scores have variance 1 and no position is chosen by chance (docs/lab-log.md).
    """
    layers = model.config.text.num_hidden_layers
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                weight.normal_(0.0, weight.shape[-1] ** -0.5, generator=generator)
            elif name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
                weight.fill_((2 * layers) ** -0.5)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                weight.fill_(weight.shape[0] ** -0.25)
            elif name.endswith(".bias"):
                nn.init.zeros_(weight)
            else:
                weight.fill_(1.0)


def start_from(model: Transformer, tokenizer: Tokenizer, folder: Path) -> None:
    """Take the weights of a checkpoint over a model's own: each tensor of equal shape, and embedding rows by the token's text.

    A token that the checkpoint does not have begins as the mean of those that it would take for the same text.

    Args:
        model: with initial weights, which stay where the checkpoint has nothing to put in their place.
        tokenizer: of the model.
        folder: the checkpoint, with safetensors and tokenizer.json.

    Raises:
        CheckpointError: a file is missing or damaged.
        TrainingError: the hidden sizes differ, or nothing else fits.
    """
    try:
        source = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception for every damage
        raise TrainingError(f"{folder / 'tokenizer.json'} cannot be read ({error}); give a checkpoint with one") from error
    own, taken = model.state_dict(), 0
    with torch.no_grad():
        for stored, tensor in stream_tensors(folder, lambda name: to_ours(name) is not None):
            name = to_ours(stored)
            if name == "embed_tokens.weight":
                if tensor.shape[1] != own[name].shape[1]:
                    raise TrainingError(f"{folder} has hidden size {tensor.shape[1]}, the recipe {own[name].shape[1]}")
                for token, row in tokenizer.get_vocab().items():
                    known = source.token_to_id(token)
                    pieces = [known] if known is not None else source.encode(tokenizer.decode([row]), add_special_tokens=False).ids
                    if pieces:
                        own[name][row] = tensor[pieces].float().mean(0)
            elif name in own and own[name].shape == tensor.shape:
                own[name].copy_(tensor)
                taken += 1
    if not taken:
        raise TrainingError(f"no tensor of {folder} has the name and shape of one of the recipe's model")


def blank_vision(config: Mapping[str, Any], text_hidden: int) -> dict[str, Tensor]:
    """An all-zero vision tower: transformers always builds one, and complains about weights that a checkpoint lacks.

    Args:
        config: ``vision_config``.
        text_hidden: hidden size of the text stack.
    """
    return {name: torch.zeros(shape) for name, shape in vision_shapes(config, text_hidden).items()}


def write_tokenizer(folder: Path, tokenizer: Tokenizer, template: str, specials: tuple[str, ...]) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``.

    Args:
        folder: must exist.
        tokenizer: the tokenizer.
        template: jinja text.
        specials: pad, eos, bos and unk token, in this order, then any others.
    """
    tokenizer.save(str(folder / "tokenizer.json"))
    pad, eos, bos, unk = specials[:4]
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": pad,
            "eos_token": eos,
            "bos_token": bos,
            "unk_token": unk,
            **({"mask_token": MASK} if tokenizer.token_to_id(MASK) is not None else {}),
            "clean_up_tokenization_spaces": False,
        },
    )
    (folder / "chat_template.jinja").write_text(template, "utf-8")
