"""Calls of small declared functions in the model's own markup.

A prompt of these tasks has declarations beside the user's message: see ``ToolTask``.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any

from diffusiongemma.tasks import words
from diffusiongemma.tasks.base import Example
from diffusiongemma.tasks.generated import GeneratedTask, exact
from diffusiongemma.tasks.words import either

__all__ = ["TOOL_CALLS", "ToolCalls"]

Argument = tuple[str, str, Callable[[random.Random], Any]]
"""Name, JSON type and values."""


def _whole(low: int, high: int) -> Callable[[random.Random], int]:
    return lambda rng: rng.randint(low, high)


_TOOLS: dict[str, tuple[str, tuple[Argument, ...], str]] = {
    "weather|get_weather|weather_in|forecast": (
        "The weather of a city.",
        (("city", "string", words.city),),
        "What is the weather in {0}?|How is the weather in {0} today?|Will it rain in {0}?|Weather for "
        "{0}, please.|Is it cold in {0}?|{0} weather|"
        "Do I need an umbrella in {0}?|Tell me how warm it is in {0}.|I am travelling to {0}. How is the weather there?",
    ),
    "add|add_numbers|sum": (
        "Adds two numbers.",
        (("a", "integer", _whole(0, 9999)), ("b", "integer", _whole(0, 9999))),
        (
            "What is {0} plus {1}?|Add {0} and {1}.|{0} + {1}|Sum of {0} and {1}?|Compute {0} plus {1}, "
            "please.|How much are {0} and {1} together?"
        ),
    ),
    "multiply|product|times": (
        "Multiplies two numbers.",
        (("a", "integer", _whole(0, 999)), ("b", "integer", _whole(0, 999))),
        "What is {0} times {1}?|Multiply {0} by {1}.|{0} * {1}|Product of {0} and {1}|Work out {0} times {1}.",
    ),
    "send_message|send_mail|message|notify": (
        "Sends a message to somebody.",
        (("to", "string", words.first_name), ("text", "string", words.phrase)),
        'Tell {0}: {1}|Send "{1}" to {0}.|Message {0} with {1}|Write to {0}: {1}|Let {0} know: {1}|Send {0} the text {1}.',
    ),
    "set_timer|timer|start_timer": (
        "Starts a timer.",
        (("minutes", "integer", _whole(1, 240)),),
        (
            "Set a timer for {0} minutes.|Timer {0} minutes|Wake me in {0} minutes.|Remind me in {0} minutes|"
            "Start a {0} minute timer.|{0} minutes, please"
        ),
    ),
    "set_alarm|alarm|wake_up": (
        "Sets an alarm.",
        (("time", "string", words.clock),),
        "Set an alarm for {0}.|Wake me at {0}|Alarm at {0}, please.|I have to get up at {0}.|Ring at {0}",
    ),
    "search|find|look_up|search_web": (
        "Searches for something.",
        (("query", "string", words.phrase),),
        "Search for {0}.|Find {0}|Look up {0}, please.|Where can I find a {0}?|Search: {0}|I am looking for a {0}.",
    ),
    "play_music|play|play_song": (
        "Plays music.",
        (("artist", "string", words.name),),
        "Play something by {0}.|I want to hear {0}|Put on {0}, please.|Music by {0}|Play {0}",
    ),
    "translate|translate_text": (
        "Translates a text.",
        (
            ("language", "string", lambda r: either(r, ("French|German|Spanish|Italian|Greek|Polish|Turkish|Dutch"))),
            ("text", "string", words.phrase),
        ),
        "Translate {1} into {0}.|What is {1} in {0}?|Say {1} in {0}|{1} in {0}, please|How do you say {1} in {0}?",
    ),
    "book_table|reserve|reserve_table": (
        "Reserves a table.",
        (("people", "integer", _whole(1, 14)), ("time", "string", words.clock)),
        (
            "Book a table for {0} at {1}.|Reserve for {0} people, {1}|A table at {1} for {0}, please.|We are "
            "{0} and come at {1}: book a table."
        ),
    ),
    "light|switch_light|set_light|lamp": (
        "Switches a light.",
        (
            ("room", "string", lambda r: either(r, ("kitchen|hall|bedroom|bathroom|garage|garden|office|attic|cellar"))),
            ("on", "boolean", lambda r: r.random() < 0.5),
        ),
        "Turn {1} the light in the {0}.|Switch {1} the {0} light.|Light {1} in the {0}, please.|{0} light {1}",
    ),
    "convert_money|exchange|convert": (
        "Converts money.",
        (("amount", "number", words.amount), ("currency", "string", lambda r: either(r, "EUR|USD|GBP|CHF|JPY|SEK"))),
        "How much is {0} in {1}?|Convert {0} to {1}.|{0} in {1}|Change {0} into {1}, please.",
    ),
    "stock|stock_price|get_price|price": (
        "The price of an article.",
        (("item", "string", words.phrase),),
        "What does a {0} cost?|Price of {0}?|How much is the {0}?|Get the price of a {0}.|{0} price",
    ),
    "route|directions|navigate": (
        "The way between two places.",
        (("from", "string", words.city), ("to", "string", words.city)),
        (
            "How do I get from {0} to {1}?|Route from {0} to {1}|Directions {0} to {1}, please.|I am in {0} "
            "and want to go to {1}.|Way from {0} to {1}?"
        ),
    ),
}


def _declared(rng: random.Random, group: str) -> dict[str, Any]:
    said, arguments, _ = _TOOLS[group]
    properties = {name: {"type": kind} for name, kind, _ in arguments}
    parameters = {"type": "object", "properties": properties, "required": [name for name, _, _ in arguments]}
    declared: dict[str, Any] = {"name": either(rng, group), "parameters": parameters}
    if rng.random() < 0.8:
        declared["description"] = said
    return {"type": "function", "function": declared}


def _invented(rng: random.Random) -> tuple[dict[str, Any], dict[str, Any], str]:
    """A function that nobody knows: its arguments are named in the question."""
    verb, noun = rng.choice(words.VERBS), rng.choice(words.NOUNS) if rng.random() < 0.7 else words.made_up(rng)
    keys = words.some(rng, words.word, 1, 2)
    values, properties = {}, {}
    for key in keys:
        kind = rng.choice(("string", "string", "integer"))
        properties[key] = {"type": kind}
        values[key] = rng.randint(0, 999) if kind == "integer" else rng.choice((words.word, words.name, words.city))(rng)
    function = {"name": f"{verb}_{noun}", "parameters": {"type": "object", "properties": properties, "required": keys}}
    told = words.join([either(rng, "{k} {v}|{k} = {v}|{k} {v}").format(k=key, v=value) for key, value in values.items()])
    question = either(rng, ("{v} the {n} with {t}.|Please {v} the {n}: {t}|{v} a {n}, {t}|I want to {v} the {n} with {t}")).format(
        v=verb, n=noun, t=told
    )
    return {"type": "function", "function": function}, values, question[0].upper() + question[1:]


def _spelled(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'<|"|>{value}<|"|>' if isinstance(value, str) else str(value)


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    fields = ",".join(f"{key}:{_spelled(value)}" for key, value in sorted(arguments.items(), key=lambda item: item[0].lower()))
    return f"<|tool_call>call:{name}{{{fields}}}<tool_call|>"


def _make(rng: random.Random) -> Example:
    groups = rng.sample(sorted(_TOOLS), rng.choice((1, 1, 2, 3)))
    if rng.random() < 0.25:
        tool, values, question = _invented(rng)
        tools = [tool, *(_declared(rng, group) for group in groups[1:])]
        group = "invented"
    else:
        group = groups[0].split("|")[0]
        _, arguments, asks = _TOOLS[groups[0]]
        values = {name: draw(rng) for name, _, draw in arguments}
        told = [("on" if value else "off") if isinstance(value, bool) else value for value in values.values()]
        question = either(rng, asks).format(*told)
        tools = [_declared(rng, g) for g in groups]
        tool = tools[0]
    rng.shuffle(tools)
    return Example(question, _call(tool["function"]["name"], values), group=group, detail={"tools": tools})


class ToolCalls(GeneratedTask):
    """Calls of declared functions."""

    def tools(self, example: Example) -> list[dict[str, Any]]:
        """See ``ToolTask``."""
        declared: list[dict[str, Any]] = example.detail["tools"]
        return declared


TOOL_CALLS = ToolCalls("tool-call", "a call of a declared function in native markup, exact match", _make, exact, 64)
