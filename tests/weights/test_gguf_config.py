"""Configuration from a GGUF file's metadata."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.errors import CheckpointError
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.weights.gguf import GGUFFile
from diffusiongemma.weights.gguf_config import config_of, generation_config_of
from tests.gguf_files import ARCH, SHAPE, shapes, vocabulary, write_model


def config(tmp_path: Path, **options: Any) -> ModelConfig:
    write_model(tmp_path / "m.gguf", **options)
    return ModelConfig.from_dict(config_of(GGUFFile(tmp_path / "m.gguf")))


def changed(tmp_path: Path, key: str, value: Any) -> ModelConfig:
    return config(tmp_path, change={f"{ARCH}.{key}": value})


def test_every_field(tmp_path: Path) -> None:
    result = config(tmp_path)
    text = result.text
    assert result.canvas_length == SHAPE["canvas"]
    assert (text.hidden_size, text.intermediate_size, text.moe_intermediate_size) == (64, 96, 32)
    assert (text.num_hidden_layers, text.num_attention_heads, text.num_experts, text.top_k_experts) == (3, 4, 4, 2)
    assert text.layer_types == ("sliding_attention", "sliding_attention", "full_attention")
    assert [layer.head_dim for layer in text.layers] == [16, 16, 32]
    assert [layer.num_key_value_heads for layer in text.layers] == [2, 2, 1]
    assert text.vocab_size == SHAPE["vocab"]  # not in the metadata: the rows of the embedding
    assert text.max_position_embeddings == 512
    assert text.rms_norm_eps == 1e-6  # not 9.99999997e-07, as which float32 holds it
    assert text.final_logit_softcapping == 30
    assert text.sliding_window == 8
    assert (text.bos_token_id, text.pad_token_id) == (2, 0)
    assert text.rope["sliding_attention"].rope_theta == 1e4
    full = text.rope["full_attention"]
    assert (full.rope_type, full.rope_theta, full.partial_rotary_factor) == ("proportional", 1e6, 0.25)
    assert not text.attention_bias
    assert result.vision is None


def test_stop_tokens_by_their_text(tmp_path: Path) -> None:
    tokens, types = vocabulary(SHAPE["vocab"])
    tokens[310:312] = ["<turn|>", "<|tool_response>"]
    write_model(tmp_path / "m.gguf", change={"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types})
    file = GGUFFile(tmp_path / "m.gguf")
    assert ModelConfig.from_dict(config_of(file)).stop_ids == (1, 310, 311)
    assert generation_config_of(file.metadata, file.path)["eos_token_id"] == [1, 310, 311]


def test_stop_tokens_of_a_vocabulary_without_their_texts(tmp_path: Path) -> None:
    """The published numbers; a file has room for one end token only."""
    assert config(tmp_path).stop_ids == (1, 106, 50)


def test_sampler_defaults(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf")
    assert (
        SamplingParams.from_generation_config(generation_config_of(GGUFFile(tmp_path / "m.gguf").metadata, tmp_path))
        == SamplingParams()
    )
    change = {
        "diffusion.eb_max_steps": 12, "diffusion.eb_t_min": 0.3, "diffusion.eb_t_max": 0.9, "diffusion.eb_entropy_bound": 0.2,
        "diffusion.eb_stability_threshold": 2, "diffusion.eb_confidence_threshold": 0.01,
    }  # fmt: skip
    write_model(tmp_path / "n.gguf", change=change)
    result = SamplingParams.from_generation_config(generation_config_of(GGUFFile(tmp_path / "n.gguf").metadata, tmp_path))
    expected = SamplingParams(num_diffusion_steps=12, t_min=0.3, t_max=0.9, entropy_bound=0.2, stability=2, confidence=0.01)
    assert result == expected


@pytest.mark.parametrize(("quarter", "part"), [(0, 0.0), (3, 3 / 16), (16, 1.0)])
def test_how_much_of_a_full_head_turns(quarter: int, part: float, tmp_path: Path) -> None:
    freqs = np.full(16, 1e30, np.float32)
    freqs[:quarter] = 1
    result = config(tmp_path, freqs=freqs).text.rope["full_attention"]
    assert result.partial_rotary_factor == part


def test_one_number_of_key_value_heads_for_all_layers(tmp_path: Path) -> None:
    assert [layer.num_key_value_heads for layer in changed(tmp_path, "attention.head_count_kv", 2).text.layers] == [2, 2, 2]


def test_a_vocab_size_that_agrees(tmp_path: Path) -> None:
    assert changed(tmp_path, "vocab_size", SHAPE["vocab"]).text.vocab_size == SHAPE["vocab"]


REFUSED: dict[str, tuple[str, Any, str]] = {
    "no layers": ("block_count", 0, "block_count is 0"),
    "a text for a size": ("embedding_length", "64", "embedding_length is '64'"),
    "a missing size": ("expert_count", None, "lacks the metadata key diffusion-gemma.expert_count"),
    "no soft cap": ("final_logit_softcapping", None, "lacks .*final_logit_softcapping"),
    "a soft cap of 0": ("final_logit_softcapping", 0.0, "final_logit_softcapping is 0.0"),
    "a pattern that is too short": ("attention.sliding_window_pattern", [True, False], "sliding_window_pattern"),
    "a pattern of numbers": ("attention.sliding_window_pattern", [1, 1, 0], "sliding_window_pattern"),
    "a last layer that slides": ("attention.sliding_window_pattern", [True, True, True], "last one false"),
    "heads for two layers": ("attention.head_count_kv", [2, 1], "one for each of 3 layers"),
    "a layer without heads": ("attention.head_count_kv", [2, 0, 1], "at least 1"),
    "widths that differ": ("feed_forward_length", [96, 96, 64], "same in all layers"),
    "other value heads": ("attention.value_length", 16, "value_length is 16"),
    "a part of the head turning": ("rope.dimension_count_swa", 8, "dimension_count_swa is 8"),
    "causal": ("attention.causal", True, "attention.causal is True"),
    "shared layers": ("attention.shared_kv_layers", 2, "shared_kv_layers is 2"),
    "per-layer embeddings": ("embedding_length_per_layer_input", 256, "per_layer_input is 256"),
    "scaled rotation": ("rope.scaling.type", "yarn", "rope.scaling.type is 'yarn'"),
    "capped attention": ("attn_logit_softcapping", 50.0, "attn_logit_softcapping is 50.0"),
    "another vocabulary": ("vocab_size", 999, "vocab_size is 999, and token_embd.weight has 320 rows"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_computed_is_refused_by_its_key(case: str, tmp_path: Path) -> None:
    key, value, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message):
        changed(tmp_path, key, value)


def test_another_architecture(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="architecture 'gemma3'; this runtime runs 'diffusion-gemma'"):
        config(tmp_path, architecture="gemma3")


def test_a_part_of_a_split_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"one of 3 parts .*--merge"):
        config(tmp_path, change={"split.count": 3, "split.no": 0})
    assert config(tmp_path, change={"split.count": 1}).text.num_hidden_layers == 3


def test_no_canvas_length(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lacks the metadata key diffusion\.canvas_length"):
        config(tmp_path, change={"diffusion.canvas_length": None})


@pytest.mark.parametrize("values", [np.full(16, 8.0), np.ones(8), np.arange(16)], ids=["scaled", "short", "other"])
def test_another_rotary_embedding(values: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight .* must hold 16 divisors"):
        config(tmp_path, freqs=values.astype(np.float32))


def test_no_rotary_divisors_and_no_embedding(tmp_path: Path) -> None:
    for name in ("rope_freqs.weight", "token_embd.weight"):
        with pytest.raises(CheckpointError, match=f"lacks the tensor {name}"):
            config(tmp_path, drop=(name,))


def test_an_unknown_key_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        changed(tmp_path, "something_new", 3)
    assert "diffusion-gemma.something_new" in caplog.text


def test_names_go_both_ways() -> None:
    from diffusiongemma.weights.gguf_names import to_gguf, to_ours

    names = [*shapes(), "layers.29.self_attn.v_proj.weight"]
    assert len({to_gguf(name) for name in names}) == len(names)
    assert all(to_ours(to_gguf(name)) == name for name in names)
    assert to_gguf("layers.3.encoder_layer_scalar") == "blk.3.enc_layer_output_scale.weight"
    for name in ("blk.0.attn_q.bias", "blk.x.attn_q.weight", "output.weight", "rope_freqs.weight", "blk.0.ffn_gate_exps.weight"):
        assert to_ours(name) is None
