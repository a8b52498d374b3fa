"""Small work on texts and lists: sorting, counting, case, doubles taken out, words exchanged, templates filled."""

import random
from collections.abc import Callable

from diffusiongemma.tasks import words
from diffusiongemma.tasks.base import Example
from diffusiongemma.tasks.generated import GeneratedTask, exact
from diffusiongemma.tasks.words import either

__all__ = ["EDIT", "FILL_FORM", "LISTS"]


def _items(rng: random.Random, low: int, high: int) -> list[str]:
    return words.some(rng, rng.choice((words.word, words.word, words.first_name, words.made_up)), low, high)


def _lists(rng: random.Random) -> Example:
    return rng.choice((_sort, _sort_numbers, _count, _count_of, _case, _dedupe, _reverse, _pick))(rng)


def _shown(rng: random.Random, items: list[str]) -> str:
    return either(rng, ", |, |, |\n| ").join(items)


def _mark(shown: str) -> str:
    return ", " if ", " in shown else "\n" if "\n" in shown else " "


def _sort(rng: random.Random) -> Example:
    items = _items(rng, 3, 7)
    down = rng.random() < 0.25
    shown = _shown(rng, items)
    ask = either(
        rng,
        "Sort: {i}|Sort alphabetically: {i}|Put in alphabetical order: {i}|Sort these words: {i}|"
        "{i}\nSort them.|Order alphabetically: {i}|"
        "Alphabetical order, please: {i}|Sort this list: {i}"
        if not down
        else "Sort backwards: {i}|Sort from Z to A: {i}|Sort in descending order: {i}|Reverse alphabetical order: {i}",
    ).format(i=shown)
    return Example(ask, _mark(shown).join(sorted(items, key=str.lower, reverse=down)), group="sort")


def _sort_numbers(rng: random.Random) -> Example:
    numbers = rng.sample(range(rng.choice((20, 100, 1000))), rng.randint(3, 7))
    down = rng.random() < 0.3
    shown = _shown(rng, [str(n) for n in numbers])
    ask = either(
        rng,
        (
            "Sort: {i}|Sort the numbers: {i}|Sort from small to large: {i}|Sort ascending: {i}|{i}\nSort "
            "these numbers.|Put in order: {i}"
        )
        if not down
        else "Sort descending: {i}|Sort from large to small: {i}|Largest first: {i}|Sort backwards: {i}",
    ).format(i=shown)
    return Example(ask, _mark(shown).join(str(n) for n in sorted(numbers, reverse=down)), group="sort")


def _count(rng: random.Random) -> Example:
    items = _items(rng, 1, 9)
    ask = either(
        rng,
        "Count the words: {i}|How many words are there: {i}|How many items: {i}|Count the items: {i}|{i}\nHow many are these?|"
        "Number of words: {i}|How many words? {i}",
    ).format(i=_shown(rng, items))
    return Example(ask, str(len(items)), group="count")


def _count_of(rng: random.Random) -> Example:
    items = _items(rng, 2, 3)
    wanted, times = rng.choice(items), rng.randint(1, 5)
    pool = [wanted] * times + [item for item in items if item != wanted for _ in range(rng.randint(1, 3))]
    rng.shuffle(pool)
    ask = either(
        rng,
        (
            "How many times does {w} occur: {i}|Count {w} in: {i}|How often is {w} there? {i}|{i}\nHow many "
            "{w}?|Count the word {w}: {i}"
        ),
    ).format(w=wanted, i=_shown(rng, pool))
    return Example(ask, str(times), group="count")


_CASES: dict[str, Callable[[str], str]] = {
    "upper case|capitals|capital letters|uppercase": str.upper,
    "lower case|small letters|lowercase": str.lower,
    "title case": lambda text: " ".join(word[:1].upper() + word[1:].lower() for word in text.split(" ")),
    "snake_case|snake case": lambda text: text.lower().replace(" ", "_"),
    "camelCase|camel case": lambda text: text.split(" ")[0].lower() + "".join(w.capitalize() for w in text.split(" ")[1:]),
    "kebab-case|kebab case": lambda text: text.lower().replace(" ", "-"),
}


def _case(rng: random.Random) -> Example:
    text = " ".join(words.word(rng) for _ in range(rng.randint(1, 5)))
    if rng.random() < 0.3:
        text = " ".join(rng.choice((str.upper, str.capitalize, str.lower))(word) for word in text.split(" "))
    case = rng.choice(sorted(_CASES))
    ask = either(
        rng, "Write in {c}: {t}|{t} in {c}|Convert to {c}: {t}|Change to {c}: {t}|Make it {c}: {t}|In {c}, please: {t}|To {c}: {t}"
    ).format(c=either(rng, case), t=text)
    return Example(ask, _CASES[case](text), group="case")


def _dedupe(rng: random.Random) -> Example:
    items = _items(rng, 2, 5)
    pool = items + rng.choices(items, k=rng.randint(1, 4))
    rng.shuffle(pool)
    shown = _shown(rng, pool)
    ask = either(
        rng,
        "Remove duplicates: {i}|Remove the doubles: {i}|Each only once: {i}|Deduplicate: {i}|Take out "
        "repeated words: {i}|{i}\nRemove duplicates.|"
        "List without duplicates: {i}|Unique items: {i}",
    ).format(i=shown)
    return Example(ask, _mark(shown).join(dict.fromkeys(pool)), group="dedupe")


def _reverse(rng: random.Random) -> Example:
    items = _items(rng, 3, 7)
    shown = _shown(rng, items)
    ask = either(
        rng,
        (
            "Reverse the list: {i}|Reverse the order: {i}|In reverse order: {i}|Backwards: {i}|{i}\nReverse "
            "it.|Turn the order around: {i}"
        ),
    )
    return Example(ask.format(i=shown), _mark(shown).join(reversed(items)), group="reverse")


def _pick(rng: random.Random) -> Example:
    items = _items(rng, 3, 6)
    shown = _shown(rng, items)
    which, answer = rng.choice((
        ("first", items[0]), ("last", items[-1]), ("second", items[1]), ("third", items[2]),
    ))  # fmt: skip
    ask = either(
        rng,
        (
            "Which is the {w}? {i}|The {w} of: {i}|Give me the {w} word: {i}|{i}\nWhat is the {w} one?|{w} "
            "item: {i}|Take the {w}: {i}"
        ),
    )
    return Example(ask.format(w=which, i=shown), answer, group="pick")


_SENTENCES = (
    "The {a} {n} is in the {m}.|{p} has a {a} {n}.|My {n} was {a} and {b}.|{p} went to {c} with a "
    "{n}.|We saw {p} near the {n} in {c}.|"
    "Please bring the {a} {n} and the {m}.|The {n} and the {m} belong to {p}.|{p} will {v} the {n} "
    "tomorrow.|A {a} {n} stood by the {m}.|"
    "There are {k} {a} things in the {n}.|{p} and {q} {v} the {m} in {c}.|In {c} the {n} is {a}.|I want to {v} a {n} with {p}.|"
    "The meeting in {c} starts at {k}.|{p} paid {k} for the {a} {n}.|Every {n} needs a {m}.|{q} told {p} about the {b} {m}.|"
    "Our {n} costs {k} in {c}.|The {m} of {p} is {a} but {b}.|Why does {p} {v} the {n}?"
)


def _sentence(rng: random.Random) -> tuple[str, dict[str, str]]:
    """A sentence whose words all differ, and the words that may be exchanged."""
    parts = {
        "a": rng.choice(words.ADJECTIVES), "b": rng.choice(words.ADJECTIVES), "n": rng.choice(words.NOUNS),
        "m": rng.choice(words.NOUNS) if rng.random() < 0.7 else words.made_up(rng),
        "p": words.first_name(rng), "q": words.first_name(rng),
        "c": words.city(rng), "v": rng.choice(words.VERBS), "k": str(rng.randint(2, 99)),
    }  # fmt: skip
    form = either(rng, _SENTENCES)
    used = {key: value for key, value in parts.items() if f"{{{key}}}" in form}
    text = form.format(**parts)
    plain = text.rstrip(".?").split(" ")
    clear = {key: value for key, value in used.items() if " " not in value and plain.count(value) == 1}
    return (text, clear) if clear else _sentence(rng)


def _quoted(rng: random.Random, first: str, second: str = "") -> tuple[str, str]:
    mark = rng.choice(("", "", '"', "'"))
    return f"{mark}{first}{mark}", f"{mark}{second}{mark}"


def _edit(rng: random.Random) -> Example:
    text, parts = _sentence(rng)
    key = rng.choice(sorted(parts))
    old = parts[key]
    draw = {"a": words.ADJECTIVES, "b": words.ADJECTIVES, "n": words.NOUNS, "m": words.NOUNS, "v": words.VERBS}
    new = (
        rng.choice(draw[key]) if key in draw and rng.random() < 0.8 else words.first_name(rng) if key in "pq" else
        words.city(rng) if key == "c" else str(rng.randint(2, 99)) if key == "k" else words.made_up(rng)
    )  # fmt: skip
    if new == old:
        return _edit(rng)
    kind = rng.random()
    where = either(rng, "{i}: {t}|{i}:\n{t}|{t}\n{i}.|{i} in this text: {t}|{t}\n\n{i}, please.|{i} in: {t}")
    if kind < 0.5:
        one, other = _quoted(rng, old, new)
        said = either(
            rng,
"Replace {o} with {n}|Change {o} to {n}|Replace {o} by {n}|Swap {o} for {n}|Put {n} instead of "
"{o}|Use {n} in place of {o}|"

            "Turn {o} into {n}|Substitute {n} for {o}|Write {n} where it says {o}|Exchange {o} for {n}|Make {o} {n}",
        ).format(o=one, n=other)  # fmt: skip
        answer, group = _swapped(text, old, new), "replace"
    elif kind < 0.65 and key in "ab":
        one, _ = _quoted(rng, old)
        said = either(rng, "Delete {o}|Remove {o}|Take out {o}|Leave out the word {o}|Drop {o}|Remove the word {o}").format(o=one)
        answer, group = _swapped(text, f"{old} ", "") if f" {old} " in text else _swapped(text, f" {old}", ""), "delete"
    elif kind < 0.75:
        one, other = _quoted(rng, old, words.word(rng))
        said = either(rng, "Insert {n} before {o}|Add {n} before {o}|Put {n} in front of {o}").format(o=one, n=other)
        answer, group = _swapped(text, old, f"{other.strip(chr(34) + chr(39))} {old}"), "insert"
    elif kind < 0.83 and old.upper() != old:
        one, _ = _quoted(rng, old)
        said = either(rng, "Write {o} in capitals|Put {o} in upper case|Capitalise all of {o}|Make {o} uppercase").format(o=one)
        answer, group = _swapped(text, old, old.upper()), "case"
    elif kind < 0.91:
        end = text[-1]
        said, mark = ("Make it an exclamation", "!") if end == "." else ("Make it a statement", ".")
        said = either(rng, f"{said}|End with {mark} instead of {end}|Change the {end} at the end to {mark}")
        answer, group = text[:-1] + mark, "end"
    else:
        extra = f"{words.first_name(rng)} {either(rng, 'agrees|was there too|knows it|said so|left')}."
        said = either(rng, 'Add the sentence "{e}" at the end|Append "{e}"|Put "{e}" after it').format(e=extra)
        answer, group = f"{text} {extra}", "append"
    return Example(where.format(i=said, t=text), answer, group=group)


def _swapped(text: str, old: str, new: str) -> str:
    """The one place where a word stands as a word of its own, exchanged."""
    padded = f" {text} "
    for before in (" ",):
        for after in (" ", ".", "?", "!"):
            if (found := f"{before}{old}{after}") in padded:
                return padded.replace(found, f"{before}{new}{after}", 1)[1:-1]
    return text.replace(old, new, 1)


_LETTERS = (
    "Dear {name}, your {thing} arrives on {date}.|Hello {name}, the {thing} costs {price}.|{name} "
    "lives in {city} and has a {thing}.|"
    "Invoice {number}: {thing} for {name}, {price}.|Hi {name}! See you in {city} on {date}.|Ticket {number} to {city} for {name}|"
    "Welcome to {city}, {name}!|The {thing} of {name} is ready.|{name}, {city}, {number}|Your code is {number}, {name}.|"
    "On {date} we deliver a {thing} to {city}.|{thing}: {price}|Thank you, {name}, for the {thing}.|"
    "Order {number} ({thing}) is on its way to {city}."
)
_FILL_ASKS = (
    "Fill in the template: {t}\n{v}|Fill the template.\n{t}\n{v}|Template: {t}\nValues: {v}|Complete this form: {t}\n{v}|"
    "{t}\nFill in: {v}|Use {v} in: {t}|Put these values into the text: {v}\n{t}|Fill in {t} with {v}|Values: {v}\nTemplate: {t}"
)


def _fill_form(rng: random.Random) -> Example:
    form = either(rng, _LETTERS)
    draws: dict[str, Callable[[random.Random], str]] = {
        "name": words.name, "thing": words.phrase, "date": lambda r: rng.choice(words.date_forms(r)[1]),
        "price": lambda r: f"{words.amount(r)} euros", "city": words.city, "number": words.code,
    }  # fmt: skip
    used = [key for key in draws if f"{{{key}}}" in form]
    values = {key: draws[key](rng) for key in used}
    answer = form.format(**values)
    names = {key: key if rng.random() < 0.6 else words.word(rng) for key in used}
    if len(set(names.values())) < len(names):
        names = {key: key for key in used}
    open_mark, close_mark = rng.choice((("{", "}"), ("{", "}"), ("[", "]"), ("{{", "}}"), ("<", ">"), ("$", "")))
    template = form
    for key in used:
        template = template.replace(f"{{{key}}}", f"{open_mark}{names[key]}{close_mark}")
    order = used[:]
    rng.shuffle(order)
    given = either(rng, ", |\n|; ").join(f"{names[key]}{either(rng, ' = |: |=')}{values[key]}" for key in order)
    return Example(either(rng, _FILL_ASKS).format(t=template, v=given), answer)


LISTS = GeneratedTask("lists", "sorting, counting, case, doubles, order; exact match", _lists, exact, 64)
EDIT = GeneratedTask("edit-text", "a text changed as an instruction says, exact match", _edit, exact, 64)
FILL_FORM = GeneratedTask("fill-form", "templates filled with values, exact match", _fill_form, exact, 64)
