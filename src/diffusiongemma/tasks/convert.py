"""The same content in another form: CSV, Markdown, key and value, JSON; broken JSON mended; dates and numbers written anew."""

import json
import random
from typing import Any

from diffusiongemma.tasks import words
from diffusiongemma.tasks.base import Example
from diffusiongemma.tasks.generated import GeneratedTask, exact, same_json
from diffusiongemma.tasks.words import either

__all__ = ["CONVERT", "REFORMAT", "REPAIR"]

Table = tuple[list[str], list[list[Any]]]
"""Columns and rows."""

_COLUMNS = str.split(
    "name age city price colour date item count id size score team job country email year weight "
    "title owner status time room seats level"
)


def _table(rng: random.Random, columns: int, rows: int) -> Table:
    names = rng.sample(_COLUMNS, columns) if rng.random() < 0.7 else words.some(rng, words.word, columns, columns)
    draws = [rng.choice((_whole, _whole, words.word, words.first_name, words.city, words.code)) for _ in names]
    return names, [[draw(rng) for draw in draws] for _ in range(rows)]


def _whole(rng: random.Random) -> int:
    return rng.randint(0, rng.choice((9, 99, 999)))


def _csv(table: Table, mark: str = ",") -> str:
    names, rows = table
    return "\n".join(mark.join(map(str, row)) for row in [names, *rows])


def _markdown(table: Table) -> str:
    names, rows = table
    lines = [f"| {' | '.join(map(str, row))} |" for row in [names, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(names), *lines[1:]])


def _json(table: Table) -> str:
    names, rows = table
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    return json.dumps(objects[0] if len(objects) == 1 else objects, ensure_ascii=False)


def _pairs(table: Table, mark: str = ": ") -> str:
    names, rows = table
    return "\n".join(f"{key}{mark}{value}" for key, value in zip(names, rows[0], strict=True))


_FORMS = {
    "CSV": ("CSV", _csv),
    "Markdown": ("a Markdown table|Markdown|a table in Markdown|a markdown table", _markdown),
    "JSON": ("JSON", _json),
    "pairs": ("key: value lines|lines of key: value|key-value pairs", _pairs),
}
_CONVERT_ASKS = (
    "Convert to {to}:\n{t}|Convert this {of} to {to}:\n{t}|{of} to {to}:\n{t}|Rewrite as {to}:\n{t}|Turn this into {to}:\n{t}|"
    "{t}\n\nAs {to}, please.|Give me this as {to}:\n{t}|Make it {to}:\n{t}|Change to {to}:\n{t}|Please convert to {to}.\n{t}|"
    "Show as {to}:\n{t}|Write the following as {to}:\n{t}|{t}\nConvert to {to}."
)


def _convert(rng: random.Random) -> Example:
    of, to = rng.sample(sorted(_FORMS), 2)
    one = "pairs" in (of, to)
    columns = rng.randint(2, 4)
    table = _table(rng, columns, 1 if one else rng.randint(1, {2: 4, 3: 3, 4: 2}[columns]))
    shown = _FORMS[of][1](table)
    if of == "CSV" and rng.random() < 0.2:
        shown = _csv(table, rng.choice((", ", ";", "\t")))
    if of == "pairs" and rng.random() < 0.3:
        shown = _pairs(table, rng.choice(("=", " = ", " - ")))
    if of == "JSON" and rng.random() < 0.2:
        shown = json.dumps(json.loads(shown), indent=2, ensure_ascii=False)
    said = either(rng, _FORMS[to][0])
    prompt = either(rng, _CONVERT_ASKS).format(to=said, of=either(rng, _FORMS[of][0]).removeprefix("a "), t=shown)
    return Example(prompt, _FORMS[to][1](table), group=f"{of} to {to}")


def _value(rng: random.Random, deep: bool = True) -> Any:
    draw = rng.random()
    if draw < 0.3:
        return _whole(rng)
    if draw < 0.4:
        return rng.choice((True, False, None))
    if draw < 0.5:
        return words.amount(rng)
    if draw < 0.65 and deep:
        return [_value(rng, False) for _ in range(rng.randint(1, 3))]
    if draw < 0.72 and deep:
        return {key: _value(rng, False) for key in words.some(rng, words.word, 1, 2)}
    return rng.choice((words.word, words.name, words.city, words.phrase))(rng)


_REPAIR_ASKS = (
    "Repair this JSON: {j}|Fix this JSON:\n{j}|Repair the broken JSON:\n{j}|Fix the JSON: {j}|{j}\nThis JSON is broken, fix it.|"
    "Make this valid JSON: {j}|Correct this JSON:\n{j}|This is not valid JSON, please repair it: {j}|Mend this JSON:\n{j}|"
    "Valid JSON, please:\n{j}|Please fix the syntax: {j}"
)


def _repair(rng: random.Random) -> Example:
    keys = words.some(rng, words.word if rng.random() < 0.5 else lambda r: r.choice(_COLUMNS), 1, 5)
    right = json.dumps({key: _value(rng) for key in keys}, ensure_ascii=False)
    broken = right
    for _ in range(rng.choice((1, 1, 2))):
        broken = _broken(rng, broken)
    return Example(either(rng, _REPAIR_ASKS).format(j=broken), right)


def _broken(rng: random.Random, text: str) -> str:
    """One fault that leaves no doubt of what was meant."""
    faults = {
        "end": lambda: text[:-1] if text.endswith("}") else text,
        "quotes": lambda: text.replace('"', "'") if "'" not in text else text,
        "bare": lambda: _once(rng, text, '{"', "{", 1, '":', ":"),
        "comma": lambda: text[:-1] + ",}" if text.endswith("}") else text,
        "words": lambda: text.replace("true", "True").replace("false", "False").replace("null", "None"),
        "missing": lambda: text.replace(', "', ' "', 1),
        "equals": lambda: text.replace('": ', '"= ', 1),
        "begin": lambda: text.removeprefix("{"),
        "semicolon": lambda: text.replace(', "', '; "', 1),
        "colon": lambda: text.replace('": ', '" ', 1),
        "line": lambda: text.replace(", ", ",\n").replace("{", "{\n", 1),
    }
    return faults[rng.choice(sorted(faults))]()


def _once(rng: random.Random, text: str, begin: str, opened: str, times: int, end: str, closed: str) -> str:
    """The first key, or all of them, without quote marks."""
    if rng.random() < 0.5:
        return text.replace(begin, opened, times).replace(end, closed, 1) if text.startswith(begin) else text
    keys = [piece.split('"')[-1] for piece in text.split('":')[:-1]]
    for key in keys:
        text = text.replace(f'"{key}":', f"{key}:", 1)
    return text


def _reformat(rng: random.Random) -> Example:
    return rng.choice((_date, _date, _number, _number, _time))(rng)


def _date(rng: random.Random) -> Example:
    year, month, day = rng.randint(1950, 2035), rng.randint(1, 12), rng.randint(1, 28)
    long, short = words.MONTHS[month - 1], words.MONTHS[month - 1][:3]
    forms = {
        "ISO|YYYY-MM-DD|ISO 8601|the ISO format": f"{year}-{month:02}-{day:02}",
        "DD.MM.YYYY|German form|the German format": f"{day:02}.{month:02}.{year}",
        "MM/DD/YYYY|US form|the American format": f"{month:02}/{day:02}/{year}",
        "words|long form|a long date|day month year": f"{day} {long} {year}",
        "month day, year": f"{long} {day}, {year}",
        "short form|a short date": f"{day} {short} {year}",
    }
    to = rng.choice(sorted(forms))
    of = rng.choice([f for f in sorted(forms) if f != to and not f.startswith("MM/")])
    shown = forms[of]
    ask = either(
        rng,
        "Write the date {d} as {f}.|Date to {f}: {d}|{d} as {f}|Reformat {d} as {f}|Convert the date to {f}: {d}|Give {d} in {f}.|"
        "What is {d} in {f}?|Change {d} to {f}.|Rewrite the date {d} in {f}|{d} -> {f}|Put {d} into {f}, please.",
    ).format(d=shown, f=either(rng, to))
    return Example(ask, forms[to], group="date")


def _number(rng: random.Random) -> Example:
    kind = rng.random()
    if kind < 0.3:
        value = rng.randint(0, 999)
        asks = (
            "Write {v} in words.|{v} in words|Spell out the number {v}.|Number to words: {v}|How do you "
            "write {v} in words?|Say {v} in words."
        )
        return Example(either(rng, asks).format(v=value), words.number_word(value), group="number")
    if kind < 0.55:
        value = rng.randint(0, 999)
        asks = "Write {v} as a number.|{v} in digits|Digits for: {v}|Words to number: {v}|Which number is {v}?|{v} as a numeral"
        return Example(either(rng, asks).format(v=words.number_word(value)), str(value), group="number")
    if kind < 0.7:
        value = rng.randint(1000, 9_999_999)
        asks = "Add thousands separators to {v}.|Write {v} with commas.|{v} with thousands separators|Put commas into {v}"
        return Example(either(rng, asks).format(v=value), f"{value:,}", group="number")
    if kind < 0.8:
        value = rng.randint(1000, 9_999_999)
        asks = "Remove the commas from {v}.|Write {v} without separators.|{v} as a plain number|{v} without commas"
        return Example(either(rng, asks).format(v=f"{value:,}"), str(value), group="number")
    if kind < 0.9:
        value = rng.randint(1, 99)
        asks = "Write {v}% as a decimal.|{v} percent as a decimal|Decimal for {v}%|{v}% as a number between 0 and 1"
        return Example(either(rng, asks).format(v=value), f"0.{value:02}".rstrip("0"), group="number")
    number = rng.randint(10_000, 9_999_999) / 1000
    places = rng.randint(1, 2)
    number = round(number, places + 1)
    if round(number * 10**places * 10) % 10 == 5:
        number = round(number + 10 ** -(places + 1), places + 1)
    asks = "Round {v} to {p}.|{v} rounded to {p}|Write {v} with {p}."
    said = "one decimal" if places == 1 else "two decimals"
    return Example(either(rng, asks).format(v=f"{number:.{places + 1}f}", p=said), f"{number:.{places}f}", group="number")


def _time(rng: random.Random) -> Example:
    hour, minute = rng.randint(0, 23), rng.choice((0, 5, 10, 15, 20, 30, 40, 45, 50, 55))
    half = "am" if hour < 12 else "pm"
    twelve = f"{hour % 12 or 12}:{minute:02} {half}"
    plain = f"{hour:02}:{minute:02}"
    if rng.random() < 0.5:
        asks = (
            "Write {v} in 24-hour time.|{v} in 24-hour form|Time to 24 hours: {v}|Convert {v} to 24-hour "
            "time|What is {v} on a 24-hour clock?"
        )
        return Example(either(rng, asks).format(v=twelve), plain, group="time")
    asks = (
        "Write {v} in 12-hour time.|{v} with am or pm|Time to 12 hours: {v}|Convert {v} to 12-hour time|"
        "What is {v} on a 12-hour clock?"
    )
    return Example(either(rng, asks).format(v=plain), twelve, group="time")


def _either_json(example: Example, text: str) -> float:
    return same_json(example, text) if example.group.endswith("to JSON") else exact(example, text)


CONVERT = GeneratedTask("convert", "CSV, Markdown, key and value, JSON: one into another", _convert, _either_json)
REPAIR = GeneratedTask("json-repair", "broken JSON mended", _repair, same_json)
REFORMAT = GeneratedTask("reformat", "dates, numbers and times in another form, exact match", _reformat, exact, 32)
