"""A Python runtime for DiffusionGemma: text denoised in parallel, canvas by canvas.

>>> from diffusiongemma import DiffusionGemmaModel
>>> model = DiffusionGemmaModel.from_pretrained("sudoku")

Names are loaded when they are first used, so that importing the package is quick and loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from diffusiongemma.diffusion import SamplingParams
    from diffusiongemma.engine.events import CanvasReport, Commit, Done, Draft, Result, Usage
    from diffusiongemma.errors import (
        CheckpointError,
        ConfigError,
        DiffusionGemmaError,
        InputError,
        OptionError,
        PromptTooLongError,
        TrainingError,
    )
    from diffusiongemma.generation import DiffusionGemmaModel
    from diffusiongemma.generation.fill import Filled, InfillCandidate
    from diffusiongemma.text.questions import Choice, Decision, Decisions, Predicate, Score
    from diffusiongemma.training.finetune import finetune

_HOMES = {
    "diffusiongemma.generation": ["DiffusionGemmaModel"],
    "diffusiongemma.engine.events": ["CanvasReport", "Commit", "Done", "Draft", "Result", "Usage"],
    "diffusiongemma.generation.fill": ["Filled", "InfillCandidate"],
    "diffusiongemma.errors": [
        "CheckpointError",
        "ConfigError",
        "DiffusionGemmaError",
        "InputError",
        "OptionError",
        "PromptTooLongError",
        "TrainingError",
    ],
    "diffusiongemma.diffusion": ["SamplingParams"],
    "diffusiongemma.text.questions": ["Choice", "Decision", "Decisions", "Predicate", "Score"],
    "diffusiongemma.training.finetune": ["finetune"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CanvasReport",
    "CheckpointError",
    "Choice",
    "Commit",
    "ConfigError",
    "Decision",
    "Decisions",
    "DiffusionGemmaError",
    "DiffusionGemmaModel",
    "Done",
    "Draft",
    "Filled",
    "InfillCandidate",
    "InputError",
    "OptionError",
    "Predicate",
    "PromptTooLongError",
    "Result",
    "SamplingParams",
    "Score",
    "TrainingError",
    "Usage",
    "__version__",
    "finetune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'diffusiongemma' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
