"""Python code of the standard library: functions with a hole, for training and for the task ``infill-python``."""

import ast
import random
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffusiongemma.errors import InputError
from diffusiongemma.tasks.base import Example, example_rng

__all__ = ["HELD_OUT", "HOLE", "InfillPython", "around", "cut_hole", "functions", "infill_prompt", "module_files"]

HOLE = "<FILL>"
"""Stands for the hole in a prompt."""
HELD_OUT = (
    "bisect", "calendar", "colorsys", "csv", "fnmatch", "fractions", "graphlib", "heapq", "json", "netrc", "quopri", "sched",
    "shlex", "statistics", "textwrap", "wsgiref", "zipapp",
)  # fmt: skip
"""Modules and packages of the standard library that training never reads."""
_SKIPPED = frozenset({"__pycache__", "idle_test", "idlelib", "lib2to3", "site-packages", "test", "tests", "turtledemo"})
_CHARS = 480
"""Most characters of code around a hole."""


def module_files(held_out: bool) -> list[Path]:
    """Source files of the running Python's standard library, tests left out, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not _SKIPPED.intersection(parts) and (parts[0] in HELD_OUT) == held_out:
            files.append(path)
    if not files:
        raise InputError(f"the standard library's sources are not at {root}; install a Python that brings them")
    return files


def functions(files: Sequence[Path]) -> Iterator[str]:
    """Functions and methods of 3 to 60 lines, dedented, each text once."""
    seen: set[str] = set()
    for path in files:
        try:
            source = path.read_text("utf-8")
            tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError, ValueError):
            continue
        lines = source.split("\n")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.end_lineno and 3 <= node.end_lineno - node.lineno + 1 <= 60:
                indent = node.col_offset
                body = [line[indent:] for line in lines[node.lineno - 1 : node.end_lineno]]
                text = "\n".join(body) + "\n"
                if text.isascii() and "\t" not in text and text not in seen:
                    seen.add(text)
                    yield text


def cut_hole(text: str, rng: random.Random) -> tuple[str, str, str]:
    """Cut one line, or a span within a line, out of a function: (prefix, hole, suffix), the ends trimmed to whole lines.

    The hole is never empty, and neither begins nor ends with white space.
    """
    lines = text.split("\n")
    choices = [i for i, line in enumerate(lines) if i and len(line.strip()) >= 3]
    row = rng.choice(choices) if choices else 0
    line = lines[row]
    start, end = len(line) - len(line.lstrip()), len(line.rstrip())
    if rng.random() < 0.5:  # A span between two borders of words.
        borders = [i for i in range(start, end + 1) if i in (start, end) or line[i - 1].isalnum() != line[i].isalnum()]
        start, end = sorted(rng.sample(borders, 2))
        end = start + len(line[start:end].rstrip())
        start = end - len(line[start:end].lstrip())
        if start == end:
            start, end = len(line) - len(line.lstrip()), len(line.rstrip())
    prefix, suffix = around(lines, row, start, end)
    return prefix, line[start:end], suffix


def around(lines: Sequence[str], row: int, start: int, end: int) -> tuple[str, str]:
    """The code before and after a hole from ``start`` to ``end`` of a line, trimmed to the whole lines that fit a prompt."""
    before, after = [lines[row][:start]], [lines[row][end:]]
    budget = _CHARS - len(lines[row])
    up, down = row - 1, row + 1
    # Lines above and below join by turns, twice as many above, as long as they fit.
    while up >= 0 or down < len(lines):
        take_up = up >= 0 and (down >= len(lines) or len(before) <= 2 * len(after))
        taken = lines[up] if take_up else lines[down]
        budget -= len(taken) + 1
        if budget < 0:
            break
        if take_up:
            before.insert(0, taken)
            up -= 1
        else:
            after.append(taken)
            down += 1
    return "\n".join(before), "\n".join(after)


def infill_prompt(prefix: str, suffix: str) -> str:
    """The user's message that shows code with a hole."""
    return f"Complete the code at {HOLE}:\n{prefix}{HOLE}{suffix}"


class InfillPython:
    """One line or a short span of a held-out function; judged by exact match up to white space at the ends."""

    name = "infill-python"
    summary = f"a line or span cut out of a function of the standard library ({len(HELD_OUT)} held-out modules), exact match"
    max_tokens = 64

    def __init__(self) -> None:
        self._functions: list[str] = []

    def examples(self, count: int, seed: int) -> Sequence[Example]:
        """See ``Task``; ``detail`` holds ``prefix`` and ``suffix``."""
        if not self._functions:
            self._functions = sorted(functions(module_files(held_out=True)))
        examples = []
        for index in range(count):
            rng = example_rng(self.name, seed, index)
            prefix, hole, suffix = cut_hole(rng.choice(self._functions), rng)
            whole = not prefix.rpartition("\n")[2].strip() and not suffix.partition("\n")[0].strip()
            detail = {"prefix": prefix, "suffix": suffix}
            examples.append(Example(infill_prompt(prefix, suffix), hole, group="line" if whole else "span", detail=detail))
        return examples

    def score(self, example: Example, text: str) -> float:
        """1 for the very text that was cut out."""
        assert example.answer is not None
        return float(text.strip() == example.answer.strip())
