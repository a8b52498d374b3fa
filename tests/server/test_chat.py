"""Chats, through OpenAI's own client and a real socket."""

import json
import math

import openai
import pytest

from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.generation.roles import RoleRates, Roles
from tests.server.running import Running

QUESTION = (
    "Extract as JSON: temperature (number), site (string), humidity (integer), time (string), sensor (string)\n"
    "Sensor v87 at Gilvyburg measured a humidity of 43 and a temperature of -1.8 at 15:15."
)
ASKED = [{"role": "user", "content": QUESTION}]
FREE = [{"role": "user", "content": "Say something about the sea."}]


def events(server: Running, body: dict) -> list[tuple[str | None, dict | str]]:
    """All events of a stream: the name and the data of each."""
    result = []
    with server.http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        for block in response.read().decode().split("\n\n")[:-1]:
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            data = fields["data"]
            result.append((fields.get("event"), data if data == "[DONE]" else json.loads(data)))
    return result


def test_models_are_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "nano"
    assert model.diffusiongemma["canvas_length"] == 64
    assert client.models.retrieve("nano").diffusiongemma["chat"] is True


def test_an_answer_is_the_models_own(client: openai.OpenAI, nano: DiffusionGemmaModel) -> None:
    own = nano.generate(messages=ASKED, seed=1)
    answer = client.chat.completions.create(model="nano", messages=ASKED, seed=1, user="somebody")
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason, choice.token_ids) == (own.text, own.finish_reason, own.token_ids)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (own.usage.prompt_tokens, own.usage.completion_tokens)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.diffusion["denoising_steps"] == own.usage.denoising_steps
    assert [canvas["steps"] for canvas in usage.diffusion["canvases"]] == [canvas.steps for canvas in own.canvases]


def test_a_stream_is_the_same_answer_in_pieces(client: openai.OpenAI) -> None:
    options = {"model": "nano", "messages": ASKED, "seed": 1, "extra_body": {"canvas_length": 16}}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    *parts, last = chunks
    assert parts[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in parts[1:-1]]
    assert len(pieces) > 1
    assert "".join(pieces) == whole.choices[0].message.content
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert all(chunk.usage is None for chunk in parts)
    assert last.choices == []
    assert last.usage.total_tokens == whole.usage.total_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_n_answers_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    body = {"num_diffusion_steps": 6, "mode": "causal", "temperature": 2}  # so hot that no two say the same
    options = {"model": "nano", "messages": FREE, "max_completion_tokens": 12, "extra_body": body}
    both = client.chat.completions.create(**options, n=2, seed=5)
    alone = [client.chat.completions.create(**options, seed=seed) for seed in (5, 6)]
    texts = [choice.message.content for choice in both.choices]
    assert texts == [answer.choices[0].message.content for answer in alone]
    assert texts[0] != texts[1]
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert both.usage.completion_tokens == sum(answer.usage.completion_tokens for answer in alone)
    streamed = ["", ""]
    for chunk in client.chat.completions.create(**options, n=2, seed=5, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_max_tokens_and_stop_end_an_answer(client: openai.OpenAI) -> None:
    short = client.chat.completions.create(model="nano", messages=ASKED, seed=1, max_tokens=5)
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == len(short.choices[0].token_ids) == 5
    cut = client.chat.completions.create(model="nano", messages=ASKED, seed=1, stop=["humidity", "nothing"])
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].message.content == '{"temperature": -1.8, "site": "Gilvyburg", "'
    streamed = client.chat.completions.create(model="nano", messages=ASKED, seed=1, stop="humidity", stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == cut.choices[0].message.content


def test_a_format_holds(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    spec = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": schema}}
    for seed in (1, 2):
        answer = client.chat.completions.create(model="nano", messages=FREE, seed=seed, response_format=spec)
        read = json.loads(answer.choices[0].message.content)
        assert set(read) == {"name", "age"}
        assert isinstance(read["name"], str)
        assert 0 <= read["age"] <= 150
    answer = client.chat.completions.create(model="nano", messages=ASKED, seed=1, response_format={"type": "json_object"})
    assert isinstance(json.loads(answer.choices[0].message.content), dict)
    for more in ({"choices": ["yes", "no"]}, {"regex": "yes|no"}, {"grammar": 'start: "yes" | "no"'}):
        answer = client.chat.completions.create(model="nano", messages=FREE, seed=1, extra_body=more)
        assert answer.choices[0].message.content in ("yes", "no")


def test_temperature_scales_the_draws_and_above_1_the_schedule(client: openai.OpenAI, nano: DiffusionGemmaModel) -> None:
    def text(seed: int, **more: object) -> str:
        answer = client.chat.completions.create(model="nano", messages=FREE, seed=seed, max_tokens=12, **more)
        return answer.choices[0].message.content

    assert text(1, temperature=1) == text(1)
    warm = nano.generate(messages=FREE, seed=1, max_tokens=12, t_min=nano.defaults.t_min * 1.5, t_max=nano.defaults.t_max * 1.5)
    assert text(1, temperature=1.5) == warm.text
    for cold in (0, 0.5):
        assert text(1, temperature=cold) == nano.generate(messages=FREE, seed=1, max_tokens=12, temperature=cold).text


def test_the_causal_role(client: openai.OpenAI, nano: DiffusionGemmaModel) -> None:
    own = nano.generate(messages=ASKED, mode="causal", seed=1)
    answer = client.chat.completions.create(model="nano", messages=ASKED, seed=1, extra_body={"mode": "causal"})
    assert answer.choices[0].message.content == own.text
    assert answer.usage.diffusion["denoising_steps"] == 0
    hot = nano.generate(messages=FREE, mode="causal", seed=1, temperature=1.5, max_tokens=8)
    options = {"temperature": 1.5, "max_tokens": 8, "extra_body": {"mode": "causal"}}
    answer = client.chat.completions.create(model="nano", messages=FREE, seed=1, **options)
    assert answer.choices[0].message.content == hot.text


def test_auto_takes_the_faster_role(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a field, or as the model's own where a request names none; what the causal role cannot do stays on a canvas."""
    endpoint = server.state.models["nano"]
    roles = Roles()
    monkeypatch.setattr(endpoint.model, "roles", roles)
    roles.rates = RoleRates(canvas_length=64, step=10.0, commit=10.0, token=0.001)

    def steps(**fields: object) -> int:
        body = {"messages": ASKED, "seed": 1, "max_tokens": 8, "num_diffusion_steps": 2, **fields}
        answer = server.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["usage"]["diffusion"]["denoising_steps"]

    assert steps(mode="auto") > 0  # no canvas has been seen of it
    assert steps(mode="auto") == 0 and steps() > 0
    assert steps(mode="auto", choices=["yes", "no"]) > 0
    monkeypatch.setattr(endpoint, "mode", "auto")
    assert steps() == 0 and steps(mode="diffusion") > 0
    assert server.http.get("/v1/models/nano").json()["diffusiongemma"]["mode"] == "auto"
    roles.rates = RoleRates(canvas_length=64, step=0.001, commit=0.001, token=1.0)
    assert steps() > 0


def test_logprobs_of_the_causal_role(client: openai.OpenAI) -> None:
    options = {"model": "nano", "messages": ASKED, "seed": 1, "logprobs": True, "top_logprobs": 2}
    answer = client.chat.completions.create(**options)
    result = answer.choices[0].logprobs
    assert result.source == "causal"
    assert bytes(byte for token in result.content for byte in token.bytes).decode() == answer.choices[0].message.content
    for token in result.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 2
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1 + 1e-5
    streamed = client.chat.completions.create(**options, stream=True)
    pieces = [chunk.choices[0].logprobs for chunk in streamed]
    assert [token.token for piece in pieces if piece for token in piece.content] == [token.token for token in result.content]


def test_diffusing_shows_every_step(server: Running) -> None:
    body = {"messages": ASKED, "seed": 1, "canvas_length": 16, "max_tokens": 30, "num_diffusion_steps": 5, "diffusing": True}
    result = events(server, body)
    assert result[-1] == (None, "[DONE]")
    drafts = [data for name, data in result if name == "draft"]
    commits = [data for name, data in result if name == "commit"]
    (finish,) = (data for name, data in result if name == "finish")
    assert {draft["canvas"] for draft in drafts} == {0, 1}
    assert len(drafts) == finish["usage"]["diffusion"]["denoising_steps"]
    for draft in drafts:
        sizes = {len(draft[field]) for field in ("tokens", "texts", "entropy", "accepted", "pinned")}
        assert sizes == {16}
        assert draft["choices"] == []
        assert draft["object"] == "diffusion.draft"
    assert [commit["canvas"] for commit in commits] == [0, 1]
    chunks = [data for name, data in result if name is None and data != "[DONE]"]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert "".join(commit["text"] for commit in commits) == text
    assert sum(len(commit["token_ids"]) for commit in commits) == finish["usage"]["completion_tokens"] == 30
    assert [set(canvas) >= {"steps", "tokens", "seconds"} for canvas in finish["canvases"]] == [True, True]


def test_an_ordinary_client_passes_over_drafts(client: openai.OpenAI) -> None:
    options = {"model": "nano", "messages": ASKED, "seed": 1}
    plain = client.chat.completions.create(**options).choices[0].message.content
    chunks = client.chat.completions.create(**options, stream=True, extra_body={"diffusing": True})
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == plain


def test_pins_hold(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="nano", messages=ASKED, seed=1, max_tokens=40, extra_body={"pins": [[0, 125], [30, 1000]]}
    )
    ids = answer.choices[0].token_ids
    assert (ids[0], ids[30]) == (125, 1000)


def test_a_conversation_of_all_roles(client: openai.OpenAI, nano: DiffusionGemmaModel) -> None:
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "yes."}]},
        {"role": "assistant", "content": "yes", "refusal": None},
        {"role": "user", "content": "Again."},
    ]
    plain = [messages[0], {"role": "user", "content": "Say yes."}, {"role": "assistant", "content": "yes"}, messages[3]]
    own = nano.generate(messages=plain, seed=2, max_tokens=8)
    answer = client.chat.completions.create(model="nano", messages=messages, seed=2, max_tokens=8)
    assert answer.choices[0].message.content == own.text
    assert answer.usage.prompt_tokens == own.usage.prompt_tokens


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=FREE)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(model="nano", messages=FREE, extra_body={"max_token": 5})
    assert unknown.value.param == "max_token" and "did you mean max_tokens?" in str(unknown.value)
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="nano", messages=[{"role": "user", "content": "word " * 5000}])
    assert long.value.code == "context_length_exceeded"
