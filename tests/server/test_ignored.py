"""What clients send beside our fields: followed where it has a meaning, else reported, or refused."""

import json
from dataclasses import replace

import openai

from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.server.ignored import IGNORED
from tests.server.running import Running, running
from tests.server.test_chat import ASKED, FREE
from tests.server.test_texts import AFTER, BEFORE, post

THEIRS = {"frequency_penalty": 0.5, "presence_penalty": 0, "logit_bias": {"5": 1}, "user": "me", "service_tier": "flex"}
NAMES = ["frequency_penalty", "logit_bias", "user", "service_tier"]


def test_an_answer_says_what_was_not_followed(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model="nano", messages=ASKED, seed=1)
    answer = client.chat.completions.with_raw_response.create(model="nano", messages=ASKED, seed=1, **THEIRS)
    assert sorted(answer.headers[IGNORED].split(", ")) == sorted(NAMES)
    parsed = answer.parse()
    assert sorted(parsed.ignored) == sorted(NAMES)
    assert parsed.choices[0].message.content == plain.choices[0].message.content
    assert "ignored" not in plain.model_extra


def test_a_stream_says_it_too(server: Running) -> None:
    body = {"messages": ASKED, "stream": True, "stream_options": {"include_usage": True}, "user": "me"}
    answer = post(server, "chat/completions", **body)
    assert answer.headers[IGNORED] == "user"
    last = answer.text.split("\n\n")[-3].removeprefix("data: ")
    assert json.loads(last)["ignored"] == ["user"]


def test_a_strict_server_refuses_it(nano: DiffusionGemmaModel) -> None:
    with running(nano, strict=True) as server:
        assert post(server, "chat/completions", messages=ASKED, presence_penalty=0).status_code == 200
        refused = post(server, "chat/completions", messages=ASKED, user="me")
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "user"
        inside = post(server, "chat/completions", messages=[FREE[0] | {"name": "me"}])
        assert inside.status_code == 400 and inside.json()["error"]["param"] == "messages[0].name"


def test_what_shapes_the_draw_does(client: openai.OpenAI, nano: DiffusionGemmaModel) -> None:
    options = {"seed": 4, "max_tokens": 24}
    causal = {"mode": "causal", "temperature": 1.5}
    own = nano.generate(messages=FREE, top_p=0.5, **options, **causal)
    answer = client.chat.completions.create(
        model="nano", messages=FREE, top_p=0.5, temperature=1.5, **options, extra_body={"mode": "causal", "top_k": -1}
    )
    assert answer.choices[0].message.content == own.text != nano.generate(messages=FREE, **options, **causal).text


def test_other_ways_to_say_unset(server: Running) -> None:
    plain = post(server, "chat/completions", messages=ASKED, seed=1).json()
    body = {"seed": 1, "max_tokens": -1, "top_k": 0, "tools": [], "tool_choice": "auto", "parallel_tool_calls": True}
    answer = post(server, "chat/completions", messages=ASKED, **body).json()
    assert answer["choices"] == plain["choices"]
    seeds = {post(server, "completions", prompt="def f(", seed=-1, max_tokens=24).json()["choices"][0]["text"] for _ in range(5)}
    assert len(seeds) > 1


def test_a_prompt_of_token_ids_is_taken_as_it_is(server: Running, nano: DiffusionGemmaModel) -> None:
    plain = server.state.models["nano"].plain
    texts = ["def area(", "import "]
    options = {"seed": 1, "max_tokens": 8}
    said = post(server, "completions", prompt=texts, **options).json()
    both = post(server, "completions", prompt=[plain(text) for text in texts], **options).json()
    assert (both["choices"], both["usage"]["prompt_tokens"]) == (said["choices"], said["usage"]["prompt_tokens"])
    one = post(server, "completions", prompt=plain(texts[0]), **options).json()
    assert one["choices"] == said["choices"][:1]
    [request] = nano.requests(prompt_ids=[plain(texts[0])], **options)
    assert request.prompt == plain(texts[0]) and replace(request.params, stop=()) == nano.defaults.replaced(**options)


def test_stop_strings_cut_an_infill_off(server: Running) -> None:
    options = {"max_tokens": 6, "seed": 1, "num_diffusion_steps": 4}
    whole = post(server, "fim/completions", prompt=BEFORE, suffix=AFTER, **options).json()["choices"][0]["text"]
    assert len(whole) > 2
    answer = post(server, "fim/completions", prompt=BEFORE, suffix=AFTER, stop=["\x00", whole[2]], **options).json()
    assert answer["choices"][0]["text"] == whole[: whole.index(whole[2])]
