"""What commands have in common: options made from ``options`` and from a checkpoint's name, errors as messages, ``--json``."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any

import typer

from diffusiongemma.cli import common
from diffusiongemma.options import Option, PromptOptions, SamplingParams, options_of

__all__ = ["command", "typer_option"]

Run = Callable[..., None]
_LOADING = {
    "model": (common.ModelOption, common.DEFAULT_MODEL),
    "device": (common.DeviceOption, None),
    "dtype": (common.DtypeOption, None),
    "quantize": (common.QuantizeOption, None),
    "adapter": (common.AdapterOption, None),
}


def command(
    *, model: str = common.DEFAULT_MODEL, but: Iterable[str] = (), only: Iterable[str] | None = None, chat: bool = False
) -> Callable[[Run], Run]:
    """Make a function a command; errors of our tree become messages, and what it takes by these names is filled in.

    ``sampling``: a dict of the sampling parameters that were given, each an option of the command line. ``load``: a function that
    loads the checkpoint which --model, --adapter and the options beside them name. ``json``: whether one JSON object is to be
    printed.

    Args:
        model: the checkpoint where none is named.
        but: sampling parameters that the command does not take.
        only: those that it takes; None: all.
        chat: whether ``sampling`` has the options of how a prompt is written, too.
    """
    left_out, taken = frozenset(but), None if only is None else frozenset(only)
    options = {**options_of(SamplingParams), **(options_of(PromptOptions) if chat else {})}
    ours = {
        name: typed
        for name, each in options.items()
        if name not in left_out and (taken is None or name in taken) and (typed := typer_option(each)) is not None
    }

    def decorate(run: Run) -> Run:
        signature = inspect.signature(run)
        filled = signature.parameters.keys() & {"sampling", "load", "json"}

        @functools.wraps(run)
        def wrapped(**arguments: Any) -> None:
            made: dict[str, Any] = {}
            if "json" in filled:
                made["json"] = arguments.pop("json")
            if "sampling" in filled:
                said = {name: arguments.pop(name) for name in ours}
                made["sampling"] = {name: value for name, value in said.items() if value is not None and value != []}
            if "load" in filled:
                checkpoint = [arguments.pop(name) for name in _LOADING]
                name, device, dtype, quantize, adapter = checkpoint
                made["load"] = functools.partial(common.load, name, dtype, device, quantize, adapter)
            with common.reporting(made.get("json", False)):
                run(**arguments, **made)

        parameters = [one for one in signature.parameters.values() if one.name not in filled]
        parameters += _parameters(ours if "sampling" in filled else {}, _LOADING if "load" in filled else {}, model)
        if "json" in filled:
            parameters.append(_parameter("json", common.JsonOption, False))
        wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {one.name: one.annotation for one in parameters}
        return wrapped

    return decorate


def _parameters(ours: Mapping[str, Any], loading: Mapping[str, tuple[Any, Any]], model: str) -> Iterator[inspect.Parameter]:
    for name, typed in ours.items():
        yield _parameter(name, typed, None)
    for name, (typed, default) in loading.items():
        yield _parameter(name, typed, model if name == "model" else default)


def _parameter(name: str, typed: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=typed)


def typer_option(option: Option) -> Any:
    """The command line's option for one of ours, None unless it is given; None for what cannot be written there."""
    dashed = option.name.replace("_", "-")
    kinds = {int: int, float: float, str: str, bool: bool, tuple: list[str]}
    if option.kind not in kinds:
        return None
    usual = (f"--{dashed}/--no-{dashed}",) if option.kind is bool else (f"--{dashed}",)
    words = f" ({', '.join(option.choices)})" if option.choices else ""
    many = " May be given several times." if option.kind is tuple else ""
    flags = option.flags or usual
    made = typer.Option(*flags, help=f"{option.help}{words}{many}", rich_help_panel="Sampling; unset: the checkpoint's own")
    return Annotated[kinds[option.kind] | None, made]
