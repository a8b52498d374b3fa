"""Tokenizer, chat template and sampling defaults, held against what is published."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.errors import DiffusionGemmaError
from diffusiongemma.generation.check.published import published
from diffusiongemma.generation.check.report import Row, listed
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.options import PromptOptions
from diffusiongemma.text.files import is_there, read_json
from diffusiongemma.text.prompts import prompt_ids
from diffusiongemma.text.tokenizer import Tokenizer

__all__ = ["check_generation", "check_texts"]

_EMPTY_THOUGHT = 4  # tokens at the end of the published prompt that templates without it leave out


def check_texts(folder: Path, config: ModelConfig, the_26b: bool) -> Iterator[Row]:
    """Rows on tokenizer and prompts.

    Args:
        folder: the checkpoint.
        config: its configuration.
        the_26b: whether the published ids are those of this model.
    """
    if not is_there(folder / "tokenizer.json"):
        yield Row("tokenizer", "not checked", "there is no tokenizer.json")
        return
    try:
        tokenizer = Tokenizer.from_folder(folder)
    except DiffusionGemmaError as error:
        yield Row("tokenizer", "damaged", str(error))
        return
    size, asked = tokenizer.vocab_size, config.text.vocab_size
    yield Row("tokenizer", "agrees" if size <= asked else "differs", f"{size:,} tokens; config.json has {asked:,}")
    prompts = (("prompt", published().prompt, None), ("prompt with thinking", published().prompt_thinking, True))
    if not the_26b:
        yield Row("control tokens", "not applicable", "published for the 26B")
        yield from (Row(what, "not applicable", "published for the 26B") for what, _, _ in prompts)
        return
    tokens = published().control_tokens
    wrong = [
        f"{number} is {tokenizer.content(number)!r}, not {text!r}"
        for text, number in tokens.items()
        if tokenizer.content(number) != text
    ]
    yield Row(
        "control tokens",
        "differs" if wrong else "agrees",
        listed(wrong) if wrong else f"all {len(tokens)} have their published ids",
    )
    for what, expected, thinking in prompts:
        yield _prompt(tokenizer, what, expected, thinking)


def _prompt(tokenizer: Tokenizer, what: str, expected: list[int], thinking: bool | None) -> Row:
    if tokenizer.template is None:
        return Row(what, "not checked", "the checkpoint has no chat template")
    try:
        result = prompt_ids(tokenizer, published().question, options=PromptOptions(enable_thinking=thinking))[0]
    except DiffusionGemmaError as error:
        return Row(what, "differs", f"the chat template refuses it: {error}")
    if result == expected:
        return Row(what, "agrees", f"the {len(expected)} published ids")
    if not thinking and result == expected[:-_EMPTY_THOUGHT]:
        return Row(
            what, "agrees", "the published ids but for the empty thought, which this version of the template leaves to the model"
        )
    at = next((i for i, (a, b) in enumerate(zip(result, expected, strict=False)) if a != b), min(len(result), len(expected)))
    return Row(what, "differs", f"from place {at}: {result[at : at + 6]}, published {expected[at : at + 6]}")


def check_generation(folder: Path, config: ModelConfig, the_26b: bool) -> Iterator[Row]:
    """Rows on generation_config.json."""
    if not is_there(folder / "generation_config.json"):
        yield Row("sampling defaults", "not checked", "there is no generation_config.json")
        return
    try:
        data = read_json(folder / "generation_config.json")
        SamplingParams.from_generation_config(data)
    except DiffusionGemmaError as error:
        yield Row("sampling defaults", "damaged", str(error))
        return
    if not the_26b:
        yield Row("sampling defaults", "not applicable", "published for the 26B; what is here can be read")
        return
    wrong = [
        f"{name} is {data.get(name)!r}, not {value!r}"
        for name, value in published().generation_config.items()
        if not _same(data, name, value)
    ]
    yield Row(
        "sampling defaults", "differs" if wrong else "agrees", listed(wrong) if wrong else "generation_config.json as published"
    )


def _same(data: Mapping[str, Any], name: str, value: Any) -> bool:
    return bool(data.get(name) == value)
