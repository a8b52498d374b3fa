"""GGUF files for tests: small whole models, and headers written byte by byte so that they may lie."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from diffusiongemma.weights.gguf_names import to_gguf

ARCH = "diffusion-gemma"
CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>"]
SHAPE: dict[str, Any] = {
    "hidden": 64, "width": 96, "heads": 4, "kv": (2, 2, 1), "dims": (16, 16, 32), "experts": 4, "chosen": 2, "expert_width": 32,
    "vocab": 320, "window": 8, "canvas": 16, "positions": 512,
}  # fmt: skip
"""Two sliding layers and a full one."""
WIDE: dict[str, Any] = {**SHAPE, "hidden": 256, "width": 256, "heads": 8, "dims": (32, 32, 64), "expert_width": 256}
"""All rows are whole K-quant blocks of 256."""
SPREAD = {
    "Q8_0": 90, "Q4_0": 6, "Q4_1": 6, "Q5_0": 12, "Q5_1": 12, "IQ4_NL": 80,
    "Q4_K": 300, "Q5_K": 600, "Q6_K": 1600, "IQ4_XS": 1600,
}  # fmt: skip
"""What a random block is divided by for weights of about 1."""
SECOND = {"Q4_1": -1.0, "Q5_1": -1.0, "Q4_K": 1 / 40, "Q5_K": 1 / 40}
"""The second scale, by the same measure: what is added, or (K) taken away for each unit of the minimum."""


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def entry(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    """A tensor of the header; dims innermost first, as they stand in a file."""
    return string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)


def header(
    *,
    tensors: Sequence[bytes] = (),
    pairs: Sequence[bytes] = (),
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
    data: int = 0,
) -> bytes:
    """A file: header, padding, and so many bytes of data."""
    count, keys = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, count, keys) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + bytes(data)


def metadata(shape: dict[str, Any] = SHAPE) -> dict[str, Any]:
    """The keys of a model of this shape, without the prefix where they have one."""
    return {
        "block_count": len(shape["kv"]),
        "context_length": shape["positions"],
        "embedding_length": shape["hidden"],
        "feed_forward_length": shape["width"],
        "expert_feed_forward_length": shape["expert_width"],
        "expert_count": shape["experts"],
        "expert_used_count": shape["chosen"],
        "attention.head_count": shape["heads"],
        "attention.head_count_kv": list(shape["kv"]),
        "attention.key_length": shape["dims"][-1],
        "attention.value_length": shape["dims"][-1],
        "attention.key_length_swa": shape["dims"][0],
        "attention.value_length_swa": shape["dims"][0],
        "attention.sliding_window": shape["window"],
        "attention.sliding_window_pattern": [True] * (len(shape["kv"]) - 1) + [False],
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.causal": False,
        "attention.shared_kv_layers": 0,
        "embedding_length_per_layer_input": 0,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
        "rope.dimension_count": shape["dims"][-1],
        "rope.dimension_count_swa": shape["dims"][0],
        "final_logit_softcapping": 30.0,
        "diffusion.canvas_length": shape["canvas"],
    }


def vocabulary(size: int) -> tuple[list[str], list[int]]:
    """Control tokens, all bytes, and single characters; and their types."""
    others = [chr(0x4E00 + i) for i in range(size - len(CONTROL) - 256)]
    return CONTROL + [f"<0x{i:02X}>" for i in range(256)] + others, [3] * len(CONTROL) + [6] * 256 + [1] * len(others)


def half(value: float) -> np.ndarray:
    """The bytes of a float16."""
    return np.frombuffer(np.float16(value).tobytes(), np.uint8)


def put(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """A key of the kind that llama.cpp's converter writes."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def shapes(shape: dict[str, Any] = SHAPE) -> dict[str, tuple[int, ...]]:
    """Our names and shapes of all weights of a model."""
    D, W, E, M, N = shape["hidden"], shape["width"], shape["experts"], shape["expert_width"], shape["heads"]
    result: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (shape["vocab"], D),
        "norm.weight": (D,),
        "self_conditioning.pre_norm.weight": (D,),
        "self_conditioning.gate_proj.weight": (W, D),
        "self_conditioning.up_proj.weight": (W, D),
        "self_conditioning.down_proj.weight": (D, W),
    }
    norms = (
        "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
        "post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2",
    )  # fmt: skip
    for i, (kv, H) in enumerate(zip(shape["kv"], shape["dims"], strict=True)):
        layer = {
            **{f"{norm}.weight": (D,) for norm in norms},
            "self_attn.q_proj.weight": (N * H, D),
            "self_attn.k_proj.weight": (kv * H, D),
            **({"self_attn.v_proj.weight": (kv * H, D)} if i < len(shape["kv"]) - 1 else {}),
            "self_attn.o_proj.weight": (D, N * H),
            "self_attn.q_norm.weight": (H,),
            "self_attn.k_norm.weight": (H,),
            "mlp.gate_proj.weight": (W, D),
            "mlp.up_proj.weight": (W, D),
            "mlp.down_proj.weight": (D, W),
            "router.proj.weight": (E, D),
            "router.scale": (D,),
            "router.per_expert_scale": (E,),
            "experts.gate_up_proj": (E, 2 * M, D),
            "experts.down_proj": (E, D, M),
            "layer_scalar": (1,),
            "encoder_layer_scalar": (1,),
        }
        result |= {f"layers.{i}.{name}": size for name, size in layer.items()}
    return result


def write_model(
    path: Path,
    kind: str = "Q8_0",
    *,
    shape: dict[str, Any] = SHAPE,
    seed: int = 0,
    change: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    extra: dict[str, np.ndarray] | None = None,
    quantised: dict[str, np.ndarray] | None = None,
    apart: str | None = None,
    freqs: np.ndarray | None = None,
    architecture: str = ARCH,
) -> dict[str, torch.Tensor]:
    """Write a random model and return its weights, dequantised by the package, by our names.

    Args:
        path: the file.
        kind: block type of the matrices.
        shape: ``SHAPE`` or ``WIDE``.
        seed: of the weights.
        change: metadata keys to add or replace (with their whole name); None removes one.
        drop: tensors to leave out, by their names in the file.
        extra: tensors to add, or to put in the place of others, float32.
        quantised: the same, as bytes of Q8_0 blocks.
        apart: block type of ``ffn_up_exps`` where gate and up are written apart.
        freqs: content of ``rope_freqs.weight``; None: a quarter of the pairs turns.
        architecture: of the file.
    """
    rng, writer, values = np.random.default_rng(seed), gguf.GGUFWriter(path, architecture), {}
    tokens, types = vocabulary(shape["vocab"])
    keys = {key if key.startswith("diffusion.") else f"{ARCH}.{key}": value for key, value in metadata(shape).items()}
    keys |= {
        "tokenizer.ggml.model": "gemma4", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": [f"{tokens[300]} {tokens[301]}"],
        "tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 3,
    }  # fmt: skip
    # A merge must make a token of the vocabulary.
    tokens[302] = tokens[300] + tokens[301]
    for key, value in {**keys, **(change or {})}.items():
        if value is not None:
            put(writer, key, value)

    def add(name: str, size: tuple[int, ...], block: str) -> torch.Tensor:
        number = GGMLQuantizationType[block]
        if block in ("F32", "F16", "BF16"):
            plain = (rng.standard_normal(size) * size[-1] ** -0.5 + (len(size) == 1)).astype(np.float32)
            raw = quants.quantize(plain, number)
        else:
            count, nbytes = GGML_QUANT_SIZES[number]
            raw = rng.integers(0, 256, (int(np.prod(size)) // count, nbytes), dtype=np.uint8)
            size_of_weights = size[-1] ** -0.5
            if block == "MXFP4":
                raw[:, 0] = 127 + round(np.log2(size_of_weights / 3))
            else:
                at = 208 if block == "Q6_K" else 0
                raw[:, at : at + 2] = half(size_of_weights / SPREAD[block])
            if block in SECOND:
                raw[:, 2:4] = half(size_of_weights * SECOND[block])
            raw = raw.reshape(*size[:-1], -1)
        if name not in (*drop, *(extra or {}), *(quantised or {})):
            writer.add_tensor(name, raw, raw_dtype=number)
        return torch.from_numpy(quants.dequantize(raw, number).astype(np.float32).reshape(size))

    for name, size in shapes(shape).items():
        theirs = to_gguf(name)
        small = len(size) == 1 or "router" in name
        if apart and name.endswith("gate_up_proj"):
            part_size = (size[0], size[1] // 2, size[2])
            parts = [add(theirs.replace("gate_up", part), part_size, block) for part, block in (("gate", kind), ("up", apart))]
            values[name] = torch.cat(parts, dim=1)
        else:
            values[name] = add(theirs, size, "F32" if small else kind)
    if freqs is None:
        freqs = np.full(shape["dims"][-1] // 2, 1e30, np.float32)
        freqs[: len(freqs) // 4] = 1
    for name, array in {"rope_freqs.weight": freqs, **(extra or {})}.items():
        if name not in drop:
            writer.add_tensor(name, array)
    for name, raw in (quantised or {}).items():
        writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values
