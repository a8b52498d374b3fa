"""Tensor names of a GGUF file <-> parameter names of ``model.Transformer``.

Norm weights stand in files of this architecture as they are (those of Gemma 1 to 3 hold 1 + w), and nothing is transposed or
permuted. Source: llama.cpp ``conversion/diffusion_gemma.py`` and ``conversion/gemma.py``.
"""

import re

__all__ = ["GATE_EXPERTS", "ROPE_FREQS", "UNTIED_HEAD", "UP_EXPERTS", "to_gguf", "to_ours"]

ROPE_FREQS = "rope_freqs.weight"
"""Divisors of the full layers' rotary frequencies: configuration, not a weight."""
UNTIED_HEAD = "output.weight"
GATE_EXPERTS, UP_EXPERTS = "ffn_gate_exps.weight", "ffn_up_exps.weight"
"""The halves of ``ffn_gate_up_exps.weight``, in files that keep them apart."""

_WHOLE = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "self_cond_pre_norm.weight": "self_conditioning.pre_norm.weight",
    "self_cond_gate.weight": "self_conditioning.gate_proj.weight",
    "self_cond_up.weight": "self_conditioning.up_proj.weight",
    "self_cond_down.weight": "self_conditioning.down_proj.weight",
}
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    "post_ffw_norm_1.weight": "post_feedforward_layernorm_1.weight",
    "pre_ffw_norm_2.weight": "pre_feedforward_layernorm_2.weight",
    "post_ffw_norm_2.weight": "post_feedforward_layernorm_2.weight",
    "ffn_gate_inp.weight": "router.proj.weight",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "ffn_gate_up_exps.weight": "experts.gate_up_proj",
    "ffn_down_exps.weight": "experts.down_proj",
    "layer_output_scale.weight": "layer_scalar",
    "enc_layer_output_scale.weight": "encoder_layer_scalar",
}
_OURS_WHOLE = {ours: theirs for theirs, ours in _WHOLE.items()}
_OURS_LAYER = {ours: theirs for theirs, ours in _LAYER.items()}
_THEIR_LAYER_NAME = re.compile(r"blk\.(\d+)\.(.+)")
_OUR_LAYER_NAME = re.compile(r"layers\.(\d+)\.(.+)")


def to_ours(name: str) -> str | None:
    """Our name for a file's tensor, or None where it has none."""
    if (match := _THEIR_LAYER_NAME.fullmatch(name)) and match[2] in _LAYER:
        return f"layers.{match[1]}.{_LAYER[match[2]]}"
    return _WHOLE.get(name)


def to_gguf(name: str) -> str:
    """The file's name for one of our tensors.

    Raises:
        KeyError: the format has no place for it (a bias).
    """
    if match := _OUR_LAYER_NAME.fullmatch(name):
        return f"blk.{match[1]}.{_OURS_LAYER[match[2]]}"
    return _OURS_WHOLE[name]
