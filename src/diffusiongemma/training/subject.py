"""What a run trains, and how it is written: a new model of a recipe, or a checkpoint that is tuned, with adapters or whole."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.errors import TrainingError
from diffusiongemma.model.adapters import Pair, adapted, attach, new_pairs
from diffusiongemma.model.assemble import assemble
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.opened import generation_config, open_checkpoint, sampling_files
from diffusiongemma.training.data import MASK, SPECIALS, STOP_IDS, TrainData
from diffusiongemma.training.init import blank_vision, initialise, start_from, write_tokenizer
from diffusiongemma.training.recipe import Recipe
from diffusiongemma.weights.adapter_files import write_adapter
from diffusiongemma.weights.companions import companions
from diffusiongemma.weights.load import save, vision_tensors
from diffusiongemma.weights.resolve import resolve

__all__ = ["Subject", "make_subject"]


@dataclass(frozen=True)
class Subject:
    """A model in training.

    Attributes:
        model: those of its weights that take gradients are trained.
        partial: whether the others are not in a run's state: they are those of a checkpoint.
        export: writes the model into a folder, with the given tensors in the place of its own.
    """

    model: Transformer
    partial: bool
    export: Callable[[Path, Mapping[str, Tensor]], None]


def make_subject(recipe: Recipe, data: TrainData, device: str, resumed: bool) -> Subject:
    """The model of a recipe on a device.

    Args:
        recipe: what to train.
        data: where its vocabulary and canvas come from; of a tuned checkpoint they are that one's.
        device: of the weights.
        resumed: whether a state takes the place of initial weights.

    Raises:
        TrainingError: weights that are packed and are to be trained themselves.
    """
    return _tuned(recipe, device) if recipe.base else _new(recipe, data, device, resumed)


def _new(recipe: Recipe, data: TrainData, device: str, resumed: bool) -> Subject:
    process = _process(recipe, data.tokenizer)
    config = recipe.config(data.tokenizer.get_vocab_size(), data.canvas_length, STOP_IDS, process)
    model = Transformer(config)
    start = torch.Generator().manual_seed(recipe.seed)
    initialise(model, start)
    data.initial_embeddings(model.embed_tokens.weight.data, start)
    if recipe.train.init and not resumed:
        start_from(model, data.tokenizer, resolve(recipe.train.init))

    def export(target: Path, tensors: Mapping[str, Tensor]) -> None:
        blank = blank_vision(config.vision, config.text.hidden_size) if config.vision is not None else {}
        defaults = {
            "bos_token_id": config.text.bos_token_id,
            "eos_token_id": list(config.text.eos_token_id),
            "pad_token_id": config.text.pad_token_id,
            **SamplingParams().replaced(**recipe.generation).to_generation_config(),
        }
        extra = {name: tensor.to(torch.bfloat16) for name, tensor in blank.items()}
        save(target, tensors, config.to_dict(), extra, sampling_files(defaults))
        write_tokenizer(target, data.tokenizer, data.chat_template, SPECIALS)

    return Subject(model.to(device), False, export)


def _tuned(recipe: Recipe, device: str) -> Subject:
    opened = open_checkpoint(resolve(recipe.base))
    if opened.quantised and recipe.lora is None:
        raise TrainingError(
            f"{recipe.base} has quantised weights, which take no gradients; train adapters beside them (--lora), or tune the "
            "16-bit checkpoint"
        )
    # Weights that are trained are kept in float32, and on a GPU computed in bfloat16; those under adapters stay small there.
    narrow = recipe.lora is not None and torch.device(device).type == "cuda"
    dtype = torch.bfloat16 if narrow else torch.float32
    model = assemble(opened.config, opened.load(None), dtype, torch.device(device), keep=opened.quantised)
    model.recompute_layers = recipe.train.recompute
    if (lora := recipe.lora) is not None:
        attach(model, new_pairs(model, lora.rank, lora.alpha, lora.targets, torch.Generator().manual_seed(recipe.seed)))
    for name, weight in model.named_parameters():
        frozen = recipe.train.freeze_router and ".router." in name
        weight.requires_grad_(".lora." in name if lora is not None else not frozen)

    def export(target: Path, tensors: Mapping[str, Tensor]) -> None:
        if lora is not None:
            pairs = {
                name: Pair(tensors[f"{name}.lora.a_RK"], tensors[f"{name}.lora.b_NR"], pair.scale)
                for name, pair in adapted(model).items()
            }
            base = recipe.base if not Path(recipe.base).exists() else str(Path(recipe.base).resolve())
            write_adapter(target, pairs, base)
            return
        source = opened.path
        files: dict[str, Path | bytes] = dict(companions(source, target)) | opened.tokenizer.files()
        defaults = opened.defaults.replaced(**recipe.generation).to_generation_config()
        files |= sampling_files(generation_config(source, opened.config) | defaults)
        save(target, tensors, opened.config.to_dict(), vision_tensors(source), files)

    return Subject(model, lora is not None, export)


def _process(recipe: Recipe, tokenizer: Tokenizer) -> dict[str, object]:
    """The recipe's process as config.json names it; a mask token that is not named is made, the last of the vocabulary."""
    process = dict(recipe.process)
    if process["name"] == "absorbing" and "mask_token_id" not in process:
        tokenizer.add_special_tokens([MASK])
        process["mask_token_id"] = tokenizer.token_to_id(MASK)
    return process
