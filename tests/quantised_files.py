"""Tiny checkpoints in every quantised safetensors format, with random codes, and the float32 weights that they stand for.

compressed-tensors packs its own formats; the others are packed here, a number at a time, as their descriptions say.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8, unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny import config_dict, letters, tiny_config, tiny_transformer

Parts = dict[str, Tensor]
Made = tuple[Parts, Tensor]
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 16,
    "global_head_dim": 32,
    "moe_intermediate_size": 32,
    "num_experts": 12,
    "eos_token_id": [],
}
"""Sizes that every group divides; so many experts that they are computed one by one."""
GROUP = 32
ROOT = "model.decoder."
ACTIVATIONS = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}


def integers(made: torch.Generator, low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=made)


def scales(made: torch.Generator, *shape: int, columns: int, largest: float, dtype: torch.dtype) -> Tensor:
    return ((0.5 + torch.rand(shape, generator=made)) / (largest * columns**0.5)).to(dtype)


# -- each format: the stored parts of a linear and its values --------------------------------------------------------------


def fp8(made: torch.Generator, rows: int, columns: int, strategy: str = "channel", inverse: bool = False) -> Made:
    codes = (torch.randn(rows, columns, generator=made) * 90).clamp(-448, 448).to(torch.float8_e4m3fn)
    shape = {"channel": (rows, 1), "tensor": (1,), "scalar": (), "block": (-(-rows // 48), -(-columns // 48))}[strategy]
    dtype = torch.bfloat16 if strategy == "channel" else torch.float32
    scale = scales(made, *shape, columns=columns, largest=90, dtype=dtype)
    wide = scale.float()
    if strategy == "block":
        wide = wide.repeat_interleave(48, 0)[:rows].repeat_interleave(48, 1)[:, :columns]
    parts = {"weight": codes, "weight_scale_inv" if inverse else "weight_scale": scale}
    return parts, codes.float() * wide


def modelopt_fp8(made: torch.Generator, rows: int, columns: int) -> Made:
    parts, values = fp8(made, rows, columns, "scalar")
    return {**parts, "input_scale": torch.tensor(0.1)}, values


def int8(made: torch.Generator, rows: int, columns: int) -> Made:
    codes = integers(made, -127, 128, rows, columns).to(torch.int8)
    scale = scales(made, rows, 1, columns=columns, largest=80, dtype=torch.bfloat16)
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale.float()


def asymmetric_int8(made: torch.Generator, rows: int, columns: int) -> Made:
    parts, _ = int8(made, rows, columns)
    zero = integers(made, -20, 20, rows, 1).to(torch.int8)
    values = (parts["weight"].float() - zero.float()) * parts["weight_scale"].float()
    return {**parts, "weight_zero_point": zero}, values


def nvfp4(made: torch.Generator, rows: int, columns: int, modelopt: bool) -> Made:
    codes = integers(made, 0, 256, rows, columns // 2).to(torch.uint8)
    block = (0.25 + 2 * torch.rand(rows, columns // 16, generator=made)).to(torch.float8_e4m3fn)
    second = scales(made, 1, columns=columns, largest=3, dtype=torch.float32)
    exact = unpack_fp4_from_uint8(codes, rows, columns, torch.float32) * block.float().repeat_interleave(16, 1)
    if modelopt:
        parts = {"weight": codes, "weight_scale": block, "weight_scale_2": second[0], "input_scale": torch.tensor(0.01)}
        return parts, exact * second
    whole = 1 / second
    activations = {"input_global_scale": torch.tensor([100.0])}
    return {"weight_packed": codes, "weight_scale": block, "weight_global_scale": whole, **activations}, exact / whole


def mxfp4(made: torch.Generator, rows: int, columns: int, name: str) -> Made:
    values = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6])[integers(made, 0, 8, rows, columns)]
    values = values * (1 - 2 * integers(made, 0, 2, rows, columns))
    scale = integers(made, 121, 124, rows, columns // 32).to(torch.uint8)
    wide = 2.0 ** (scale.float() - 127).repeat_interleave(32, 1)
    return {name: pack_fp4_to_uint8(values), "weight_scale": scale}, values * wide


def packed_int(
    made: torch.Generator, rows: int, columns: int, symmetric: bool = True, bits: int = 4, order: bool = False, signed: bool = False
) -> Made:
    low, high = -(1 << bits - 1), 1 << bits - 1
    codes = integers(made, low, high, rows, columns).to(torch.int8)
    scale = scales(made, rows, columns // GROUP, columns=columns, largest=high, dtype=torch.float16)
    scale = scale * (1 - 2 * integers(made, 0, 2, *scale.shape)).half() if signed else scale
    parts = {"weight_packed": pack_to_int32(codes, bits), "weight_scale": scale, "weight_shape": torch.tensor([rows, columns])}
    group = torch.arange(columns) // GROUP
    if order:
        group = group[torch.randperm(columns, generator=made)]
        parts["weight_g_idx"] = group.int()
    zero = torch.zeros(scale.shape)
    if not symmetric:
        zeros = integers(made, low, high, *scale.shape).to(torch.int8)
        parts["weight_zero_point"] = pack_to_int32(zeros, bits, packed_dim=0).contiguous()
        zero = zeros.float()
    return parts, (codes.float() - zero[:, group]) * scale.float()[:, group]


def words(codes: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Rows of 4-bit codes to int32: code c of eight goes into nibble ``order[c]``."""
    packed = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int64)
    for column in range(codes.shape[1]):
        packed[:, column // 8] |= codes[:, column].long() << 4 * order[column % 8]
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).int()


def gptq(
    made: torch.Generator, rows: int, columns: int, offset: int, symmetric: bool, order: bool = False, signed: bool = False
) -> Made:
    codes = integers(made, 0, 16, rows, columns)
    scale = scales(made, rows, columns // GROUP, columns=columns, largest=8, dtype=torch.float16)
    scale = scale * (1 - 2 * integers(made, 0, 2, *scale.shape)).half() if signed else scale
    zero = torch.full(scale.shape, 8) if symmetric else integers(made, 1, 16, *scale.shape)
    group = torch.arange(columns) // GROUP
    if order:
        group = group[torch.randperm(columns, generator=made)]
    parts = {
        "qweight": words(codes).T.contiguous(),
        "qzeros": words((zero - offset).T),
        "scales": scale.T.contiguous(),
        "g_idx": group.int(),
    }
    return parts, (codes - zero[:, group]).float() * scale.float()[:, group]


def awq(made: torch.Generator, rows: int, columns: int, zeros: bool = True) -> Made:
    codes = integers(made, 0, 16, rows, columns)
    scale = scales(made, rows, columns // GROUP, columns=columns, largest=8, dtype=torch.float16)
    zero = integers(made, 0, 16, *scale.shape) if zeros else torch.full(scale.shape, 8)
    order = (0, 4, 1, 5, 2, 6, 3, 7)
    parts = {"qweight": words(codes.T, order), "scales": scale.T.contiguous()}
    if zeros:
        parts["qzeros"] = words(zero.T, order)
    group = torch.arange(columns) // GROUP
    return parts, (codes - zero[:, group]).float() * scale.float()[:, group]


def plain(made: torch.Generator, rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Made:
    weight = (torch.randn(rows, columns, generator=made) / columns**0.5).to(dtype)
    return {"weight": weight}, weight.float()


# -- what config.json says of each -----------------------------------------------------------------------------------------


def compressed(form: str, weights: dict[str, Any], **options: Any) -> dict[str, Any]:
    group = {
        "targets": ["Linear"],
        "weights": {"symmetric": True, "dynamic": False, **weights},
        "output_activations": None,
        **options,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "ignore": ["lm_head", "re:.*router.*", "re:.*embed.*", "re:.*self_conditioning.*"],
        "config_groups": {"group_0": group},
    }


def gptq_config(form: str, symmetric: bool, desc_act: bool = False) -> dict[str, Any]:
    return {
        "quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": desc_act, "sym": symmetric, "checkpoint_format": form,
    }  # fmt: skip


def auto_round_config(packing: str, symmetric: bool) -> dict[str, Any]:
    return {
        "quant_method": "auto-round", "bits": 4, "group_size": GROUP, "sym": symmetric, "data_type": "int",
        "packing_format": packing, "autoround_version": "0.16.1", "extra_config": {"model.decoder.embed_tokens": {"bits": 16}},
    }  # fmt: skip


MODELOPT = {
    "quant_method": "modelopt",
    "producer": {"name": "modelopt", "version": "0.45"},
    "ignore": ["lm_head", "*router*", "*self_conditioning*", "*vision_tower*"],
    "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
}
NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
QUARK = {
    "quant_method": "quark",
    "exclude": ["lm_head", "re:.*router.*"],
    "global_quant_config": {
        "weight": {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0", "is_dynamic": False},
        "input_tensors": {"dtype": "fp4", "is_dynamic": True},
    },
    "layer_quant_config": {},
}
LINEAR = Callable[[torch.Generator, int, int], Made]
FORMATS: dict[str, tuple[str, LINEAR, dict[str, Any]]] = {
    "fp8 channel": ("fp8", fp8, compressed("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"},
                                           input_activations=ACTIVATIONS)),
    "fp8 tensor": ("fp8", lambda m, n, k: fp8(m, n, k, "tensor"),
                   compressed("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"})),
    "fp8 block": ("fp8", lambda m, n, k: fp8(m, n, k, "block"), compressed(
        "float-quantized", {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [48, 48]})),
    "fp8 modelopt": ("fp8", modelopt_fp8, {**MODELOPT, "quant_algo": "FP8"}),
    "fp8 inverse": ("fp8", lambda m, n, k: fp8(m, n, k, "block", inverse=True),
                    {"quant_method": "fp8", "weight_block_size": [48, 48], "activation_scheme": "dynamic"}),
    "int8": ("int8", int8, compressed("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"})),
    "int8 asymmetric": ("int8", asymmetric_int8, compressed(
        "int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": False})),
    "int8 packed": ("int8", lambda m, n, k: packed_int(m, n, k, bits=8), compressed("pack-quantized", {**INT4, "num_bits": 8})),
    "int8 packed asymmetric": ("int8", lambda m, n, k: packed_int(m, n, k, symmetric=False, bits=8),
                               compressed("pack-quantized", {**INT4, "num_bits": 8, "symmetric": False})),
    "nvfp4 modelopt": ("nvfp4", lambda m, n, k: nvfp4(m, n, k, True), {**MODELOPT, "quant_algo": "NVFP4"}),
    "nvfp4": ("nvfp4", lambda m, n, k: nvfp4(m, n, k, False), compressed("nvfp4-pack-quantized", NVFP4, input_activations=NVFP4)),
    "mxfp4": ("mxfp4", lambda m, n, k: mxfp4(m, n, k, "weight_packed"),
              compressed("mxfp4-pack-quantized", {**NVFP4, "strategy": "group", "group_size": 32})),
    "mxfp4 quark": ("mxfp4", lambda m, n, k: mxfp4(m, n, k, "weight"), QUARK),
    "int4": ("int4", packed_int, compressed("pack-quantized", INT4)),
    "int4 asymmetric": ("int4", lambda m, n, k: packed_int(m, n, k, symmetric=False),
                        compressed("pack-quantized", {**INT4, "symmetric": False})),
    "int4 ordered": ("int4", lambda m, n, k: packed_int(m, n, k, order=True),
                     compressed("pack-quantized", {**INT4, "actorder": "group"})),
    "gptq": ("int4", lambda m, n, k: gptq(m, n, k, 1, True), gptq_config("gptq", True)),
    "gptq asymmetric": ("int4", lambda m, n, k: gptq(m, n, k, 1, False), gptq_config("gptq", False)),
    "gptq_v2": ("int4", lambda m, n, k: gptq(m, n, k, 0, False), gptq_config("gptq_v2", False)),
    "gptq act-order": ("int4", lambda m, n, k: gptq(m, n, k, 1, False, order=True), gptq_config("gptq", False, desc_act=True)),
    "auto-round": ("int4", lambda m, n, k: gptq(m, n, k, 1, True, signed=True), auto_round_config("auto_round:auto_gptq", True)),
    "auto-round own": ("int4", lambda m, n, k: gptq(m, n, k, 0, False), auto_round_config("auto_round", False)),
    "auto-round awq": ("int4", awq, auto_round_config("auto_round:auto_awq", False)),
    "auto-round llm-compressor": ("int4", lambda m, n, k: packed_int(m, n, k, signed=True),
                                  auto_round_config("auto_round:llm_compressor", True)),
    "awq": ("int4", awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}),
    "awq symmetric": ("int4", lambda m, n, k: awq(m, n, k, zeros=False),
                      {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": False}),
}  # fmt: skip
"""Name -> the records' kind, what makes a linear, and config.json's quantization_config."""


class Checkpoint:
    """A random checkpoint whose matrices of the layers are stored in a format.

    Args:
        fmt: a name of ``FORMATS``.
        seed: of its numbers.
        plain_part: of the layers' ``self_attn``, ``mlp`` and ``experts`` those that are not quantised.
        dtype: of what is not quantised.

    Attributes:
        stored: the checkpoint's tensors, by their names in it.
        values: the float32 tensors they stand for, as ``Transformer`` names them.
        config: content of config.json.
    """

    def __init__(
        self, fmt: str, seed: int = 0, plain_part: tuple[str, ...] = (), dtype: torch.dtype = torch.bfloat16, **text: Any
    ) -> None:
        self.kind, make, quantization = FORMATS[fmt]
        made = torch.Generator().manual_seed(seed)
        fields = {**TEXT, **text}
        self.config = {**config_dict(**fields), "quantization_config": copy.deepcopy(quantization)}
        self.stored: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}
        for name, tensor in tiny_transformer(tiny_config(**fields), seed=seed).state_dict().items():
            part = next((part for part in ("self_attn", "mlp", "experts") if f".{part}." in name), "")
            quantised = part and tensor.ndim > 1 and part not in plain_part
            if part == "experts":
                self._experts(name, tuple(tensor.shape), make if quantised else plain, made)
            elif quantised:
                self._add(name, *make(made, *tensor.shape))
            else:
                scaled = tensor / tensor.shape[-1] ** 0.5 if tensor.ndim > 1 else tensor
                self._add(name, {"weight": scaled.to(dtype)}, scaled.to(dtype).float())

    def _add(self, name: str, parts: Parts, values: Tensor) -> None:
        self.values[name] = values
        if name.endswith(".encoder_layer_scalar"):
            layer = name.split(".")[1]
            self.stored[f"model.encoder.language_model.layers.{layer}.layer_scalar"] = parts["weight"]
        elif name.endswith(".weight"):
            self._put(ROOT + name.removesuffix(".weight"), parts)
        else:
            self.stored[ROOT + name] = parts["weight"]

    def _put(self, base: str, parts: Parts) -> None:
        self.stored |= {f"{base}.{suffix}": tensor for suffix, tensor in parts.items()}

    def _experts(self, name: str, shape: tuple[int, ...], make: LINEAR, made: torch.Generator) -> None:
        base, _, stack = name.rpartition(".")
        parts = ("gate_proj", "up_proj") if stack == "gate_up_proj" else ("down_proj",)
        rows = []
        for expert in range(shape[0]):
            result = []
            for part in parts:
                stored, values = make(made, shape[1] // len(parts), shape[2])
                self._put(f"{ROOT}{base}.{expert}.{part}", stored)
                result.append(values)
            rows.append(torch.cat(result))
        self.values[name] = torch.stack(rows)

    def write(self, folder: Path) -> Path:
        """The checkpoint as a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        save_file(
            {name: tensor.contiguous() for name, tensor in self.stored.items()}, folder / "model.safetensors", {"format": "pt"}
        )
        letters(folder)
        return folder
