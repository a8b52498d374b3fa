"""A sentence and a list of fields; the answer is a JSON object. Values are made up, so they can only be read, not known."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from diffusiongemma.tasks.base import Example, example_rng

__all__ = ["JsonExtract"]

_Field = tuple[str, Callable[[random.Random], tuple[Any, str]]]
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_STARTS = (
    "Al", "Bel", "Cor", "Dan", "El", "Far", "Gil", "Han", "Ir", "Jos",
    "Kal", "Lor", "Mar", "Nor", "Ol", "Per", "Ros", "San", "Tor", "Val",
)  # fmt: skip
_ENDS = ("a", "ana", "bert", "da", "en", "eth", "ia", "ik", "ina", "is", "o", "on", "ra", "rin", "us", "vy")
_JOBS = ("baker", "carpenter", "chemist", "driver", "editor", "farmer", "lawyer", "nurse", "painter", "pilot", "singer", "teacher")
_ITEMS = (
    "bag", "bottle", "camera", "chair", "clock", "cup", "guitar", "jacket", "knife", "lamp", "mirror",
    "phone", "table", "tent",
)  # fmt: skip
_COLOURS = ("black", "blue", "brown", "green", "grey", "orange", "red", "white", "yellow")


def _word(rng: random.Random) -> str:
    return rng.choice(_STARTS) + rng.choice(_ENDS)


def _name(rng: random.Random) -> tuple[Any, str]:
    value = f"{_word(rng)} {_word(rng)}" if rng.random() < 0.5 else _word(rng)
    return value, value


def _place(rng: random.Random) -> tuple[Any, str]:
    value = _word(rng) + rng.choice(("burg", "ford", "ham", "port", "stad", "ton", "ville"))
    return value, value


def _one_of(*values: str) -> Callable[[random.Random], tuple[Any, str]]:
    def draw(rng: random.Random) -> tuple[Any, str]:
        value = rng.choice(values)
        return value, value

    return draw


def _whole(low: int, high: int) -> Callable[[random.Random], tuple[Any, str]]:
    def draw(rng: random.Random) -> tuple[Any, str]:
        value = rng.randint(low, high)
        return value, str(value)

    return draw


def _price(rng: random.Random) -> tuple[Any, str]:
    value = rng.randint(10, 9999) / 10
    return value, f"{value:.1f}"


def _date(rng: random.Random) -> tuple[Any, str]:
    year, month, day = rng.randint(1950, 2030), rng.randint(1, 12), rng.randint(1, 28)
    return f"{year}-{month:02}-{day:02}", f"{day} {_MONTHS[month - 1]} {year}"


def _clock(rng: random.Random) -> tuple[Any, str]:
    value = f"{rng.randint(0, 23):02}:{rng.choice((0, 15, 30, 45)):02}"
    return value, value


def _flag(yes: str, no: str) -> Callable[[random.Random], tuple[Any, str]]:
    def draw(rng: random.Random) -> tuple[Any, str]:
        value = rng.random() < 0.5
        return value, yes if value else no

    return draw


# Kind: its fields, and sentences that name every field once.
_KINDS: dict[str, tuple[tuple[_Field, ...], tuple[str, ...]]] = {
    "person": (
        (
            ("name", _name),
            ("age", _whole(18, 99)),
            ("city", _place),
            ("job", _one_of(*_JOBS)),
            ("married", _flag("married", "single")),
        ),
        (
            "{name}, {age}, is a {married} {job} from {city}.",
            "The {job} {name} is {age} years old, {married}, and lives in {city}.",
            "In {city} there is a {job} called {name}, {married}, aged {age}.",
        ),
    ),
    "order": (
        (
            ("item", _one_of(*_ITEMS)),
            ("quantity", _whole(1, 60)),
            ("colour", _one_of(*_COLOURS)),
            ("price", _price),
            ("customer", _name),
            ("paid", _flag("already paid", "not yet paid")),
        ),
        (
            "{customer} ordered {quantity} pieces of the {colour} {item} at {price} each, {paid}.",
            "Order: {quantity} x {item}, {colour}, {price} euros a piece, {paid}, for {customer}.",
            "For {customer}, {quantity} of our {item} in {colour}; the price is {price} and it is {paid}.",
        ),
    ),
    "event": (
        (
            ("title", _one_of("auction", "concert", "exhibition", "festival", "lecture", "market", "race", "workshop")),
            ("date", _date),
            ("start", _clock),
            ("place", _place),
            ("seats", _whole(10, 900)),
        ),
        (
            "The {title} in {place} is on {date} at {start} and has {seats} seats.",
            "{place} invites to a {title} with {seats} seats on {date}, {start}.",
            "On {date} at {start} a {title} begins in {place}; there are {seats} seats.",
        ),
    ),
    "flight": (
        (
            ("number", lambda rng: (v := rng.choice("ABCDEFGHKLMN") + rng.choice("ABCDEFGHKLMN") + str(rng.randint(100, 999)), v)),
            ("origin", _place),
            ("destination", _place),
            ("departure", _clock),
            ("gate", _whole(1, 60)),
            ("delayed", _flag("delayed", "on time")),
        ),
        (
            "Flight {number} from {origin} to {destination} leaves gate {gate} at {departure}, {delayed}.",
            "{number} to {destination}, coming from {origin}, is {delayed}: {departure}, gate {gate}.",
            "At gate {gate}, flight {number} ({origin} to {destination}) is {delayed} and goes at {departure}.",
        ),
    ),
    "book": (
        (
            ("title", lambda rng: (v := f"The {rng.choice(_COLOURS).title()} {rng.choice(_ITEMS).title()}", v)),
            ("author", _name),
            ("year", _whole(1900, 2025)),
            ("pages", _whole(80, 990)),
            ("lent", _flag("lent out", "on the shelf")),
        ),
        (
            "{title} by {author} appeared in {year}, has {pages} pages and is {lent}.",
            "{author} wrote {title} ({year}, {pages} pages); our copy is {lent}.",
            "The library's copy of {title}, {pages} pages, written by {author} in {year}, is {lent}.",
        ),
    ),
    "reading": (
        (
            ("sensor", lambda rng: (v := f"{rng.choice('stuvw')}{rng.randint(1, 99)}", v)),
            ("temperature", lambda rng: (v := rng.randint(-300, 450) / 10, str(v))),
            ("humidity", _whole(5, 99)),
            ("time", _clock),
            ("site", _place),
        ),
        (
            "At {time} sensor {sensor} in {site} showed {temperature} degrees and {humidity} percent humidity.",
            "{site}, {time}: {temperature} degrees, humidity {humidity} percent (sensor {sensor}).",
            "Sensor {sensor} at {site} measured a humidity of {humidity} and a temperature of {temperature} at {time}.",
        ),
    ),
    "payment": (
        (("sender", _name), ("receiver", _name), ("amount", _price), ("date", _date), ("reference", _whole(1000, 99999))),
        (
            "{sender} sent {amount} euros to {receiver} on {date}, reference {reference}.",
            "On {date}, {receiver} received {amount} from {sender} under reference {reference}.",
            "Payment {reference}: {amount} from {sender} to {receiver}, dated {date}.",
        ),
    ),
    "house": (
        (
            ("street", lambda rng: (v := f"{_word(rng)} {rng.choice(('Street', 'Road', 'Lane'))} {rng.randint(1, 250)}", v)),
            ("city", _place),
            ("rooms", _whole(1, 12)),
            ("area", _whole(25, 400)),
            ("rent", _whole(200, 4500)),
            ("garden", _flag("with a garden", "without a garden")),
        ),
        (
            "{rooms} rooms, {area} square metres, {garden}: {street} in {city}, {rent} a month.",
            "A house {garden} at {street}, {city}, has {rooms} rooms on {area} square metres and costs {rent}.",
            "To let for {rent}: {area} square metres and {rooms} rooms {garden}, {street}, {city}.",
        ),
    ),
}
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


class JsonExtract:
    """A sentence to a JSON object of given fields; judged by exact match, field by field."""

    name = "json-extract"
    summary = "a sentence to a JSON object of given fields, exact match by field"
    max_tokens = 64

    def examples(self, count: int, seed: int) -> Sequence[Example]:
        """See ``Task``."""
        return [self.example(seed, index) for index in range(count)]

    def example(self, seed: int, index: int) -> Example:
        """Example ``index`` of a seed; ``detail`` holds ``expected`` (the object) and ``schema`` (its JSON schema)."""
        rng = example_rng(self.name, seed, index)
        kind = rng.choice(sorted(_KINDS))
        fields, sentences = _KINDS[kind]
        drawn = {name: draw(rng) for name, draw in fields}
        sentence = rng.choice(sentences).format(**{name: text for name, (_, text) in drawn.items()})
        chosen = rng.sample([name for name, _ in fields], rng.randint(3, len(fields)))
        expected = {name: drawn[name][0] for name in chosen}
        types = {name: _TYPES[type(value)] for name, value in expected.items()}
        asked = ", ".join(f"{name} ({kind_of})" for name, kind_of in types.items())
        schema = {
            "type": "object",
            "properties": {name: {"type": kind_of} for name, kind_of in types.items()},
            "required": chosen,
            "additionalProperties": False,
        }
        return Example(
            f"Extract as JSON: {asked}\n{sentence}",
            json.dumps(expected),
            group=kind,
            detail={"expected": expected, "schema": schema},
        )

    def schema(self, example: Example) -> dict[str, Any]:
        """See ``SchemaTask``."""
        schema: dict[str, Any] = example.detail["schema"]
        return schema

    def score(self, example: Example, text: str) -> float:
        """Share of fields that are there with the right value and type; a field too many counts as a wrong one."""
        expected = example.detail["expected"]
        try:
            given = json.loads(text)
        except (ValueError, RecursionError):
            return 0.0
        if not isinstance(given, dict):
            return 0.0
        right = sum(name in given and _same(value, given[name]) for name, value in expected.items())
        return right / len(expected.keys() | given.keys())


def _same(a: Any, b: Any) -> bool:
    """Equal in value and JSON type: 1 is not true, and 2 is 2.0 only where a number was asked for."""
    if isinstance(a, float):
        return isinstance(b, int | float) and not isinstance(b, bool) and a == b
    return type(a) is type(b) and bool(a == b)
