"""The exceptions this package raises for a user's mistake.

::

    DiffusionGemmaError
    ├── ConfigError          a config.json, generation_config.json or recipe that we cannot follow
    ├── CheckpointError      a folder, file or tensor that is missing, left over, mis-shaped or damaged
    ├── InputError           a prompt, puzzle or token sequence that the model cannot take
    │   ├── ConstraintError  a schema, regex, list of choices or grammar that no text can be constrained to
    │   └── PromptTooLongError
    ├── OptionError          an option with a value outside what is allowed, or an unknown option
    ├── TrainingError        a run that cannot start, go on or be resumed
    ├── BenchError           a side of a benchmark that died, or did something else than what is compared
    ├── EngineError          numbers that are not finite, a native library that failed, an engine that cannot go on
    └── OverloadedError      a shared engine that has too much to do, or shuts down

Every message says what was given, what is allowed, and how to mend it; ``error.param`` names the argument where it is about one.
``InputError`` and ``OptionError`` are also ``ValueError``;
``CheckpointError`` is also ``OSError``: a caller who does not know this tree still catches them.
"""

__all__ = [
    "BenchError",
    "CheckpointError",
    "ConfigError",
    "ConstraintError",
    "DiffusionGemmaError",
    "EngineError",
    "InputError",
    "OptionError",
    "OverloadedError",
    "PromptTooLongError",
    "TrainingError",
    "as_error",
]


class DiffusionGemmaError(Exception):
    """The root of every error this package raises on purpose.

    Attributes:
        param: the option or argument that it is about; None: it is about no single one.
    """

    param: str | None = None


class ConfigError(DiffusionGemmaError):
    """A configuration has a field or a value that this runtime does not follow."""


class CheckpointError(DiffusionGemmaError, OSError):
    """A checkpoint is missing, incomplete, damaged, or in a format that is not read."""


class _ArgumentError(DiffusionGemmaError, ValueError):
    """What was passed is wrong.

    Args:
        message: what was given, what is allowed, how to mend it.
        param: the name of the argument.
    """

    def __init__(self, message: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InputError(_ArgumentError):
    """A prompt, puzzle or token sequence cannot be used as it was given."""


class ConstraintError(InputError):
    """A schema, regular expression, list of choices or grammar is wrong, impossible, too large or cannot be expressed."""


class PromptTooLongError(InputError):
    """A prompt and its answer do not fit into the model's positions."""


class OptionError(_ArgumentError):
    """An option is unknown, or its value is outside what is allowed."""


class TrainingError(DiffusionGemmaError):
    """A training run cannot start, go on, or be resumed."""


class BenchError(DiffusionGemmaError):
    """One side of a benchmark died, or did other work than the side it is compared with."""


class EngineError(DiffusionGemmaError):
    """A model computed numbers that are not finite, a native library failed, or an engine cannot go on."""


class OverloadedError(DiffusionGemmaError):
    """A shared engine takes no more requests now.

    Args:
        message: why.
        retry_after: seconds until it is worth trying again; None: it never will be.
    """

    def __init__(self, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def as_error(error: BaseException) -> Exception:
    """What was raised as an error that ``except Exception`` catches: a native library's panic is not one."""
    if isinstance(error, Exception):
        return error
    wrapped = EngineError(f"a native library failed ({type(error).__name__}); the request cannot be done as it is")
    wrapped.__cause__ = error
    return wrapped
