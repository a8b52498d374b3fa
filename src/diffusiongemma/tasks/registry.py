"""Tasks by name. Nothing is generated or read, and no package a task comes from is imported, before examples are asked for."""

from pathlib import Path

from diffusiongemma.errors import OptionError
from diffusiongemma.plugins import plugins
from diffusiongemma.tasks.base import Task
from diffusiongemma.tasks.human_eval import HumanEvalInfill
from diffusiongemma.tasks.json_extract import JsonExtract
from diffusiongemma.tasks.local_rows import LocalRows
from diffusiongemma.tasks.people import EXTRACT_PEOPLE, OUT_OF_SCOPE_PEOPLE
from diffusiongemma.tasks.python_code import InfillPython
from diffusiongemma.tasks.reasoning import REASONING_TASKS
from diffusiongemma.tasks.useful import USEFUL_TASKS

__all__ = ["TASKS", "task_named"]

_ALL: tuple[Task, ...] = (
    *(task() for task in plugins("tasks").values()),
    *REASONING_TASKS,
    JsonExtract(),
    *USEFUL_TASKS,
    EXTRACT_PEOPLE,
    OUT_OF_SCOPE_PEOPLE,
    InfillPython(),
    HumanEvalInfill(),
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}
"""Every task, in the order they are listed in; those of plug-ins first."""


def task_named(name: str) -> Task:
    """The task of a name, or of a file of rows.

    Raises:
        OptionError: there is none of this name.
    """
    if name not in TASKS and name.endswith(".jsonl"):
        return LocalRows(Path(name))
    if name not in TASKS:
        raise OptionError(f"task is {name!r}; allowed: {', '.join(TASKS)}, and files of rows (.jsonl)")
    return TASKS[name]
