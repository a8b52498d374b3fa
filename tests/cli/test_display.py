"""What a live view draws, and what it leaves out."""

from typing import Any

from rich.console import Console

from diffusiongemma.cli.display import RowsCanvas, legend, text_canvas
from diffusiongemma.engine.events import Draft


def draft(row: int, ids: list[int], **fields: Any) -> Draft:
    count = len(ids)
    return Draft(
        row=row, canvas=0, step=1, argmax_ids=ids, entropy=[0.1] * count, accepted=[True] * count, text="",
        **{"pinned": [False] * count, **fields},
    )  # fmt: skip


def shown(picture: Any) -> str:
    console = Console(width=60, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(picture)
    return capture.get()


def test_padding_is_not_drawn() -> None:
    names = {0: "<pad>", 5: "<turn|>", 8: "a", 9: "b"}
    picture = text_canvas(names.__getitem__, lambda: "before ", stop_ids=(5,), pad_id=0)
    assert shown(picture(draft(0, [8, 9, 5, 0, 0, 0]))).strip() == "before ab■"
    rows = RowsCanvas(names.__getitem__, lambda: "", pad_id=0)
    assert "<pad>" not in shown(rows(draft(0, [8, 0, 9, 0])))


def test_more_rows_than_there_is_room_for_are_counted() -> None:
    rows = RowsCanvas(lambda token: "x", lambda: "title", most=6)
    for row in range(30):
        picture = rows(draft(row, [8, 9]))
    lines = shown(picture).splitlines()
    assert len(lines) == 6 and lines[0].strip() == "title" and lines[-1].strip() == "... and 26 more"


def test_the_legend_says_what_colours_mean() -> None:
    assert "sure" in shown(legend()) and "guessing" in shown(legend())
