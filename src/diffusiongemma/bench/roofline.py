"""What a denoising step must at least move and compute, and how fast this machine moves and computes.

Shapes: B rows, L canvas, T = B * L tokens of a step, C context, D hidden, V vocabulary, N heads, K key-value heads, H head
size, E experts, X chosen experts, I expert width.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from diffusiongemma.generation.machine import synchroniser
from diffusiongemma.generation.roles import touched_experts
from diffusiongemma.model.config import LayerConfig, ModelConfig, TextConfig

__all__ = ["Cost", "Rates", "measure_rates", "parameters", "step_cost"]

COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
"""Size of the array that is copied: far beyond any cache."""
MATRIX_SIZE = {"cpu": 1536, "cuda": 8192}
ATTEMPTS = 4


@dataclass(frozen=True)
class Cost:
    """What one denoising step takes, all rows together.

    Attributes:
        moved: bytes by part; each weight that is needed is read once for every product it is in, and the cache once.
            Activations and logits are left out: a fused step could keep them on the chip.
        operations: multiplications and additions by part.
    """

    moved: dict[str, float]
    operations: dict[str, float]

    @property
    def total_bytes(self) -> float:
        """Bytes of all parts."""
        return sum(self.moved.values())

    @property
    def total_operations(self) -> float:
        """Operations of all parts."""
        return sum(self.operations.values())


@dataclass(frozen=True)
class Rates:
    """What the machine does at best, measured.

    Attributes:
        copy_bytes_per_second: bytes read plus bytes written of a large copy.
        operations_per_second: of a large square matrix product in the weights' dtype.
    """

    copy_bytes_per_second: float
    operations_per_second: float

    def floor_seconds(self, cost: Cost) -> float:
        """The least time for a cost: memory and arithmetic overlap, the slower of the two decides."""
        return max(cost.total_bytes / self.copy_bytes_per_second, cost.total_operations / self.operations_per_second)


def parameters(config: ModelConfig) -> dict[str, int]:
    """The number of parameters by part; their sum is the model's."""
    text, count = config.text, config.text.num_hidden_layers
    hidden = text.hidden_size
    gated = 3 * hidden * text.intermediate_size
    return {
        "embedding": text.vocab_size * hidden,
        "self_conditioning": gated + hidden,
        "attention": sum(_projections(text, layer) + 2 * layer.head_dim for layer in text.layers),
        "dense": count * gated,
        "router": count * (hidden * text.num_experts + hidden + text.num_experts) * text.enable_moe_block,
        "experts": count * text.num_experts * _expert(text),
        "norms": ((7 if text.enable_moe_block else 4) * count + 1) * hidden,
    }


def step_cost(config: ModelConfig, batch: int, context: float, element_bytes: int) -> Cost:
    """Bytes and operations of a denoising step with self-conditioning.

    Args:
        config: the model's.
        batch: rows.
        context: tokens in each row's cache.
        element_bytes: of a weight, and of a cached key or value.
    """
    text, tokens = config.text, batch * config.canvas_length
    weights = parameters(config)
    read = {name: float(count) for name, count in weights.items() if name != "embedding"}
    if text.num_experts:
        read["experts"] *= touched_experts(text.num_experts, text.top_k_experts, tokens) / text.num_experts
    # Once for the logits, once for the soft embeddings, and the canvas's own rows.
    read["head"] = read["soft_embedding"] = float(weights["embedding"])
    read["embedding"] = float(tokens * text.hidden_size)
    seen = [min(context, text.sliding_window - 1) if layer.is_sliding else context for layer in text.layers]
    per_token = [2 * layer.num_key_value_heads * layer.head_dim for layer in text.layers]
    read["cache"] = batch * sum(keys * size for keys, size in zip(seen, per_token, strict=True))
    products = {
        "self_conditioning": 3.0 * text.hidden_size * text.intermediate_size,
        "attention": float(sum(_projections(text, layer) for layer in text.layers)),
        "scores": sum(
            2.0 * text.num_attention_heads * layer.head_dim * (keys + config.canvas_length)
            for keys, layer in zip(seen, text.layers, strict=True)
        ),
        "dense": float(weights["dense"]),
        "router": float(text.num_hidden_layers * text.hidden_size * text.num_experts),
        "experts": float(text.num_hidden_layers * text.top_k_experts * _expert(text)),
        "head": float(weights["embedding"]),
        "soft_embedding": float(weights["embedding"]),
    }
    moved = {name: count * element_bytes for name, count in read.items()}
    return Cost(moved=moved, operations={name: 2 * tokens * count for name, count in products.items()})


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Copy bandwidth and matrix rate of a device, the best of a few attempts, with this process's threads."""
    return Rates(copy_bytes_per_second=_copy_rate(device), operations_per_second=_matrix_rate(device, dtype))


def _copy_rate(device: torch.device) -> float:
    source = torch.ones(COPY_BYTES.get(device.type, COPY_BYTES["cpu"]), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    size = MATRIX_SIZE.get(device.type, MATRIX_SIZE["cpu"])
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _best(lambda: left @ right, device)


def _best(work: Callable[[], object], device: torch.device) -> float:
    wait, seconds = synchroniser(device), []
    for _ in range(ATTEMPTS):
        wait()
        began = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _projections(text: TextConfig, layer: LayerConfig) -> int:
    """Parameters of a layer's q, k, v and o; a full layer may have no v of its own."""
    query = text.num_attention_heads * layer.head_dim
    stored = layer.num_key_value_heads * layer.head_dim * (2 if layer.is_sliding or not text.attention_k_eq_v else 1)
    bias = query + stored + text.hidden_size if text.attention_bias else 0
    return text.hidden_size * (2 * query + stored) + bias


def _expert(text: TextConfig) -> int:
    return 3 * text.hidden_size * text.moe_intermediate_size
