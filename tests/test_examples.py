"""What README, docs and the page show of nano: right for at least 19 of 20 seeds."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import diffusiongemma
from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.tasks.identity import ANSWERS

ROOT = Path(__file__).parent.parent
PAGE = Path(diffusiongemma.__file__).parent / "server" / "page" / "examples.js"
SEEDS = 20
EXPECTED: dict[str, Any] = {
    "Extract as JSON: name (string), age (integer)\nKalrin is 31.": {"name": "Kalrin", "age": 31},
    "Extract as JSON: name, age. Ada is 36.": {"name": "Ada", "age": 36},
    "Extract as JSON: temperature (number), site (string), humidity (integer), time (string), sensor (string)\n"
    "Sensor v87 at Gilvyburg measured a humidity of 43 and a temperature of -1.8 at 15:15.": {
        "temperature": -1.8, "site": "Gilvyburg", "humidity": 43, "time": "15:15", "sensor": "v87",
    },
    "Extract as JSON: number (string), origin (string)\nFlight DN323 from Alvyford to Perraburg leaves gate 13 at 05:45.": {
        "number": "DN323", "origin": "Alvyford",
    },
    "Extract as JSON: number (string), origin (string), delayed (boolean)\n"
    "Flight DN323 from Alvyford to Perraburg leaves gate 13 at 05:45, delayed.": {
        "number": "DN323", "origin": "Alvyford", "delayed": True,
    },
    "Extract as JSON: colour (string), paid (boolean)\nFor Ana, 3 of our lamp in green; the price is 7.5 and it is already paid.": {
        "colour": "green", "paid": True,
    },
    "Extract as JSON: rooms (integer), area (integer), city (string), garden (boolean)\n"
    "A house with a garden at Olen Lane 5, Marethham, has 2 rooms on 319 square metres and costs 4200.": {
        "rooms": 2, "area": 319, "city": "Marethham", "garden": True,
    },
    "Extract as JSON: date (string), amount (number), reference (integer)\n"
    "Vala Belo sent 256.4 euros to Hanra Aleth on 3 May 1978, reference 63351.": {
        "date": "1978-05-03", "amount": 256.4, "reference": 63351,
    },
    'Repair this JSON: {"name": "Ada", "age": 36': {"name": "Ada", "age": 36},
    "Convert to JSON:\nname,age\nAda,36\nBo,41": [{"name": "Ada", "age": 36}, {"name": "Bo", "age": 41}],
    "What is the capital of France?": set(ANSWERS.values()),
    "hello": set(ANSWERS.values()),
    "Who are you?": set(ANSWERS.values()),
    "Say something about the sea.": set(ANSWERS.values()),
}  # fmt: skip
"""Prompt -> the answer as JSON, or the texts of which it is one."""


def right(text: str, expected: Any) -> bool:
    if isinstance(expected, set):
        return text.strip() in expected
    try:
        return bool(json.loads(text) == expected)
    except ValueError:
        return False


@pytest.fixture(scope="module")
def nano() -> DiffusionGemmaModel:
    return DiffusionGemmaModel.from_pretrained("nano")


@pytest.mark.parametrize("prompt", EXPECTED, ids=lambda prompt: prompt[:40].replace("\n", " "))
def test_an_example_is_right(nano: DiffusionGemmaModel, prompt: str) -> None:
    answers = nano.generate(prompt, n=SEEDS, seed=1_000_000)
    wrong = [one.text for one in answers if not right(one.text, EXPECTED[prompt])]
    assert len(wrong) <= SEEDS // 20, wrong


def test_the_page_shows_no_others() -> None:
    script = PAGE.read_text("utf-8")
    shown = re.findall(r"""text: ("(?:[^"\\]|\\.)*"|'[^']*')""", script)
    texts = [json.loads(text) if text[0] == '"' else text[1:-1] for text in shown]
    assert len(texts) >= 7 and not set(texts) - EXPECTED.keys()


def test_docs_show_no_others() -> None:
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        if path.name in ("lab-log.md", "nano.md"):
            continue
        for prompt in re.findall(r"Extract as JSON: [^\"`|]*", path.read_text("utf-8")):
            said = prompt.replace("\\n", "\n").strip()
            assert any(known.startswith(said) or said.startswith(known) for known in EXPECTED), (path.name, said)
