"""What every command shares: options, output, errors, reading text."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from diffusiongemma.errors import DiffusionGemmaError, InputError
from diffusiongemma.lines import json_line

if TYPE_CHECKING:
    from diffusiongemma.generation import DiffusionGemmaModel

__all__ = [
    "DEFAULT_MODEL",
    "AdapterOption",
    "AnyModeOption",
    "DeviceOption",
    "DtypeOption",
    "JsonOption",
    "Load",
    "ModeOption",
    "ModelOption",
    "QuantizeOption",
    "err",
    "fail",
    "load",
    "out",
    "parse_json",
    "print_json",
    "prompt_text",
    "read_text",
    "reporting",
]

DEFAULT_MODEL = "nano"
Load = Callable[[], "DiffusionGemmaModel"]
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="A built-in name, a checkpoint folder, or a hub id.", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
ModeOption = Annotated[
    str, typer.Option("--mode", help="diffusion, or causal: token by token with the encoder role of the same weights.")
]
AnyModeOption = Annotated[
    str,
    typer.Option(
        "--mode",
        help="diffusion; causal: token by token; exact: what causal would write, drafted on canvases; auto: the faster here, once "
        "some canvases have been seen (chat).",
    ),
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps; auto or unset: a GPU if there is one.")]
DtypeOption = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, bfloat16 or float16; auto or unset: bfloat16 on a GPU, float32 on a CPU."),
]

QuantizeOption = Annotated[
    str | None,
    typer.Option("--quantize", help="int8: round the weights to int8 at load and multiply in int8 (CPU); unset: as stored."),
]


AdapterOption = Annotated[
    str | None,
    typer.Option("--adapter", help="A LoRA adapter's folder, put beside the weights; --model may also be such a folder itself."),
]


def print_json(data: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json_line(data).decode() + "\n")
    sys.stdout.flush()


def fail(error: Exception, as_json: bool) -> NoReturn:
    """Report a user's mistake and leave with status 2."""
    if as_json:
        print_json({"error": {"type": type(error).__name__, "message": str(error)}})
    else:
        err.print("[bold red]error:[/] ", end="")
        err.print(str(error), markup=False, soft_wrap=True)
    raise typer.Exit(2)


@contextmanager
def reporting(as_json: bool) -> Iterator[None]:
    """Turn errors of our tree and of the system into a message, and Ctrl-C into status 130 with a clean terminal."""
    try:
        yield
    except DiffusionGemmaError as error:
        fail(error, as_json)
    except BrokenPipeError as error:  # nobody reads the output any more; nor can the interpreter's end write what is left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from error
    except OSError as error:
        name = "a file" if error.filename is None else str(error.filename)
        fail(InputError(f"{name[:200]} cannot be used: {error.strerror or error}; name another"), as_json)
    except KeyboardInterrupt as interrupt:
        err.print("interrupted")
        raise typer.Exit(130) from interrupt


def load(
    name: str, dtype: str | None = None, device: str | None = None, quantize: str | None = None, adapter: str | None = None
) -> "DiffusionGemmaModel":
    """Load a checkpoint; torch is imported here and not before."""
    from diffusiongemma.generation import DiffusionGemmaModel

    return DiffusionGemmaModel.from_pretrained(name, dtype=dtype, device=device, quantize=quantize, adapter=adapter)


def prompt_text(prompt: str | None, example: str) -> str:
    """The prompt, from standard input for ``-`` or where nothing is given on a pipe.

    Raises:
        InputError: there is none.
    """
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        return read_text("-")
    if prompt is None:
        raise InputError(f"there is no prompt; give one: {example}")
    return prompt


def read_text(source: str | Path) -> str:
    """Text of a file, or of standard input for ``-``.

    Raises:
        InputError: it is not UTF-8, or cannot be read.
    """
    name = "standard input" if str(source) == "-" else str(source)
    try:
        content = sys.stdin.buffer.read() if str(source) == "-" else Path(source).read_bytes()
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8: byte {error.start + 1} is 0x{content[error.start]:02x}. Save it as UTF-8"
        ) from error
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from error


def parse_json(text: str, name: str) -> Any:
    """JSON of a text.

    Raises:
        InputError: it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON: {error}") from error
