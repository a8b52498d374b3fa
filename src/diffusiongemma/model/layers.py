"""One layer of the stack and its parts. Parameter names are those of the checkpoint.

Shapes: B batch, T tokens, D hidden, N heads, K key-value heads, H head size, E experts, I expert width.
Source: transformers 5.23 ``modeling_diffusion_gemma.py``.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusiongemma import kernels
from diffusiongemma.model.attention import AttentionContext, Role
from diffusiongemma.model.config import LayerConfig, TextConfig
from diffusiongemma.model.packable import Packable
from diffusiongemma.quant import Routing

__all__ = [
    "Attention",
    "Embedding",
    "Experts",
    "GatedMLP",
    "Layer",
    "Linear",
    "LowRank",
    "RMSNorm",
    "Router",
    "SelfConditioning",
    "activation",
]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "silu": F.silu,
    "relu": F.relu,
}


def activation(config: TextConfig) -> Callable[[Tensor], Tensor]:
    """The gate's activation function."""
    return ACTIVATIONS[config.hidden_activation]


class RMSNorm(nn.Module):
    """Root-mean-square norm with a weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Norm over the last dimension."""
        return kernels.rms_norm(x, self.weight, self.eps)


class LowRank(nn.Module):
    """An adapter: ``scale * B @ A`` (``model.adapters``).

    Args:
        a_RK: ``[R, K]`` float32.
        b_NR: ``[N, R]`` float32.
        scale: factor on their product.
    """

    def __init__(self, a_RK: Tensor, b_NR: Tensor, scale: float) -> None:
        super().__init__()
        self.a_RK, self.b_NR = nn.Parameter(a_RK, requires_grad=False), nn.Parameter(b_NR, requires_grad=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K] -> [..., N]``, in the adapter's own dtype."""
        return F.linear(F.linear(x.to(self.a_RK.dtype), self.a_RK), self.b_NR) * self.scale


class Linear(Packable, nn.Linear):
    """``nn.Linear`` whose weight may be packed, with an adapter or without; computes in the dtype of its input."""

    lora: LowRank | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_module("lora", None)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in] -> [..., out]``."""
        out = self.matrix("weight").apply(x, self.bias)
        return out if self.lora is None else out + self.lora(x).to(out.dtype)


class Embedding(Packable, nn.Embedding):
    """The table of tokens, which is the head too; it may be packed."""

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows by number in a dtype: ``[...] -> [..., D]``."""
        return kernels.table_rows(self.matrix("weight").table, ids, dtype)

    def head(self, x: Tensor) -> Tensor:
        """``x @ table.T``: ``[..., D] -> [..., V]``."""
        return self.matrix("weight").apply(x)

    def mix(self, probs: Tensor) -> Tensor:
        """``probs @ table``: ``[..., V] -> [..., D]``."""
        return self.matrix("weight").mix(probs)


class GatedMLP(nn.Module):
    """``down(act(gate(x)) * up(x))``."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.act = activation(config)
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D] -> [..., D]``."""
        out: Tensor = self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        return out


class SelfConditioning(GatedMLP):
    """Adds what the last step believed to the canvas's embeddings; its last norm always runs, also with ``soft`` zero."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        self.eps = config.rms_norm_eps
        self.pre_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def combine(self, embeds_BLD: Tensor, soft_BLD: Tensor) -> Tensor:
        """``norm(embeds + mlp(pre_norm(soft)))``."""
        return kernels.rms_norm(embeds_BLD + self(self.pre_norm(soft_BLD)), None, self.eps)


class Attention(nn.Module):
    """Grouped-query attention; full layers have no ``v_proj`` and take V from the keys before norm and rotation, unless
    ``attention_k_eq_v`` is false."""

    def __init__(self, config: TextConfig, layer: LayerConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.head_dim = layer.head_dim
        self.eps = config.rms_norm_eps
        q_size = config.num_attention_heads * layer.head_dim
        kv_size = layer.num_key_value_heads * layer.head_dim
        linear = partial(Linear, bias=config.attention_bias)
        self.q_proj = linear(config.hidden_size, q_size)
        self.k_proj = linear(config.hidden_size, kv_size)
        self.v_proj = linear(config.hidden_size, kv_size) if layer.is_sliding or not config.attention_k_eq_v else None
        self.value_norm = config.value_norm
        self.o_proj = linear(q_size, config.hidden_size)
        self.q_norm = RMSNorm(layer.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(layer.head_dim, config.rms_norm_eps)

    def forward(self, x_BTD: Tensor, role: Role, cos_sin: tuple[Tensor, Tensor], context: AttentionContext) -> Tensor:
        """``[B, T, D] -> [B, T, D]``; encoding stores keys and values in the context, denoising only reads it."""
        split = (*x_BTD.shape[:2], -1, self.head_dim)
        q = self.q_proj(x_BTD).view(split)
        k = self.k_proj(x_BTD).view(split)
        v = k if self.v_proj is None else self.v_proj(x_BTD).view(split)
        q = kernels.rotate(self.q_norm(q), *cos_sin)
        k = kernels.rotate(self.k_norm(k), *cos_sin)
        v = kernels.rms_norm(v, None, self.eps) if self.value_norm else v
        out: Tensor = self.o_proj(context.attend(self.index, role, q, k, v))
        return out


class Router(nn.Module):
    """Chooses each token's experts and their weights from the raw residual."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.top_k = config.top_k_experts
        self.root = config.hidden_size**-0.5
        self.proj = Linear(config.hidden_size, config.num_experts, bias=False)
        self.scale = nn.Parameter(torch.ones(config.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.ones(config.num_experts))

    def forward(self, x_TD: Tensor) -> Routing:
        """Where each of the tokens ``[T, D]`` goes."""
        scores = self.proj(kernels.rms_norm(x_TD, None, self.eps) * self.scale * self.root)
        weight, index = scores.softmax(dim=-1, dtype=torch.float32).topk(self.top_k, dim=-1)
        weight = weight / weight.sum(dim=-1, keepdim=True)
        return Routing(index, weight * self.per_expert_scale[index])


class Experts(Packable, nn.Module):
    """The experts' weights, gate rows before up rows; either stack may be packed."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.act = activation(config)
        experts, width, hidden = config.num_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """``[T, D] -> [T, D]``."""
        return self.matrix("gate_up_proj").apply_experts(x_TD, routing, self.matrix("down_proj"), self.act)


class Layer(nn.Module):
    """Attention, then a dense and, where there are experts, an expert branch from the same residual, all times the role's own
    scalar."""

    layer_scalar: Tensor
    encoder_layer_scalar: Tensor

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        norm = partial(RMSNorm, config.hidden_size, config.rms_norm_eps)
        self.input_layernorm = norm()
        self.self_attn = Attention(config, config.layers[index], index)
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.mlp = GatedMLP(config)
        self.has_experts = config.enable_moe_block
        if self.has_experts:
            self.post_feedforward_layernorm_1 = norm()
            self.router = Router(config)
            self.pre_feedforward_layernorm_2 = norm()
            self.experts = Experts(config)
            self.post_feedforward_layernorm_2 = norm()
        self.post_feedforward_layernorm = norm()
        self.register_buffer("layer_scalar", torch.ones(1))
        self.register_buffer("encoder_layer_scalar", torch.ones(1))

    def forward(self, x_BTD: Tensor, role: Role, cos_sin: tuple[Tensor, Tensor], context: AttentionContext) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        attended = self.self_attn(self.input_layernorm(x_BTD), role, cos_sin, context)
        residual = x_BTD + self.post_attention_layernorm(attended)
        branches = self.mlp(self.pre_feedforward_layernorm(residual))
        if self.has_experts:
            flat_TD = residual.flatten(0, 1)
            mixed = self.experts(self.pre_feedforward_layernorm_2(flat_TD), self.router(flat_TD)).view_as(residual)
            branches = self.post_feedforward_layernorm_1(branches) + self.post_feedforward_layernorm_2(mixed)
        out = residual + self.post_feedforward_layernorm(branches)
        scaled: Tensor = out * (self.encoder_layer_scalar if role is Role.ENCODE else self.layer_scalar)
        return scaled
