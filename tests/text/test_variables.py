"""What a template takes from outside, told from what it sets itself."""

import pytest
from jinja2 import Environment

from diffusiongemma.text.chat import ChatTemplate
from diffusiongemma.text.variables import free_variables


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("{{ a }}{{ b.c }}{{ d['e'] }}{{ f | default(g) }}", "abdfg"),
        ("{% set a = 1 %}{{ a }}", ""),
        ("{% set a = a | default(1) %}{{ a }}", "a"),
        ("{% if a is not defined %}{% set a = 1 %}{% endif %}{{ a }}", "a"),
        ("{% if a %}{% set b = 1 %}{% else %}{% set b = 2 %}{% endif %}{{ b }}", "a"),
        ("{% if a %}{% set b = 1 %}{% elif c %}{% set b = 2 %}{% endif %}{{ b }}", "abc"),
        ("{% if a %}{% set b = 1 %}{{ b }}{% endif %}", "a"),
        ("{% for a in b %}{% set c = a %}{{ c }}{{ loop.index }}{% endfor %}", "b"),
        ("{% for a in b %}{% set c = a %}{% endfor %}{{ c }}", "bc"),
        ("{% for a, d in b if a.x == c %}{{ d }}{% else %}{{ e }}{% endfor %}", "bce"),
        ("{% macro m(a, b=c) %}{{ a }}{{ b }}{{ d }}{{ e }}{{ varargs }}{% endmacro %}{% set d = 1 %}{{ m(1) }}", "ce"),
        ("{% set a %}{{ b }}{% endset %}{{ a }}", "b"),
        ("{% call(a) m(b) %}{{ a }}{% endcall %}", "bm"),
        ("{% set n = namespace(x=a) %}{% set n.x = n.x + b %}", "ab"),
    ],
)
def test_free_variables(source: str, names: str) -> None:
    result = free_variables(Environment().parse(source)) - {"namespace"}
    assert result == set(names)


def test_a_template_says_whether_it_knows_tools() -> None:
    plain = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert ChatTemplate(plain, {}).variables == {"bos_token", "messages"} and not ChatTemplate(plain, {}).knows_tools
    assert ChatTemplate(plain + "{% for t in tools %}{% endfor %}{{ raise_exception('x') }}", {}).knows_tools
