"""Requests that nobody should send, from a seed: what ``fuzz.py`` sends, how, and what their answers must be."""

import copy
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jsonschema_rs

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WEIRD: list[Any] = [
    None, True, -1, 0, 1.5, 1e308, 2**63, 10**40, "", "a", "\x00", "\u2028", "💥" * 50, "<|turn>model\n<turn|>", "{{ 7 * 7 }}", [],
    [[]], [None], {}, {"a": 1}, {"role": "user"}, "x" * 5000, ["a"] * 500, {"$ref": "#"}, "../../etc/passwd", "file:///etc/passwd",
]  # fmt: skip
WORDS = [
    "hi",
    "name",
    "word ",
    "漢字",
    "é€",
    "\n",
    "👩‍👩‍👧",
    "<turn|>",
    "1234 ",
    '{"a": 1}',
    "def f():\n    return",
    "\u0085",
    "\u202e",
]
SPLIT = ["a€b 💥é, 漢字", "ÿ\u2028\u2029", "👩‍👩‍👧👍🏽", "ａ̈" * 5]
Check = Callable[[str, dict[str, Any]], bool]
"""Whether the text of a choice, and the choice, are what was asked for; asked of answers that say ``stop``."""


@dataclass
class Case:
    """One request.

    Attributes:
        kind: of attack, for the report.
        path: of the URL.
        body: to be sent as JSON, or as it is.
        headers: beside the usual ones.
        method: of HTTP.
        manner: how it is sent: ``whole``; ``head``, ``half a head``, ``half a body``: no more than that; ``gone``: closed when all
            is sent; ``gone in the answer``: when some of it came; ``stalled``: nothing of the answer is read for some seconds;
            ``storm``: sixteen at once, all gone together.
        check: of answers that say ``stop``.
    """

    kind: str
    path: str = CHAT
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"
    manner: str = "whole"
    check: Check | None = None

    @property
    def content(self) -> bytes:
        """The body's bytes."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode(errors="surrogatepass")


def text(rng: random.Random, most: int = 8) -> str:
    return "".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))


def chat(rng: random.Random, **fields: Any) -> dict[str, Any]:
    """A small request that is right."""
    steps, most = rng.randint(1, 4), rng.choice([1, 8, 32, 64])
    base = {"messages": [{"role": "user", "content": text(rng)}], "num_diffusion_steps": steps, "max_tokens": most}
    return base | {"seed": rng.randrange(1 << 30)} | fields


def valid(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A small request that is right, of any path."""
    most = {"num_diffusion_steps": rng.randint(1, 3), "seed": 1}
    return rng.choice(
        [
            (CHAT, chat(rng, stream=rng.random() < 0.5)),
            (CHAT, chat(rng, tools=[tool()], tool_choice=rng.choice(["auto", "required", "none"]))),
            (TEXT, {"prompt": text(rng), "max_tokens": 8, "logprobs": 2, **most}),
            (TEXT, {"prompt": text(rng), "suffix": text(rng), "max_tokens": 3, **most}),
            ("/v1/fim/completions", {"prompt": text(rng), "suffix": text(rng), "max_tokens": 3, **most}),
            ("/v1/edit/completions", {"input": text(rng), "instruction": "shorter", "max_tokens": 16, **most}),
            ("/v1/decisions", {"input": text(rng), "questions": [{"type": "predicate", "instructions": "Is it?"}], "draws": 2}),
        ]
    )


def tool() -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "function", "function": {"name": "weather", "parameters": parameters}}


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way, *(place for key, each in inner for place in places(each, (*way, key)))]


def mutated(rng: random.Random, body: Any) -> Any:
    """A copy with a value somewhere replaced, left out, or a name that is not known."""
    body = json.loads(json.dumps(body))
    for _ in range(rng.randint(1, 3)):
        way = rng.choice(places(body)[1:] or [()])
        if not way:
            return copy.deepcopy(rng.choice(WEIRD))
        at = body
        for key in way[:-1]:
            at = at[key]
        if rng.random() < 0.2 and isinstance(at, dict):
            at.pop(way[-1])
        else:
            at[way[-1]] = copy.deepcopy(rng.choice(WEIRD))
    return body


def malformed(rng: random.Random) -> Case:
    path, body = valid(rng)
    whole = json.dumps(body).encode()
    how = rng.randrange(8)
    if how < 4:
        return Case("wrong types", path, mutated(rng, body))
    if how == 4:
        return Case("cut JSON", path, whole[: rng.randrange(len(whole))])
    if how == 5:
        spoiled = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            spoiled[rng.randrange(len(spoiled))] = rng.randrange(256)
        return Case("spoiled bytes", path, bytes(spoiled))
    if how == 6:
        return Case("a name twice", path, whole[:-1] + b', "seed": 1, "seed": 2}')
    literal = rng.choice([b"NaN", b"Infinity", b"1e999", b"9" * 5000, b'"\\ud800"', b'"\xff"', b"'a'", b"[" * 5000, b"01"])
    return Case("wrong JSON", path, whole[:-1] + b', "seed": ' + literal + b"}")


def oversized(rng: random.Random) -> Case:
    path, body = valid(rng)
    big: list[Any] = [
        {**body, "user": "x" * 990_000},
        {**body, "user": "x" * 3_000_000},
        {**body, "messages": [{"role": "user", "content": "word " * 190_000}]},
        {**body, "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 20_000}]},
        {**body, "messages": [{"role": "user", "content": [{"type": "image"}] * 60_000}]},
        {**body, "messages": [{"role": "user", "content": "a"}] * 20_000},
        {**body, "stop": ["a"] * 200_000},
        {**body, "pins": [[n, 5] for n in range(70_000)]},
        {**body, "choices": [str(n) for n in range(15_000)]},
        {**body, "metadata": {str(n): "" for n in range(60_000)}},
        {**body, **{f"n{n}": n for n in range(50_000)}},
        b'{"messages": ' + b"[" * 400_000 + b"]" * 400_000 + b"}",
        b'{"a": ' * 100_000 + b"1" + b"}" * 100_000,
        b" " * 1_000_000 + b"{}",
        {"prompt": "a", "suffix": "word " * 190_000, "max_tokens": 2},
        {"prompt": "a", "suffix": "b", "max_tokens": 1 << 24},
        {"prompt": "a" * 80_000, "max_tokens": 1},
        {"input": "a", "questions": [{"type": "predicate", "instructions": "b" * 2000}] * 400},
        {
            "input": "a",
            "questions": [{"type": "choice", "instructions": "b", "choices": [{"value": str(n)} for n in range(255)]}] * 40,
        },
    ]
    chosen = rng.choice(big)
    path = TEXT if isinstance(chosen, dict) and "prompt" in chosen else path
    path = "/v1/decisions" if isinstance(chosen, dict) and "questions" in chosen else path
    return Case("oversized", path, chosen)


def schema_of(rng: random.Random, depth: int = 3) -> Any:
    """A random JSON schema, right or wrong."""
    kind = rng.randrange(12 if depth else 6)
    if kind == 0:
        return {"type": "integer", **{name: rng.randint(-50, 50) for name in rng.sample(["minimum", "maximum", "multipleOf"], 2)}}
    if kind == 1:
        return {"type": "string", **rng.choice([{}, {"maxLength": rng.randint(0, 20)}, {"pattern": regex_of(rng)}])}
    if kind == 2:
        return {"enum": rng.sample([None, True, 0, 1.5, "a", "b€", [1], {"a": 2}], rng.randint(1, 4))}
    if kind == 3:
        return {"type": rng.choice(["boolean", "null", "number", "string", ["string", "null"]])}
    if kind == 4:
        return rng.choice(
            [{"type": "string", "format": rng.choice(["date", "email", "uuid", "nope"])}, {"const": rng.choice(WEIRD)}]
        )
    if kind == 5:
        return rng.choice([{}, True, False, {"$ref": "#"}, {"not": {}}, {"type": "object"}, *WEIRD[:8]])
    if kind == 6:
        return {"type": "array", "items": schema_of(rng, depth - 1), "maxItems": rng.randint(0, 4), "minItems": rng.randint(0, 3)}
    if kind == 7:
        of = rng.choice(["anyOf", "allOf", "oneOf"])
        return {of: [schema_of(rng, depth - 1) for _ in range(rng.randint(1, 3))]}
    if kind == 8:
        return {
            "type": "object",
            "patternProperties": {regex_of(rng): schema_of(rng, depth - 1)},
            "maxProperties": rng.randint(0, 4),
        }
    names = rng.sample(["a", "name", "€", "long name", "x" * 30], rng.randint(0, 4))
    return {
        "type": "object",
        "properties": {name: schema_of(rng, depth - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
        "additionalProperties": rng.choice([False, False, True, {"type": "integer"}]),
    }


def held(rng: random.Random, **fields: Any) -> dict[str, Any]:
    return chat(rng, **{"max_tokens": rng.choice([8, 64, 128]), "stream": rng.random() < 0.3, **fields})


def _judge(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """The patterns are made up: an engine that backtracks stood still in one, and all threads of this program with it."""
    return jsonschema_rs.Draft202012Validator(schema, pattern_options=jsonschema_rs.RegexOptions())


def schema(rng: random.Random) -> Case:
    asked = schema_of(rng)

    def right(answer: str, _: dict[str, Any]) -> bool:
        result = json.loads(answer)
        # 6.1E13333 is a number of JSON, and none that a judge could hold.
        return "Infinity" in json.dumps(result) or _judge(asked).is_valid(result)

    given: Any = {"type": "json_schema", "json_schema": {"schema": asked}}
    return Case("schema", body=held(rng, response_format=given), check=right)


def regex_of(rng: random.Random, depth: int = 2) -> str:
    if not depth:
        return rng.choice(["a", "b", "[a-c]", "\\d", "é", ".", "[^a]", "€"])
    inner = [regex_of(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    tail = rng.choice(["", "*", "+", "?", "{1,3}", "{2}"])
    return f"({rng.choice(['|', '']).join(inner)}){tail}"


def regex(rng: random.Random) -> Case:
    if rng.random() < 0.3:
        odd = [
            "(a+)+$",
            "(" * 500 + ")" * 500,
            "((a{1,99}){1,99}){1,99}",
            "(?=a)a",
            "\\1",
            "[",
            "(a|a)*b" * 30,
            "\\p{L}{1,400}",
            "(?s:.*)",
        ]
        return Case("regex", body=held(rng, regex=rng.choice(odd)))
    asked = regex_of(rng)
    judge = _judge({"pattern": f"^({asked})$"})
    return Case("regex", body=held(rng, regex=asked), check=lambda answer, _: judge.is_valid(answer))


def grammar(rng: random.Random) -> Case:
    some = [
        ('start: "a" start | "b"', re.compile("a*b")), ("start: /[0-9]{1,8}/", re.compile("[0-9]{1,8}")),
        ('start: "(" start ")" | "x"', re.compile(r"\(*x\)*")), ('start: item{3}\nitem: "a" | "bb"', re.compile("(a|bb){3}")),
        ("start: nothing", None), ("", None), ("start: " + "(" * 300 + '"a"' + ")" * 300, None), ("start: start", None),
        ("\n".join(f"r{n}: r{n + 1} r{n + 1}" for n in range(40)) + '\nstart: r0\nr40: "a"', None), ("%json {", None),
    ]  # fmt: skip
    source, pattern = rng.choice(some)
    return Case(
        "grammar", body=held(rng, grammar=source), check=None if pattern is None else lambda a, _: bool(pattern.fullmatch(a))
    )


def choices(rng: random.Random) -> Case:
    given = [text(rng, 3) for _ in range(rng.randint(1, 6))]
    return Case("choices", body=held(rng, choices=given), check=lambda answer, _: answer in given)


def pins(rng: random.Random) -> Case:
    given = [
        [rng.choice([0, 1, 5, 31, 63, 500, -1, 10**9]), rng.choice([5, 77, 500, 4095, 4096, -1])] for _ in range(rng.randint(1, 4))
    ]

    def kept(_: str, choice: dict[str, Any]) -> bool:
        ids = choice.get("token_ids")
        return ids is None or all(ids[place] == token for place, token in given if token >= 0)

    extra = rng.choice([{}, {}, {"regex": regex_of(rng)}, {"choices": ["abc", "é"]}])
    body = {"prompt": text(rng), "max_tokens": 64, "num_diffusion_steps": 2, "seed": 1, "pins": given, **extra}
    return Case("pins", TEXT, body, check=kept)


def options(rng: random.Random) -> Case:
    names = ["enable_thinking", "preserve_thinking", "reasoning_effort", "thinking_budget", "chat_template_kwargs", "tools"]
    given = {name: rng.choice([*WEIRD, "low", 5, {"x": "y" * 500}, [tool()] * 3]) for name in rng.sample(names, rng.randint(1, 3))}
    return Case("template options", body=chat(rng, **given))


def sampling(rng: random.Random) -> Case:
    small = {"temperature": [0, 1e-8, 2, 1e-300], "t_min": [0, 1e-40], "t_max": [1e-38, 1e300], "entropy_bound": [1e-9, 1e300]}
    ranges = small | {"soft_top_k": [1, 4096], "stability": [0, 1000], "canvas_length": [1, 7, 256], "confidence": [1e-300, 1e300]}
    given = {name: rng.choice(values) for name, values in rng.sample(sorted(ranges.items()), 2)}
    return Case("sampling", body=chat(rng, mode=rng.choice(["diffusion", "causal"]), **given))


def large(rng: random.Random) -> Case:
    """Much of something that is allowed."""
    some = [
        chat(rng, n=rng.choice([8, 16, 128])), chat(rng, max_tokens=rng.choice([1500, 4000]), num_diffusion_steps=1),
        chat(rng, num_diffusion_steps=100_000, early_stop=False, max_tokens=64),
        chat(rng, messages=[{"role": "user", "content": "word " * rng.choice([1500, 1900, 3000])}]),
        chat(rng, messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}] * 200),
    ]  # fmt: skip
    body = rng.choice(some)
    return Case("much", body=body, manner="gone" if body["num_diffusion_steps"] == 100_000 else "whole")


def stops(rng: random.Random) -> Case:
    given = [rng.choice(["a", "e", "\n", " ", "é", "aa" * 100, text(rng, 2)]) for _ in range(rng.randint(1, 16))]

    def cut(answer: str, _: dict[str, Any]) -> bool:
        return not any(stop in answer for stop in given)

    return Case("stop strings", body=chat(rng, stop=given, stream=rng.random() < 0.5), check=cut)


def split(rng: random.Random) -> Case:
    asked = rng.choice(SPLIT)

    def whole(answer: str, choice: dict[str, Any]) -> bool:
        result = choice.get("logprobs") or {}
        return answer == asked and all(0 <= offset < len(answer) for offset in result.get("text_offset", []))

    body = {"prompt": "x", "max_tokens": 100, "num_diffusion_steps": 2, "seed": 1, "choices": [asked], "logprobs": 3}
    return Case("split characters", TEXT, body | {"stream": rng.random() < 0.5}, check=whole)


def others(rng: random.Random) -> Case:
    path, body = valid(rng)
    return Case("right", path, body)


def vanishing(rng: random.Random) -> Case:
    path, body = valid(rng)
    manner = rng.choice(["head", "half a head", "half a body", "gone", "gone", "gone in the answer", "gone in the answer"])
    if manner == "gone in the answer":
        path, body = CHAT, chat(rng, stream=True, diffusing=True, max_tokens=128, num_diffusion_steps=20, early_stop=False)
    return Case("vanishing", path, body, manner=manner)


def stalled(rng: random.Random) -> Case:
    body = chat(rng, stream=True, diffusing=True, max_tokens=256, num_diffusion_steps=30, early_stop=False)
    manner = rng.choice(["stalled", "storm"])
    return Case("stalled reader" if manner == "stalled" else "cancel storm", body=body, manner=manner)


def transport(rng: random.Random) -> Case:
    path, body = valid(rng)
    how = rng.randrange(7)
    if how == 0:
        return Case(
            "Host", path, body, {"Host": rng.choice(["localhost:evil.com", "evil.com", "", "[::1", "127.0.0.1@evil", "a" * 900])}
        )
    if how == 1:
        return Case("keys", path, body, {"Authorization": rng.choice(["Bearer x", "Basic eDp5", "", "Bearer " + "k" * 5000])})
    if how == 2:
        odd = [
            "/v1/%2e%2e/%2e%2e/etc/passwd",
            "/page/../../etc/passwd",
            "/v1//chat/completions",
            "/" + "a" * 5000,
            "/v1/models/%00",
            "/%ff",
        ]
        return Case("paths", rng.choice(odd), None, method=rng.choice(["GET", "POST", "PUT", "OPTIONS", "DELETE", "TRACE"]))
    if how == 3:
        kind = rng.choice(
            ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "application/json; a=b"]
        )
        return Case("content type", path, body, {"Content-Type": kind})
    if how == 4:
        length = rng.choice(["0", "1", "99999999999", "-1", "1e3", "5, 5"])
        return Case("length", path, body, {"Content-Length": length}, manner="half a body")
    if how == 5:
        return Case("heads", path, body, {f"X-{n}": "y" * 100 for n in range(rng.choice([10, 100, 900]))})
    return Case("methods", path, body, method=rng.choice(["GET", "PUT", "PATCH", "HEAD", "DELETE"]))


KINDS: dict[Callable[[random.Random], Case], int] = {
    malformed: 26, oversized: 4, schema: 12, regex: 6, grammar: 4, choices: 3, pins: 5, options: 5, sampling: 4, large: 3, stops: 4,
    split: 3, others: 6, vanishing: 10, stalled: 1, transport: 6,
}  # fmt: skip


def cases(seed: int, count: int) -> list[Callable[[], Case]]:
    """What to send, one after another; each is made when it is its turn."""
    kinds, weights = list(KINDS), list(KINDS.values())

    def make(number: int) -> Case:
        rng = random.Random(f"{seed}/{number}")
        (kind,) = rng.choices(kinds, weights)
        return kind(rng)

    return [lambda number=number: make(number) for number in range(count)]  # type: ignore[misc]
