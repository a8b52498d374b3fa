"""Ollama's protocol, through its own client."""

import ollama
import pytest

from diffusiongemma.generation import DiffusionGemmaModel
from tests.server.running import Running
from tests.server.test_chat import ASKED, FREE, QUESTION
from tests.server.test_texts import AFTER, BEFORE

NOTE = {
    "type": "function",
    "function": {"name": "note", "description": "Write a note.", "parameters": {
        "type": "object", "properties": {"text": {"type": "string", "maxLength": 6}}, "required": ["text"]}},
}  # fmt: skip
OPTIONS = {"seed": 1, "temperature": 0.5, "top_k": 20, "num_predict": 60, "num_ctx": 2048}


@pytest.fixture(scope="module")
def theirs(server: Running) -> ollama.Client:
    return ollama.Client(host=server.url)


def test_models(theirs: ollama.Client, nano: DiffusionGemmaModel) -> None:
    [entry] = theirs.list().models
    assert entry.model == "nano" and entry.size == nano.checkpoint.bytes > 1_000_000
    shown = theirs.show("nano:latest")
    assert {"completion", "insert", "tools"} <= set(shown.capabilities)
    assert shown.modelinfo["general.parameter_count"] == nano.checkpoint.parameters


def test_a_chat(theirs: ollama.Client, nano: DiffusionGemmaModel) -> None:
    own = nano.generate(messages=ASKED, seed=1, temperature=0.5, top_k=20, max_tokens=60)
    answer = theirs.chat("nano", messages=ASKED, options=OPTIONS)
    assert (answer.message.content, answer.done, answer.done_reason) == (own.text, True, "stop")
    assert (answer.prompt_eval_count, answer.eval_count) == (own.usage.prompt_tokens, own.usage.completion_tokens)
    assert answer.total_duration >= answer.eval_duration > 0
    parts = list(theirs.chat("nano:latest", messages=ASKED, options=OPTIONS, stream=True))
    assert "".join(part.message.content for part in parts) == own.text
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert theirs.chat("nano", messages=ASKED, options={"num_predict": 3}).done_reason == "length"


def test_formats(theirs: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": False}
    answer = theirs.chat("nano", messages=ASKED, format=schema, options=OPTIONS)
    assert answer.message.content.startswith('{"age":')
    assert theirs.generate("nano", QUESTION, format="json", options=OPTIONS).response.startswith("{")


def test_generation_raw_and_with_a_suffix(theirs: ollama.Client, nano: DiffusionGemmaModel) -> None:
    options = {"seed": 1, "num_predict": 6}
    own = nano.generate(QUESTION, seed=1, max_tokens=60, temperature=0.5, top_k=20)
    assert theirs.generate("nano", QUESTION, options=OPTIONS).response == own.text
    plain = nano.generate("def area(", raw=True, seed=1, max_tokens=6)
    assert theirs.generate("nano", "def area(", raw=True, options=options).response == plain.text
    streamed = theirs.generate("nano", "def area(", raw=True, options=options, stream=True)
    assert "".join(part.response for part in streamed) == plain.text
    hole = nano.infill(BEFORE, AFTER, seed=1, max_tokens=6).spans["span"]
    assert theirs.generate("nano", BEFORE, suffix=AFTER, options=options).response == hole
    parts = list(theirs.generate("nano", BEFORE, suffix=AFTER, options=options, stream=True))
    assert "".join(part.response for part in parts) == hole and parts[-1].done


def test_a_call_and_its_result(theirs: ollama.Client) -> None:
    """nano answers in words: it was not taught to call. Its history may have calls all the same."""
    call = {"function": {"name": "note", "arguments": {"text": "x"}}}
    said = [*FREE, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_name": "note", "content": "done"}]
    answer = theirs.chat("nano", messages=said, tools=[NOTE], options={"num_predict": 8, "seed": 1})
    assert answer.prompt_eval_count > theirs.chat("nano", messages=FREE, options={"num_predict": 8}).prompt_eval_count
    streamed = list(theirs.chat("nano", messages=said, tools=[NOTE], options={"num_predict": 8, "seed": 1}, stream=True))
    assert "".join(part.message.content for part in streamed) == answer.message.content


def test_errors(theirs: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="there is no model 'llama'") as missing:
        theirs.chat("llama", messages=FREE)
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="images are not read"):
        theirs.chat("nano", messages=[{"role": "user", "content": "x", "images": [b"abc"]}])
    with pytest.raises(ollama.ResponseError, match="temperature"):
        theirs.chat("nano", messages=FREE, options={"temperature": 9})
    with pytest.raises(ollama.ResponseError, match="answers a call that is not there"):
        theirs.chat("nano", messages=[{"role": "tool", "content": "x"}])
