"""The oracle: random tiny checkpoints written by transformers, loaded by transformers and by us.

Everything goes through a folder on disk, so that config.json and the tensor names are part of what is compared.
"""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DynamicCache

from diffusiongemma.model.assemble import assemble
from diffusiongemma.model.cache import KVCache
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.expected import text_shapes
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.weights.load import open_weights
from tests.tiny import TEXT, VISION

CACHE = "cache" if "cache" in inspect.signature(DiffusionGemmaForBlockDiffusion.forward).parameters else "past_key_values"
"""The argument that takes a cache: transformers 5.24 renames it, and 5.40 takes the old name away."""
S, F = "sliding_attention", "full_attention"

# Each entry changes the tiny text_config of tests/tiny.py; None removes a field, so that its default counts.
CONFIGS: dict[str, dict[str, Any]] = {
    "two sliding to one full": {},
    "nested spelling": {"spelling": "nested"},
    "nested spelling, one size": {"spelling": "nested", "global_head_dim": 8, "num_global_key_value_heads": 2},
    "all full": {"num_hidden_layers": 2, "layer_types": [F, F]},
    "one to one": {"num_hidden_layers": 4, "layer_types": [S, F, S, F]},
    "full first": {"num_hidden_layers": 3, "layer_types": [F, S, F]},
    "last layer forced full": {"num_hidden_layers": 2, "layer_types": [S, S]},
    "default pattern": {"num_hidden_layers": 7, "layer_types": None},
    "full layers keep all heads": {"num_global_key_value_heads": 4, "num_key_value_heads": 1},
    "full layers inherit heads": {"num_global_key_value_heads": None},
    "global heads smaller": {"head_dim": 16, "global_head_dim": 4},
    "one expert": {"num_experts": 1, "top_k_experts": 1},
    "eight experts, three chosen": {"num_experts": 8, "top_k_experts": 3},
    "sixteen experts, one chosen": {"num_experts": 16, "top_k_experts": 1},
    "attention bias": {"attention_bias": True},
    "gelu": {"hidden_activation": "gelu"},
    "silu": {"hidden_activation": "silu"},
    "relu": {"hidden_activation": "relu"},
    "soft cap 2": {"final_logit_softcapping": 2.0},
    "odd sizes": {"hidden_size": 20, "intermediate_size": 28, "moe_intermediate_size": 12, "vocab_size": 37},
    "wide norm eps": {"rms_norm_eps": 0.05},
    "window of two": {"sliding_window": 2},
    "no bidirectional field": {"use_bidirectional_attention": None},
    "rope bases": {
        "rope_parameters": {
            S: {"rope_type": "default", "rope_theta": 100.0},
            F: {"rope_type": "proportional", "rope_theta": 50.0, "partial_rotary_factor": 0.5},
        }
    },
    "rope linear": {
        "rope_parameters": {
            S: {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0},
            F: {"rope_type": "default", "rope_theta": 10.0},
        }
    },
    "rope proportional factor": {
        "rope_parameters": {
            S: {"rope_type": "proportional", "rope_theta": 30.0, "partial_rotary_factor": 1.0},
            F: {"rope_type": "proportional", "rope_theta": 50.0, "partial_rotary_factor": 0.75, "factor": 2.0},
        }
    },
}


def with_encoder_states(reference: DiffusionGemmaForBlockDiffusion, **inputs: Any) -> tuple[Any, Tensor]:
    """What the reference answers, and its encoder's final hidden states, which not every version returns."""
    states: list[Tensor] = []
    hook = reference.model.encoder.register_forward_hook(lambda module, given, out: states.append(out.last_hidden_state))
    try:
        return reference(**inputs), states.pop()
    finally:
        hook.remove()


@dataclass(frozen=True)
class Pair:
    """One checkpoint, loaded by both sides."""

    reference: DiffusionGemmaForBlockDiffusion
    ours: Transformer
    folder: Path

    def contexts(self, batch_size: int = 1, max_length: int = 128) -> tuple[DynamicCache, KVCache]:
        """Empty caches of both sides."""
        config = self.reference.config.get_text_config(decoder=True)
        return DynamicCache(config=config), KVCache(
            self.ours.config.text, batch_size, max_length, self.ours.dtype, torch.device("cpu")
        )


def write_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    scale: float = 0.3,
    sharpness: float = 1.0,
    gentle: bool = False,
    canvas_length: int = 8,
    spelling: str = "flat",
    weight_dtype: torch.dtype = torch.float32,
    **text: Any,
) -> None:
    """Let transformers write a checkpoint of random weights.

    Args:
        folder: where.
        seed: of the weights.
        scale: standard deviation of the weights; norm weights spread around 1.
        sharpness: factor on the last norm's weight; larger makes the model surer of its tokens.
        gentle: soften attention and self-conditioning. A random model is chaotic: a difference in the last bit grows about
            tenfold with each step, which no whole generation could be compared through.
        canvas_length: of the config.
        spelling: ``nested`` keeps the config.json of transformers, ``flat`` puts ours in its place.
        weight_dtype: of the file.
        text: changes to the tiny text_config.
    """
    fields = {key: value for key, value in {**TEXT, **text}.items() if value is not None}
    model = DiffusionGemmaForBlockDiffusion(
        DiffusionGemmaConfig(text_config=json.loads(json.dumps(fields)), vision_config=VISION, canvas_length=canvas_length)
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale + (weight.ndim == 1))
            # Branches must outweigh the embedding that runs through, or the model repeats its input whatever they do.
            if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
                weight.mul_(2.0)
        if gentle:
            model.model.decoder.self_conditioning.down_proj.weight.mul_(0.05)
            for name, weight in model.named_parameters():
                if name.endswith("q_norm.weight"):
                    weight.mul_(0.1)
        model.model.decoder.norm.weight.mul_(sharpness)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                # Encoder and decoder get different values: a runtime that mixes them up must not pass.
                buffer.copy_(0.6 + 0.8 * torch.rand(1, generator=generator))
        # The reference ties weights but not biases; one stack of weights means that they are equal.
        theirs = dict(model.named_parameters())
        for name, bias in theirs.items():
            if name.endswith("bias") and "encoder.language_model" in name:
                bias.copy_(theirs[name.replace("encoder.language_model", "decoder")])
    model.to(weight_dtype).save_pretrained(folder)
    if spelling == "flat":
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["text_config"] = {**fields, "model_type": "diffusion_gemma_text"}
        path.write_text(json.dumps(config))


def load_reference(folder: Path, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> DiffusionGemmaForBlockDiffusion:
    """The checkpoint as transformers loads it; experts run one by one, which every dtype can."""
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, experts_implementation="eager"
    )
    return model.eval()


def load_ours(folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    """The checkpoint as we load it."""
    config = ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
    weights = open_weights(folder, text_shapes(config.text), config.quantization)
    return assemble(config, weights.load(), dtype, torch.device("cpu"), keep=weights.quantised)


def make_pair(folder: Path, dtype: torch.dtype = torch.float32, attention: str = "sdpa", **options: Any) -> Pair:
    """Write a random checkpoint and load it on both sides; options as in ``write_checkpoint``."""
    write_checkpoint(folder, **options)
    return Pair(load_reference(folder, dtype, attention), load_ours(folder, dtype), folder)
