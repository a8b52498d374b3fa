"""Completions, infilling, edits and decisions."""

import json

import httpx
import openai
import pytest

from diffusiongemma import Choice, Predicate
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.generation.score import log_probs, prompt_logprobs
from tests.server.running import Running
from tests.server.test_chat import QUESTION

BEFORE, AFTER = '{"temperature": -1.8, "site": "', '", "humidity": 43}'
OLD = '{"temperature": -1.8, "site": "zzz", "humidity": 43, "time": "15:15", "sensor": "v87"}'
SYLLOGISM = (
    "Consider these statements:\n1. All animals are ants\n2. All ants are whales\n\nDoes it logically follow that:\n"
    "Some animals are whales?\n(Answer Yes or No)"
)


def post(server: Running, path: str, **body: object) -> httpx.Response:
    return server.http.post(f"/v1/{path}", json=body)


def test_a_completion_goes_on_with_plain_text(client: openai.OpenAI, server: Running) -> None:
    options = {"model": "nano", "seed": 1, "max_tokens": 8, "extra_body": {"num_diffusion_steps": 4}}
    answer = client.completions.create(prompt=["def area(", "import "], **options)
    assert [choice.index for choice in answer.choices] == [0, 1]
    plain = server.state.models["nano"].plain
    assert answer.usage.prompt_tokens == len(plain("def area(")) + len(plain("import "))
    alone = client.completions.create(prompt="import ", logprobs=1, **options)
    assert alone.choices[0].text == answer.choices[1].text
    logprobs = alone.choices[0].logprobs
    assert "".join(logprobs.tokens) == alone.choices[0].text
    assert logprobs.text_offset == [sum(map(len, logprobs.tokens[:at])) for at in range(len(logprobs.tokens))]
    assert logprobs.source == "causal"
    streamed = client.completions.create(prompt="import ", stream=True, stream_options={"include_usage": True}, **options)
    *parts, last = list(streamed)
    assert "".join(part.choices[0].text for part in parts) == alone.choices[0].text
    assert last.usage.total_tokens == alone.usage.total_tokens


def test_a_suffix_makes_it_an_infill(client: openai.OpenAI, server: Running, nano: DiffusionGemmaModel) -> None:
    options = {"max_tokens": 4, "num_diffusion_steps": 4, "seed": 1}
    own = nano.infill(BEFORE, AFTER, **options).spans["span"]
    body = {"prompt": BEFORE, "suffix": AFTER, "max_tokens": 4, "num_diffusion_steps": 4, "seed": 1}
    answer = client.completions.create(model="nano", prompt=BEFORE, suffix=AFTER, max_tokens=4, seed=1, extra_body=body)
    assert answer.choices[0].text == own
    assert answer.usage.completion_tokens == len(answer.choices[0].token_ids)
    fim = post(server, "fim/completions", **body)
    assert fim.json()["choices"][0]["text"] == own
    stream = post(server, "fim/completions", **body, stream=True, diffusing=True).text.split("\n\n")
    names = [block.split("\n")[0].removeprefix("event: ") for block in stream if block.startswith("event: ")]
    assert {"draft", "commit", "finish"} <= set(names)
    chunks = [json.loads(block.removeprefix("data: ")) for block in stream[:-2] if block.startswith("data: ")]
    assert [chunk["choices"][0]["text"] for chunk in chunks] == [own]
    assert stream[-2] == "data: [DONE]"


def test_without_a_suffix_fim_is_a_completion(server: Running) -> None:
    body = {"prompt": "import ", "seed": 1, "max_tokens": 8, "num_diffusion_steps": 4}
    assert post(server, "fim/completions", **body).json()["choices"] == post(server, "completions", **body).json()["choices"]


def test_an_edit(server: Running, nano: DiffusionGemmaModel) -> None:
    own = nano.edit(OLD, QUESTION, in_prompt=False, seed=1)
    body = {"input": OLD, "instruction": QUESTION, "in_prompt": False, "seed": 1}
    answer = post(server, "edit/completions", **body).json()
    assert answer["choices"][0]["message"]["content"] == own.text
    assert answer["usage"]["completion_tokens"] == own.usage.completion_tokens
    stream = post(server, "edit/completions", **body, stream=True).text.split("\n\n")
    assert json.loads(stream[0].removeprefix("data: "))["choices"][0]["delta"]["content"] == own.text


def test_an_edit_in_mercurys_shape(server: Running, nano: DiffusionGemmaModel) -> None:
    content = f"{QUESTION}\n<|code_to_edit|>\n{OLD[:20]}<|cursor|>{OLD[20:]}\n<|/code_to_edit|>\n"
    own = nano.edit(OLD, content, in_prompt=False, seed=1, max_tokens=64)
    answer = post(server, "edit/completions", messages=[{"role": "user", "content": content}], seed=1, max_tokens=64).json()
    assert answer["choices"][0]["message"]["content"] == own.text


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", {"prompt": "a", "suffix": "b", "n": 2}, "n"),
        ("completions", {"prompt": "a", "suffix": "b", "logprobs": 1}, "logprobs"),
        ("completions", {"prompt": ["a"], "suffix": "b"}, "prompt"),
        ("completions", {"prompt": [1, 10**6]}, "prompt"),
        ("completions", {"prompt": [[1], []]}, "prompt[1]"),
        ("completions", {"prompt": [1, 2], "suffix": "b"}, "prompt"),
        ("fim/completions", {"suffix": "b"}, "prompt"),
        ("edit/completions", {"input": "a"}, "instruction"),
        ("edit/completions", {"messages": [{"role": "user", "content": "no marks"}]}, "messages"),
        ("edit/completions", {"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ("decisions", {"input": "a", "questions": []}, "questions"),
        ("decisions", {"input": "a", "questions": [{"type": "guess", "instructions": "x"}]}, "questions[0]"),
        ("decisions", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}], "questions": [
            {"type": "predicate", "instructions": "x"}]}, "input[0].content[0].type"),
    ],
)  # fmt: skip
def test_what_is_not_done_is_refused(server: Running, path: str, body: dict, param: str) -> None:
    answer = post(server, path, **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param, answer.text


def test_decisions(client: openai.OpenAI, nano: DiffusionGemmaModel) -> None:
    choices = [{"value": "ants"}, {"value": "whales", "description": "in the sea"}, {"value": True}]
    questions = [
        {"type": "predicate", "name": "follows", "instructions": ""},
        {"type": "choice", "instructions": "Which?", "choices": choices},
        {"type": "score", "name": "sure", "instructions": "How sure?", "levels": [{"label": "low"}, {"label": "high"}]},
    ]
    answer = client.decisions.create(model="nano", input=SYLLOGISM, questions=questions)
    asked = [
        Predicate("a"),
        Choice("b", ["ants", "whales", "true"], "Which?\nwhales: in the sea"),
        Choice("c", ["low", "high"], "How sure?"),
    ]
    own = nano.decide(SYLLOGISM, asked)
    follows, which, sure = answer.answers
    assert (follows.type, follows.name) == ("predicate", "follows")
    assert follows.probability == pytest.approx(own["a"].probabilities["Yes"], abs=1e-5)
    assert (which.type, which.name) == ("choice", None)
    assert [pair.value for pair in which.probabilities] == ["ants", "whales", True]
    assert [pair.probability for pair in which.probabilities] == pytest.approx(list(own["b"].probabilities.values()), abs=1e-5)
    assert which.confidence == max(pair.probability for pair in which.probabilities)
    assert [(pair.value, pair.label) for pair in sure.probabilities] == [(0, "low"), (1, "high")]
    assert sure.score == pytest.approx(sure.probabilities[1].probability)
    assert answer.usage.input_tokens == answer.usage.total_tokens > 3 * len(nano.tokenizer.encode(SYLLOGISM))
    assert answer.usage.output_tokens == 0


def test_many_questions_are_decided_as_if_alone(client: openai.OpenAI) -> None:
    questions = [{"type": "predicate", "instructions": f"Is it {number}?"} for number in range(20)]
    answer = client.decisions.create(model="nano", input=SYLLOGISM, questions=questions)
    assert 2 <= answer.usage.diffusion["passes"] < 10
    for place in (0, 15, 16, 19):
        alone = client.decisions.create(model="nano", input=SYLLOGISM, questions=[questions[place]])
        assert answer.answers[place].probability == pytest.approx(alone.answers[0].probability, abs=1e-4)


def test_a_decision_below_the_threshold_is_a_refusal(client: openai.OpenAI) -> None:
    question = {"type": "choice", "name": "q", "instructions": "", "choices": [{"value": "a"}, {"value": "b"}]}
    said = [{"role": "user", "content": [{"type": "input_text", "text": "a or b?"}]}]
    answer = client.decisions.create(model="nano", input=said, questions=[question], extra_body={"threshold": 1.0})
    assert (answer.answers[0].type, answer.answers[0].name) == ("refusal", "q")


def test_echo_gives_the_prompt_and_what_the_causal_role_thinks_of_it(
    client: openai.OpenAI, server: Running, nano: DiffusionGemmaModel
) -> None:
    """As evaluation harnesses ask for it: the log-probabilities of a text that is there."""
    options = {"model": "nano", "seed": 1, "max_tokens": 1, "extra_body": {"num_diffusion_steps": 2}}
    ids = server.state.models["nano"].plain("def area(")
    for prompt in ("def area(", ids):
        [choice] = client.completions.create(prompt=prompt, echo=True, logprobs=2, **options).choices
        entries = choice.logprobs
        assert choice.text.startswith("def area(") and len(entries.tokens) == len(ids) + 1
        assert entries.token_logprobs[0] is None and entries.top_logprobs[0] is None
        scored = nano.score(None, "def area(", end=False)
        assert entries.token_logprobs[1 : len(ids)] == pytest.approx(scored.logprobs, abs=1e-4)
        assert all(len(top) == 2 for top in entries.top_logprobs[1:])
        assert "".join(entries.tokens[1:]).startswith("def area(") and entries.text_offset[:2] == [0, 0]
    both = client.completions.create(prompt=["a = ", "b = "], echo=True, n=2, **options).choices
    assert [choice.text[:4] for choice in both] == ["a = ", "a = ", "b = ", "b = "] and both[0].logprobs is None
    refused = post(server, "completions", prompt="a", echo=True, stream=True)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "echo"
    plain = post(server, "completions", prompt="a = ", echo=False, max_tokens=1, seed=1)
    assert plain.status_code == 200 and not plain.json()["choices"][0]["text"].startswith("a = ")


def test_the_log_probabilities_of_a_long_prompt_come_in_pieces(nano: DiffusionGemmaModel) -> None:
    ids = nano.tokenizer.encode("x = 1\n" * 300)
    calls: list[None] = []
    told = prompt_logprobs(nano.transformer, ids, 0, lambda work: (calls.append(None), work()))
    assert len(told) == len(ids) and len(calls) > 1
    [whole] = log_probs(nano.transformer, ids[:1], [ids[1:]])
    assert [one.logprob for one in told[1:]] == pytest.approx(whole, abs=1e-4)
