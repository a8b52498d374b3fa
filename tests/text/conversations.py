"""Conversations of every kind that a chat template knows, and the options they are rendered with."""

from typing import Any

Options = dict[str, Any]
Case = tuple[list[dict[str, Any]], Options]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(content: Any = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant"} | ({} if content is None else {"content": content}) | more


def call(name: str, number: int = 1, **arguments: Any) -> dict[str, Any]:
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def result(content: Any, number: int = 1, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": content, **more}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where."},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "days": {"type": "array", "items": {"type": "integer"}},
                "place": {
                    "type": "object",
                    "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}},
                    "required": ["lat"],
                },
            },
            "required": ["city"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}},
}
NESTED = {"a": [1, 2.5, True, None, {"b": "c"}], "text": 'é\n\t"quoted"', "empty": {}, "none": None, "no": False}
TOOLS = {"tools": [WEATHER, CLOCK]}
THINK = {"enable_thinking": True}
ASKED = [user("Weather in Paris?"), said(tool_calls=[call("get_weather", city="Paris")])]
PARALLEL = [user("Weather and time?"), said(tool_calls=[call("get_weather", 1, city="Paris"), call("now", 2)])]
THOUGHT = "<|channel>thought\nThe user greets.\n<channel|>Hello!"

CASES: dict[str, Case] = {
    "one message": ([user("Hello")], {}),
    "one message, thinking": ([user("Hello")], THINK),
    "thinking off": ([user("Hello")], {"enable_thinking": False}),
    "system": ([SYSTEM, user("Hello")], {}),
    "system, thinking": ([SYSTEM, user("Hello")], THINK),
    "developer": ([{"role": "developer", "content": "Be brief."}, user("Hello")], {}),
    "system alone": ([SYSTEM], {}),
    "system later": ([user("a"), said("b"), SYSTEM, user("c")], {}),
    "two turns": ([user("Hi"), said("Hello!"), user("How are you?")], {}),
    "five turns": ([SYSTEM, *[m for i in range(5) for m in (user(f"q{i}"), said(f"a{i}"))], user("last")], {}),
    "ends with the model": ([user("Hi"), said("Hello!")], {}),
    "two of the user in a row": ([user("Hi"), user("there")], {}),
    "two of the model in a row": ([user("Hi"), said("Hello!"), said("Still here."), user("ok")], {}),
    "role model": ([user("Hi"), {"role": "model", "content": "Hello!"}, user("again")], {}),
    "another role": ([user("Hi"), {"role": "narrator", "content": "A door opens."}, user("again")], {}),
    "empty user": ([user("")], {}),
    "empty model": ([user("Hi"), said(""), user("?")], {}),
    "only spaces": ([user("   "), said("  \n "), user("x")], {}),
    "trailing whitespace": ([SYSTEM | {"content": "  Be kind.\n\n"}, user(" Hello \n"), said("\tYes \n"), user("ok  ")], {}),
    "inner whitespace": ([user("a  b\n\n\nc\t\td\r\ne")], {}),
    "unicode": ([user("Ünïcödé 你好 🙂👩‍👩‍👧 \u200d \ufeff e\u0301 \U000f0000")], {}),
    "code": ([user("```python\nfor i in range(3):\n    print(f'{i}')\n```")], {}),
    "braces": ([user("{{ messages }} {% raw %} {# no #}")], {}),
    "marks that are none": ([user("a < b | c > d <|> <turn> |turn> <|turn|> <channel>")], {}),
    "ends like a mark": ([user("is a <"), said("maybe <|"), user("<|tur")], {}),
    "parts": ([user([part("Hello"), part("there")])], {}),
    "parts with spaces": ([SYSTEM | {"content": [part(" Be "), part(" kind ")]}, user([part(" a "), part(""), part("b ")])], {}),
    "parts of the model": ([user("x"), said([part("one "), part("two")]), user([part("y")])], {}),
    "no parts": ([user([]), said([]), user("x")], {}),
    "thought in content": ([user("Hi"), said(THOUGHT), user("Again")], {}),
    "thought in content, thinking": ([user("Hi"), said(THOUGHT), user("Again")], THINK),
    "thought in parts": ([user("Hi"), said([part(THOUGHT)]), user("Again")], THINK),
    "empty thought": ([user("Hi"), said("<|channel>thought\n<channel|>Hello!"), user("Again")], {}),
    "reasoning, earlier": ([user("Hi"), said("Hello!", reasoning_content="Greet."), user("Again")], THINK),
    "reasoning, other name": ([user("Hi"), said("Hello!", reasoning="Greet.")], THINK),
    "thinking, other name": ([user("Hi"), said("Hello!", thinking="Greet.")], THINK),
    "reasoning, none": ([user("Hi"), said("Hello!", reasoning_content=None), user("x")], THINK),
    "tools": ([user("Hello")], TOOLS),
    "tools, system, thinking": ([SYSTEM, user("Hello")], TOOLS | THINK),
    "no tools": ([user("Hello")], {"tools": []}),
    "call, waiting": (ASKED, TOOLS),
    "call, answered": ([*ASKED, result("sunny")], TOOLS),
    "call, answered, thinking": ([*ASKED, result("sunny")], TOOLS | THINK),
    "call, answered, done": ([*ASKED, result("sunny"), said("It is sunny.")], TOOLS),
    "call, answered, next": ([*ASKED, result("sunny"), said("It is sunny."), user("Thanks")], TOOLS),
    "call with content": ([user("Hi"), said("Let me see.", tool_calls=[call("now")]), result("noon"), user("ok")], TOOLS),
    "content is None": ([user("Hi"), {"role": "assistant", "content": None, "tool_calls": [call("now")]}, result("12:00")], TOOLS),
    "no calls": ([user("Hi"), said("Hello!", tool_calls=None), user("x")], TOOLS),
    "call without arguments": ([user("Hi"), said(tool_calls=[call("now")]), result("noon")], TOOLS),
    "nested arguments": ([user("Hi"), said(tool_calls=[call("f", **NESTED)]), result("ok")], TOOLS),
    "parallel calls": ([*PARALLEL, result("sunny", 1), result("noon", 2)], TOOLS),
    "results out of order": ([*PARALLEL, result("noon", 2), result("sunny", 1), said("Sunny noon.")], TOOLS),
    "one call after the other": (
        [*ASKED, result("sunny"), said(tool_calls=[call("now", 2)]), result("noon", 2), said("Done."), user("Thanks")],
        TOOLS,
    ),
    "thought before a call": (
        [user("Hi"), said(tool_calls=[call("now")], reasoning_content="Look."), result("noon")],
        TOOLS | THINK,
    ),
    "thoughts dropped": (
        [user("Hi"), said(tool_calls=[call("now")], reasoning_content="Look."), result("noon"), said("Noon."), user("Thanks")],
        TOOLS | THINK,
    ),
    "thoughts preserved": (
        [user("Hi"), said(tool_calls=[call("now")], reasoning_content="Look."), result("noon"), said("Noon."), user("Thanks")],
        TOOLS | THINK | {"preserve_thinking": True},
    ),
    "result is a mapping": ([*ASKED, result({"sky": "sunny", "degrees": 21, "tags": ["a", "b"]})], TOOLS),
    "result in parts": ([*ASKED, result([part("sun"), part("ny")])], TOOLS),
    "result is empty": ([*ASKED, result("")], TOOLS),
    "result has a name": ([*ASKED, result("sunny", name="get_weather")], TOOLS),
    "result of no call": ([*ASKED, result("sunny", 7)], TOOLS),
}  # fmt: skip
