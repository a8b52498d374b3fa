"""``diffusiongemma finetune`` and ``merge``: a checkpoint tuned on rows that a user has, and adapters added to their base."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusiongemma.cli import common
from diffusiongemma.cli.train import run_recipe, training_device
from diffusiongemma.errors import OptionError

if TYPE_CHECKING:
    from diffusiongemma.training.loop import Evaluate
    from diffusiongemma.training.recipe import Recipe

__all__ = ["finetune", "merge"]

_TARGETS = ("attention", "mlp", "self_conditioning")


def finetune(
    model: Annotated[str, typer.Argument(help="The checkpoint to tune: a built-in name, a folder, a GGUF file or a hub id.")],
    data: Annotated[
        str,
        typer.Option("--data", help="Rows with messages, prompt and completion, or text: JSON Lines, or what datasets loads."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; a run found there goes on.")],
    eval_data: Annotated[
        str | None, typer.Option("--eval-data", help="Rows that are not learnt; unset: one in twenty of --data.")
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="default, google (its Sudoku adapter's settings), nemo, or small: for some million parameters.", show_default=True
        ),
    ] = "default",
    lora: Annotated[
        str | None,
        typer.Option("--lora", help="Adapters: r=16,alpha=32,targets=attention+mlp+self_conditioning; unset: the preset's."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Train all weights instead of adapters.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates; unset: the preset's.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate; unset: the preset's.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Rows a batch; unset: the preset's.")] = None,
    accumulate: Annotated[int, typer.Option("--accumulate", min=1, help="Batches whose gradients make one update.")] = 1,
    canvases: Annotated[
        int | None, typer.Option("--canvases", min=1, help="Noisy canvases of each row; unset: the preset's.")
    ] = None,
    max_prompt: Annotated[int, typer.Option("--max-prompt", min=1, help="Rows with longer prompts are left out.")] = 1024,
    causal_weight: Annotated[
        float, typer.Option("--causal-weight", min=0, help="Of the causal role's loss; 0: only the canvas learns.")
    ] = 1.0,
    self_conditioning: Annotated[
        float, typer.Option("--self-conditioning", min=0, max=1, help="Share of canvases that see a first pass's belief.")
    ] = 0.5,
    loss_weighting: Annotated[
        str, typer.Option("--loss-weighting", help="Of canvases by noise level t: plain or 1/(1-t).")
    ] = "plain",
    pad_weight: Annotated[
        float | None, typer.Option("--pad-weight", min=0, help="Weight of the padding after an answer; unset: the preset's.")
    ] = None,
    train_router: Annotated[bool, typer.Option("--train-router", help="With --full: train the experts' routers too.")] = False,
    recompute: Annotated[bool, typer.Option("--recompute", help="Keep less for the gradient and compute layers again.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Products in bfloat16 on a CPU; a GPU always computes so.")] = False,
    eval_every: Annotated[int, typer.Option("--eval-every", min=1, help="Steps between two looks at held-out rows.")] = 100,
    eval_examples: Annotated[
        int,
        typer.Option("--eval-examples", min=0, help="Held-out rows that are answered each time; 0: only their losses are taken."),
    ] = 32,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything random.")] = 1,
    device: common.DeviceOption = None,
    compile_model: Annotated[bool, typer.Option("--compile", help="Compile the losses: minutes at first, faster after.")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads; unset: torch's own choice.", min=1)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only report on the data and on the memory it takes.")] = False,
    json: common.JsonOption = False,
) -> None:
    """Tune a checkpoint on your own rows: adapters (LoRA, also on quantised weights) or all weights.

    First comes a report: how long prompts and answers are, what is left out and why, five decoded examples, and the memory. The
    run's folder gets model/ (adapter or checkpoint, which every command takes as --model), state.pt, data.json, log.jsonl and
    loss.png. Ctrl-C keeps the state.
    """
    with common.reporting(json):
        from diffusiongemma.training.finetune import finetune_recipe

        if full and lora is not None:
            raise OptionError("--full and --lora are given; all weights are trained, or adapters are")
        if train_router and not full:
            raise OptionError("--train-router is given without --full; adapters leave the routers as they are")
        train: dict[str, Any] = {
            "steps": steps, "adamw_lr": lr, "prompts": batch, "canvases": canvases, "accumulate": accumulate,
            "causal_weight": causal_weight, "causal_every": None if causal_weight else 0, "self_conditioning": self_conditioning,
            "loss_weighting": loss_weighting, "freeze_router": not train_router, "recompute": recompute,
            "compute": "bfloat16" if bf16 else "float32",
        }  # fmt: skip
        rows = {"max_prompt": max_prompt, "pad_weight": pad_weight}
        recipe = finetune_recipe(
            model, data, preset=preset, lora=False if full else _lora(lora), eval_data=eval_data, seed=seed,
            train={name: value for name, value in train.items() if value is not None},
            rows={name: value for name, value in rows.items() if value is not None},
            evaluation={"every": eval_every, "examples": max(1, eval_examples)},
        )  # fmt: skip
        chosen = training_device(device)
        report = _before(recipe, out, chosen, json)
        if not dry_run:
            judge = _judge(recipe, out) if eval_examples else None
            report |= run_recipe(recipe, out, chosen, compile_model, threads, judge)
        if json:
            common.print_json(report)
        elif not dry_run:
            common.out.print(f"step {report['step']} of {report['steps']}; plot {report['plot']}", markup=False, soft_wrap=True)
            common.out.print(f"Next: diffusiongemma chat --model {report['checkpoint']}", markup=False, soft_wrap=True)


def merge(
    adapter: Annotated[Path, typer.Argument(help="An adapter's folder, as finetune or PEFT writes it.")],
    out: Annotated[Path, typer.Argument(help="Folder of the new checkpoint.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Its base; unset: the one that it names.")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the new weights: bfloat16, float32 or float16.")] = "bfloat16",
    json: common.JsonOption = False,
) -> None:
    """Add an adapter to its base and write a plain checkpoint."""
    with common.reporting(json):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OptionError(f"{out} is there and not an empty folder; give a new one")
        # Summed in float32 and rounded once.
        loaded = common.load(model or str(adapter), "float32", "cpu", None, str(adapter) if model else None)
        loaded.merge_adapter()
        if dtype != "float32":
            import torch

            kinds = {"bfloat16": torch.bfloat16, "float16": torch.float16}
            if dtype not in kinds:
                raise OptionError(f"dtype is {dtype!r}; allowed: bfloat16, float32, float16", "dtype")
            loaded.transformer.to(kinds[dtype])
        loaded.save_pretrained(out)
        if json:
            common.print_json({"folder": str(out), "dtype": dtype})
        else:
            common.out.print(f"{out}: a plain checkpoint in {dtype}", markup=False, soft_wrap=True)


def _lora(text: str | None) -> dict[str, Any] | bool:
    if text is None:
        return True
    names = {"r": "rank", "rank": "rank", "alpha": "alpha", "targets": "targets"}
    result: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in names or not value:
            raise OptionError(f"--lora has {part!r}; it is r=16,alpha=32,targets=attention+mlp (each may be left out)")
        result[names[name]] = value.split("+") if name == "targets" else value
    if odd := [target for target in result.get("targets", []) if target not in _TARGETS]:
        raise OptionError(f"--lora has the target {odd[0]!r}; allowed: {', '.join(_TARGETS)}")
    return result


def _before(recipe: "Recipe", out: Path, device: str, json: bool) -> dict[str, Any]:
    """Report on data and memory before anything is trained."""
    from diffusiongemma.errors import TrainingError
    from diffusiongemma.generation.machine import free_memory
    from diffusiongemma.opened import open_checkpoint
    from diffusiongemma.training.finetune import training_bytes
    from diffusiongemma.training.rows import Rows
    from diffusiongemma.weights.resolve import resolve

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{out} cannot be the folder of a run: {error.strerror or error}; give another one") from error
    report = Rows(recipe.data, recipe.seed, out, lambda done, of: None).report
    opened = open_checkpoint(resolve(recipe.base))
    memory = training_bytes(opened, recipe, device.startswith("cuda"), report.context_tokens[3])
    needed, free = sum(memory.values()), free_memory(device)
    fits = free is None or needed <= free
    if not json:
        show = common.err.print
        show(f"{report.rows} rows: {report.examples} answers to learn on {report.canvases} canvases, {report.held_out} held out")
        for name, sizes in (("prompts", report.prompt_tokens), ("answers", report.answer_tokens)):
            show(f"  {name}: {sizes[0]} to {sizes[3]} tokens, median {sizes[1]}, 95% up to {sizes[2]}")
        for why, (count, where) in report.left_out.items():
            show(
                f"  left out: {count} ({', '.join(where)}{', ...' if count > len(where) else ''}): {why}",
                markup=False,
                soft_wrap=True,
            )
        for number, (prompt, answer) in enumerate(report.shown, 1):
            show(f"[dim]-- {number}[/] ", end="")
            show(_end(prompt), style="dim", markup=False, end="", soft_wrap=True)
            show(answer, style="bold", markup=False, soft_wrap=True)
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in memory.items())
        room = (
            "" if free is None else f"; {free / 1e9:.1f} GB are free" + ("" if fits else ": IT MAY NOT FIT (--batch, --recompute)")
        )
        show(f"memory about {needed / 1e9:.2f} GB ({parts}){room}", soft_wrap=True)
    return {"data": vars(report), "memory_bytes": memory, "free_bytes": free, "fits": fits}


def _end(text: str, most: int = 300) -> str:
    return text if len(text) <= most else "..." + text[-most:]


def _judge(recipe: "Recipe", out: Path) -> "Evaluate":
    """Answers held-out rows with the tuned model: the share that is exactly the row's answer, and steps a canvas."""
    from diffusiongemma.engine.events import Done
    from diffusiongemma.generation import DiffusionGemmaModel
    from diffusiongemma.generation.requests import ReplyPlan
    from diffusiongemma.training.rows import Rows

    held = Rows(recipe.data, recipe.seed, out, lambda done, of: None).held_out[: recipe.eval.examples]

    def judge(folder: Path) -> dict[str, Any]:
        if not held:
            return {}
        tuned = DiffusionGemmaModel.from_pretrained(folder, progress=False)
        most = max(len(example.answer) for example in held) + tuned.config.canvas_length
        plan = ReplyPlan(tuned.checkpoint, tuned.roles, {"seed": 0, "max_tokens": most}, rows=len(held))
        right, steps, canvases = 0, 0, 0
        for event in tuned.engine.run(plan.requests([list(example.prompt) for example in held])):
            if isinstance(event, Done):
                right += tuple(event.result.token_ids) == held[event.row].answer
                steps += event.result.usage.denoising_steps
                canvases += len(event.result.canvases)
        return {"scores": {"held-out": {"score": right / len(held), "mean_steps": steps / max(1, canvases)}}}

    return judge
