"""What other packages, and our own examples, add: objects named in the entry points of installed packages.

A package adds a task, a kind of training data or a command by naming it in its ``pyproject.toml``::

    [project.entry-points."diffusiongemma.tasks"]
    chess = "my_package.chess:ChessTask"
"""

import logging
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

__all__ = ["Group", "plugins"]

Group = Literal["tasks", "training_data", "commands"]
log = logging.getLogger(__name__)


@lru_cache
def _named(group: Group) -> tuple[EntryPoint, ...]:
    return tuple(sorted(entry_points(group=f"diffusiongemma.{group}"), key=lambda entry: entry.name))


def plugins(group: Group) -> dict[str, Any]:
    """Objects of a group by name, imported now; one that cannot be imported is left out with a warning.

    Args:
        group: ``tasks``: classes of ``tasks.base.Task``; ``training_data``: classes as ``training.recipe.data_kinds`` says;
            ``commands``: functions for typer.
    """
    loaded: dict[str, Any] = {}
    for entry in _named(group):
        try:
            loaded[entry.name] = entry.load()
        except Exception as error:
            log.warning("the plug-in %s (%s) is left out: %s: %s", entry.name, entry.value, type(error).__name__, error)
    return loaded
