"""``diffusiongemma sudoku``: a canvas of noise becomes a solved puzzle."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from diffusiongemma.cli import common
from diffusiongemma.cli.command import command
from diffusiongemma.cli.display import LiveCanvas, entropy_colour, legend
from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.examples.sudoku.puzzles import Sudoku, clue_pins, grid_of_answer, parse, prompt_text, solves

if TYPE_CHECKING:
    from diffusiongemma.engine.events import Draft
    from diffusiongemma.generation import DiffusionGemmaModel

__all__ = ["sudoku"]

EXAMPLE = ".958.2....6.34.8..38..7.19....93527......4..8...28.4....9.....11..4.......719.34."
"""Solved when no puzzle is given: 32 clues, one of the hard puzzles that the built-in checkpoint does solve."""


_NEXT = """Next: diffusiongemma sudoku --pace 0.5     the same, slower
      diffusiongemma chat                  a small model of text
      diffusiongemma serve                 a page to watch it write, and an API"""


@command(model="sudoku", but=("max_tokens", "stop"))
def sudoku(
    *,
    puzzle: Annotated[
        str | None,
        typer.Argument(
            help="81 cells (digits for clues, . for empty), a file of puzzles, or - for standard input.",
            metavar="[PUZZLE|FILE]",
        ),
    ] = None,
    mode: common.ModeOption = "diffusion",
    pin: Annotated[bool, typer.Option("--pin/--no-pin", help="Also hold the clues fixed on the canvas.")] = False,
    rules: Annotated[
        str | None,
        typer.Option(
            help="Hold the canvas to the rules, clues fixed: eliminate (no cell takes what surer ones forbid it), or solve (and "
            "what comes out is a solution, always)."
        ),
    ] = None,
    pace: Annotated[float, typer.Option(help="Seconds each step stays on the screen, in a terminal.", min=0)] = 0.15,
    sampling: dict[str, Any],
    load: common.Load,
    json: bool,
) -> None:
    """Solve a sudoku by denoising, and check the solution.

    A file holds one puzzle a line, or one puzzle over several lines. The status is 0 if every puzzle is solved, 1 if not.
    """
    if rules not in (None, "eliminate", "solve"):
        raise OptionError(f"--rules is {rules!r}; it is eliminate or solve")
    puzzles = _read(puzzle)
    loaded = load()
    reports = []
    for one in puzzles:
        live = common.out.is_terminal and not json and mode == "diffusion"
        reports.append(_solve(loaded, one, mode, pin, rules, pace if live else None, {"seed": 0, **sampling}))
        if not json and not live:
            common.out.print(_plain(reports[-1]), markup=False, soft_wrap=True)
    if json:
        common.print_json(reports[0] if len(reports) == 1 else _summary(reports))
    elif len(reports) > 1:
        common.out.print(f"{sum(r['solved'] for r in reports)} of {len(reports)} solved")
    if puzzle is None and common.out.is_terminal and not json:
        common.out.print(_NEXT, style="dim", markup=False)
    if not all(report["solved"] for report in reports):
        raise typer.Exit(1)


def _read(source: str | None) -> list[Sudoku]:
    if source is None:
        return [parse(EXAMPLE)]
    if source != "-" and not _is_file(source):
        cells = [char for char in source if not char.isspace()]
        if len(cells) < 20 or not any(char.isdigit() for char in cells):
            raise InputError(
                f"there is no file {source!r}, and it is no puzzle: a puzzle has 81 cells, digits and . for empty ones"
            )
        return [parse(source)]
    text = common.read_text(source)
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise InputError(f"{source} holds no puzzle; write 81 cells, digits for clues and . for empty cells")
    if all(sum(not char.isspace() for char in line) >= 81 for line in lines):
        return [parse(line) for line in lines]
    return [parse("\n".join(lines))]


def _is_file(source: str) -> bool:
    try:
        return Path(source).exists()
    except (OSError, ValueError):  # longer than a name may be, or with a zero byte
        return False


def _solve(
    model: "DiffusionGemmaModel",
    puzzle: Sudoku,
    mode: str,
    pin: bool,
    rules: str | None,
    pace: float | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    from diffusiongemma.engine.events import Done, Draft

    options = {**options, "pins": clue_pins(model.tokenizer.encode, puzzle) if pin else None}
    if rules is not None:
        # Here, since it needs torch: the command line is to start without.
        from diffusiongemma.examples.sudoku.rules import SudokuRules

        options["rules"] = SudokuRules(puzzle, model.tokenizer.encode, complete=rules == "solve")
    events = model.stream(prompt_text(puzzle), mode=mode, **options)  # type: ignore[arg-type]
    if pace is None:
        done = next(event for event in events if isinstance(event, Done))
        return _report(puzzle, done, 0.0)
    common.out.print(_grid(list(puzzle.clues.replace(".", " ")), puzzle.clues, ["dim"] * 81))
    common.out.print(legend())
    with LiveCanvas(common.out, lambda draft: _picture(model, puzzle, draft), pace) as canvas:
        time.sleep(pace)
        for event in events:
            if isinstance(event, Draft):
                canvas.show(event)
            elif isinstance(event, Done):
                report = _report(puzzle, event, canvas.paused)
                canvas.finish(_final(puzzle, report))
    return report


def _report(puzzle: Sudoku, done: Any, paused: float) -> dict[str, Any]:
    grid = grid_of_answer(done.result.text)
    usage = done.result.usage
    return {
        "solved": solves(puzzle, grid),
        "grid": grid,
        "steps": usage.denoising_steps or usage.commit_passes,
        "seconds": round(usage.seconds - paused, 4),
        "puzzle": puzzle.clues,
        "tokens_per_forward": round(usage.tokens_per_forward, 2),
        "text": done.result.text,
    }


def _summary(reports: list[dict[str, Any]]) -> dict[str, Any]:
    solved = sum(report["solved"] for report in reports)
    return {
        "solved": solved == len(reports),
        "solve_rate": solved / len(reports),
        "mean_steps": sum(report["steps"] for report in reports) / len(reports),
        "seconds": round(sum(report["seconds"] for report in reports), 4),
        "puzzles": reports,
    }


def _picture(model: "DiffusionGemmaModel", puzzle: Sudoku, draft: "Draft") -> Text:
    # Cell (r, c) stands at position 10 r + c: nine digits and a line break a row.
    at = [10 * (i // 9) + i % 9 for i in range(81)]
    cells = [model.tokenizer.token_text(draft.argmax_ids[p]) for p in at]
    return _grid(
        [text if len(text) == 1 and text.isprintable() else "·" for text in cells],
        "." * 81 if draft.step == 0 else puzzle.clues,
        [entropy_colour(draft.entropy[p]) for p in at],
    )


def _final(puzzle: Sudoku, report: dict[str, Any]) -> Text:
    if report["grid"] is None:
        return Text(report["text"] + f"\nnot a grid of digits after {report['steps']} steps", style="red")
    style = "green" if report["solved"] else "red"
    picture = _grid(list(report["grid"]), puzzle.clues, [style] * 81)
    verdict = "solved" if report["solved"] else "not solved: the grid breaks a rule"
    picture.append(f"\n{verdict} in {report['steps']} steps, {report['seconds'] * 1000:.0f} ms", style)
    return picture


def _plain(report: dict[str, Any]) -> str:
    verdict = "solved" if report["solved"] else "not solved"
    return f"{report['text']}\n{verdict} in {report['steps']} steps, {report['seconds']:.3f} s"


def _grid(cells: Sequence[str], clues: str, styles: Sequence[str]) -> Text:
    """A 9 x 9 grid with boxes; clues are bold, other cells in their style.

    Args:
        cells: 81 texts of one character.
        clues: the puzzle, ``.`` where empty.
        styles: 81 rich styles for cells that are not clues.
    """
    picture = Text()
    for r in range(9):
        if r % 3 == 0:
            picture.append("┌───────┬───────┬───────┐\n" if r == 0 else "├───────┼───────┼───────┤\n", "dim")
        for c in range(9):
            i = 9 * r + c
            picture.append("│ " if c % 3 == 0 else "", "dim")
            picture.append(cells[i] + " ", "bold" if clues[i] != "." else styles[i])
        picture.append("│\n", "dim")
    picture.append("└───────┴───────┴───────┘", "dim")
    return picture
