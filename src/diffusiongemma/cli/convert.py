"""``diffusiongemma convert``: a checkpoint of two roles from an autoregressive Gemma."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffusiongemma.cli import common

__all__ = ["convert"]


def convert(
    model: Annotated[
        str, typer.Argument(help="A folder or hub id of Gemma 3 or 4 (16- or 32-bit weights), or a GGUF file of Gemma 3.")
    ],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    canvas_length: Annotated[int, typer.Option("--canvas-length", help="Positions of a canvas.", min=1)] = 256,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="float32, bfloat16 or float16. Unset: the source's, and float32 of a GGUF file. Of Gemma 3 only float32 keeps the "
            "norms exactly.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the new block's random matrices.")] = 0,
    json: common.JsonOption = False,
) -> None:
    """Make a checkpoint of two roles from an autoregressive Gemma.

    The causal role of the result is the source; generate with --mode causal. The canvas has learnt nothing yet: it wants training.
    """
    with common.reporting(json):
        from diffusiongemma.generation.converting import convert_checkpoint
        from diffusiongemma.weights.resolve import resolve

        columns = TextColumn("converting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=common.err, transient=True, disable=not common.err.is_terminal) as bar:
            task = bar.add_task("converting", total=None)
            made = convert_checkpoint(
                resolve(model), out, canvas_length=canvas_length, dtype=dtype, seed=seed,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )  # fmt: skip
        if json:
            common.print_json({"folder": str(out), "dtype": made.dtype, "new_parameters": made.new, "left_out": len(made.left_out)})
            return
        common.out.print(f"{out}: {made.config.text.num_hidden_layers} layers in {made.dtype}", highlight=False)
        if made.left_out:
            common.out.print(f"Left out: {len(made.left_out)} tensors for images and sound.")
        common.out.print(
            f"The causal role is the source's. The canvas's block ({made.new:,} parameters) is new and wants training."
        )
        common.out.print(f"Next: diffusiongemma generate --model {out} --mode causal 'The capital of France is'", soft_wrap=True)
