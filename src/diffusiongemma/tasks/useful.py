"""The small useful things that ``nano`` is for, as tasks."""

from diffusiongemma.tasks.code_edits import ARITHMETIC, COMPLETE_LINE, RENAME
from diffusiongemma.tasks.convert import CONVERT, REFORMAT, REPAIR
from diffusiongemma.tasks.extract import EXTRACT, FROM_JSON
from diffusiongemma.tasks.generated import GeneratedTask
from diffusiongemma.tasks.identity import IDENTITY
from diffusiongemma.tasks.text_edits import EDIT, FILL_FORM, LISTS
from diffusiongemma.tasks.toolcalls import TOOL_CALLS

__all__ = ["USEFUL_TASKS"]

USEFUL_TASKS: tuple[GeneratedTask, ...] = (
    EXTRACT, FROM_JSON, REPAIR, CONVERT, REFORMAT, LISTS, EDIT, FILL_FORM, RENAME, COMPLETE_LINE, ARITHMETIC, TOOL_CALLS, IDENTITY,
)  # fmt: skip
