from diffusiongemma.cli.generate import _shown
from diffusiongemma.engine.events import Result, Usage
from diffusiongemma.text.replies import ToolCall

USAGE = Usage(1, 1, 2, 1, 0, 1.0, 1.0, 0.1)


def test_thoughts_stand_dimmed_before_the_answer_and_calls_after_it() -> None:
    result = Result("Fine.", [1], "stop", USAGE, thinking="Hm.\n", tool_calls=[ToolCall("look", {"at": "Ålesund"})])
    shown = _shown(result)
    assert shown.plain == 'Hm.\n\nFine.\nlook({"at": "Ålesund"})'
    assert [(shown.plain[span.start : span.end], span.style) for span in shown.spans] == [
        ("Hm.\n\n", "dim"),
        ('look({"at": "Ålesund"})', "cyan"),
    ]


def test_an_answer_alone_is_its_text() -> None:
    assert _shown(Result("[red]", [1], "stop", USAGE)).plain == "[red]"
