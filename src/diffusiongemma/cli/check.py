"""``diffusiongemma check``: whether a checkpoint is what it says."""

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from diffusiongemma.cli import common

__all__ = ["check"]

_STYLES = {"agrees": "green", "differs": "bold red", "damaged": "bold red", "not checked": "yellow", "not applicable": "dim"}


def check(
    model: Annotated[str, typer.Argument(help="A built-in name, a folder of safetensors files, or a hub id.")],
    forward: Annotated[
        bool, typer.Option("--forward/--no-forward", help="Compute one denoising step too; without it weights are not read.")
    ] = True,
    device: common.DeviceOption = None,
    json: common.JsonOption = False,
) -> None:
    """Compare a checkpoint with its own config.json and with what is published of the released 26B.

    Headers of all files (names, shapes, dtypes, counts), tokenizer and prompts, then one denoising step: the first six layers, then
    all, against the published logits. Of a hub id headers and small files are downloaded, no weights. Status 0: nothing disagrees.
    """
    with common.reporting(json):
        from diffusiongemma.generation.check import check as run

        with common.err.status("reading") as status:
            report = run(model, forward=forward, device=device, progress=lambda what: status.update(f"reading {what}"))
        if json:
            common.print_json(report.to_dict())
        else:
            common.out.print(_table(report))
            verdict = "nothing disagrees" if report.agrees else "something is wrong: see the red rows"
            common.out.print(f"{model}: {verdict}", markup=False, soft_wrap=True)
        raise typer.Exit(0 if report.agrees else 1)


def _table(report: Any) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("what", "verdict", "detail"):
        table.add_column(column, overflow="fold")
    for row in report.rows:
        table.add_row(Text(row.what), Text(row.verdict, style=_STYLES[row.verdict]), Text(row.detail))
    return table
