"""The command line: parse, call, print."""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from diffusiongemma import __version__
from diffusiongemma.cli.batch import batch
from diffusiongemma.cli.bench import bench
from diffusiongemma.cli.check import check
from diffusiongemma.cli.common import print_json
from diffusiongemma.cli.convert import convert
from diffusiongemma.cli.decide import decide
from diffusiongemma.cli.evaluate import evaluate
from diffusiongemma.cli.fill import edit, fill, infill
from diffusiongemma.cli.finetune import finetune, merge
from diffusiongemma.cli.generate import chat, generate
from diffusiongemma.cli.info import info
from diffusiongemma.cli.quantize import quantize
from diffusiongemma.cli.score import score
from diffusiongemma.cli.serve import serve
from diffusiongemma.cli.train import train
from diffusiongemma.cli.vary import vary
from diffusiongemma.plugins import plugins

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """Commands whose errors of usage are JSON too where it is asked for."""

    def main(self, *args: Any, **options: Any) -> Any:
        """See ``TyperGroup``."""
        given = options.get("args") or (args[0] if args else None) or sys.argv[1:]
        if "--json" not in given or not options.get("standalone_mode", True):
            return super().main(*args, **options)
        try:
            status = super().main(*args, **{**options, "standalone_mode": False})
        except typer.Abort:
            sys.exit(1)
        except Exception as error:
            # The library's own errors have no base class that it exports.
            if not hasattr(error, "format_message") or not hasattr(error, "exit_code"):
                raise
            print_json({"error": {"type": type(error).__name__, "message": error.format_message()}})
            sys.exit(error.exit_code)
        sys.exit(status if isinstance(status, int) else 0)


app = typer.Typer(
    name="diffusiongemma",
    cls=_Commands,
    help="DiffusionGemma: text denoised in parallel, canvas by canvas.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


app.command()(generate)
app.command()(chat)
app.command()(decide)
app.command()(infill)
app.command()(fill)
app.command()(edit)
app.command()(batch)
app.command()(vary)
app.command()(score)
app.command()(train)
app.command()(finetune)
app.command()(merge)
app.command("eval")(evaluate)
app.command()(bench)
app.command()(quantize)
app.command()(convert)
app.command()(info)
app.command()(check)
app.command()(serve)
for _name, _command in plugins("commands").items():
    app.command(_name, rich_help_panel="Examples")(_command)


def main() -> None:
    """Entry point of the ``diffusiongemma`` script."""
    app()
