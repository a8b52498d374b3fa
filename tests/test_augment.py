"""A file of variants is the same however often its run was killed; bad rows are named before anything is denoised."""

import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.augment import VARY, Progress, Variation, vary_file
from diffusiongemma.errors import InputError, OptionError
from tests.engine.test_constraint import model_of

ROWS = [
    {"id": 1, "text": "The quick brown fox."},
    {"id": 2, "text": "jumps über den faulen Hund", "other": [None, 1.5]},
    {"id": 3, "text": "x"},
    {"id": 4, "text": "and sleeps\nfor a while."},
]


@pytest.fixture(scope="module", name="model")
def _model() -> DiffusionGemmaModel:
    return model_of()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    return path


def how(**changes: Any) -> Variation:
    fields: dict[str, Any] = {"field": "text", "n": 3, "strength": 0.4, "seed": 7, "prompt_field": None}
    return Variation(**{**fields, "options": {"num_diffusion_steps": 1}, **changes})


def run(model: DiffusionGemmaModel, source: Path, target: Path, **changes: Any) -> list[Progress]:
    seen: list[Progress] = []
    vary_file(model, source, target, how(**changes), model_key="m", on_progress=seen.append)
    return seen


def test_rows_come_out_with_their_other_fields_and_no_duplicates(
    model: DiffusionGemmaModel, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([["a", "a", "x"], ["a", "b", "jumps über den faulen Hund"], ["c", "d", "e"], ["b", "b", "a"]])
    monkeypatch.setattr(DiffusionGemmaModel, "vary", lambda *_, **__: next(answers))
    seen = run(model, source, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(line["id"], line["text"]) for line in lines] == [(1, "a"), (2, "b"), (3, "c"), (3, "d"), (3, "e")]
    assert lines[1]["other"] == [None, 1.5] and {**lines[3][VARY], "run": ""} == {"row": 2, "place": 2, "of": 3, "run": ""}
    assert [(p.done, p.lines, p.duplicates) for p in seen] == [(0, 0, 0), (1, 1, 2), (2, 2, 4), (3, 5, 4), (4, 5, 7)]


def test_a_run_cut_at_any_byte_goes_on_to_the_same_file(model: DiffusionGemmaModel, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    run(model, source, target)
    whole = target.read_bytes()
    assert whole.count(b"\n") > len(ROWS)
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for cut in [0, 1, *ends, *random.Random(0).sample(range(len(whole)), 12)]:
        target.write_bytes(whole[:cut])
        first, *_, last = run(model, source, target) * 2
        assert target.read_bytes() == whole, cut
        assert first.resumed <= whole[:cut].count(b"\n") and last.lines == whole.count(b"\n")


def test_a_finished_file_costs_no_pass(
    model: DiffusionGemmaModel, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(model, source, tmp_path / "out.jsonl")
    monkeypatch.setattr(DiffusionGemmaModel, "vary", None)
    assert [p.resumed for p in run(model, source, tmp_path / "out.jsonl")] == [4]


@pytest.mark.parametrize("change", [{"n": 4}, {"strength": 0.5}, {"seed": 8}, {"options": {"num_diffusion_steps": 2}}])
def test_a_file_of_another_run_is_not_gone_on_with(
    model: DiffusionGemmaModel, source: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    target = tmp_path / "out.jsonl"
    run(model, source, target)
    before = target.read_bytes()
    with pytest.raises(InputError, match="other settings"):
        run(model, source, target, **change)
    source.write_text(source.read_text() + json.dumps({"text": "new"}) + "\n")
    with pytest.raises(InputError, match="other settings, input or checkpoint"):
        run(model, source, target)
    assert target.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        ("", "holds no rows"),
        ('{"text": "a"}\n{"text": ', "line 2 is not JSON"),
        ('{"text": "a"}\n["text"]', "line 2 must be a JSON object"),
        ('{"text": "a", "vary": 1}', "without a field 'vary'"),
        ('{"text": "a"}\n\n{"id": 1, "name": "b"}', "line 3 has no text in the field 'text'; its texts: name"),
        ('{"text": ""}', "has no text in the field 'text'"),
        ('{"text": 5}', "its texts: none"),
        (b'{"text": "\xff"}', "line 1 is not JSON in UTF-8"),
        ('{"text": ' + "[" * 50_000, "line 1 is not JSON in UTF-8"),
    ],
)
def test_bad_rows_are_named_before_anything_is_denoised(
    model: DiffusionGemmaModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes, needle: str
) -> None:
    monkeypatch.setattr(DiffusionGemmaModel, "vary", None)
    (tmp_path / "in.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=needle):
        run(model, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_other_mistakes(model: DiffusionGemmaModel, source: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"strength is 1\.1"):
        run(model, source, tmp_path / "out.jsonl", strength=1.1)
    with pytest.raises(InputError, match="cannot be read"):
        run(model, tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    (tmp_path / "mine.txt").write_text("a diary\n")
    with pytest.raises(InputError, match=r"mine.txt, line 1 is not a variant"):
        run(model, source, tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "a diary\n"


def test_two_runs_on_one_output(model: DiffusionGemmaModel, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    refused: list[str] = []

    def meanwhile(progress: Progress) -> None:
        if progress.done == 2:
            with pytest.raises(InputError) as raised:
                run(model, source, target)
            refused.append(str(raised.value))

    vary_file(model, source, target, how(), model_key="m", on_progress=meanwhile)
    whole = target.read_bytes()
    assert len(refused) == 1 and "out.jsonl is being written by" in refused[0]
    assert [p.resumed for p in run(model, source, target)] == [4]
    # What two runs left that nobody kept apart.
    for content in (whole * 2, whole.split(b"\n", 1)[1], b"".join(whole.splitlines(keepends=True)[::-1])):
        target.write_bytes(content)
        with pytest.raises(InputError, match="does not follow the line before it"):
            run(model, source, target)
        assert target.read_bytes() == content


def test_a_full_disk_ends_the_run_and_the_next_goes_on(
    model: DiffusionGemmaModel, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.jsonl"
    run(model, source, target)
    whole, write = target.read_bytes(), os.write
    for room in (0, 10, 300, len(whole) - 1):
        target.unlink()
        left = room

        def short(handle: int, data: Any) -> int:
            nonlocal left
            if not left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            taken = write(handle, bytes(data)[:left])
            left -= taken
            return taken

        with monkeypatch.context() as full, pytest.raises(InputError, match=r"variants cannot be kept in .*No space left"):
            full.setattr(os, "write", short)
            run(model, source, target)
        assert whole.startswith(target.read_bytes()) and target.read_bytes()[-1:] in (b"", b"\n")
        run(model, source, target)
        assert target.read_bytes() == whole


def test_a_cut_line_in_the_middle_says_how_to_mend_it(model: DiffusionGemmaModel, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    run(model, source, target)
    whole = target.read_bytes()
    first, second, *rest = whole.splitlines(keepends=True)
    target.write_bytes(first + second[:20] + b"".join(rest))
    with pytest.raises(InputError, match=r"line 2 is not a variant .*take it and all lines after it out"):
        run(model, source, target)
    target.write_bytes(first)
    run(model, source, target)
    assert target.read_bytes() == whole


def test_another_file_without_an_end_of_line_is_left_alone(model: DiffusionGemmaModel, source: Path, tmp_path: Path) -> None:
    for content in ("a diary", '{"id": 1}', "{}"):
        (tmp_path / "mine").write_text(content)
        with pytest.raises(InputError, match="mine, line 1 is not a variant"):
            run(model, source, tmp_path / "mine")
        assert (tmp_path / "mine").read_text() == content
