"""A variable renamed, a simple Python line completed, and short sums."""

import random
import re

from diffusiongemma.tasks import words
from diffusiongemma.tasks.base import Example
from diffusiongemma.tasks.generated import GeneratedTask, exact
from diffusiongemma.tasks.words import either

__all__ = ["ARITHMETIC", "COMPLETE_LINE", "RENAME"]

_FUNCTIONS = (
    "def {f}({a}, {b}):\n    return {a} + {b}",
    "def {f}({a}):\n    return {a} * {k}",
    "def {f}({a}):\n    {b} = {a} + {k}\n    return {b}",
    "def {f}({a}):\n    for {b} in {a}:\n        print({b})",
    "def {f}({a}, {b}):\n    if {a} > {b}:\n        return {a}\n    return {b}",
    "def {f}({a}):\n    return [{b} for {b} in {a} if {b} > {k}]",
    "def {f}({a}):\n    {b} = 0\n    for {c} in {a}:\n        {b} += {c}\n    return {b}",
    "def {f}({a}):\n    if not {a}:\n        return None\n    return {a}[0]",
    "def {f}({a}, {b}={k}):\n    return {a}.get({b})",
    "def {f}({a}):\n    with open({a}) as {b}:\n        return {b}.read()",
    "def {f}({a}):\n    {b} = len({a})\n    return {b} - {k}",
    "def {f}({a}, {b}):\n    {a}.append({b})\n    return {a}",
    "{a} = {k}\n{b} = {a} + 1\nprint({b})",
    "for {a} in range({k}):\n    print({a})",
    "{a} = [1, 2, {k}]\nprint(len({a}))",
    "while {a} < {k}:\n    {a} += 1",
    "{a} = input()\nif {a}:\n    print({a})",
    "def {f}({a}):\n    return {a}.strip().lower()",
)
_NAMES = str.split(
    "x y n i items total count value result data text line key name size left right index first second rows user path word numbers"
)


def _variable(rng: random.Random) -> str:
    if rng.random() < 0.45:
        return rng.choice(_NAMES)
    one = words.word(rng)
    return one if rng.random() < 0.6 else f"{one}_{rng.choice(words.NOUNS)}"


def _names(rng: random.Random, count: int) -> list[str]:
    reserved = {
        "print",
        "len",
        "open",
        "input",
        "range",
        "def",
        "for",
        "in",
        "if",
        "not",
        "with",
        "as",
        "while",
        "return",
        "try",
        "class",
    }
    while True:
        found = words.some(rng, _variable, count, count)
        if not set(found) & reserved:
            return found


def _rename(rng: random.Random) -> Example:
    form = rng.choice(_FUNCTIONS)
    f, a, b, c, new = _names(rng, 5)
    parts = {"f": f, "a": a, "b": b, "c": c, "k": str(rng.randint(2, 99))}
    old_key = rng.choice([key for key in "abcf" if f"{{{key}}}" in form])
    code = form.format(**parts)
    old = parts[old_key]
    answer = re.sub(rf"\b{re.escape(old)}\b", new, code)
    ask = either(
        rng,
        "Rename {o} to {n}:\n{t}|Rename the variable {o} to {n}:\n{t}|Rename {o} to {n} in this "
        "code:\n{t}|{t}\n\nRename {o} to {n}.|"
        "Call {o} {n} instead:\n{t}|Change the name {o} to {n}:\n{t}|In this code, rename {o} to "
        "{n}:\n{t}|{o} should be called {n}:\n{t}",
    ).format(o=old, n=new, t=code)
    return Example(ask, answer)


_LINES = (
    ("for {a} in range({k}", "):"), ("print({a}", ")"), ("{a} = [{k}, {k}", "]"), ("if {a} == {k}", ":"), ("while {a} < {b}", ":"),
    ("def {a}({b}", "):"), ("import ", "sys"), ("return {a}[", "0]"), ("{a} = {{\"{b}\": {k}", "}}"), ("for {a} in {b}", ":"),
    ("def {a}({b}, {c}):\n    return {b} +", " {c}"), ("def {a}({b}, {c}):\n    return {b} -", " {c}"),
    ("def {a}({b}):\n    return len(", "{b})"), ("def {a}({b}):\n    print(", "{b})"),
    ("{a} = {k}\n{b} = {k}\nprint({a} +", " {b})"),
    ("for {a} in {b}:\n    print(", "{a})"), ("with open({a}) as {b}:\n    {c} = {b}", ".read()"),
    ("{a} = []\n{a}.", "append({b})"),
    ("if {a}:\n    return {a}\nelse", ":"), ("try:\n    {a}()\nexcept", " Exception:"), ("{a} = sorted(", "{b})"),
    ("def {a}(self):\n    return self", ".{b}"), ("assert {a} is not", " None"), ("class {b}", ":"), ("from {a} ", "import {b}"),
    ("lambda {a}: {a} *", " {k}"), ("{a}, {b} = {b},", " {a}"), ("if __name__ == ", "\"__main__\":"),
    ("{a} = {a} if {a} else", " {k}"),
    ("def {a}({b}):\n    {c} = {b}\n    return", " {c}"), ("{a} = {k}\nif {a} > 0:\n    print(", "{a})"),
)  # fmt: skip


def _complete(rng: random.Random) -> Example:
    """The whole line or lines, completed; what no reader could know is named in the question."""
    begin, end = rng.choice(_LINES)
    a, b, c = _names(rng, 3)
    parts = {"a": a, "b": b, "c": c, "k": str(rng.randint(2, 99))}
    shown, rest = begin.format(**parts), end.format(**parts)
    unknown = [parts[key] for key in "abck" if f"{{{key}}}" in end and f"{{{key}}}" not in begin]
    hint = f" (use {unknown[0]})" if unknown else ""
    ask = either(
        rng,
        (
            "Complete this Python line{h}:\n{t}|Complete the code{h}:\n{t}|Finish this Python code{h}:\n{t}|"
            "Complete{h}:\n{t}|Finish the line{h}:\n{t}"
        ),
    ).format(t=shown, h=hint)
    return Example(ask, shown + rest)


_SUMS = (
    "What is {a} {o} {b}?|{a} {o} {b}|{a} {o} {b} =|Calculate {a} {o} {b}.|Compute {a} {o} {b}|How "
    "much is {a} {o} {b}?|{a} {w} {b}|"
    "What is {a} {w} {b}?|Please work out {a} {o} {b}.|{a}{o}{b}=?|{a}{o}{b}|Solve: {a} {o} {b}"
)


def _arithmetic(rng: random.Random) -> Example:
    o, w = rng.choice((("+", "plus"), ("+", "plus"), ("-", "minus"), ("-", "minus"), ("*", "times"), ("/", "divided by")))
    if o == "*":
        a, b = rng.randint(0, 12), rng.randint(0, 12)
        answer = a * b
    elif o == "/":
        b, answer = rng.randint(1, 12), rng.randint(0, 12)
        a = b * answer
    else:
        top = rng.choice((10, 20, 100, 100))
        a, b = rng.randint(0, top), rng.randint(0, top)
        if o == "-" and a < b and rng.random() < 0.7:
            a, b = b, a
        answer = a + b if o == "+" else a - b
    return Example(either(rng, _SUMS).format(a=a, b=b, o=o, w=w), str(answer))


RENAME = GeneratedTask("rename-variable", "a name changed throughout a few lines of Python, exact match", _rename, exact, 128)
COMPLETE_LINE = GeneratedTask("complete-line", "simple Python lines completed, exact match", _complete, exact, 64)
ARITHMETIC = GeneratedTask("arithmetic", "sums, differences, small products and quotients, exact match", _arithmetic, exact, 16)
