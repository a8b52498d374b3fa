"""A chat template that does not end, or takes all memory, costs a second and an error; what transformers gives it, it has."""

import json
import multiprocessing
import os
import resource
import signal
import threading
import time
from datetime import datetime

import pytest

from diffusiongemma.errors import CheckpointError, DiffusionGemmaError, InputError
from diffusiongemma.text import render
from diffusiongemma.text.chat import ChatTemplate

USER = [{"role": "user", "content": "hi"}]

ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{{ lipsum(n=1000000) }}",
    "{{ [1, 2, 3] | slice(10**9) | list | length }}",
    "{{ 9 ** (9 ** 9) }}",
    "{% set n = namespace(x=0) %}{% for a in range(99999) %}{% for b in range(99999) %}{% set n.x = a %}{% endfor %}{% endfor %}",
]
ENORMOUS = [
    "{{ 'a' * 10**9 }}",
    "{{ 'a' * 10**11 }}",
    "{{ (1, 2) * 10**10 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ 'a' | center(10**9) }}",
    "{{ 'a'.zfill(10**9) }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{{ [1] | batch(10**10, 0) | list }}",
    "{{ range(99999) | join('a' * 100000) }}",
    "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x | length }}",
    "{% set x %}{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}{% endset %}{{ x }}",
    "{% for i in range(50000) %}{{ 'a' * 1000 }}{% endfor %}",
    "{{ messages[0].content * 40000000 }}",
]
OTHERWISE_BAD = [
    "{% for i in range(10**9) %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% for i in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% for i in range(3) %}" * 50 + "{% endfor %}" * 50,
    "{{ " + "not " * 20000 + "1 }}",
]


@pytest.mark.parametrize("source", [*ENDLESS, *ENORMOUS, *OTHERWISE_BAD])
def test_a_hostile_template_ends_with_an_error(source: str) -> None:
    before, spent = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with pytest.raises(DiffusionGemmaError) as raised:
        ChatTemplate(source, {}).render(USER)
    assert isinstance(raised.value, InputError | CheckpointError)
    assert "template" in str(raised.value)
    assert time.process_time() - spent < 0.5
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - children < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before.ru_maxrss < 64 << 10


def test_what_took_too_much_says_so_and_leaves_the_next_alone() -> None:
    good = ChatTemplate("{{ messages[0].content }}", {})
    with pytest.raises(InputError, match=r"takes more than 0\.5 s of computing or 256 MiB for 1 messages"):
        ChatTemplate(ENDLESS[0], {}).render(USER)
    assert good.render(USER) == "hi"
    with pytest.raises(CheckpointError, match="cannot be compiled: it takes too much"):
        ChatTemplate("{{ " + "9 ** (9 ** 9) }}", {})
    assert good.render(USER) == "hi"


def test_more_messages_have_more_time() -> None:
    assert render.seconds_for(1000) > 5 > 0.6 > render.seconds_for(1)


def test_a_process_that_died_is_replaced() -> None:
    template = ChatTemplate("{{ messages[0].content }}{{ 1 }}", {})
    for worker in list(render._POOL._free):
        os.kill(worker._process.pid, signal.SIGKILL)
        worker._process.wait()
    assert template.render(USER) == "hi1"


def test_where_no_process_can_be_started_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = render._Pool()
    monkeypatch.setattr(render, "_POOL", pool)
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(CheckpointError, match=r"process of their own.*No such file"):
        ChatTemplate("x", {})
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(CheckpointError, match="cannot run here"):
        ChatTemplate("x", {})
    monkeypatch.setattr("sys.executable", "")
    with pytest.raises(CheckpointError, match="no Python interpreter"):
        ChatTemplate("x", {})


def test_many_threads_render_at_once() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }},{% endfor %}", {})
    result: dict[int, str] = {}

    def work(number: int) -> None:
        for turn in range(20):
            result[number * 100 + turn] = template.render([{"role": "user", "content": f"{number}/{turn}"}])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert result == {n * 100 + t: f"{n}/{t}," for n in range(8) for t in range(20)}
    assert len(render._POOL._free) <= render._PROCESSES


def _render_in_fork(template: ChatTemplate, results: "multiprocessing.Queue[str]") -> None:
    results.put(template.render([{"role": "user", "content": "child"}]))
    render._POOL.close()


def test_a_forked_process_has_renderers_of_its_own() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    template.render(USER)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_render_in_fork, args=(template, results))
    child.start()
    assert [template.render(USER) for _ in range(20)] == ["hi"] * 20
    assert results.get(timeout=60) == "child"
    child.join()


def render_source(source: str, **options: object) -> str:
    return ChatTemplate(source, {}).render(USER, **options)


def test_the_engine_has_what_transformers_has() -> None:
    assert render_source("{% generation %}a{% endgeneration %}b") == "ab"
    assert render_source("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render_source("{% for i in range(4) %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}") == "013"
    assert render_source("{{ strftime_now('%Y') }}") == str(datetime.now().year)
    assert render_source("  {% if true %}\nx\n  {% endif %}\ny") == "x\ny"
    assert render_source("{{ namespace(self=1).self }}{{ dict(a=1).a }}") == "11"
    with pytest.raises(InputError, match="refuses these messages: no such role"):
        render_source("{{ raise_exception('no such role') }}")
    with pytest.raises(InputError, match="underscore"):
        render_source("{% set n = namespace(__x=1) %}")
    with pytest.raises(InputError, match="underscore"):
        render_source("{% set n = namespace() %}{% set n._x = 1 %}")


@pytest.mark.parametrize(
    ("call", "options"),
    [
        ("", {"ensure_ascii": False}),
        ("ensure_ascii=true", {}),
        ("indent=2", {"ensure_ascii": False, "indent": 2}),
        ("separators=(',', ':'), sort_keys=true", {"ensure_ascii": False, "separators": (",", ":"), "sort_keys": True}),
        ("true, 1", {"indent": 1}),
    ],
)
def test_tojson_is_json(call: str, options: dict[str, object]) -> None:
    value = {"b": "<é'&>", "a": [1, None, True, 2.5]}
    assert render_source("{{ value | tojson(" + call + ") }}", value=value) == json.dumps(value, **options)


def test_places_of_what_a_model_writes() -> None:
    said = "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}!{% endgeneration %}{% endif %}"
    source = "{% for m in messages %}[" + said + "]{% endfor %}"
    template = ChatTemplate(source, {})
    shown = template.rendered(
        template.prepared([*USER, {"role": "assistant", "content": "yo"}, *USER, {"role": "assistant", "content": ""}])
    )
    assert [shown.text[begin:end] for begin, end in shown.generated] == ["yo!", "!"]
