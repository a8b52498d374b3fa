"""The generators behind nano: answers right by a check that shares no code with them; what people wrote stays unseen."""

import csv
import datetime
import io
import json
import random
import re

import pytest

from diffusiongemma.tasks import words
from diffusiongemma.tasks.base import EVAL_SEED, Example, ToolTask
from diffusiongemma.tasks.code_edits import ARITHMETIC, COMPLETE_LINE, RENAME
from diffusiongemma.tasks.convert import CONVERT, REFORMAT, REPAIR
from diffusiongemma.tasks.extract import EXTRACT, FROM_JSON
from diffusiongemma.tasks.generated import GeneratedTask
from diffusiongemma.tasks.identity import ANSWERS, IDENTITY
from diffusiongemma.tasks.people import EXTRACT_PEOPLE, OUT_OF_SCOPE_PEOPLE
from diffusiongemma.tasks.text_edits import EDIT, FILL_FORM, LISTS
from diffusiongemma.tasks.toolcalls import TOOL_CALLS
from diffusiongemma.tasks.useful import USEFUL_TASKS
from diffusiongemma.text.markup import read_call

COUNT = 400


def drawn(task: GeneratedTask, group: str = "") -> list[tuple[Example, str]]:
    examples = task.examples(COUNT, EVAL_SEED)
    return [(each, each.answer or "") for each in examples if not group or each.group.startswith(group)]


@pytest.mark.parametrize("task", USEFUL_TASKS, ids=lambda task: task.name)
def test_examples_differ_and_hardly_any_prompt_comes_twice(task: GeneratedTask) -> None:
    prompts = [example.prompt for example in task.examples(COUNT, EVAL_SEED)]
    assert len(set(prompts)) > {"arithmetic": 0.8, "complete-line": 0.8, "out-of-scope": 0.7}.get(task.name, 0.95) * COUNT


def test_what_is_extracted_stands_in_the_text() -> None:
    for example, answer in drawn(EXTRACT):
        for value in flat(json.loads(answer)):
            if isinstance(value, str) and not re.fullmatch(r"\d{4}-\d\d-\d\d", value):
                assert value.lower() in example.prompt.lower(), (example.prompt, value)
            if isinstance(value, int) and not isinstance(value, bool):
                said = (str(value), f"{value:,}", words.number_word(value) if value < 1000 else str(value))
                assert any(form in example.prompt for form in said), (example.prompt, value)
            if isinstance(value, float):
                assert f"{value:g}" in example.prompt or f"{value:.2f}" in example.prompt or str(value) in example.prompt


def flat(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in flat(inner)]
    return [leaf for inner in value for leaf in flat(inner)] if isinstance(value, list) else [value]


def test_extraction_has_one_to_eight_fields_lists_and_objects() -> None:
    sizes = {len(json.loads(answer)) for _, answer in drawn(EXTRACT)}
    assert {1, 2, 3, 4, 5, 6, 7} <= sizes and max(sizes) <= 9
    assert {"flat", "nested", "list", "objects"} == {example.group for example, _ in drawn(EXTRACT)}


def test_every_key_asked_for_is_in_the_prompt() -> None:
    for example, answer in drawn(EXTRACT):
        assert all(key in example.prompt for key in json.loads(answer)), example.prompt


def test_a_sentence_says_every_value() -> None:
    for example, answer in drawn(FROM_JSON):
        data = json.loads(re.findall(r"\{.*\}", example.prompt, re.DOTALL)[0])
        for value in flat(data):
            assert {True: "yes", False: "no"}.get(value, str(value)) in answer if isinstance(value, bool) else str(value) in answer


def test_conversions_keep_every_cell() -> None:
    for example, answer in drawn(CONVERT):
        to = example.group.split(" to ")[1]
        if to == "JSON":
            found = json.loads(answer)
            cells = [[str(v) for v in row.values()] for row in (found if isinstance(found, list) else [found])]
        elif to == "CSV":
            cells = list(csv.reader(io.StringIO(answer)))[1:]
        elif to == "Markdown":
            cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in answer.split("\n")[2:]]
        else:
            cells = [[line.split(": ", 1)[1] for line in answer.split("\n")]]
        assert cells and all(cell in example.prompt for row in cells for cell in row), (example.prompt, answer)


def test_repaired_json_is_valid_and_has_the_words_of_the_broken_one() -> None:
    for example, answer in drawn(REPAIR):
        json.loads(answer)
        assert all(word in example.prompt for word in re.findall(r"[a-z]{3,}", answer) if word not in ("true", "false", "null"))


def test_dates_are_the_same_day() -> None:
    forms = ("%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d %B %Y", "%B %d, %Y", "%d %b %Y")
    seen = 0
    for example, answer in drawn(REFORMAT, "date"):
        days = {day for form in forms if (day := day_of(answer, form))}
        shown = {
            day
            for form in forms
            for text in re.findall(r"\d{4}-\d\d-\d\d|\d\d\.\d\d\.\d{4}|\d+ [A-Z]\w+ \d{4}|[A-Z]\w+ \d+, \d{4}", example.prompt)
            if (day := day_of(text, form))
        }
        assert days & shown, (example.prompt, answer)
        seen += 1
    assert seen > 50


def day_of(text: str, form: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.strptime(text, form)
    except ValueError:
        return None


def test_numbers_in_words_are_read_back() -> None:
    assert [words.number_word(n) for n in (0, 13, 20, 45, 100, 999)] == [
        "zero", "thirteen", "twenty", "forty-five", "one hundred", "nine hundred and ninety-nine",
    ]  # fmt: skip
    assert len({words.number_word(n) for n in range(1000)}) == 1000


def test_lists_are_sorted_counted_and_without_doubles() -> None:
    for example, answer in drawn(LISTS, "dedupe"):
        items = re.split(r", |\n| ", answer)
        assert len(items) == len(set(items)) and all(item in example.prompt for item in items)
    for example, answer in drawn(LISTS, "sort"):
        items = re.split(r", |\n| ", answer)
        keys = [int(item) for item in items] if items[0].isdigit() else [item.lower() for item in items]
        assert keys in (sorted(keys), sorted(keys)[::-1]), example.prompt


def test_an_edit_changes_something_and_leaves_the_rest() -> None:
    for example, answer in drawn(EDIT):
        assert answer and answer not in example.prompt
        kept = sum(word in example.prompt for word in re.findall(r"\w+", answer)) / len(re.findall(r"\w+", answer))
        assert kept >= 0.6, (example.prompt, answer)


def test_filled_templates_have_no_holes() -> None:
    for example, answer in drawn(FILL_FORM):
        assert not re.search(r"[{}\[\]<>$]", answer), (example.prompt, answer)


def test_renamed_and_completed_code_compiles_and_sums_are_right() -> None:
    for example, answer in drawn(RENAME):
        compile(answer, "renamed", "exec")
        assert answer not in example.prompt
    for example, answer in drawn(COMPLETE_LINE):
        begin = example.prompt.split("\n", 1)[1]
        assert answer.startswith(begin) and len(answer) > len(begin)
    for example, answer in drawn(ARITHMETIC):
        sum_ = re.sub(r"plus", "+", re.sub(r"minus", "-", re.sub(r"times", "*", re.sub(r"divided by", "/", example.prompt))))
        found = re.search(r"(\d+) ?([-+*/]) ?(\d+)", sum_)
        assert found
        a, operation, b = int(found[1]), found[2], int(found[3])
        assert int(answer) == {"+": a + b, "-": a - b, "*": a * b, "/": a // max(b, 1)}[operation]


def test_calls_are_of_a_declared_function_with_its_arguments() -> None:
    assert isinstance(TOOL_CALLS, ToolTask)
    for example, answer in drawn(TOOL_CALLS):
        inside = answer.removeprefix("<|tool_call>").removesuffix("<tool_call|>")
        name, arguments = read_call(inside.split('<|"|>'))
        declared = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOL_CALLS.tools(example)}
        assert name in declared and set(arguments) == set(declared[name]["required"])


def test_what_it_says_of_itself_fits_a_canvas_and_is_known_by_its_kind() -> None:
    for example, answer in drawn(IDENTITY):
        assert answer == ANSWERS[example.group] and "I am nano" in answer and "Try:" in answer
    assert {example.group for example, _ in drawn(IDENTITY)} == set(ANSWERS)


def test_what_people_wrote_is_never_trained_on() -> None:
    assert EXTRACT_PEOPLE.count == 60 and OUT_OF_SCOPE_PEOPLE.count == 200
    written = {example.prompt for task in (EXTRACT_PEOPLE, OUT_OF_SCOPE_PEOPLE) for example in task.examples(task.count, 0)}
    told = {prompt.split("\n", 1)[-1].lower() for prompt in written}
    assert len(written) == 260
    made = {example.prompt for task in (EXTRACT, IDENTITY) for seed in (1, 2) for example in task.examples(1000, seed)}
    # A greeting of one word, or a question that everybody asks, may be made by chance; sentences are not.
    assert len({prompt for prompt in written if prompt in made}) <= 8
    assert not {prompt.split("\n", 1)[-1].lower() for prompt in made if "JSON" in prompt} & told


def test_made_up_words_are_many() -> None:
    rng = random.Random(0)
    assert len({words.made_up(rng) for _ in range(1000)}) > 850
