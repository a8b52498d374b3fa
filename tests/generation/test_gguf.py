"""A GGUF file as a model: it computes what its dequantised twin computes, and is loaded, shown and saved like any other."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from diffusiongemma.cli.main import app
from diffusiongemma.errors import CheckpointError, ConfigError
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.model.assemble import assemble
from diffusiongemma.opened import gguf_config
from diffusiongemma.weights.gguf import GGUFFile
from tests.gguf_files import ARCH, SHAPE, WIDE, write_model

PROMPTS = ["一丁七", "hello, world"]
OPTIONS: dict[str, Any] = {"max_tokens": 32, "num_diffusion_steps": 5}


def twin(model: DiffusionGemmaModel, values: dict[str, torch.Tensor]) -> DiffusionGemmaModel:
    """The same model of plain float32 weights, dequantised by the format's own package."""
    stack = assemble(model.config, values.items(), torch.float32, torch.device("cpu"), keep=False)
    return DiffusionGemmaModel(stack, model.tokenizer, model.defaults, model.stop_ids)


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[DiffusionGemmaModel, DiffusionGemmaModel]:
    kind, options = request.param
    values = write_model(tmp_path / "m.gguf", kind, **options)
    model = DiffusionGemmaModel.from_pretrained(tmp_path / "m.gguf")
    return model, twin(model, values)


PAIRS = [("Q8_0", {}), ("Q5_0", {"seed": 1}), ("Q4_0", {"apart": "Q8_0"}), ("Q4_K", {"shape": WIDE}), ("F16", {})]
every_pair = pytest.mark.parametrize(
    "pair", PAIRS, ids=[f"{kind}{'-apart' if 'apart' in more else ''}" for kind, more in PAIRS], indirect=True
)


def in_float64(pair: tuple[DiffusionGemmaModel, DiffusionGemmaModel]) -> tuple[DiffusionGemmaModel, DiffusionGemmaModel]:
    """The computation, not the weights: what differs then is a wrong value, and no sum in another order."""
    for model in pair:
        model.transformer.double()
        model.transformer.compute_dtype = torch.float64
    return pair


@every_pair
@torch.inference_mode()
def test_passes_equal_the_twin_s_to_rounding(pair: tuple[DiffusionGemmaModel, DiffusionGemmaModel]) -> None:
    ids = torch.randint(0, SHAPE["vocab"], (2, 20), generator=torch.Generator().manual_seed(0))
    canvas = torch.randint(0, SHAPE["vocab"], (2, 16), generator=torch.Generator().manual_seed(1))
    result = []
    for model in in_float64(pair):
        cache = model.new_cache(2)
        hidden = model.encode(ids, cache)
        first = model.denoise(canvas, cache)
        soft = model.soften(model.logits(first))
        second = model.denoise(canvas, cache, soft)
        result.append((hidden, first, soft, second, model.logits(second)))
    for ours, theirs in zip(*result, strict=True):
        assert ours.std() > 0.01
        torch.testing.assert_close(ours, theirs, rtol=1e-5 if ours.dtype == torch.float32 else 1e-9, atol=1e-6)


@every_pair
def test_whole_generations_are_the_twin_s_token_for_token(pair: tuple[DiffusionGemmaModel, DiffusionGemmaModel]) -> None:
    """To the bit, since all products are the same: of random weights rounding alone would soon change the accepted tokens."""
    ours, theirs = pair
    for options in ({"seed": 3}, {"seed": 4, "early_stop": False}, {"mode": "causal", "temperature": 0.0}):
        results, expected = ours.generate(PROMPTS, **OPTIONS, **options), theirs.generate(PROMPTS, **OPTIONS, **options)
        assert [result.text for result in results] == [result.text for result in expected]
        assert [result.token_ids for result in results] == [result.token_ids for result in expected]
        assert any(len(result.token_ids) > 16 for result in results)


def test_a_file_a_folder_and_a_string_are_the_same_model(tmp_path: Path) -> None:
    write_model(tmp_path / "some-Q8_0.gguf")
    (tmp_path / "mmproj-F16.gguf").write_bytes(b"GGUF")
    (tmp_path / "config.json").write_text("{}")  # a repository of GGUF files may have one; the file's own metadata counts
    answers = [
        DiffusionGemmaModel.from_pretrained(name).generate(PROMPTS[0], **OPTIONS, seed=0).token_ids
        for name in (tmp_path, str(tmp_path), tmp_path / "some-Q8_0.gguf", str(tmp_path / "some-Q8_0.gguf"))
    ]
    assert all(answer == answers[0] for answer in answers)


def test_a_file_is_known_by_its_first_bytes_too(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf")
    shutil.move(tmp_path / "m.gguf", tmp_path / "sha256-1234")
    assert DiffusionGemmaModel.from_pretrained(tmp_path / "sha256-1234").config.text.num_experts == 4


def test_several_files_in_a_folder(tmp_path: Path) -> None:
    for name in ("a-Q4_0.gguf", "a-Q8_0.gguf"):
        write_model(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"several GGUF files: a-Q4_0\.gguf, a-Q8_0\.gguf; give the path of one"):
        DiffusionGemmaModel.from_pretrained(tmp_path)


def test_quantised_matrices_take_no_memory_of_their_own(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", "Q4_0")
    model = DiffusionGemmaModel.from_pretrained(tmp_path / "m.gguf")
    packed = dict(model.transformer.packed())
    assert set(packed) >= {"embed_tokens.weight", "layers.0.experts.gate_up_proj", "self_conditioning.up_proj.weight"}
    plain = sum(weight.numel() for weight in model.transformer.parameters())
    # Norms and routers.
    assert plain < 0.03 * sum(torch.Size(record.shape).numel() for record in packed.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(dtype: str, tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf")
    model = DiffusionGemmaModel.from_pretrained(tmp_path / "m.gguf", dtype=dtype)
    assert str(model.dtype) == f"torch.{dtype}"
    assert model.generate(PROMPTS[0], **OPTIONS).token_ids


def test_the_sampler_s_defaults_and_the_template_come_from_the_file(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}一"
    write_model(tmp_path / "m.gguf", change={"diffusion.eb_max_steps": 5, "tokenizer.chat_template": template})
    model = DiffusionGemmaModel.from_pretrained(tmp_path / "m.gguf")
    assert model.defaults.num_diffusion_steps == 5
    assert model.tokenizer.template is not None
    assert model.tokenizer.template.render([{"role": "user", "content": "丁"}]) == "丁一"


def test_an_end_token_outside_the_vocabulary(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", change={"tokenizer.ggml.eos_token_id": 4000})
    with pytest.raises(CheckpointError, match="the end token is 4000; it must be from 0 to 319"):
        DiffusionGemmaModel.from_pretrained(tmp_path / "m.gguf")


def test_a_vocabulary_larger_than_the_embedding(tmp_path: Path) -> None:
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(chr(0x4E00 + i) for i in range(400))]
    change = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1] * len(tokens), "tokenizer.ggml.merges": None}
    write_model(tmp_path / "m.gguf", change=change)
    with pytest.raises(CheckpointError, match="the vocabulary has 404 tokens, the embedding 320 rows"):
        DiffusionGemmaModel.from_pretrained(tmp_path / "m.gguf")


def test_sizes_that_do_not_fit_name_the_file(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", change={f"{ARCH}.expert_used_count": 9})
    with pytest.raises(ConfigError, match=r"m\.gguf: its metadata, .* top_k_experts 9 exceeds num_experts 4"):
        gguf_config(GGUFFile(tmp_path / "m.gguf"))


def test_info(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", "Q4_0")
    result = CliRunner().invoke(app, ["info", str(tmp_path / "m.gguf"), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    file = GGUFFile(tmp_path / "m.gguf")
    assert set(report["stored"]) == {"gguf-q4_0", "plain"}
    weights = file.nbytes - file.tensors["rope_freqs.weight"].nbytes
    assert sum(kind["bytes"] for kind in report["stored"].values()) == weights == report["weight_bytes"]["float32"]
    assert report["vocab_size"] == SHAPE["vocab"]
    shown = CliRunner().invoke(app, ["info", str(tmp_path)])
    assert "stored as" in shown.stdout and "gguf-q4_0" in shown.stdout


def test_info_of_what_is_converted(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", "BF16")
    report = json.loads(CliRunner().invoke(app, ["info", str(tmp_path / "m.gguf"), "--json"]).stdout)
    assert "stored" not in report
    assert report["weight_bytes"]["float32"] == 4 * (report["parameters"] + 2 * report["layers"])  # and its scalars


def test_generate_on_the_command_line(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf")
    arguments = ["generate", PROMPTS[0], "--model", str(tmp_path / "m.gguf"), "--max-tokens", "16", "--seed", "3", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    expected = DiffusionGemmaModel.from_pretrained(tmp_path / "m.gguf").generate(PROMPTS[0], max_tokens=16, seed=3)
    assert expected.text  # random weights: another seed may begin with the end token
    assert json.loads(result.stdout)["text"] == expected.text


def test_an_error_on_the_command_line(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", architecture="gemma3")
    for command in (["info", str(tmp_path / "m.gguf")], ["generate", "Hi", "--model", str(tmp_path / "m.gguf")]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2
        assert "architecture 'gemma3'" in " ".join((result.stdout + result.stderr).split())


def test_it_saves_as_a_bfloat16_checkpoint(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, DiffusionGemmaForBlockDiffusion

    values = write_model(
        tmp_path / "m.gguf", change={"tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    )
    model = DiffusionGemmaModel.from_pretrained(tmp_path / "m.gguf")
    model.save_pretrained(tmp_path / "saved", dequantize=True)
    again = DiffusionGemmaModel.from_pretrained(tmp_path / "saved")
    assert set(again.transformer.state_dict()) == set(values)
    for name, tensor in again.transformer.state_dict().items():
        assert torch.equal(tensor, values[name].bfloat16().float()), name
    assert again.config.text == model.config.text
    assert (again.defaults, again.stop_ids) == (model.defaults, model.stop_ids)
    assert again.tokenizer.encode(PROMPTS[1]) == model.tokenizer.encode(PROMPTS[1])
    assert again.tokenizer.template is not None

    theirs = DiffusionGemmaForBlockDiffusion.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert theirs.config.text_config.num_experts == 4
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").encode(PROMPTS[0], add_special_tokens=False) == model.tokenizer.encode(
        PROMPTS[0]
    )


def test_int8_at_load(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", "Q8_0")
    model = DiffusionGemmaModel.from_pretrained(tmp_path / "m.gguf", quantize="int8")
    assert model.generate(PROMPTS[0], **OPTIONS).token_ids
    kinds = {name: record.kind for name, record in model.transformer.packed()}
    assert "gguf-q8_0" not in {kinds["layers.0.mlp.up_proj.weight"], kinds["embed_tokens.weight"]}


def test_results_of_an_evaluation_know_the_file(tmp_path: Path) -> None:
    from diffusiongemma.evals.results import fingerprint

    write_model(tmp_path / "a.gguf")
    write_model(tmp_path / "b.gguf", seed=1)
    one, same, other = (fingerprint(DiffusionGemmaModel.from_pretrained(tmp_path / f"{name}.gguf")) for name in "aab")
    assert one == same != other


def test_bench(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf")
    arguments = ["bench", "--preset", str(tmp_path / "m.gguf"), "--repeat", "1", "--steps", "2", "--prompt", "8", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["sides"]["diffusiongemma"]["weight_bytes"] > 0.9 * GGUFFile(tmp_path / "m.gguf").nbytes
