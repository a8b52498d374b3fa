"""The page, in a real headless Chromium and before a real server."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from diffusiongemma.engine.events import Commit, Draft
from diffusiongemma.engine.threaded import ThreadedEngine
from diffusiongemma.examples.sudoku.puzzles import parse, prompt_text
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.server.app import create_app
from diffusiongemma.server.endpoint import ModelEndpoint
from diffusiongemma.server.run import Server, config
from diffusiongemma.server.settings import Settings
from diffusiongemma.server.state import State
from tests.server.running import Job, StillEngine

playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested in a browser, which needs playwright")
expect = playwright.expect
expect.set_options(timeout=30_000)  # of a busy machine

QUESTION = (
    "Extract as JSON: temperature (number), site (string), humidity (integer), time (string), sensor (string)\n"
    "Sensor v87 at Gilvyburg measured a humidity of 43 and a temperature of -1.8 at 15:15."
)
ASKED = [{"role": "user", "content": QUESTION}]
HOSTILE = "<img src=x onerror=\"window.hacked=1\"></script><script>window.hacked=1</script><b id='bold'>&amp;"


@contextmanager
def serving(models: Mapping[str, ModelEndpoint], port: int = 0, **settings: Any) -> Iterator[tuple[str, Server]]:
    """A server in a thread: its address, and itself."""
    state, result, ready = State(dict(models)), list[str](), threading.Event()

    def announce(url: str) -> None:
        result.append(url)
        ready.set()

    server = Server(config(create_app(state.models, Settings(**settings), state), "127.0.0.1", port), state, announce)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield result[0], server
    finally:
        server.should_exit = True
        thread.join(10)


def kill(server: Server) -> None:
    """What a client sees of a process that is gone: no more answers, every connection reset."""
    assert server._loop is not None

    def now() -> None:
        for listening in server.servers:
            listening.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        server.should_exit = True

    server._loop.call_soon_threadsafe(now)


@pytest.fixture(scope="module")
def models(nano: DiffusionGemmaModel) -> Iterator[dict[str, ModelEndpoint]]:
    loaded = {"nano": nano, "sudoku": DiffusionGemmaModel.from_pretrained("sudoku")}
    made = {
        name: ModelEndpoint(name, model, ThreadedEngine(model.transformer, model.tokenizer, max_batch=16, max_waiting=16))
        for name, model in loaded.items()
    }
    yield made
    for endpoint in made.values():
        endpoint.engine.stop()


@pytest.fixture(scope="module")
def url(models: dict[str, ModelEndpoint]) -> Iterator[str]:
    with serving(models) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((result for name in names if (result := shutil.which(name))), None)
    with playwright.sync_playwright() as driver:
        try:
            started = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"there is no Chromium that starts here: {str(error).splitlines()[0]}")
        yield started
        started.close()


class Visit:
    """A fresh browser that has opened the page.

    Whatever it asks of another host is noted, and every error it prints or throws.
    """

    def __init__(self, browser: Any, url: str, seed: int | None = 1, pace: int = 0, **context: Any) -> None:
        self.url = url
        self.context = browser.new_context(viewport={"width": 1100, "height": 800}, **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.hosts: set[str] = set()
        self.bodies: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self.page.on("request", self._asked)
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        chosen = json.dumps({"seed": "" if seed is None else str(seed), "pace": pace})
        self.page.add_init_script(f"localStorage['diffusiongemma.settings'] ??= {json.dumps(chosen)}")
        self.page.goto(url)
        expect(self.page.locator("#model option").first).to_be_attached()

    def _asked(self, request: Any) -> None:
        self.hosts.add(urlsplit(request.url).netloc)
        if request.method == "POST":
            self.bodies.append(json.loads(request.post_data))

    def ask(self, text: str) -> None:
        self.page.fill("#message", text)
        self.page.press("#message", "Enter")

    def answers(self, count: int = 1) -> Any:
        """The answers, once so many are whole."""
        expect(self.page.locator("#panel-chat .figures")).to_have_count(count)
        return self.page.locator("#panel-chat .tokens")

    def tokens(self, answer: int = 0) -> list[str]:
        """What stands in the spans of an answer, end and padding as marks."""
        return self.page.locator("#panel-chat .tokens").nth(answer).locator("span").all_text_contents()


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Callable[..., Visit]]:
    made: list[Visit] = []

    def go(address: str = url, **options: Any) -> Visit:
        made.append(Visit(browser, address, **options))
        return made[-1]

    yield go
    for one in made:
        one.context.close()
        assert one.hosts == {urlsplit(one.url).netloc}, "the page asked another host"
        assert one.errors == [], one.errors


def faces(model: DiffusionGemmaModel, tokens: list[int]) -> list[str]:
    """How the page draws tokens that are not noise."""
    marks = {"<pad>": "·", "<turn|>": "∎", "<eos>": "∎"}
    texts = [model.tokenizer.token_text(token) for token in tokens]
    return [marks.get(text, text) for text in texts]


def test_a_conversation_with_its_steps_and_numbers(visit: Callable[..., Visit], nano: DiffusionGemmaModel) -> None:
    events = list(nano.stream(messages=ASKED, seed=1))
    drafts = [event for event in events if isinstance(event, Draft)]
    result = events[-1].result  # type: ignore[union-attr]
    seen = visit()
    page = seen.page
    seen.ask(QUESTION)
    seen.answers()
    assert page.locator("#panel-chat .said").text_content() == QUESTION
    own = faces(nano, result.token_ids)
    assert seen.tokens()[: len(own)] == own
    assert set(seen.tokens()[len(own) :]) <= {"·", "∎"}
    expect(page.locator("#panel-chat .figures")).to_contain_text(f"{len(result.token_ids)} tokens")
    expect(page.locator("#panel-chat .figures")).to_contain_text(f"{result.usage.denoising_steps} steps")
    expect(page.locator("#panel-chat .figures")).to_contain_text(f"{result.usage.tokens_per_forward:.1f} per forward")
    expect(page.locator("#announce")).to_have_text(f"Answer: {result.text}")

    # The scrubber goes back to the first step and on, by keys.
    label, ruler = page.locator("#panel-chat .player .step"), page.locator("#panel-chat .player input")
    expect(label).to_have_text("final")
    ruler.press("Home")
    expect(label).to_have_text(f"step 1 of {len(drafts)}")
    first = drafts[0]
    noise = page.locator("#panel-chat .tokens span.noise")
    assert noise.count() == first.accepted.count(False)
    assert page.locator("#panel-chat .tokens span:not(.noise):not(.tail)").all_text_contents() == [
        text
        for text, kept, at in zip(faces(nano, first.argmax_ids), first.accepted, range(64), strict=True)
        if kept and at <= faces(nano, first.argmax_ids).index("∎")
    ]
    ruler.press("ArrowRight")
    expect(label).to_have_text(f"step 2 of {len(drafts)}")

    # A token tells its history.
    changed = next(at for at in range(40) if first.argmax_ids[at] != drafts[1].argmax_ids[at])
    page.locator(f"#panel-chat .tokens span[data-at='{changed}']").hover()
    expect(page.locator("#tip")).to_contain_text(f"position {changed}")
    entropy = drafts[1].entropy[changed]
    expect(page.locator("#tip")).to_contain_text(f"{entropy:.{3 if entropy < 0.095 else 2}f} nats")
    expect(page.locator("#tip")).to_contain_text("by the causal role")
    assert page.locator("#tip tr").count() >= 2


def test_a_selection_is_denoised_again_and_the_rest_stays(visit: Callable[..., Visit], nano: DiffusionGemmaModel) -> None:
    seen = visit(seed=None)
    page = seen.page
    seen.ask(QUESTION)
    seen.answers()
    before = seen.tokens()
    ids = nano.generate(messages=ASKED, seed=seen.bodies[0]["seed"]).token_ids
    canvas = page.locator("#panel-chat .tokens")
    canvas.focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowRight")
    assert page.locator("#panel-chat .tokens .selected").all_text_contents() == before[11:16]
    page.get_by_role("button", name="Denoise 5 tokens again").click()
    expect(page.locator("#panel-chat .pager .count")).to_have_text("2 / 2")
    body = seen.bodies[1]
    assert body["messages"] == ASKED
    assert body["seed"] != seen.bodies[0]["seed"]
    assert body["pins"] == [[at, token] for at, token in enumerate(ids) if not 11 <= at < 16]
    again = nano.generate(messages=ASKED, seed=body["seed"], max_tokens=len(ids), pins=[(at, token) for at, token in body["pins"]])
    after = seen.tokens()
    assert after[: len(ids)] == faces(nano, again.token_ids)
    assert after[:11] + after[16 : len(ids)] == before[:11] + before[16 : len(ids)]
    expect(page.locator("#panel-chat .remark")).to_contain_text("the rest is unchanged")
    page.get_by_label("Version before").click()
    assert seen.tokens()[: len(ids)] == before[: len(ids)]


def test_the_mouse_selects_whole_tokens(visit: Callable[..., Visit]) -> None:
    seen = visit()
    page = seen.page
    seen.ask(QUESTION)
    seen.answers()
    start, end = (page.locator(f"#panel-chat .tokens span[data-at='{at}']").bounding_box() for at in (1, 3))
    # Whole pixels, as a mouse has them: between two of them Chromium selects nothing.
    page.mouse.move(round(start["x"] + start["width"] / 2), round(start["y"] + start["height"] / 2))
    page.mouse.down()
    page.mouse.move(round(end["x"] + end["width"] * 0.7), round(end["y"] + end["height"] / 2), steps=4)
    page.mouse.up()
    expect(page.locator("#panel-chat .tokens .selected")).to_have_count(3)
    assert page.locator("#panel-chat .tokens .selected").all_text_contents() == seen.tokens()[1:4]
    expect(page.get_by_role("button", name="Denoise 3 tokens again")).to_be_visible()


def test_a_reload_keeps_the_conversation(visit: Callable[..., Visit]) -> None:
    seen = visit()
    page = seen.page
    seen.ask(QUESTION)
    seen.answers()
    seen.ask("Given a square matrix, your job is to rotate it clockwise.\n\n1 2\n3 4\n")
    seen.answers(2)
    before = [seen.tokens(0), seen.tokens(1)]
    figures = page.locator("#panel-chat .figures").all_text_contents()
    page.reload()
    seen.answers(2)
    assert [seen.tokens(0), seen.tokens(1)] == before
    assert page.locator("#panel-chat .figures").all_text_contents() == figures
    page.locator("#panel-chat .player input").first.press("Home")
    expect(page.locator("#panel-chat .player .step").first).to_contain_text("step 1 of")
    page.get_by_role("button", name="Clear").click()
    page.reload()
    expect(page.locator("#panel-chat .start h1")).to_be_visible()
    expect(page.locator("#panel-chat .turn")).to_have_count(0)


def test_by_keys_alone(visit: Callable[..., Visit]) -> None:
    seen = visit()
    page = seen.page
    page.keyboard.type("Consider these statements:")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("1. All cats are ants")
    assert page.input_value("#message") == "Consider these statements:\n1. All cats are ants"
    page.keyboard.press("Enter")
    seen.answers()
    for key, name in (("Alt+2", "infill"), ("Alt+3", "json"), ("Control+4", "sudoku"), ("Alt+1", "chat")):
        page.keyboard.press(key)
        expect(page.locator(f"#panel-{name}")).to_be_visible()
        expect(page.locator("[role=tabpanel]:visible")).to_have_count(1)
    page.locator("#tab-chat").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-infill")).to_be_focused()
    expect(page.locator("#tab-infill")).to_have_attribute("aria-selected", "true")
    page.get_by_label("Settings").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    # Everything one can do has a name.
    for control in page.locator("button, input, select, textarea, [tabindex='0']").all():
        if control.is_visible():
            assert control.evaluate("node => node.ariaLabel || node.labels?.length || node.textContent.trim() || node.title")


def test_it_fits_a_phone_and_has_two_themes(visit: Callable[..., Visit]) -> None:
    seen = visit(color_scheme="dark", reduced_motion="reduce")
    page = seen.page
    page.set_viewport_size({"width": 360, "height": 700})
    seen.ask(QUESTION)
    seen.answers()
    for name in ("chat", "infill", "json", "sudoku"):
        page.locator(f"#tab-{name}").click()
        assert page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0, name

    def lightness() -> float:
        return float(page.evaluate("() => getComputedStyle(document.body).backgroundColor.match(/oklch\\(([0-9.]+)/)[1]"))

    assert lightness() < 0.3
    for name, light in (("light", True), ("dark", False)):
        page.locator("#buttons button").last.click()
        expect(page.locator("html")).to_have_attribute("data-theme", name)
        assert (lightness() > 0.9) is light
    page.locator("#tab-chat").click()
    assert page.locator("#panel-chat .tokens span").first.evaluate("node => getComputedStyle(node).transitionDuration") == "0s"
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_the_settings_go_along(visit: Callable[..., Visit], nano: DiffusionGemmaModel) -> None:
    seen = visit()
    page = seen.page
    page.get_by_label("Settings").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Steps").fill("3")
    dialog.get_by_label("Seed").fill("5")
    dialog.get_by_label("Most tokens").fill("40")
    dialog.get_by_label("Temperature").fill("0.5")
    dialog.get_by_label("Close").click()
    seen.ask(QUESTION)
    seen.answers()
    temperature_ = {"t_min": nano.defaults.t_min * 0.5, "t_max": nano.defaults.t_max * 0.5}
    own = nano.generate(messages=ASKED, seed=5, num_diffusion_steps=3, max_tokens=40, **temperature_)
    assert seen.tokens()[: len(own.token_ids)] == faces(nano, own.token_ids)
    page.get_by_label("Settings").click()
    dialog.get_by_label("Temperature").fill("")
    dialog.get_by_label("Mode").select_option("causal")
    dialog.get_by_label("Close").click()
    seen.ask(QUESTION)
    seen.answers(2)
    assert seen.bodies[-1]["mode"] == "causal"
    causal = nano.generate(messages=ASKED, seed=5, mode="causal", max_tokens=40)
    expect(page.locator("#panel-chat .tokens").nth(1)).to_have_text(causal.text)


def test_json_is_held_to_its_schema_and_parses(visit: Callable[..., Visit], nano: DiffusionGemmaModel) -> None:
    seen = visit()
    page = seen.page
    page.keyboard.press("Alt+3")
    page.get_by_label("JSON schema").fill("{")
    expect(page.locator("#panel-json .state.bad")).to_contain_text("no JSON yet")
    expect(page.get_by_role("button", name="Write it")).to_be_disabled()
    page.get_by_role("button", name="A payment").click()
    expect(page.locator("#panel-json .state.good")).to_have_text("It parses.")
    body = seen.bodies[0]
    own = nano.generate(messages=body["messages"], seed=1, response_format=body["response_format"])
    shown = page.locator("#panel-json pre").text_content()
    assert json.loads(shown) == json.loads(own.text)
    assert shown == json.dumps(json.loads(own.text), indent=2)
    assert list(json.loads(shown)) == body["response_format"]["json_schema"]["schema"]["required"]


def test_a_sudoku_is_drawn_cell_by_cell_and_judged(visit: Callable[..., Visit], models: dict[str, ModelEndpoint]) -> None:
    seen = visit()
    page = seen.page
    page.keyboard.press("Alt+4")
    cells = page.locator(".sudoku input")
    page.get_by_role("button", name="51 clues").click()
    expect(page.locator("#panel-sudoku .state")).to_contain_text("Solved")
    body = seen.bodies[0]
    clues = "".join(cell.input_value() if "clue" in cell.get_attribute("class") else "." for cell in cells.all())
    assert body["model"] == "sudoku"
    assert body["messages"] == [{"role": "user", "content": prompt_text(parse(clues))}]
    own = models["sudoku"].model.generate(prompt_text(parse(clues)), seed=1)
    assert "".join(cell.input_value() for cell in cells.all()) == own.text.replace("\n", "")
    page.locator("#panel-sudoku .player input").press("Home")
    expect(page.locator("#panel-sudoku .player .step")).to_contain_text("step 1 of")
    page.get_by_role("button", name="Back to the puzzle").click()
    assert "".join(cell.input_value() or "." for cell in cells.all()) == clues
    # A digit that stands twice is refused before anything is sent.
    free = clues.index(".")
    row = clues[9 * (free // 9) : 9 * (free // 9) + 9].replace(".", "")
    cells.nth(free).fill(row[0])
    expect(page.locator("#panel-sudoku .state")).to_contain_text("stands twice")
    expect(page.get_by_role("button", name="Solve")).to_be_disabled()


def test_a_hole_is_filled_and_what_stands_around_it_stays(visit: Callable[..., Visit]) -> None:
    seen = visit()
    page = seen.page
    page.keyboard.press("Alt+2")
    page.get_by_label("Text before the hole").fill("def read(path):\n    with open(")
    page.get_by_label("Text behind the hole").fill(") as f:\n        return f.read()\n")
    page.get_by_label("Most tokens of the hole").fill("3")
    page.get_by_role("button", name="Fill the hole").click()
    expect(page.locator("#panel-infill .figures")).to_be_visible()
    hole = page.locator("#panel-infill .hole").text_content()
    assert hole != ""
    whole = page.locator("#panel-infill .document").text_content()
    assert whole == f"def read(path):\n    with open({hole}) as f:\n        return f.read()\n"
    assert page.locator("#panel-infill .rows .tokens").count() > 1


# -- a server that does only what a test says ----------------------------------------------------------------------------


@pytest.fixture
def still(nano: DiffusionGemmaModel) -> tuple[StillEngine, dict[str, ModelEndpoint]]:
    engine = StillEngine()
    return engine, {"nano": ModelEndpoint("nano", nano, engine)}  # type: ignore[arg-type]


def draft(job: Job, model: DiffusionGemmaModel, text: str, step: int = 1) -> list[int]:
    """Show a canvas that holds a text, of which every other token is kept."""
    tokens = [*model.tokenizer.encode(text), 5]
    kept = [at % 2 == 0 for at in range(len(tokens))]
    job.on_event(Draft(0, 0, step, tokens, [0.25] * len(tokens), kept, text, [False] * len(tokens)))
    return tokens


def finish(job: Job, tokens: list[int], text: str) -> None:
    job.on_event(Commit(0, text, tokens))
    job.finish(text)
    job.on_end(None)


def test_stop_frees_the_row_and_keeps_what_came(
    visit: Callable[..., Visit], still: tuple[StillEngine, dict[str, ModelEndpoint]], nano: DiffusionGemmaModel
) -> None:
    engine, endpoint = still
    with serving(endpoint) as (url, _):
        seen = visit(url)
        page = seen.page
        for press in (lambda: page.keyboard.press("Escape"), lambda: page.get_by_label("Stop (Esc)").click()):
            seen.ask("Wait")
            job = engine.next()
            draft(job, nano, "half an answer")
            expect(page.locator("#panel-chat .status").last).to_contain_text("step 1 ·")
            press()
            assert job.cancelled.wait(30), "the row was not given back"
            expect(page.locator("#panel-chat .lead").last).to_have_text("stopped")
            expect(page.locator("#panel-chat .tokens").last).to_have_text("half an answer∎")
        page.reload()
        expect(page.locator("#panel-chat .tokens")).to_have_text(["half an answer∎"] * 2)


def test_a_server_that_dies_in_the_middle(
    visit: Callable[..., Visit], still: tuple[StillEngine, dict[str, ModelEndpoint]], nano: DiffusionGemmaModel
) -> None:
    engine, endpoint = still
    with serving(endpoint) as (url, server):
        seen = visit(url)
        page = seen.page
        seen.ask("Wait")
        draft(engine.next(), nano, "half an answer", step=3)
        expect(page.locator("#panel-chat .status")).to_contain_text("step 3 ·")
        kill(server)
        notice = page.locator("#panel-chat .notice")
        expect(notice).to_contain_text("is kept above; it is not a finished answer")
        expect(page.locator("#panel-chat .tokens")).to_have_text("half an answer∎")
    page.get_by_role("button", name="Try again").click()
    expect(notice).to_contain_text("does not answer")
    with serving(endpoint, port=urlsplit(url).port) as (_, _):
        page.get_by_role("button", name="Try again").click()
        job = engine.next()
        finish(job, draft(job, nano, "a whole answer"), "a whole answer")
        expect(page.locator("#panel-chat .figures")).to_be_visible()
        expect(page.locator("#panel-chat .tokens")).to_have_text("a whole answer∎")
        expect(notice).to_have_count(0)
    assert len(seen.bodies) == 3
    assert seen.bodies[0] == seen.bodies[1] == seen.bodies[2], "a retry is the same request"
    network = [error for error in seen.errors if "net::ERR_" in error]
    assert seen.errors == network, "only the browser itself speaks of the lost connection"
    seen.errors.clear()


def test_an_error_in_the_middle_of_a_stream_is_said(
    visit: Callable[..., Visit], still: tuple[StillEngine, dict[str, ModelEndpoint]], nano: DiffusionGemmaModel
) -> None:
    engine, endpoint = still
    with serving(endpoint) as (url, _):
        seen = visit(url)
        page = seen.page
        seen.ask("Wait")
        job = engine.next()
        draft(job, nano, "half an answer")
        expect(page.locator("#panel-chat .status")).to_contain_text("step 1 ·")
        job.on_end(RuntimeError("the disk at /secret is full"))
        expect(page.locator("#panel-chat .notice")).to_contain_text("went wrong")
        assert "/secret" not in page.content()
        expect(page.locator("#panel-chat .tokens")).to_have_text("half an answer∎")
        page.get_by_role("button", name="Try again").click()
        finish(engine.next(), [7], "!")
        seen.answers()


def test_a_stream_without_its_end_is_not_taken_for_an_answer(visit: Callable[..., Visit]) -> None:
    seen = visit()
    shown = {"choices": [], "index": 0, "canvas": 0, "step": 1, "tokens": [6], "texts": ["!"], "text": "!"}
    shown |= {"entropy": [0.5], "accepted": [True], "pinned": [False]}
    # A proxy may write line breaks otherwise, and cut in the middle of a line.
    body = f"event: draft\r\ndata: {json.dumps(shown)}\r\n\r\nevent: comm"
    seen.page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    seen.ask("Wait")
    expect(seen.page.locator("#panel-chat .notice")).to_contain_text("before the answer was whole")
    expect(seen.page.locator("#panel-chat .tokens")).to_have_text("!")
    expect(seen.page.locator("#panel-chat .lead")).to_have_count(0)
    seen.page.reload()
    expect(seen.page.locator("#panel-chat .lead")).to_have_text("broken off")


def test_hostile_text_is_text(
    visit: Callable[..., Visit],
    still: tuple[StillEngine, dict[str, ModelEndpoint]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, endpoint = still
    # A whole attack in one token, so that no cutting into tokens makes it harmless.
    own = endpoint["nano"].token_text
    monkeypatch.setattr(endpoint["nano"], "token_text", lambda token: HOSTILE if token == 99 else own(token))
    with serving(endpoint) as (url, _):
        seen = visit(url)
        page = seen.page
        seen.ask(HOSTILE)
        job = engine.next()
        for step in (1, 2):
            job.on_event(Draft(0, 0, step, [99, 5], [0.5, 0.5], [step == 2, True], HOSTILE, [False, False]))
        finish(job, [99, 5], HOSTILE)
        seen.answers()
        page.locator("#panel-chat .tokens span").first.hover()
        expect(page.locator("#tip b")).to_contain_text("<img")
        page.reload()
        seen.answers()
        assert page.locator(".said").text_content() == HOSTILE
        assert page.locator("#panel-chat .tokens").text_content() == HOSTILE + "∎"
        page.keyboard.press("Alt+3")
        page.get_by_role("button", name="A person").click()
        finish(engine.next(), [99], json.dumps({HOSTILE: HOSTILE}))
        expect(page.locator("#panel-json pre")).to_have_text(json.dumps({HOSTILE: HOSTILE}, indent=2))
        assert page.locator("main img, main script, main #bold, #tip img").count() == 0
        assert page.evaluate("() => window.hacked") is None


def test_a_full_server_and_a_missing_model_are_said(visit: Callable[..., Visit], nano: DiffusionGemmaModel) -> None:
    engine = StillEngine(most=0)
    with serving({"nano": ModelEndpoint("nano", nano, engine)}) as (url, _):  # type: ignore[arg-type]
        seen = visit(url)
        page = seen.page
        seen.ask("Hello")
        expect(page.locator("#panel-chat .notice")).to_contain_text("The server is full")
        expect(page.get_by_role("button", name="Try again")).to_contain_text("ready in")
        engine.most = 1
        page.get_by_role("button", name="Try again").click()
        job = engine.next()
        finish(job, draft(job, nano, "there"), "there")
        seen.answers()
        page.keyboard.press("Alt+4")
        expect(page.locator("#panel-sudoku .notice")).to_contain_text("no sudoku model")
        expect(page.get_by_role("button", name="Solve")).to_be_disabled()
        assert [error for error in seen.errors if "429" not in error] == []
        seen.errors.clear()


def test_a_key_is_asked_for_and_not_stored(
    browser: Any, still: tuple[StillEngine, dict[str, ModelEndpoint]], nano: DiffusionGemmaModel
) -> None:
    engine, endpoint = still
    secret = "a-key-of-some-length"
    with serving(endpoint, api_key=secret) as (url, _), browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        page.get_by_label("API key").fill(secret)
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#model option")).to_have_text("nano")
        page.fill("#message", "Hello")
        page.press("#message", "Enter")
        job = engine.next()
        finish(job, draft(job, nano, "there"), "there")
        expect(page.locator("#panel-chat .figures")).to_be_visible()
        kept = page.evaluate("() => [JSON.stringify(localStorage), JSON.stringify(sessionStorage), document.cookie]")
        assert secret not in kept[0]
        assert secret in kept[1]
        assert kept[2] == ""
