"""The page in a real browser: with a mouse, a keyboard, a phone, a screen reader's eyes, and servers that misbehave."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from divprune_edge import Pipeline
from divprune_edge.models.demo import IMAGE

from .conftest import QUESTION, Serve, Served, noise

api = pytest.importorskip("playwright.sync_api", reason="unproven: the page, without playwright")
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="unproven: the page, without a chromium"),
    pytest.mark.xdist_group("page"),
]
KEY = "correct horse battery"
COMPLETIONS = "**/v1/chat/completions"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Visit:
    """A browser's window on a server's page, and what it says and fetches."""

    def __init__(self, browser: Any, server: Served, **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.page.set_default_timeout(60_000)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.origin = f"http://127.0.0.1:{server.port}/"
        self.page.goto(self.origin)

    def offered(self) -> Visit:
        api.expect(self.page.get_by_label("Selector").first).not_to_be_empty()
        return self

    def choose(self, file: Path | tuple[str, bytes] = IMAGE) -> None:
        data: Any = file if isinstance(file, Path) else {"name": file[0], "mimeType": "", "buffer": file[1]}
        self.page.get_by_label("Image", exact=True).set_input_files(data)

    def ask(self, question: str = QUESTION) -> None:
        self.page.get_by_label("Question").fill(question)
        self.page.get_by_role("button", name="Ask").click()

    def panel(self, side: str) -> Any:
        return self.page.get_by_role("article", name=re.compile(f"Answer {side}"))

    def answer(self, side: str) -> str:
        """Return the answer of a side once it is whole."""
        api.expect(self.panel(side).locator(".stages")).not_to_be_empty(timeout=60_000)
        api.expect(self.panel(side).locator(".prompt")).not_to_have_text("–")
        return str(self.panel(side).locator(".text").inner_text())

    def problem(self) -> str:
        alert = self.page.get_by_role("alert")
        api.expect(alert).not_to_be_empty(timeout=60_000)
        return str(alert.inner_text())

    def focused(self) -> str:
        return str(self.page.evaluate("document.activeElement.id"))


@pytest.fixture
def visit(chromium: Any, server: Served) -> Iterator[Visit]:
    opened = Visit(chromium, server).offered()
    yield opened
    opened.page.context.close()


def bright(visit: Visit, side: str, cells: int) -> set[int]:
    """Return the cells of a square grid whose middle is drawn as the image has it."""
    url = visit.panel(side).get_by_role("img").evaluate("(canvas) => canvas.toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as shown:
        drawn, size = shown.convert("RGB"), shown.width
    with Image.open(IMAGE) as picture:
        image = picture.convert("RGB").resize((size, size))
    middles = [round((i + 0.5) * size / cells) for i in range(cells)]
    found = set()
    for row, y in enumerate(middles):
        for column, x in enumerate(middles):
            pixel, original = (np.array(one.getpixel((x, y)), int) for one in (drawn, image))
            if np.abs(pixel - original).sum() < 12:
                found.add(row * cells + column)
    return found


def test_two_answers_side_by_side(visit: Visit, asked: Pipeline) -> None:
    visit.choose()
    visit.ask()
    pruned = asked.ask(IMAGE, QUESTION)
    unpruned = asked.with_selector("none").ask(IMAGE, QUESTION)
    assert (visit.answer("A"), visit.answer("B")) == (pruned.answer, unpruned.answer)
    assert visit.panel("A").locator(".visual").inner_text() == "58 of 576"
    assert visit.panel("B").locator(".visual").inner_text() == "576 of 576"
    for side in "AB":
        for part in (".first", ".fed"):
            assert re.fullmatch(r"[\d.]+ m?s", visit.panel(side).locator(part).inner_text())
        assert re.fullmatch(r"[\d.]+ tokens/s|one token", visit.panel(side).locator(".speed").inner_text())
    assert bright(visit, "A", 24) == set(pruned.kept_indices)
    assert len(bright(visit, "B", 24)) == 576
    visit.page.get_by_label("Show the kept patches").uncheck()
    assert len(bright(visit, "A", 24)) == 576
    assert all(url.startswith((visit.origin, "blob:", "data:")) for url in visit.asked), visit.asked
    assert visit.said == []


def test_the_keyboard_alone(visit: Visit) -> None:
    order = []
    for _ in range(12):
        visit.page.keyboard.press("Tab")
        order.append(visit.focused() or visit.page.evaluate("document.activeElement.tagName"))
    a, b = ("Answer-A-", "Answer-B-")
    expected = [
        "file",
        "question",
        f"{a}selector",
        f"{a}budget",
        f"{b}selector",
        "both",
        "show",
        "SUMMARY",
        "go",
    ]
    assert order[: len(expected)] == expected  # what can do nothing is passed over
    visit.choose()
    visit.page.get_by_label("Budget").first.focus()
    visit.page.keyboard.press("ArrowRight")
    assert visit.page.locator("#Answer-A-budget").get_attribute("aria-valuetext") == (
        "keeps 144 of 576 visual tokens (25 %)"
    )
    visit.page.get_by_label("Two answers").focus()
    visit.page.keyboard.press("Space")
    visit.page.get_by_label("Question").focus()
    visit.page.keyboard.type("What does")
    visit.page.keyboard.press("Shift+Enter")
    visit.page.keyboard.type("the sign say?")
    visit.page.keyboard.press("Enter")
    assert visit.answer("A") and visit.focused() == "question"
    assert visit.panel("A").locator(".visual").inner_text() == "144 of 576"
    assert visit.panel("B").count() == 0
    assert visit.page.get_by_label("Question").input_value() == "What does\nthe sign say?"


def test_what_a_screen_reader_says(visit: Visit, asked: Pipeline) -> None:
    visit.choose()
    visit.ask()
    text = visit.answer("B")
    api.expect(visit.page.get_by_role("status")).to_have_text(
        re.compile(rf"Answer B: none: {re.escape(text)}. First token after [\d.]+ m?s")
    )
    for side, share in (
        ("A", "58 of 576 patches kept, the others darkened"),
        ("B", "576 of 576 patches kept"),
    ):
        assert visit.panel(side).get_by_role("img", name=f"The image: {share}").count() == 1
        assert visit.panel(side).locator(".text").get_attribute("aria-busy") == "false"
    assert visit.page.get_by_role("img", name="The image that is asked about, picture.png").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_accessibility_rules(chromium: Any, server: Served, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="unproven: without axe").Axe()
    visit = Visit(chromium, server, color_scheme=scheme, viewport={"width": width, "height": 700}).offered()
    tags = {"runOnly": [f"wcag{level}" for level in ("2a", "2aa", "21a", "21aa", "22aa")] + ["best-practice"]}
    visit.page.locator("summary").click()
    found = [axe.run(visit.page, options=tags)]
    visit.choose()
    visit.ask()
    visit.answer("B")
    found.append(axe.run(visit.page, options=tags))
    assert [result.generate_report() for result in found if result.violations_count] == []
    assert len(found[1].response["passes"]) > 20  # the rules were applied
    assert (
        visit.page.evaluate("document.documentElement.scrollWidth") <= width
    )  # nothing to scroll sideways for
    visit.page.context.close()


def test_a_phone(chromium: Any, server: Served) -> None:
    phone = {"viewport": {"width": 375, "height": 667}, "is_mobile": True, "has_touch": True}
    visit = Visit(chromium, server, **phone).offered()
    visit.choose()
    visit.page.get_by_label("Question").fill(QUESTION)
    visit.page.get_by_role("button", name="Ask").tap()
    visit.answer("B")
    boxes = [visit.panel(side).bounding_box() for side in "AB"]
    assert boxes[0]["x"] == boxes[1]["x"] and boxes[1]["y"] > boxes[0]["y"] + boxes[0]["height"]
    for part in ("button", "select", "summary", "#file"):
        assert visit.page.locator(part).first.bounding_box()["height"] >= 40  # a finger's
    visit.page.context.close()


@pytest.mark.parametrize(("motion", "animation"), [("reduce", "none"), ("no-preference", "blink")])
def test_motion(chromium: Any, server: Served, motion: str, animation: str) -> None:
    visit = Visit(chromium, server, reduced_motion=motion).offered()
    visit.page.route(COMPLETIONS, lambda route: None)  # an answer that does not come
    visit.choose()
    visit.ask()
    text = visit.panel("A").locator(".text")
    api.expect(text).to_have_attribute("aria-busy", "true")
    assert text.evaluate("(text) => getComputedStyle(text, '::after').animationName") == animation
    visit.page.context.close()


def test_stopping(visit: Visit) -> None:
    visit.page.route(COMPLETIONS, lambda route: None)
    visit.choose()
    visit.ask()
    visit.page.get_by_role("button", name="Stop").click()
    api.expect(visit.page.get_by_role("status")).to_have_text("Stopped.")
    assert visit.focused() == "go" and visit.page.get_by_role("button", name="Stop").is_disabled()
    visit.page.unroute(COMPLETIONS)
    visit.ask()  # and it can be asked again
    assert visit.answer("A")


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_files_that_are_brought(visit: Visit, how: str) -> None:
    data = [*IMAGE.read_bytes()]
    script = """([how, data]) => {
        const files = new DataTransfer();
        files.items.add(new File([new Uint8Array(data)], 'brought.png', {type: 'image/png'}));
        const event = how === 'drop' ? new DragEvent('drop', {dataTransfer: files, cancelable: true, bubbles: true})
            : new ClipboardEvent('paste', {clipboardData: files, bubbles: true});
        document.body.dispatchEvent(event);
        return event.defaultPrevented;
    }"""
    assert visit.page.evaluate(script, [how, data]) or how == "paste"  # or the browser would open the file
    api.expect(visit.page.locator("#hint")).to_have_text("brought.png")
    visit.ask()
    assert visit.answer("A")


def test_the_image_that_was_brought_last_is_asked_about(visit: Visit) -> None:
    """However much longer another one takes to read."""
    script = """async () => {
        const make = async (size, name) => {
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [size, size];
            const context = canvas.getContext('2d'), pixels = context.createImageData(size, size);
            for (let i = 0; i < pixels.data.length; i++) pixels.data[i] = i % 4 === 3 ? 255 : (i * i) % 251;
            context.putImageData(pixels, 0, 0);
            return new File([await new Promise((done) => canvas.toBlob(done, 'image/png'))], name, {type: 'image/png'});
        };
        const brought = [await make(3000, 'large.png'), await make(16, 'small.png')];
        const hint = document.getElementById('hint'), said = [];
        new MutationObserver(() => said.push(hint.textContent)).observe(hint, {childList: true});
        for (const file of brought) {
            const files = new DataTransfer();
            files.items.add(file);
            document.dispatchEvent(new DragEvent('drop', {dataTransfer: files, cancelable: true, bubbles: true}));
        }
        await (await import('/page/image.js')).read(brought[0]);  // as long as the first one takes, and longer
        await new Promise((done) => setTimeout(done, 500));
        return said;
    }"""
    assert visit.page.evaluate(script) == ["small.png"]


def test_texts_go_where_they_are_dropped_and_pasted(visit: Visit) -> None:
    script = """([how, data]) => {
        const brought = new DataTransfer();
        brought.setData('text/plain', 'a text');
        if (data) {
            brought.setData('text/html', '<p>a text</p>');
            brought.items.add(new File([new Uint8Array(data)], 'beside.png', {type: 'image/png'}));
        }
        const Kind = how === 'paste' ? ClipboardEvent : DragEvent;
        const event = new Kind(how, {dataTransfer: brought, clipboardData: brought, cancelable: true, bubbles: true});
        document.getElementById('question').dispatchEvent(event);
        return event.defaultPrevented;
    }"""
    for how in ("dragover", "drop", "paste"):
        assert not visit.page.evaluate(script, [how, None])
    visit.choose()
    api.expect(visit.page.locator("#hint")).to_have_text(IMAGE.name)
    assert not visit.page.evaluate(script, ["paste", [*IMAGE.read_bytes()]])
    visit.page.wait_for_timeout(300)
    assert visit.page.locator("#hint").inner_text() == IMAGE.name


def sent(visit: Visit, file: Path | tuple[str, bytes]) -> Image.Image:
    """Choose an image, ask, and return the image that is sent."""
    bodies: list[Any] = []
    visit.page.route(COMPLETIONS, lambda route: (bodies.append(route.request.post_data_json), route.abort()))
    visit.choose(file)
    name = file.name if isinstance(file, Path) else file[0]
    api.expect(visit.page.locator("#hint")).to_contain_text(name)
    visit.ask()
    visit.problem()
    visit.page.unroute(COMPLETIONS)
    url = bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_an_image_that_does_not_move_is_sent_as_it_is(visit: Visit, tmp_path: Path, kind: str) -> None:
    with Image.open(IMAGE) as picture:
        picture.convert("RGBA").save(file := tmp_path / f"still.{kind}", comment="acTL ANIM")
    assert sent(visit, file).format == kind.upper()


def test_what_is_transparent_is_white_in_a_jpeg(visit: Visit) -> None:
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(held := io.BytesIO(), "ICO", sizes=[(40, 40)])
    image = sent(visit, ("clear.ico", held.getvalue()))
    assert image.format == "JPEG" and min(image.getpixel((20, 20))) > 250  # type: ignore[arg-type,type-var]


def test_images_that_the_server_would_not_take(visit: Visit) -> None:
    noise(1).save(held := io.BytesIO(), "BMP")
    visit.choose(("cat.bmp", held.getvalue()))
    api.expect(visit.page.locator("#hint")).to_have_text("cat.bmp, sent as a JPEG")
    visit.ask()
    assert visit.answer("A")
    visit.choose(("cat.txt", b"no image"))
    assert '"cat.txt"' in visit.problem() and visit.focused() == "file"


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_an_animation_is_asked_about_by_its_first_frame(visit: Visit, tmp_path: Path, kind: str) -> None:
    with Image.open(IMAGE) as picture:
        first = picture.convert("RGB")
    file = tmp_path / f"moving.{kind}"
    first.save(file, save_all=True, append_images=[Image.new("RGB", first.size)], duration=50)
    visit.choose(file)
    api.expect(visit.page.locator("#hint")).to_have_text(f"moving.{kind}, sent as a JPEG")
    visit.ask()
    api.expect(visit.panel("A").locator(".text")).to_have_text("purple")
    assert visit.page.locator("#problem").inner_text() == ""


def test_a_file_that_is_no_image_is_not_taken_for_the_one_shown(visit: Visit) -> None:
    visit.choose()
    api.expect(visit.page.locator("#hint")).to_have_text(IMAGE.name)
    visit.choose(("notes.txt", b"no image"))
    api.expect(visit.page.get_by_role("alert")).to_contain_text("notes.txt")
    api.expect(visit.page.locator("#hint")).to_have_text(IMAGE.name)
    assert visit.page.get_by_label("Image", exact=True).input_value() == ""


def test_an_error_ends_what_was_said_of_an_answer(visit: Visit) -> None:
    visit.page.route(COMPLETIONS, lambda route: route.fulfill(status=500, body="{}"))
    visit.choose()
    visit.ask()
    api.expect(visit.page.get_by_role("alert")).not_to_be_empty()
    api.expect(visit.page.get_by_role("status")).to_be_empty()


def test_what_is_missing_is_told(visit: Visit) -> None:
    visit.ask()
    assert visit.problem() == "Choose an image first." and visit.focused() == "file"
    visit.choose()
    visit.ask(" ")
    api.expect(visit.page.get_by_role("alert")).to_have_text("Ask a question.")
    assert visit.focused() == "question"
    visit.page.locator("summary").click()
    visit.page.get_by_label("Tokens at most").fill("0")
    visit.ask()
    api.expect(visit.page.get_by_role("alert")).to_contain_text("Tokens at most")
    assert visit.focused() == "tokens"
    visit.page.get_by_label("Tokens at most").fill("9999")
    visit.ask("why" * 30_000)
    api.expect(visit.page.get_by_role("alert")).to_contain_text(
        "90000 characters"
    )  # the server's own sentence


def test_an_api_key(chromium: Any, bundle: Path, serving: Serve) -> None:
    server = serving(bundle, DIVPRUNE_API_KEY=KEY)
    visit = Visit(chromium, server)
    assert "API key" in visit.problem() and visit.focused() == "key"
    for typed in ("wrong", KEY):
        visit.page.get_by_label("API key").fill(typed)
        visit.page.keyboard.press("Tab")
        if typed == "wrong":
            api.expect(visit.page.get_by_role("alert")).to_contain_text("missing or wrong")
    visit.offered()
    visit.choose()
    visit.ask()
    assert visit.answer("B")
    stored = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    assert visit.page.evaluate(stored) == '[{},{},""]'
    visit.page.context.close()
    server.stop()


def test_a_key_changes_nothing_that_was_chosen(visit: Visit) -> None:
    visit.page.get_by_label("Budget").first.focus()
    visit.page.keyboard.press("ArrowRight")
    visit.page.get_by_label("Selector").last.select_option("divprune")
    notes = visit.page.locator("#settings .note")
    before = notes.all_inner_texts()
    visit.page.locator("summary").click()
    with visit.page.expect_response("**/v1/models"):
        visit.page.get_by_label("API key").fill(KEY)
        visit.page.keyboard.press("Tab")
    visit.page.wait_for_timeout(300)
    assert notes.all_inner_texts() == before
    assert "keeps 144" in before[0] and "keeps 58" in before[1]


def test_asking_twice_while_the_models_are_looked_up(chromium: Any, server: Served) -> None:
    visit = Visit(chromium, server).offered()
    visit.page.route("**/v1/models", lambda route: route.abort())
    visit.page.reload()
    assert "cannot be reached" in visit.problem()
    visit.page.unroute("**/v1/models")
    visit.choose()
    api.expect(visit.page.locator("#hint")).to_have_text(IMAGE.name)
    visit.page.get_by_label("Question").fill(QUESTION)
    visit.page.evaluate("for (let i = 0; i < 2; i++) document.getElementById('form').requestSubmit()")
    assert visit.answer("B")
    assert len([url for url in visit.asked if url.endswith("completions")]) == 2
    visit.page.context.close()


def chunk(text: str = "", **more: Any) -> str:
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}}], **more})}\n\n"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (chunk("half"), "broke off"),
        (
            chunk("half") + 'data: {"error": {"message": "It took too long.", "code": "x"}}\n\n',
            "It took too long.",
        ),
    ],
)
def test_an_answer_that_breaks_off(visit: Visit, body: str, told: str) -> None:
    visit.page.route(COMPLETIONS, lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    visit.choose()
    visit.ask()
    assert told in visit.problem()
    assert visit.panel("A").locator(".text").inner_text() == "half"
    assert visit.panel("A").locator(".text").get_attribute("aria-busy") == "false"


def test_answers_are_text(visit: Visit) -> None:
    body = chunk("<img src=x onerror=alert(1)>") + "data: [DONE]\n\n"
    visit.page.route(COMPLETIONS, lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    visit.choose()
    visit.ask()
    api.expect(visit.panel("B").locator(".text")).to_have_text("<img src=x onerror=alert(1)>")
    assert visit.said == []


def test_a_server_that_is_gone(visit: Visit) -> None:
    visit.page.route(COMPLETIONS, lambda route: route.abort())
    visit.choose()
    visit.ask()
    assert "cannot be reached" in visit.problem()


def test_events_in_any_pieces(visit: Visit) -> None:
    """A character's bytes may come apart."""
    script = """async (bytes) => {
        const { events } = await import('/page/stream.js');
        const found = [];
        const body = new ReadableStream({ start(to) {
            for (const byte of bytes) to.enqueue(new Uint8Array([byte]));
            to.close();
        } });
        for await (const event of events(body)) found.push(event.text);
        return found;
    }"""
    text = "".join(
        f"data: {json.dumps({'text': part}, ensure_ascii=False)}\n\n" for part in ("ä", "🐈", "a\nb")
    )
    text = f": a proxy's\n\n{text}data: [DONE]\n\n"
    for written in (text, text.replace("\n", "\r\n"), text.replace("data: ", "data:")):
        assert visit.page.evaluate(script, [*written.encode()]) == ["ä", "🐈", "a\nb"]


def test_a_connection_that_breaks_in_mid_stream(visit: Visit) -> None:
    script = """async () => {
        const { events } = await import('/page/stream.js');
        let error = null;
        const body = new ReadableStream({ start(to) { error = () => to.error(new TypeError('network error')); } });
        const first = events(body).next();
        error();
        return first.catch((told) => told.message);
    }"""
    assert visit.page.evaluate(script) == "The answer broke off: ask again."


@pytest.mark.parametrize(
    ("seen", "places"),
    [
        (
            {
                "grid": {"rows": 2, "columns": 2},
                "first": 1,
                "view": [-0.5, 0, 1.5, 1],
                "kept_indices": [0, 2, 4],
            },
            [[-0.5, 0.5, 0.5, 1], [0.5, 0.5, 1.5, 1]],  # the class token has no place
        ),
        ({"grid": None, "boxes": [[0, 0, 0.5, 1]], "kept_indices": [3]}, [[0, 0, 0.5, 1]]),
        ({"grid": None, "kept_indices": [3]}, []),
    ],
)
def test_places(visit: Visit, seen: dict[str, Any], places: list[list[float]]) -> None:
    script = "async (seen) => (await import('/page/image.js')).places(seen)"
    assert visit.page.evaluate(script, seen) == places
