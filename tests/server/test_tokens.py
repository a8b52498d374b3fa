"""Tokens of texts, and llama.cpp's infill."""

import json

import pytest

from diffusiongemma.generation import DiffusionGemmaModel
from tests.server.running import Running
from tests.server.test_chat import ASKED, QUESTION
from tests.server.test_texts import AFTER, BEFORE


def at(server: Running, path: str, **body: object) -> dict:
    answer = server.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_text_and_back(server: Running, nano: DiffusionGemmaModel) -> None:
    plain = server.state.models["nano"].plain
    said = at(server, "/tokenize", model="nano", prompt=QUESTION, return_token_strs=True)
    assert said["tokens"] == plain(QUESTION) and said["count"] == len(said["tokens"]) == len(said["token_strs"])
    assert said["max_model_len"] == nano.config.text.max_position_embeddings
    alone = nano.tokenizer.encode(QUESTION, allow_special=False)
    assert at(server, "/tokenize", prompt=QUESTION, add_special_tokens=False)["tokens"] == alone
    assert at(server, "/tokenize", content=QUESTION)["tokens"] == alone
    assert at(server, "/detokenize", tokens=alone)["prompt"] == QUESTION
    asked = at(server, "/tokenize", messages=ASKED)
    [ids] = nano.prompt_ids(messages=ASKED)
    assert asked["tokens"] == ids


def test_llama_infill(server: Running, nano: DiffusionGemmaModel) -> None:
    own = nano.infill(BEFORE, AFTER, seed=1, max_tokens=6).spans["span"]
    body = {"input_prefix": BEFORE, "input_suffix": AFTER, "n_predict": 6, "seed": 1}
    answer = at(server, "/infill", **body)
    assert (answer["content"], answer["stop"], answer["model"]) == (own, True, "nano")
    text = server.http.post("/infill", json=body | {"stream": True}).text
    lines = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]
    assert "".join(line["content"] for line in lines) == own and lines[-1]["stop"]
    plain = nano.generate("def area(", raw=True, seed=1, max_tokens=6)
    on = at(server, "/infill", input_prefix="def ", prompt="area(", n_predict=6, seed=1)
    assert on["content"] == plain.text


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "content": "b"}, "prompt"),
        ("/detokenize", {"tokens": [10**7]}, "tokens"),
        ("/infill", {"input_prefix": ""}, "input_prefix"),
        ("/infill", {"input_prefix": "a", "n_predict": 0}, "max_tokens"),
    ],
)
def test_what_is_wrong_is_named(server: Running, path: str, body: dict, param: str) -> None:
    answer = server.http.post(path, json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
