"""A file of requests answered: every row once, whenever it is broken off, and the answers those of the library."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from diffusiongemma.cli.main import app
from diffusiongemma.errors import InputError
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.server.batch import _seed, read_requests
from tests.server.test_chat import ASKED, QUESTION

QUICK = ["--steps", "4", "--max-tokens", "24"]


def run(*arguments: str, status: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["batch", *arguments, "--json"])
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_requests_in_openais_format(tmp_path: Path, nano: DiffusionGemmaModel) -> None:
    bodies = {
        "chat": ("/v1/chat/completions", {"model": "gpt-x", "messages": ASKED, "seed": 1}),
        "seedless": ("/v1/chat/completions", {"messages": ASKED, "temperature": 1.5}),
        "text": ("/v1/completions", {"prompt": "def area(", "max_tokens": 8, "seed": 1}),
        "hole": ("/v1/fim/completions", {"prompt": '{"site": "', "suffix": '"}', "max_tokens": 4, "seed": 1}),
        "said": ("/v1/responses", {"input": QUESTION, "seed": 1}),
        "asked": ("/v1/decisions", {"input": "x", "questions": [{"type": "predicate", "instructions": "Is it?"}]}),
        "wrong": ("/v1/chat/completions", {"messages": []}),
    }
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests = [{"custom_id": name, "method": "POST", "url": url, "body": body} for name, (url, body) in bodies.items()]
    source.write_text("".join(json.dumps(one) + "\n" for one in requests))
    done = run(str(source), "-o", str(target), status=1)
    assert (done["rows"], done["failed"], done["resumed"]) == (7, 1, 0)
    answers = {line["custom_id"]: line["response"] for line in lines(target)}
    assert answers.keys() == bodies.keys()
    text = answers["chat"]["body"]["choices"][0]["message"]["content"]
    assert text == nano.generate(messages=ASKED, seed=1).text == answers["said"]["body"]["output"][0]["content"][0]["text"]
    drawn = nano.generate(messages=ASKED, seed=_seed(0, 1), temperature=1.5).text
    assert answers["seedless"]["body"]["choices"][0]["message"]["content"] == drawn
    assert answers["wrong"]["status_code"] == 400 and answers["wrong"]["body"]["error"]["param"] == "messages"
    again = run(str(source), "-o", str(target), status=1)
    assert (again["resumed"], again["tokens"]) == (7, 0)
    before = target.read_text()
    mended = run(str(source), "-o", str(target), "--retry-failed", status=1)
    assert mended["resumed"] == 6 and sorted(lines(target), key=str) == sorted(map(json.loads, before.splitlines()), key=str)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt", "parquet"])
def test_rows_of_ones_own(tmp_path: Path, nano: DiffusionGemmaModel, kind: str) -> None:
    source, target = tmp_path / f"in.{kind}", tmp_path / "out.jsonl"
    rows = [{"who": "Kalrin", "age": age} for age in (31, 44)]
    prompts = [f"Extract as JSON: age (integer) # {row['who']} is {row['age']}." for row in rows]
    template = ["--template", "Extract as JSON: age (integer) # {who} is {age}."]
    if kind == "csv":
        source.write_text("who,age\n" + "".join(f"{row['who']},{row['age']}\n" for row in rows))
    elif kind == "txt":
        source.write_text("\n".join(prompts))
        template = []
    elif kind == "parquet":
        arrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows), source)
    else:
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}))
    run(str(source), "-o", str(target), *template, "--json-schema", str(schema), *QUICK, "--seed", "5")
    answers = sorted(lines(target), key=lambda line: line["row"])
    assert [line["row"] for line in answers] == [0, 1]
    options = {"num_diffusion_steps": 4, "max_tokens": 24, "response_format": json.loads(schema.read_text())}
    own = [nano.generate(prompt, seed=_seed(5, at), **options) for at, prompt in enumerate(prompts)]
    assert [line["text"] for line in answers] == [one.text for one in own]
    if kind in ("jsonl", "parquet"):
        assert answers[1]["input"] == rows[1]


def test_a_run_that_was_killed_goes_on_and_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    source, whole, broken = tmp_path / "in.txt", tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    source.write_text("".join(f"Say {number}.\n" for number in range(24)))
    command = [sys.executable, "-m", "diffusiongemma", "batch", str(source), "-o", str(broken), *QUICK]
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            there = len(broken.read_bytes().splitlines()) if broken.exists() else 0
            while process.poll() is None and (not broken.exists() or len(broken.read_bytes().splitlines()) < there + 4):
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
    with broken.open("ab") as file:
        file.write(b'{"id": "batch_req')  # a line that was cut
    done = run(str(source), "-o", str(broken), *QUICK)
    assert done["rows"] == 24 and 8 <= done["resumed"] <= 24
    run(str(source), "-o", str(whole), *QUICK)

    def told(path: Path) -> list[tuple[int, str]]:
        return sorted((line["row"], line["text"]) for line in lines(path))

    assert told(broken) == told(whole) and [row for row, _ in told(broken)] == list(range(24))
    result = CliRunner().invoke(app, ["batch", str(source), "-o", str(broken), *QUICK, "--seed", "1"])
    assert result.exit_code == 2 and "comes from a run of other requests" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ("{", "line 1 is not JSON"),
        ("5", "must be a JSON object"),
        ('{"a": 1}', "neither messages nor a prompt"),
        ('{"custom_id": "", "url": "/v1/completions", "body": {}}', "no custom_id"),
        ('{"custom_id": "a", "url": "/v1/embeddings", "body": {}}', "allowed: /v1/chat/completions"),
        ('{"custom_id": "a", "method": "GET", "url": "/v1/completions", "body": {}}', "requests are POST"),
        ('{"custom_id": "a", "url": "/v1/completions", "body": []}', "no body"),
        ('{"custom_id": "a", "url": "/v1/completions", "body": {"stream": true}}', "leave stream out"),
        ('{"custom_id": "a", "url": "/v1/completions", "body": {}}\n' * 2, "has the custom_id of"),
    ],
)
def test_what_is_no_batch_is_refused(tmp_path: Path, content: str, message: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(content)
    with pytest.raises(InputError, match=message):
        read_requests(source)


def test_a_template_names_its_fields(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"a": "x", "b": {"c": [1]}}\n')
    [asked] = read_requests(source, "{a}: {b}", "Be brief.")
    assert asked.body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": 'x: {"c": [1]}'}]
    with pytest.raises(InputError, match="no field 'd'"):
        read_requests(source, "{d}")
