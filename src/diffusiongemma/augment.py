"""A file of rows -> a file of their variants, a run that can be killed at any byte and goes on.

Each line of the output is a row of the input with one text replaced, and where it came from under ``vary``: the row, its place
among the lines of that row, how many those are, and a key of the run's settings. A row's lines are appended in one write; a run
that goes on takes away what was cut short and begins after the last row that is whole. Every draw is a function of (seed, row,
variant), so the file is the same, byte for byte, whether it was written at one go or in ten.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from diffusiongemma.errors import InputError
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.generation.context import OnEvent
from diffusiongemma.generation.vary import check_vary
from diffusiongemma.lines import LinesFile, json_line

__all__ = ["VARY", "Progress", "Variation", "vary_file"]

VARY = "vary"
"""The field that says where a line came from."""
_Line = tuple[int, int, int, str]
"""A row's number, the line's place among those of the row, how many those are, and the text."""


@dataclass(frozen=True, kw_only=True)
class Variation:
    """What to do with each row.

    Attributes:
        field: which text to vary.
        n: variants a row, before duplicates are taken out.
        strength: share of the tokens to write anew, 0 to 1.
        seed: of all draws.
        prompt_field: which field holds the message that the text answers; None: it is plain text.
        options: sampling parameters.
    """

    field: str
    n: int
    strength: float
    seed: int
    prompt_field: str | None
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        done: rows, those of earlier runs included.
        of: rows.
        lines: in the output.
        duplicates: variants left out by this run: alike another, or a row of the input.
        resumed: rows that earlier runs had finished.
    """

    done: int
    of: int
    lines: int
    duplicates: int
    resumed: int


def vary_file(
    model: DiffusionGemmaModel,
    source: Path,
    target: Path,
    how: Variation,
    *,
    model_key: str,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_event: OnEvent | None = None,
) -> Progress:
    """Write variants of every row, without exact duplicates.

    Args:
        model: writes.
        source: JSON Lines in UTF-8, an object each.
        target: JSON Lines; a file that a run with the same settings began is gone on with.
        how: what to do.
        model_key: what tells the checkpoint from others.
        on_progress: called before the first row and after each.
        on_event: called with each event of the rows.

    Raises:
        InputError: a line that is no object or has no text in its fields, before anything is denoised; a target of another run, one
            that another process writes to, or that cannot be written (a full disk); a text that the model cannot take, when its row
            comes.
        OptionError: see ``DiffusionGemmaModel.vary``.
    """
    rows = _read(source, how)
    run = _run_key(source, how, model_key)
    with LinesFile(target, "variants", partial(_line, field=how.field, run=run)) as file:
        done, texts = _whole_rows(file)
        seen, lines = {row[how.field] for row in rows} | set(texts), len(texts)
        progress = Progress(done, len(rows), lines, 0, done)
        on_progress(progress)
        for at in range(done, len(rows)):
            result = dict.fromkeys(_variants(model, rows[at], at, how, source, on_event))
            fresh = [text for text in result if text not in seen]
            seen.update(fresh)
            file.append(*_lines(rows[at], at, fresh, how.field, run))
            lines += len(fresh)
            progress = Progress(at + 1, len(rows), lines, progress.duplicates + how.n - len(fresh), done)
            on_progress(progress)
    return progress


def _read(path: Path, how: Variation) -> list[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            rows.append(_row(line, f"{path}, line {number}", how))
    if not rows:
        raise InputError(f"{path} holds no rows; write one JSON object a line")
    return rows


def _row(line: bytes, where: str, how: Variation) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON in UTF-8: {error}") from error
    if not isinstance(row, dict) or VARY in row:
        raise InputError(f"{where} must be a JSON object without a field {VARY!r}, which says where a variant came from")
    for field in (how.field, how.prompt_field):
        if field is not None and (not isinstance(row.get(field), str) or not row[field]):
            has = ", ".join(name for name in row if isinstance(row[name], str)) or "none"
            raise InputError(f"{where} has no text in the field {field!r}; its texts: {has}")
    check_vary(row[how.field], how.strength, how.n)
    return row


def _run_key(source: Path, how: Variation, model_key: str) -> str:
    content = hashlib.sha256(source.read_bytes()).hexdigest()
    settings = [how.field, how.n, how.strength, how.seed, how.prompt_field, sorted(how.options.items())]
    return hashlib.sha256(json.dumps([model_key, content, settings]).encode()).hexdigest()[:12]


def _whole_rows(file: LinesFile[_Line]) -> tuple[int, list[str]]:
    """Rows that are whole in the output and the texts there; what is after them is taken away."""
    done, whole, before = 0, 0, (-1, 0, 0)
    for number, (row, place, of, _) in enumerate(file.entries, 1):
        follows = before == (row, place - 1, of) if place > 1 else row > before[0] and before[1] == before[2]
        if not follows:
            raise InputError(
                f"{file.path}, line {number} does not follow the line before it: two runs wrote to this file, or lines are gone. "
                "Take it and all lines after it out, or name another file with --out"
            )
        before = row, place, of
        if place == of:
            done, whole = row + 1, number
    file.keep(whole)
    return done, [text for _, _, _, text in file.entries]


def _line(line: bytes, where: str, field: str, run: str) -> _Line:
    try:
        data = json.loads(line)
        mark = data[VARY]
        result = int(mark["row"]), int(mark["place"]), int(mark["of"]), str(data[field])
        known = mark["run"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{where} is not a variant that a run wrote; name another file with --out, or take it and all lines after it out"
        ) from error
    if known != run:
        raise InputError(
            f"{where} comes from a run with other settings, input or checkpoint; name another file, or remove this one"
        )
    return result


def _variants(
    model: DiffusionGemmaModel, row: Mapping[str, Any], at: int, how: Variation, source: Path, on_event: OnEvent | None
) -> Sequence[str]:
    seed = int.from_bytes(hashlib.sha256(f"{how.seed}/{at}".encode()).digest()[:7])
    prompt = None if how.prompt_field is None else row[how.prompt_field]
    try:
        return model.vary(row[how.field], how.strength, how.n, seed, prompt=prompt, on_event=on_event, **how.options)
    except InputError as error:
        raise type(error)(f"{source}, row {at + 1}: {error}") from error


def _lines(row: Mapping[str, Any], at: int, texts: Sequence[str], field: str, run: str) -> list[bytes]:
    return [
        json_line({**row, field: text, VARY: {"row": at, "place": place, "of": len(texts), "run": run}})
        for place, text in enumerate(texts, 1)
    ]
