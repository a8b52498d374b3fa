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
from diffusiongemma.server.keeping import Conditions, keep
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


def test_what_is_kept_is_valid_believed_and_new(tmp_path: Path, nano: DiffusionGemmaModel) -> None:
    source, target, schema = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "schema.json"
    ages = [31, 31, 44, 7]
    said = [{"prompt": f"Extract as JSON: age (integer)\nKalrin is {age}."} for age in ages]
    source.write_text("".join(json.dumps(row) + "\n" for row in said))
    shape = {
        "type": "object",
        "properties": {"age": {"type": "integer"}},
        "required": ["age"],
        "not": {"properties": {"age": {"const": 7}}},
    }
    schema.write_text(json.dumps(shape))
    options = ["-o", str(target), "--json-schema", str(schema), "--temperature", "0.3"]
    conditions = ["--keep-if", "valid", "--keep-if", "judge>0.01", "--keep-if", "new"]
    done = run(str(source), *options, *conditions)
    counts, kept = done["kept"], lines(Path(done["kept"]["file"]))
    assert done["kept"]["file"] == str(tmp_path / "out.kept.jsonl") and len(lines(target)) == 4
    assert sum(count for reason, count in counts.items() if reason != "file") == 4 and counts["kept"] == len(kept)
    assert [line["row"] for line in kept] == sorted(line["row"] for line in kept)
    assert all(
        line["finish_reason"] == "stop" and json.loads(line["text"])["age"] != 7 and line["confidence"] > 0.01 for line in kept
    )
    assert len({line["text"] for line in kept}) == len(kept) and counts["near-duplicate"] >= 1
    before = Path(counts["file"]).read_bytes()
    again = run(str(source), *options, *conditions)
    assert again["resumed"] == 4 and again["kept"] == counts and Path(counts["file"]).read_bytes() == before
    doubted = keep(target, tmp_path / "none.jsonl", Conditions(judge=1.0))
    assert doubted["doubted"] + doubted["kept"] == 4 and doubted["doubted"]
    for wrong in ("judge>2", "judge>x", "good"):
        result = CliRunner().invoke(app, ["batch", str(source), *options, "--keep-if", wrong])
        assert result.exit_code == 2 and "allowed: valid, new" in " ".join(result.output.split())


def test_near_duplicates(tmp_path: Path) -> None:
    fox = "The quick brown fox jumps over the lazy dog near the river bank."
    texts = [fox, fox.lower().replace("fox ", "fox  ")[:-1] + "!", "Something else, with other words in it.", "", "ab", "AB"]
    source, target = tmp_path / "out.jsonl", tmp_path / "kept.jsonl"
    rows = [{"row": at, "text": text, "finish_reason": "stop", "error": None} for at, text in enumerate(texts)]
    source.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    assert keep(source, target, Conditions(new=True)) == {"kept": 4, "near-duplicate": 2}
    assert [line["row"] for line in lines(target)] == [0, 2, 3, 4]
