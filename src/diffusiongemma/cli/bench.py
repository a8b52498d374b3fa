"""``diffusiongemma bench``: our side against another, in one run."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from diffusiongemma.cli import common
from diffusiongemma.errors import OptionError

if TYPE_CHECKING:
    from diffusiongemma.bench.run import Outcome
    from diffusiongemma.bench.settings import Settings

__all__ = ["bench"]

ROWS = {
    "step_ms": ("ms a denoising step", 1.0),
    "commit_ms": ("ms a commit", 1.0),
    "prefill_token_ms": ("ms a prefill token", 1.0),
    "first_text_ms": ("ms to the first text", 1.0),
    "tokens_per_second": ("tokens a second", 1.0),
    "peak_bytes": ("peak above the weights, MiB", 1 / (1 << 20)),
}
"""A measure's title in the table, and the factor to its unit there."""


def bench(
    preset: Annotated[
        str, typer.Option("--preset", "-p", help="tiny, cpu-600m or 26b (random weights), or any checkpoint, for example nano.")
    ] = common.DEFAULT_MODEL,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="transformers, causal (token by token, same weights), plain (our plain canvas head) or exact (without "
            "--quantize); unset: ours.",
        ),
    ] = None,
    their_settings: Annotated[
        str | None,
        typer.Option(
            help="How transformers runs: of dynamic, static, compile; +eager, +batched_mm, +grouped_mm for its experts. "
            "Unset: dynamic,static."
        ),
    ] = None,
    device: common.DeviceOption = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16; unset: the preset's, else by the device.")
    ] = None,
    quantize: common.QuantizeOption = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of each side; unset: torch's choice.")] = None,
    batch: Annotated[str, typer.Option(help="Rows a generation, or several sizes: 1,2,4,8.")] = "1",
    steps: Annotated[int, typer.Option("--steps", "-n", help="Denoising steps a canvas; both sides take them all.")] = 8,
    canvases: Annotated[int, typer.Option(help="Canvases a row.")] = 2,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt; they are random.")] = 128,
    repeat: Annotated[int, typer.Option(help="Measured generations of each side, in turn.")] = 5,
    warmup: Annotated[int, typer.Option(help="Generations of each side before those; at least 3 for compile.")] = 1,
    layers: Annotated[int | None, typer.Option(help="Only so many layers of a preset; the report says so.")] = None,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Of weights, prompts and noise.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw into this PNG: bars, or curves over several batch sizes.")] = None,
    json: common.JsonOption = False,
) -> None:
    """Measure speed and memory, our side against another.

    Each side has a process of its own and both take turns, one generation at a time. Steps are equal: nothing stops early.
    """
    with common.reporting(json):
        from diffusiongemma.bench.settings import Settings

        if their_settings is not None and against != "transformers":
            raise OptionError(f"--their-settings are those of transformers; --against is {against or 'not given'}")
        settings = Settings(
            model=preset, against=against, device=device, dtype=dtype, quantize=quantize, threads=threads,
            batches=_sizes(batch), steps=steps, canvases=canvases, prompt=prompt, repeat=repeat, warmup=warmup, layers=layers,
            seed=seed,
            **({} if their_settings is None else {"their_settings": tuple(their_settings.split(","))}),
        )  # fmt: skip
        if plot is not None:
            from diffusiongemma.evals.plot import check_plot

            check_plot(plot)
        from diffusiongemma.bench.plot import plot as draw
        from diffusiongemma.bench.report import report

        result = report(_run(settings), settings)
        if plot is not None:
            draw(result, plot)
        if json:
            common.print_json(result)
        else:
            _print(result)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError as error:
        raise OptionError(f"--batch is {text!r}; write a size, or several: 1,2,4,8") from error


def _run(settings: "Settings") -> "Outcome":
    from diffusiongemma.bench.run import generations, run

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=common.err, transient=True, disable=not common.err.is_terminal) as bar:
        task = bar.add_task("starting", total=generations(settings))
        begun = -1

        def watch(doing: str) -> None:
            nonlocal begun
            begun += doing == "generation"
            bar.update(task, description=doing, completed=max(begun, 0))

        # A signal that ends the process at once would leave weights of gigabytes behind.
        before = signal.signal(signal.SIGTERM, _ended)
        try:
            return run(settings, watch)
        finally:
            signal.signal(signal.SIGTERM, before)


def _ended(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _print(report: dict[str, Any]) -> None:
    rivals = max(len(report["sides"]) - 1, 1)
    # At its own width, as `eval` prints: what is too long for a terminal is broken there.
    console = Console(width=32 + 90 * rivals, highlight=False)
    for line in _head(report):
        console.print(line, markup=False, soft_wrap=True)
    roles = report["roles"]
    rates = " and ".join(f"{mode} {rate:,.1f}" for mode, rate in roles["tokens_per_second"].items())
    told = ", ".join(f"{name} {roles[name]:,.3g}" for name in ("step_ms", "commit_ms", "token_ms"))
    ratios = ", ".join(f"{name} x{ratio:.2f}" for name, ratio in roles["predicted_to_measured"].items())
    console.print(
        f"predicted for one row: {rates} tokens a second, diffusion the faster up to "
        f"{roles['diffusion_is_faster_up_to_steps']:.1f} steps a canvas ({told}); "
        f"predicted to measured: {ratios or 'none was measured'}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    for size in report["settings"]["batches"]:
        duels = [duel for duel in report["duels"] if duel["batch"] == size]
        console.print(_table(duels, f"batch {size}"))
        roof = next(roof for roof in report["roofline"] if roof["batch"] == size)
        console.print(
            f"roofline: {roof['bytes'] / 1e6:,.1f} MB and {roof['operations'] / 1e9:,.2f} GFLOP a step, so at least "
            f"{roof['floor_ms']:.3g} ms ({roof['bound']}); ours takes {roof['ratio']:.2f} times that",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        best = [entry for entry in report["best"] if entry["batch"] == size]
        if len(duels) > 1:
            ratios = ", ".join(f"{ROWS[entry['measure']][0]} x{entry['ratio']:.2f} ({entry['rival']})" for entry in best)
            console.print(f"against the best of them: {ratios}", markup=False, soft_wrap=True)


def _head(report: dict[str, Any]) -> list[str]:
    machine, model, settings, rates = (report[key] for key in ("machine", "model", "settings", "rates"))
    facts = next(iter(report["sides"].values()))
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    weights = ", ".join(f"{name} {side['weight_bytes'] / 1e6:,.1f} MB" for name, side in report["sides"].items())
    return [
        f"{machine['gpu'] or machine['processor']}, {facts['threads']} of {machine['threads_available']} threads, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, load {machine['load_average'][0]:.1f}; copies "
        f"{rates['copy_bytes_per_second'] / 1e9:.1f} GB/s, multiplies {rates['operations_per_second'] / 1e9:,.0f} GFLOP/s",
        versions,
        f"{model['name']}: {model['weights']} weights, {model['parameters']:,} parameters in {facts['dtype']}, "
        f"{model['reduced'] or str(model['layers']) + ' layers'}; prompt {settings['prompt']}, {settings['canvases']} canvases of "
        f"{model['canvas_length']}, {settings['steps']} steps each on both sides",
        f"weights: {weights}; memory by {facts['memory_method']}",
        f"median (quartiles) of {settings['repeat']} generations of each side, in turn",
    ]


def _table(duels: Sequence[dict[str, Any]], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for duel in duels:
        for side in duel["sides"]:
            table.add_column(side["name"], justify="right", no_wrap=True)
        if duel["ratio"]:
            table.add_column("ratio", justify="right")
    for name, (label, factor) in ROWS.items():
        cells = []
        for duel in duels:
            cells += [_cell(side["measures"][name], factor) for side in duel["sides"]]
            if duel["ratio"]:
                cells.append(f"x{duel['ratio'][name]:.2f}" if name in duel["ratio"] else "")
        table.add_row(label, *cells)
    for name, label in (("tokens_per_forward", "tokens a forward"), ("tokens_per_forward_with_commits", "with commits")):
        cells = []
        for duel in duels:
            cells += [f"{side[name]:.2f}" for side in duel["sides"]] + ([""] if duel["ratio"] else [])
        table.add_row(label, *cells)
    return table


def _cell(spread: dict[str, float] | None, factor: float) -> str:
    if spread is None:
        return "-"
    median, low, high = (f"{factor * spread[key]:,.4g}" for key in ("median", "low", "high"))
    return f"{median} ({low} to {high})"
