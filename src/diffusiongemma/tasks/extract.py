"""JSON from texts in many wordings: one to eight fields, lists, nested objects, several records, fields of any name.

Where ``json-extract`` has some twenty sentences, this composes them: clauses in any order and voice, telegrams, letters, logs,
forms, lists, with words around them that matter nothing. Dates are asked for in ISO form, amounts as numbers, what is not
there as null.
"""

import json
import random
from typing import Any

from diffusiongemma.tasks import words
from diffusiongemma.tasks.base import Example
from diffusiongemma.tasks.extract_forms import KINDS, Kind, Part, Value
from diffusiongemma.tasks.generated import GeneratedTask, same_json
from diffusiongemma.tasks.words import either

__all__ = ["EXTRACT", "FROM_JSON", "Record", "draw_record", "instruction", "tell"]

Record = list[tuple[str, Value, Part | None]]
"""Key, value and field of each part; the subject first, where there is one. A part without a field is known by its key alone."""

_BEFORE = (
    "Note:|Hello,|Hi there.|FYI:|Just so you know:|Please note:|As far as I know,|News:|For the "
    "record:|Good morning.|Dear all,|Update:|"
    "By the way,|I heard that|They say that|According to the file,|Short message:|Reminder:|Here is "
    "what I have:|To whom it may concern:|"
    "From the log:|It is reported that|Let me tell you something:|Yesterday's entry:|Please write this down:|Hey,|Well,|Text:|Memo:"
)
_AFTER = (
    "Thanks!|See you soon.|Best regards|That is all.|Please confirm.|More later.|Have a nice day.|"
    "Nothing else was said.|Let me know.|"
    "Hope that helps.|The rest will follow.|Any questions, just call.|Everybody was pleased.|The weather was fine.|Bye for now.|"
    "That was a surprise.|Cheers|Over and out.|It rained all day.|So it goes.|We shall see.|Not bad at all.|You can count on it."
)
_HE = "He|She|They|This person|The same person"
_IT = "It|This one|The {noun}|The same {noun}"
_GENERIC = (
    "the {key} is {v}|{key}: {v}|its {key} is {v}|{key} is {v}|with {v} as {key}|the {key} was set "
    "to {v}|we chose {v} as the {key}|"
    "{v} is the {key}|for the {key} use {v}|the {key} given is {v}|{key} {v}|as {key} we have {v}|"
    "the {key} should be {v}|{key} = {v}"
)
_ASKS = (
    "Extract as JSON: {f}|Extract as JSON: {f}|Extract as JSON: {f}|Extract {f} as JSON.|Give me JSON with {f}:|Return {{{f}}}.|"
    "Return JSON with the keys {f}.|JSON with {f}, please.|Turn this into JSON with {f}.|Read {f} "
    "from the text and answer in JSON.|"
    "Find {f} and write them as JSON.|Fields: {f}. Format: JSON.|What are {f}? Answer as JSON.|Pull out {f} as a JSON object.|"
    "Convert to JSON ({f}).|Make a JSON object with {f}.|Parse into JSON: {f}|JSON: {f}|I need {f} in JSON.|Get {f} as JSON:|"
    "Output JSON with these fields: {f}.|Fill in this JSON: {{{f}}}|Please extract {f} into JSON.|Write {f} as JSON.|"
    "Summarise as JSON with {f}.|Answer with a JSON object: {f}.|Collect {f} (JSON).|Which {f}? JSON "
    "only.|Extract the following as JSON: {f}"
)
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "list of strings"}


def draw_record(rng: random.Random, kind: Kind, count: int) -> Record:
    """``count`` parts of a kind, the subject among them."""
    value = kind.subject.draw(rng)
    record: Record = [(_key(rng, kind.subject), value, kind.subject)]
    used = {record[0][0]}
    for part in rng.sample(kind.parts, min(count - 1, len(kind.parts))):
        key = next((k for k in (_key(rng, part), *part.keys.split("|")) if k not in used), None)
        if key is not None:
            used.add(key)
            record.append((key, part.draw(rng), part))
    return record


def _key(rng: random.Random, part: Part) -> str:
    keys = part.keys.split("|")
    key = keys[0] if rng.random() < 0.5 else rng.choice(keys)
    return _styled(rng, key)


def _styled(rng: random.Random, key: str) -> str:
    kind = rng.random()
    pieces = key.split("_")
    if kind < 0.05:
        return key.capitalize()
    if kind < 0.1:
        return pieces[0] + "".join(piece.capitalize() for piece in pieces[1:])
    return key


def tell(rng: random.Random, kind: Kind, record: Record) -> str:
    """A text that says every part of a record."""
    style = rng.random()
    if style < 0.45:
        text = _sentences(rng, kind, record)
    elif style < 0.6:
        text = _telegram(rng, kind, record)
    elif style < 0.72:
        text = _mixed(rng, kind, record)
    elif style < 0.8 and kind.person:
        text = _letter(rng, record)
    else:
        text = _lines(rng, record)
    if rng.random() < 0.3:
        text = f"{either(rng, _BEFORE)} {text}"
    if rng.random() < 0.25:
        text = f"{text} {either(rng, _AFTER)}"
    plain = all(said == said.lower() for _, (_, said), _ in record)
    return text.lower() if plain and rng.random() < 0.2 else text


def _clause(rng: random.Random, part: Part, said: str) -> str:
    return either(rng, part.clauses).format(said)


def _label(rng: random.Random, part: Part, said: str) -> str:
    return either(rng, part.labels).format(said)


def _subject(rng: random.Random, kind: Kind, said: str) -> str:
    if kind.person:
        return (
            said
            if rng.random() < 0.8
            else either(rng, ("The {n} {s}|{s}, a {n},|A {n} called {s}|Our {n} {s}|Mr {s}|Ms {s}")).format(n=kind.noun, s=said)
        )
    forms = 'The {s}|{s}|The {n} {s}|Our {s}|{n} {s}|The {n} called {s}|That {s}|This {n}, {s},|The {n} "{s}"'
    return either(rng, forms).format(n=kind.noun, s=said)


def _sentences(rng: random.Random, kind: Kind, record: Record) -> str:
    (_, (_, subject), _), *rest = record
    rng.shuffle(rest)
    told, begin, first = [], _subject(rng, kind, subject), True
    if not rest:
        alone = (
            "{s} was there.|We met {s}.|I was told about {s}.|Somebody mentioned {s} today.|Who knows {s}?|"
            "Everybody talks about {s}."
        )
        return either(rng, alone).format(s=subject)
    while rest:
        now, rest = rest[: (n := rng.choice((1, 2, 2, 3)))], rest[n:]
        clauses = [_clause(rng, part, said) for _, (_, said), part in now if part is not None]
        if first and rng.random() < 0.3 and len(clauses) > 1:
            relative = "who" if kind.person else "which"
            tail = words.join(clauses[1:])
            sentence = f"{begin}, {relative} {clauses[0]}, {tail}"
        elif first and rng.random() < 0.15:
            there = f"There is a {kind.noun} called {subject}" if kind.person else f"There is {begin[0].lower()}{begin[1:]}"
            sentence = f"{there} that {words.join(clauses)}"
        elif first and rng.random() < 0.2 and now[0][2] is not None:
            labels = ", ".join(_label(rng, part, said) for _, (_, said), part in now[:1] if part is not None)
            sentence = f"{begin} ({labels})" + (
                f" {words.join(clauses[1:])}" if clauses[1:] else either(rng, " was here| is known to us| called")
            )
        else:
            again = either(rng, _HE if kind.person else _IT).format(noun=kind.noun)
            linked = words.join(clauses, either(rng, " and | and |, and | and also |, "))
            sentence = f"{begin if first or rng.random() < 0.15 else again} {linked}"
        told.append(sentence[0].upper() + sentence[1:] if rng.random() < 0.9 else sentence)
        first = False
    mark = "" if rng.random() < 0.1 else "."
    return either(rng, ". |. |. |; |! |.\n").join(told) + mark


def _telegram(rng: random.Random, kind: Kind, record: Record) -> str:
    (_, (_, subject), _), *rest = record
    rng.shuffle(rest)
    pieces = [_label(rng, part, said) for _, (_, said), part in rest if part is not None]
    place = 0 if rng.random() < 0.7 else rng.randint(0, len(pieces))
    shown = subject if rng.random() < 0.75 else either(rng, "{n} {s}|{n}: {s}|{s} ({n})").format(n=kind.noun, s=subject)
    pieces.insert(place, shown)
    if place == 0 and len(pieces) > 1 and rng.random() < 0.35:
        return f"{pieces[0]}{either(rng, ': | - | – |. ')}{either(rng, ', |; ').join(pieces[1:])}"
    return either(rng, ", |, |; | - | / | | | · ").join(pieces) + either(rng, "|.|")


def _mixed(rng: random.Random, kind: Kind, record: Record) -> str:
    """A sentence about some of the parts and labels for the rest."""
    if len(record) < 3:
        return _sentences(rng, kind, record)
    cut = rng.randint(2, len(record) - 1)
    labels = [_label(rng, part, said) for _, (_, said), part in record[cut:] if part is not None]
    extra = either(rng, "({l})|- {l}|{l}.|Also: {l}.|{l}").format(l=", ".join(labels))
    sentences = _sentences(rng, kind, record[:cut])
    return (
        f"{sentences} {extra}"
        if rng.random() < 0.75
        else f"{', '.join(labels).capitalize() if labels[0].islower() else ', '.join(labels)}: {sentences}"
    )


_FIRST = {
    "is": "am",
    "has": "have",
    "was": "was",
    "will": "will",
    "can": "can",
    "came": "came",
    "got": "got",
    "goes": "go",
    "does": "do",
    "watches": "watch",
}


def _letter(rng: random.Random, record: Record) -> str:
    """Somebody speaks of themselves."""
    (_, (_, subject), _), *rest = record
    rng.shuffle(rest)
    clauses = [_clause(rng, part, said) for _, (_, said), part in rest if part is not None]
    spoken = []
    for clause in clauses:
        verb, _, tail = clause.partition(" ")
        own = _FIRST.get(verb) or (verb[:-1] if verb.endswith("s") and not verb.endswith("ss") else verb)
        spoken.append(f"I {own} {tail}")
    opening = either(
        rng, ("My name is {s}|I am {s}|I'm {s}|This is {s}|{s} here|Hello, I'm {s}|Hi, my name is {s}|You can call me {s}")
    ).format(s=subject)
    if not spoken:
        return opening + "."
    if rng.random() < 0.3:
        return f"{words.join(spoken)}. {either(rng, 'Yours, {s}|Best, {s}|{s}|Regards, {s}|My name is {s}.').format(s=subject)}"
    return f"{opening}. {either(rng, '. |, |, and |. ').join(spoken)}."


def _lines(rng: random.Random, record: Record) -> str:
    """Labels and values, as in a form or a log."""
    shown, order = record[:], rng.random()
    if order < 0.5:
        rng.shuffle(shown)
    for at, (key, (value, _), part) in enumerate(shown):
        if isinstance(value, bool) and rng.random() < 0.6:
            shown[at] = key, (value, either(rng, "yes|true|Yes|True" if value else "no|false|No|False")), part

    def plain(key: str) -> str:
        return key.replace("_", " ") if rng.random() < 0.7 else key

    kind = rng.random()
    if kind < 0.3:
        return either(rng, "\n|\n|, |; | | ").join(f"{plain(key).capitalize()}: {said}" for key, (_, said), _ in shown)
    if kind < 0.5:
        return either(rng, " |, |\n|; ").join(f"{key}={said}" for key, (_, said), _ in shown)
    if kind < 0.6:
        return "\n".join(f"- {plain(key)}: {said}" for key, (_, said), _ in shown)
    if kind < 0.7:
        return either(rng, " | |\n").join(f"{said} ({plain(key)})" for key, (_, said), _ in shown)
    form = _GENERIC.split("|")
    told = [rng.choice(form).format(key=plain(key), v=said) for key, (_, said), _ in shown]
    text = either(rng, ", |. |; | and |, ").join(told)
    return text[0].upper() + text[1:] + "."


def _generic(rng: random.Random, count: int) -> tuple[Record, str]:
    """Fields of any name, whose values nothing but the name tells apart."""
    record: Record = []
    for key in words.some(rng, lambda r: either(r, "{a}|{a}_{b}|{a}").format(a=words.word(r), b=words.word(r)), count, count):
        draw = rng.random()
        value: Value
        if draw < 0.35:
            number = rng.randint(0, 999)
            value = number, str(number)
        elif draw < 0.45:
            price = words.amount(rng)
            value = price, str(price)
        elif draw < 0.5:
            iso, forms = words.date_forms(rng)
            value = iso, rng.choice(forms)
        else:
            text = rng.choice((words.word, words.phrase, words.name, words.code, words.city))(rng)
            value = text, text
        record.append((key, value, None))
    return record, _lines(rng, record)


def instruction(rng: random.Random, fields: str, text: str) -> str:
    """An instruction to extract fields from a text, before it or after it."""
    ask = either(rng, _ASKS).format(f=fields)
    place = rng.random()
    if place < 0.72:
        return f"{ask}{either(rng, chr(10) + '|' + chr(10) + '|' + chr(10) * 2 + '| ')}{text}"
    if place < 0.86:
        return f"{text}{either(rng, chr(10) + '|' + chr(10) * 2)}{ask}"
    return f'{ask.rstrip(":.")}:\n"{text}"' if '"' not in text else f"{ask}\n{text}"


def _listed(rng: random.Random, record: Record, typed: bool, form: str) -> str:
    named = []
    for key, (value, _), _ in record:
        kind = _TYPES[type(value)] if value is not None else "string"
        named.append(f"{key} ({kind})" if typed and form == "(" else f"{key}: {kind}" if typed else key)
    return ", ".join(named) if typed or rng.random() < 0.6 else words.join(named)


def _make(rng: random.Random) -> Example:
    shape = rng.random()
    if shape < 0.12:
        return _several_records(rng)
    count = rng.choice((1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 6, 7, 8))
    typed, form = rng.random() < 0.5, "(" if rng.random() < 0.75 else ":"
    if shape < 0.3:
        record, text = _generic(rng, count)
    else:
        kind = rng.choice(KINDS)
        record = draw_record(rng, kind, count)
        text = tell(rng, kind, record)
    asked = record[:]
    if len(asked) > 1 and rng.random() < 0.45:
        asked = rng.sample(asked, rng.randint(1, len(asked) - 1))
    elif rng.random() < 0.5:
        rng.shuffle(asked)
    if rng.random() < 0.04:
        asked.insert(rng.randint(0, len(asked)), (words.made_up(rng), (None, ""), None))
    if len(asked) >= 3 and rng.random() < 0.12:
        return _nested(rng, asked, text, typed, form)
    expected = {key: value for key, (value, _), _ in asked}
    fields = _listed(rng, asked, typed, form)
    return _example(instruction(rng, fields, text), expected, "flat")


def _nested(rng: random.Random, asked: Record, text: str, typed: bool, form: str) -> Example:
    """Some of the fields in an object of their own."""
    cut = rng.randint(1, len(asked) - 2)
    outer, inner = asked[:cut], asked[cut:]
    name = either(rng, "details|data|info|more|rest|extra") if rng.random() < 0.7 else words.word(rng)
    if name in {key for key, _, _ in asked}:
        name = "inner"
    bracket = either(rng, "{n} {{{i}}}|{n}: {{{i}}}|{n} (object with {i})")
    fields = f"{_listed(rng, outer, typed, form)}, {bracket.format(n=name, i=_listed(rng, inner, typed, form))}"
    expected = {key: value for key, (value, _), _ in outer} | {name: {key: value for key, (value, _), _ in inner}}
    return _example(instruction(rng, fields, text), expected, "nested")


def _several_records(rng: random.Random) -> Example:
    """A list of things, or of small objects."""
    if rng.random() < 0.5:
        draw = rng.choice((words.name, words.phrase, words.city, words.word, words.first_name))
        things = words.some(rng, draw, 2, 6)
        key = either(rng, "items|names|things|list|people|words|places|entries")
        text = either(
            rng,
            "I need {}.|Please bring {}.|We met {}.|There were {}.|The list: {}|{}|Packed: {}.|{} were mentioned.|Don't forget {}!|"
            "They sent {} to us.|{} and nothing else|Today: {}.",
        ).format(words.join(things) if rng.random() < 0.6 else ", ".join(things))
        ask = either(rng, "{k} (list of strings)|{k} (list)|{k}: list of strings|a list {k}").format(k=key)
        return _example(instruction(rng, ask, text), {key: things}, "list")
    kind = rng.choice(KINDS)
    part = rng.choice([p for p in kind.parts if p.labels != "{}"])
    first, second = _key(rng, kind.subject), _key(rng, part)
    if first == second:
        second += "_2"
    rows = [(kind.subject.draw(rng), part.draw(rng)) for _ in range(2)]
    told = [f"{a[1]} {_clause(rng, part, b[1])}" if rng.random() < 0.6 else f"{a[1]}: {_label(rng, part, b[1])}" for a, b in rows]
    key = either(rng, "people|items|entries|records|list") if rng.random() < 0.8 else words.plural(kind.noun)
    ask = either(rng, ("{k} (list of objects with {a}, {b})|{k}: list of {{{a}, {b}}}|{k} [{{{a}, {b}}}]")).format(
        k=key, a=first, b=second
    )
    expected = {key: [{first: a[0], second: b[0]} for a, b in rows]}
    return _example(instruction(rng, ask, either(rng, "; |. |, and |\n").join(told) + "."), expected, "objects")


def _example(prompt: str, expected: dict[str, Any], group: str) -> Example:
    return Example(prompt, json.dumps(expected, ensure_ascii=False), group=group, detail={"expected": expected})


_TELL_ASKS = (
    "Write a sentence: {j}|Turn this JSON into a sentence:\n{j}|{j}\nSay this in a sentence.|Write "
    "{j} as a sentence.|Describe in words: {j}|"
    "Make a sentence of this JSON: {j}|JSON to text: {j}|Put this into words:\n{j}"
)


def _sentence(rng: random.Random) -> Example:
    """One fixed sentence per record, so that the answer is decided by the question: keys in order, values copied."""
    kind = rng.choice(KINDS)
    record = draw_record(rng, kind, rng.randint(2, 4))
    data = {key: value for key, (value, _), _ in record}
    (_, (subject, _), _), *rest = record
    spoken = [f"the {key.replace('_', ' ')} is {_said(value)}" for key, (value, _), _ in rest]
    answer = f"For {subject}, {words.join(spoken)}."
    return Example(either(rng, _TELL_ASKS).format(j=json.dumps(data, ensure_ascii=False)), answer)


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return words.join(value) if isinstance(value, list) else str(value)


def _exactly(example: Example, text: str) -> float:
    assert example.answer is not None
    return float(text.strip() == example.answer)


EXTRACT = GeneratedTask("extract", "JSON of any fields from texts in many wordings, exact match", _make, same_json)
FROM_JSON = GeneratedTask("json-to-sentence", "a sentence that says what JSON holds, exact match", _sentence, _exactly)
