"""Arguments of the wrong type or size are our errors, at once: none is computed with, none is allocated for."""

from collections.abc import Callable
from typing import Any

import pytest

from diffusiongemma import Choice, Predicate, Score
from diffusiongemma.errors import DiffusionGemmaError
from diffusiongemma.generation import DiffusionGemmaModel

Call = Callable[[DiffusionGemmaModel], Any]
SPAN = {"prefix": "a", "suffix": "b", "max_tokens": 2, "num_diffusion_steps": 1}


@pytest.fixture(scope="module")
def sudoku() -> DiffusionGemmaModel:
    return DiffusionGemmaModel.from_pretrained("sudoku")


@pytest.mark.parametrize(
    ("call", "needle"),
    [
        (lambda m: m.generate(5), "the prompt is of type int"),
        (lambda m: m.generate([None]), "prompt 0 is of type NoneType"),
        (lambda m: m.generate(messages=[None]), r"messages\[0\] is 'None'"),
        (lambda m: m.generate("1", seeds=[None]), "seeds is \\[None\\]; each"),
        (lambda m: m.generate("1", seeds=5), "seeds is 5; give a list"),
        (lambda m: m.generate("1", tools=5), "tools is of type int"),
        (lambda m: m.generate("1", stop=5), "stop is 5"),
        (lambda m: m.generate("1", stop=[None]), "stop is"),
        (lambda m: m.requests("1", mode="causal", canvas_length=1 << 16), "canvas_length is 65536; this checkpoint's is"),
        (lambda m: m.infill(**SPAN | {"max_tokens": 1.5}), "has 1 to 1.5 tokens"),
        (lambda m: m.infill(**SPAN | {"min_tokens": None}), "has None to 2 tokens"),
        (lambda m: m.infill(**SPAN | {"max_tokens": 1 << 24}), "the spans may have 16,777,216 tokens together"),
        (lambda m: m.infill(**SPAN | {"max_tokens": 10**30}), "the model has"),
        (lambda m: m.infill(**SPAN | {"tries": 10**30}), "tries from 1 to 1024"),
        (lambda m: m.infill(**SPAN | {"tries": None}), "tries from 1 to 1024"),
        (lambda m: m.infill(**SPAN | {"prompt": 5}), "the prompt is of type int"),
        (lambda m: m.fill(None), "the template is of type NoneType"),
        (lambda m: m.fill("{{a:1-999999999}}"), "the spans may have 999,999,999 tokens"),
        (lambda m: m.edit("1", None), "the instruction is None"),
        (lambda m: m.vary("1", 0.5, 10**30), "it must be from 1 to 100,000"),
        (lambda m: m.decide("1", None), "questions is of type NoneType"),
        (lambda m: m.decide("1", [None]), "None is no question"),
        (lambda m: m.decide("1", [Predicate("a", "", "1", "2")], template=5), "the template is of type int"),
        (lambda m: m.decide("1", [Predicate("a", "", "1", "2")], threshold="x"), "threshold is 'x'"),
        (lambda m: m.decide("1", [Predicate("a", "", "1", "2")], draws=None), "draws is None"),
        (lambda m: m.decide("1", [Choice("a", None)]), "the options of a are None"),  # type: ignore[arg-type]
        (lambda m: m.decide("1", [Choice(None, ["1", "2"])]), "is no question with a name"),  # type: ignore[arg-type]
        (lambda m: m.decide("1", [Score("a", None, 5)]), "runs from None to 5"),  # type: ignore[arg-type]
        (lambda m: m.generate("1", choices=5), "choices are a list of strings"),
        (lambda m: m.generate("1", response_format=5), "response_format is 5"),
        (lambda m: m.generate("1", logprobs="many"), "logprobs is 'many'"),
        (lambda m: m.generate("1", mode=[]), "mode is \\[\\]"),
        (lambda m: m.generate("1", n=0), "n is 0"),
        (lambda m: m.generate([]), "there is no prompt"),
        (lambda m: m.generate_iter("12"), "prompts is of type str"),
        (lambda m: m.generate_iter(["1"], seeds=[1]), "seeds is \\[1\\]"),
        (lambda m: m.save_pretrained(5), "the folder is 5 of type int"),
        (lambda m: m.new_cache("2"), "batch_size is '2'"),
        (lambda m: m.encode([[1]], m.new_cache()), "token ids are of type list"),
        (lambda m: m.from_pretrained(5), "5 is of type int"),
        (lambda m: m.from_pretrained(b"nano"), "b'nano' is of type bytes"),
        (lambda m: m.from_pretrained("sudoku", device=[]), r"device '\[\]'"),
    ],
)
def test_misuse_is_our_error(sudoku: DiffusionGemmaModel, call: Call, needle: str) -> None:
    with pytest.raises(DiffusionGemmaError, match=needle) as caught:
        call(sudoku)
    assert len(str(caught.value)) < 1000
