"""The exceptions this package raises for a user's mistake.

::

    DiffusionGemmaError
    ├── ConfigError          a config.json, generation_config.json or recipe that we cannot follow
    ├── CheckpointError      a folder, file or tensor that is missing, left over, mis-shaped or damaged
    ├── InputError           a prompt, puzzle or token sequence that the model cannot take
    │   ├── ConstraintError  a schema, regex, list of choices or grammar that no text can be held to
    │   └── PromptTooLongError
    ├── OptionError          an option with a value outside what is allowed, or an unknown option
    ├── TrainingError        a run that cannot start, go on or be resumed
    ├── BenchError           a side of a benchmark that died, or did something else than what is compared
    └── OverloadedError      a shared engine that has too much to do, or shuts down

Every message says what was given, what is allowed, and how to mend it. ``InputError`` and ``OptionError`` are
also ``ValueError``; ``CheckpointError`` is also ``OSError``: a caller who does not know this tree still catches them.
"""

__all__ = [
    "BenchError",
    "CheckpointError",
    "ConfigError",
    "ConstraintError",
    "DiffusionGemmaError",
    "InputError",
    "OptionError",
    "OverloadedError",
    "PromptTooLongError",
    "TrainingError",
]


class DiffusionGemmaError(Exception):
    """The root of every error this package raises on purpose."""


class ConfigError(DiffusionGemmaError):
    """A configuration has a field or a value that this runtime does not follow."""


class CheckpointError(DiffusionGemmaError, OSError):
    """A checkpoint is missing, incomplete, damaged, or in a format that is not read."""


class InputError(DiffusionGemmaError, ValueError):
    """A prompt, puzzle or token sequence cannot be used as it was given."""


class ConstraintError(InputError):
    """A schema, regular expression, list of choices or grammar is wrong, impossible, too large or cannot be expressed."""


class PromptTooLongError(InputError):
    """A prompt and its answer do not fit into the model's positions."""


class OptionError(DiffusionGemmaError, ValueError):
    """An option is unknown, or its value is outside what is allowed."""


class TrainingError(DiffusionGemmaError):
    """A training run cannot start, go on, or be resumed."""


class BenchError(DiffusionGemmaError):
    """One side of a benchmark died, or did other work than the side it is compared with."""


class OverloadedError(DiffusionGemmaError):
    """A shared engine takes no more requests now.

    Args:
        message: why.
        retry_after: seconds until it is worth trying again; None: it never will be.
    """

    def __init__(self, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
