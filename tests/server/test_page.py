"""The page: its files, and what it does in a browser with the server and the built-in model behind it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

import unstir.server

STATIC = Path(unstir.server.__file__).parent / "static"
PAGES = {"index.html": "/", "training.html": "/training", "docs.html": "/docs"}
CHROMIUM = Path(os.environ.get("UNSTIR_CHROMIUM", "/usr/bin/chromium"))

# The files, without a browser.


class Tags(HTMLParser):
    """All elements of a document, with their attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] in ("script", "style"):
            self.inline += data.strip()


def pages() -> list[Path]:
    return sorted(STATIC.glob("*.html"))


def imports_of(module: Path) -> set[Path]:
    """A module and all that it imports, directly or not."""
    found, left = set(), [module]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            left += [path.parent / name for name in re.findall(r'from "\./([^"]+)"', path.read_text(encoding="utf-8"))]
    return found


def modules_of(page: Path) -> set[Path]:
    tags = Tags(page.read_text(encoding="utf-8")).tags
    own = [values["src"] for tag, values in tags if tag == "script" and values.get("src")]
    return set().union(*(imports_of(STATIC / Path(source).name) for source in own))


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_everything_that_a_page_refers_to_is_there(page: Path) -> None:
    for tag, values in Tags(page.read_text(encoding="utf-8")).tags:
        for name in ("src", "href"):
            target = values.get(name)
            if target is None or target.startswith(("#", "/docs", "/training", "/openapi.json")) or target == "/":
                continue
            assert target.startswith("/static/"), f"{page.name}: <{tag} {name}={target}>"
            assert (STATIC / target.removeprefix("/static/")).is_file(), f"{page.name} refers to {target}"
    assert all(path.is_file() for path in modules_of(page))


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_a_page_holds_nothing_that_the_content_policy_forbids(page: Path) -> None:
    read = Tags(page.read_text(encoding="utf-8"))
    assert not read.inline
    given = [name for _, values in read.tags for name in values if name.startswith("on") or name == "style"]
    assert not given


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_a_page_is_sound(page: Path) -> None:
    tags = Tags(page.read_text(encoding="utf-8")).tags
    ids = [values["id"] for _, values in tags if values.get("id")]
    assert len(ids) == len(set(ids))
    assert ("html", {"lang": "en"}) in tags
    for name in ("for", "aria-labelledby", "aria-describedby", "list"):
        named = {word for _, values in tags for word in (values.get(name) or "").split()}
        assert named <= set(ids), f"{name} names what is not there"
    ahead = {STATIC / Path(values["href"] or "").name for tag, values in tags if values.get("rel") == "modulepreload"}
    assert {path for path in modules_of(page) if path.name != "theme.js"} - ahead <= {
        STATIC / Path(values["src"] or "").name for tag, values in tags if tag == "script"
    }, "a module is found only when another one is read: give it a modulepreload"


@pytest.mark.parametrize("page", [STATIC / "index.html", STATIC / "training.html"], ids=lambda path: path.name)
def test_every_element_that_a_module_looks_for_is_there(page: Path) -> None:
    there = {values["id"] for _, values in Tags(page.read_text(encoding="utf-8")).tags if values.get("id")}
    sources = {path.name: path.read_text(encoding="utf-8") for path in modules_of(page) if path.name != "tools.js"}
    sought = {(name, word) for name, text in sources.items() for word in re.findall(r'\$\("#([\w-]+)"', text)}
    assert not {(name, word) for name, word in sought if word not in there}
    assert len(sought) > 10


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_no_file_names_another_host_or_makes_markup_of_data(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"(?:https?:)?//[\w-]+\.\w+", text)
    if path.suffix == ".js":
        ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|\.srcdoc|DOMParser"
        assert not re.findall(ways, text)
    if path.suffix == ".css":
        assert all((STATIC / name).is_file() for name in re.findall(r'url\("([^"]+)"\)', text))
        assert "@import" not in text


# In a browser.


class Server:
    """``unstir serve`` on a folder of its own; it can be killed and started again at the same port."""

    def __init__(self, folder: Path, *options: object) -> None:
        self.folder, self.options = folder, [str(option) for option in options]
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "unstir",
            "serve",
            "--port",
            self.port,
            "--data",
            self.folder,
            "--json",
            "--quiet",
        ]
        self.process = subprocess.Popen(
            [str(part) for part in (*command, "--rate", 0, *self.options)], stdout=subprocess.PIPE, text=True
        )
        self.url = json.loads(self.process.stdout.readline())["ready"].rstrip("/")
        self.port = int(self.url.rsplit(":", 1)[1])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def read(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path) as answer:
            return answer.read()

    def pixels(self, path: str) -> numpy.ndarray[Any, Any]:
        return numpy.array(Image.open(io.BytesIO(self.read(path))).convert("RGB")).astype(int)

    def pictures(self) -> list[dict[str, Any]]:
        """All of them, the newest first."""
        found: list[dict[str, Any]] = []
        before: str | None = ""
        while before is not None:
            told = json.loads(self.read(f"/api/pictures?limit=100&before={before}"))
            found += told["pictures"]
            before = told["next"]
        return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was stopped in order."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "mine" / "previews").mkdir(parents=True)
    (folder / "mine" / "run.json").write_text(json.dumps({"recipe": "tiny", "training": {"images": 1000, "batch": 16}}))
    lines = [
        {"images_seen": 100 * i, "loss": 1 / i, "loss_by_band": {"-8..0": 1 / i, "0..8": 2 / i}} for i in range(1, 9)
    ]
    (folder / "mine" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for seen in (0, 400, 800):
        Image.new("RGB", (96, 64), (seen // 4, 80, 120)).save(folder / "mine" / "previews" / f"{seen:012d}.png")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, runs: Path) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("page"), "--runs", runs)
    yield made
    made.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}; apt install chromium")
    with playwright.sync_playwright() as made:
        opened = made.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


LOOK = """
window.looks = [];
window.typed = null;
addEventListener("keydown", () => { window.typed ??= performance.now(); }, true);
addEventListener("DOMContentLoaded", () => {
  const shown = document.querySelector("#shown");
  if (shown) new MutationObserver(() => {
    const url = shown.getAttribute("src");
    if (url && url !== window.looks.at(-1)?.url) window.looks.push({ url, at: performance.now() });
  }).observe(shown, { attributes: true, attributeFilter: ["src"] });
});
"""


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Callable[..., Any]]:
    """(path, the context's options) -> an open page. At the end nothing was said on a console, no other host asked."""
    said: list[str] = []
    asked: set[str] = set()
    contexts: list[Any] = []

    def watch(page: Any, tolerated: str) -> None:
        page.on("console", lambda message: said.append(message.text) if is_bad(message, tolerated) else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.add(request.url))

    def is_bad(message: Any, tolerated: str) -> bool:
        return message.type in ("error", "warning") and not (tolerated and re.search(tolerated, message.text))

    def go(path: str = "/", *, like: Any = None, tolerated: str = "", **options: Any) -> Any:
        context = like.context if like is not None else browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.add_init_script(LOOK)
        watch(page, tolerated)
        page.goto(server.url + path)
        page.wait_for_selector("html[data-ready]" if path != "/docs" else "main")
        return page

    yield go
    for context in contexts:
        context.close()
    assert not said
    assert all(url.startswith((server.url + "/", "data:", "blob:" + server.url)) for url in asked)


def state(page: Any) -> str:
    return page.locator("#state").inner_text()


def draw(page: Any, prompt: str | None = None, *, key: str = "Control+Enter") -> str:
    """Draw what the form says; the path of the picture. It is the last one of the stage's drawing."""
    if prompt is not None:
        page.fill("#prompt", prompt)
    before = page.evaluate("document.querySelector('#pictures li')?.dataset.key ?? ''")
    page.focus("#prompt")
    page.keyboard.press(key)
    page.wait_for_function("key => (document.querySelector('#pictures li')?.dataset.key ?? '') !== key", arg=before)
    page.wait_for_function(
        "() => !document.querySelector('#acts').hidden && /^Drawn/.test(document.querySelector('#state').textContent)"
    )
    page.wait_for_function("() => new URL(document.querySelector('#shown').src).pathname.startsWith('/api/')")
    return page.evaluate("new URL(document.querySelector('#shown').src).pathname")


def paint_by_pointer(page: Any) -> None:
    page.locator("#brush").fill("10")
    box = page.locator("#canvas").bounding_box()
    at = lambda x, y: (box["x"] + box["width"] * x, box["y"] + box["height"] * y)  # noqa: E731
    page.mouse.move(*at(0.3, 0.3))
    page.mouse.down()
    page.mouse.move(*at(0.7, 0.7), steps=6)
    page.mouse.up()
    page.click("#eraser")
    page.mouse.click(*at(0.3, 0.3))


def paint_by_keys(page: Any) -> None:
    page.locator("#canvas").focus()
    for key in (
        "]",
        "]",
        "Space",
        "ArrowRight",
        "Shift+ArrowRight",
        "Shift+ArrowDown",
        "Space",
        "Shift+ArrowUp",
        "e",
        "Space",
    ):
        page.keyboard.press(key)


slow = pytest.mark.slow


@slow
def test_what_is_typed_is_drawn_at_once_and_the_picture_is_that_of_the_command_line(
    visit: Callable[..., Any], server: Server, tmp_path: Path
) -> None:
    page = visit()
    page.fill("#seed", "4242")
    page.evaluate("window.looks = []; window.typed = null")
    page.locator("#prompt").press_sequentially("a red heart", delay=30)
    page.wait_for_function("() => document.querySelector('#state').textContent.startsWith('Draft in')")
    page.wait_for_function("() => document.querySelector('#shown').alt === 'Draft of a red heart'")
    drafts = page.evaluate("window.looks.map((look) => look.url)")
    assert len({url for url in drafts if url.startswith("data:image/png")}) >= 5
    page.evaluate("window.looks = []")
    path = draw(page)
    previews = {url for url in page.evaluate("window.looks.map((look) => look.url)") if url.startswith("data:")}
    assert len(previews) >= 5
    drawn = server.pixels(path)
    file = tmp_path / "heart.png"
    subprocess.run(
        [sys.executable, "-m", "unstir", "sample", "a red heart", "--seed", "4242", "-o", file],
        check=True,
        capture_output=True,
    )
    assert abs(drawn - numpy.array(Image.open(file).convert("RGB")).astype(int)).max() <= 1
    assert server.pictures()[0]["request"]["seed"] == 4242
    assert all(picture["request"]["prompt"] == "a red heart" for picture in server.pictures())  # no draft is kept


@slow
def test_how_soon(visit: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    page = visit()
    usable = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    page.locator("#prompt").press_sequentially("a")
    page.wait_for_function("() => window.looks.length > 0")
    waits = [page.evaluate("window.looks[0].at - window.typed")]
    for letter in " cat face":
        page.wait_for_function("() => document.querySelector('#state').textContent.startsWith('Draft in')")
        page.evaluate("window.looks = []; window.typed = null")
        page.keyboard.press(letter if letter != " " else "Space")
        page.wait_for_function("() => window.looks.length > 0")
        waits.append(page.evaluate("window.looks[0].at - window.typed"))
    with capsys.disabled():
        waits = [round(wait) for wait in waits]
        print(
            f"\npage usable after {usable:.0f} ms; keystroke to first preview {sorted(waits)[len(waits) // 2]} ms, {waits}"
        )


@slow
def test_the_last_keystroke_wins_and_an_empty_prompt_draws_nothing(visit: Callable[..., Any], server: Server) -> None:
    page = visit()
    started: list[dict[str, Any]] = []
    page.on("request", lambda request: started.append(request.post_data_json) if request.method == "POST" else None)
    page.locator("#prompt").press_sequentially("a strawberry", delay=5)
    page.wait_for_function("() => document.querySelector('#shown').alt === 'Draft of a strawberry'")
    assert started[-1]["prompt"] == "a strawberry"
    assert len({asked["page"] for asked in started}) == 1
    assert all(asked["draft"] for asked in started)
    page.fill("#prompt", "")
    page.wait_for_selector("#idle", state="visible")
    count = len(started)
    page.locator(".switch", has_text="Draw while I type").click()
    page.fill("#prompt", "a house")
    page.wait_for_timeout(400)  # there is no event for nothing
    assert len(started) == count


@slow
@pytest.mark.parametrize("paint", [paint_by_pointer, paint_by_keys])
def test_what_is_not_painted_stays(visit: Callable[..., Any], server: Server, paint: Callable[[Any], None]) -> None:
    page = visit()
    before = server.pixels(draw(page, "a strawberry"))
    page.click("#acts button:has-text('Edit')")
    page.click("#paint")
    paint(page)
    page.click("#take-mask")
    page.wait_for_selector("#unmask", state="visible")
    page.fill("#seed", "7")
    after = server.pixels(draw(page, "a blue flower"))
    edit = server.pictures()[0]["request"]["edit"]
    painted = server.pixels(f"/api/uploads/{edit['mask']['name']}")[..., 0] > 0
    assert 0.01 < painted.mean() < 0.6
    assert (before[~painted] == after[~painted]).all()
    assert (before[painted] != after[painted]).any()
    # It is remembered by a reload, and can be left.
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.locator("#unmask").is_visible()
    page.click("#unsource")
    assert page.locator("#edit-settings").is_hidden()


@slow
def test_reload_keeps_the_gallery_and_the_form(visit: Callable[..., Any], server: Server) -> None:
    page = visit()
    draw(page, "a house")
    page.fill("#negative", "snow")
    page.fill("#steps", "9")
    page.click("#lock")
    shown = page.locator("#pictures li").evaluate_all("items => items.map((item) => item.dataset.key)")
    page.reload()
    page.wait_for_selector("#pictures li")
    assert page.locator("#pictures li").evaluate_all("items => items.map((item) => item.dataset.key)") == shown
    assert shown[0] == f"{server.pictures()[0]['job']}/0"
    assert page.input_value("#prompt") == "a house"
    assert page.input_value("#negative") == "snow"
    assert page.input_value("#steps") == "9"
    assert page.get_attribute("#lock", "aria-pressed") == "true"


@slow
def test_an_unlocked_seed_gives_way_when_the_same_is_drawn_again(visit: Callable[..., Any], server: Server) -> None:
    page = visit()
    draw(page, "a fish")
    draw(page)
    first, second = (picture["seed"] for picture in server.pictures()[:2])
    assert first != second
    page.click("#lock")
    draw(page)
    assert server.pictures()[0]["seed"] == first


@slow
@pytest.mark.parametrize("way", ["Escape", "button"])
def test_cancel(visit: Callable[..., Any], server: Server, way: str) -> None:
    page = visit()
    page.fill("#number", "8")
    page.fill("#steps", "250")
    page.select_option("#sampler", "heun")
    page.fill("#prompt", "a castle")
    with page.expect_response(
        lambda answer: answer.request.method == "POST" and not answer.request.post_data_json.get("draft")
    ) as told:
        page.click("#draw")
    job = told.value.json()["id"]
    page.wait_for_function("() => /^Drawing, step [1-9]/.test(document.querySelector('#state').textContent)")
    if way == "Escape":
        page.keyboard.press("Escape")
    else:
        page.click("#cancel")
    page.wait_for_function("() => document.querySelector('#state').textContent === 'Cancelled.'")
    assert page.locator("#cancel").is_hidden()
    assert json.loads(server.read(f"/api/jobs/{job}"))["state"] == "cancelled"


@slow
def test_two_tabs_do_not_disturb_each_other(visit: Callable[..., Any], server: Server) -> None:
    first = visit()
    second = visit(like=first)
    prompts = {first: "a red apple", second: "a green leaf"}
    for letters in zip(*prompts.values(), strict=False):
        for page, letter in zip(prompts, letters, strict=True):
            page.locator("#prompt").press_sequentially(letter)
    second.locator("#prompt").press_sequentially("f")
    for page, prompt in prompts.items():
        page.fill("#prompt", prompt)
        page.wait_for_function("prompt => document.querySelector('#shown').alt === `Draft of ${prompt}`", arg=prompt)
    for page in prompts:
        page.click("#draw")
    for page, prompt in prompts.items():
        page.wait_for_function("prompt => document.querySelector('#shown').alt === `Picture of ${prompt}`", arg=prompt)
        assert page.input_value("#prompt") == prompt
    assert {picture["request"]["prompt"] for picture in server.pictures()[:2]} == set(prompts.values())
    for page in prompts:
        page.reload()
        page.wait_for_selector("#pictures li")
        assert page.input_value("#prompt") == prompts[page]


@slow
def test_the_gallery_finds_compares_deletes_and_draws_again(visit: Callable[..., Any], server: Server) -> None:
    page = visit()
    heart, cat = draw(page, "a purple heart"), draw(page, "a grinning cat")
    page.fill("#search", "purple HEART")
    page.wait_for_function(
        "() => { const alts = [...document.querySelectorAll('#pictures img')].map((image) => image.alt);"
        " return alts.length > 0 && alts.every((alt) => /purple heart/.test(alt)); }"
    )
    page.fill("#search", "no such words")
    page.wait_for_function("() => /No picture/.test(document.querySelector('#gallery-told').textContent)")
    page.fill("#search", "")
    page.wait_for_selector("#pictures li")

    page.get_by_label("Compare the picture of a purple heart").first.click()
    page.get_by_label("Compare the picture of a grinning cat").first.click()
    assert page.locator("#comparison").is_visible()
    assert "a purple heart" in page.locator("#differences").inner_text()
    page.keyboard.press("Escape")

    page.get_by_label("Open the picture of a purple heart").first.click()
    with page.expect_download() as told:
        page.click("#viewer-acts a:has-text('Download')")
    with Image.open(told.value.path()) as picture:
        assert "unstir" in picture.info
    page.click("#viewer-acts button:has-text('Redo')")
    page.wait_for_function(
        "() => /^Drawn/.test(document.querySelector('#state').textContent) && document.querySelector('#shown').alt === 'Picture of a purple heart'"
    )
    again = server.pictures()[0]
    assert f"/api/pictures/{again['job']}/0" != heart
    assert (server.pixels(again["url"]) == server.pixels(heart)).all()

    count = page.locator("#pictures li:visible").count()
    page.get_by_label("Delete the picture of a grinning cat").first.click()
    assert page.locator("#pictures li:visible").count() == count - 1
    page.click(".toast button")
    assert page.locator("#pictures li:visible").count() == count
    assert cat in {picture["url"] for picture in server.pictures()}
    page.get_by_label("Delete the picture of a grinning cat").first.click()
    with page.expect_response(lambda answer: answer.request.method == "DELETE" and "/pictures/" in answer.url):
        page.locator("h2").first.hover()
    assert cat not in {picture["url"] for picture in server.pictures()}


@slow
def test_variations_and_noise_levels(visit: Callable[..., Any], server: Server) -> None:
    page = visit()
    path = draw(page, "a pizza")
    page.click("#acts button:has-text('Look closer')")
    seen = []
    for level in ("0.30", "1.00", "0.00"):
        with page.expect_response(lambda answer: "/api/pictures/" in answer.url):
            page.locator("#level").fill(level)
        page.wait_for_function("() => document.querySelector('#viewed').complete")
        seen.append(server.pixels(f"{path}/levels/{level}"))
    assert abs(seen[1] - seen[2]).mean() > abs(seen[0] - seen[2]).mean() > 10
    assert (seen[2] == server.pixels(path)).all()
    page.click("#viewer-acts button:has-text('Variations')")
    page.wait_for_function(
        "() => document.querySelectorAll('#strip img:not([hidden])').length === 4 && /^Drawn/.test(document.querySelector('#state').textContent)"
    )
    made = server.pictures()[:4]
    assert {picture["request"]["edit"]["strength"] for picture in made} == {0.95}
    assert len({picture["seed"] for picture in made}) == 4


@slow
def test_a_way_is_a_strip(visit: Callable[..., Any], server: Server) -> None:
    page = visit()
    page.fill("#prompt", "a red heart")
    page.click("#way-panel summary")
    page.fill("#to-prompt", "a blue heart")
    page.fill("#frames", "4")
    page.click("#draw-way")
    page.wait_for_function("() => /^Drawn/.test(document.querySelector('#state').textContent)")
    assert page.locator("#strip button").count() == 4
    first = page.get_attribute("#shown", "src")
    page.locator("#way-at").fill("3")
    assert page.get_attribute("#shown", "src") != first
    told = sorted((picture["index"], picture["request"]["blend"]["share"]) for picture in server.pictures()[:4])
    assert [share for _, share in told] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    count = page.locator("#pictures li").count()
    # And between two pictures.
    for picture in (0, 3):
        page.locator("#pictures .mini button").nth(2 * picture).click()
    page.click("#between")
    page.wait_for_function("count => document.querySelectorAll('#pictures li').length === count + 4", arg=count)
    assert server.pictures()[0]["request"]["blend"]["picture"] is not None


@slow
def test_a_dropped_picture_gives_its_recipe_or_itself(
    visit: Callable[..., Any], server: Server, tmp_path: Path
) -> None:
    page = visit()
    page.fill("#seed", "99")
    own, foreign = tmp_path / "own.png", tmp_path / "foreign.png"
    own.write_bytes(server.read(draw(page, "a violin")))
    Image.new("RGB", (80, 50), (200, 30, 60)).save(foreign)
    page.fill("#prompt", "something else")
    page.set_input_files("#file", own)
    page.wait_for_selector("#dropped[open]")
    assert "a violin" in page.locator("#dropped-recipe").inner_text()
    page.click("#take-recipe")
    page.wait_for_function("() => document.querySelector('#prompt').value === 'a violin'")
    assert page.input_value("#seed") == "99"
    drop = """content => {
      const data = new DataTransfer();
      data.items.add(new File([Uint8Array.from(content)], "foreign.png", { type: "image/png" }));
      dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(drop, list(foreign.read_bytes()))
    page.wait_for_selector("#edit-settings", state="visible")
    assert page.input_value("#fit") == "crop"  # the model has one size
    draw(page)
    edit = server.pictures()[0]["request"]["edit"]
    assert (edit["strength"], edit["fit"]) == (0.75, "crop")
    page.click("#unsource")
    paste = """content => {
      const data = new DataTransfer();
      data.items.add(new File([Uint8Array.from(content)], "foreign.png", { type: "image/png" }));
      document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(paste, list(foreign.read_bytes()))
    page.wait_for_selector("#edit-settings", state="visible")


@slow
def test_mistakes_are_told_by_their_field(visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit(tolerated="400")
    page.click("#draw")
    assert page.locator("#prompt-wrong").inner_text().startswith("Say what to draw")
    assert page.get_attribute("#prompt", "aria-invalid") == "true"
    page.fill("#prompt", "a cat")
    page.fill("#steps", "900")
    page.click("#draw")
    assert "250" in page.locator("#steps-wrong").inner_text()
    page.fill("#steps", "8")
    page.click("#more-panel summary")
    page.fill("#grid", "nonsense")
    page.click("#draw")
    page.wait_for_selector("#grid-wrong", state="visible")
    assert "nonsense" in page.locator("#grid-wrong").inner_text()
    assert page.evaluate("document.activeElement.id") == "grid"
    page.click("#defaults")
    (tmp_path / "no.png").write_bytes(b"this is no picture")
    page.set_input_files("#file", tmp_path / "no.png")
    page.wait_for_selector("#edit-wrong", state="visible")


@slow
def test_data_is_never_markup(visit: Callable[..., Any]) -> None:
    page = visit()
    evil = '<img src=x onerror="document.title=1"> "heart" </textarea>'
    draw(page, evil)
    page.locator("#pictures .thumb").first.click()
    assert evil in page.locator("#recipe").inner_text()
    assert page.locator("img[src=x]").count() == 0
    assert page.title() == "unstir: draw"


@slow
def test_a_restart_is_survived(browser: Any, tmp_path: Path) -> None:
    server = Server(tmp_path / "data")
    with contextlib.closing(browser.new_context()) as context, contextlib.ExitStack() as last:
        last.callback(server.kill)
        page = context.new_page()
        page.goto(server.url)
        page.wait_for_selector("html[data-ready]")
        page.fill("#number", "4")
        page.fill("#steps", "120")
        page.fill("#prompt", "a violin")
        page.click("#draw")
        page.wait_for_function("() => /^Drawing, step [1-9]/.test(document.querySelector('#state').textContent)")
        server.kill()
        page.wait_for_selector("#banner", state="visible")
        server.start()
        page.wait_for_selector("#banner", state="hidden")
        page.wait_for_function("() => /^Drawn/.test(document.querySelector('#state').textContent)", timeout=60_000)
        assert len(server.pictures()) == 4
        assert page.locator("#pictures li").count() == 4
        # What is handed in while it is away is drawn once.
        page.fill("#number", "1")
        page.fill("#steps", "8")
        server.kill()
        page.click("#draw")
        page.wait_for_selector("#banner", state="visible")
        server.start()
        page.wait_for_function("() => document.querySelectorAll('#pictures li').length === 5", timeout=60_000)
        assert len(server.pictures()) == 5


@slow
def test_a_drawing_goes_on_over_a_reload(visit: Callable[..., Any], server: Server) -> None:
    page = visit()
    page.fill("#number", "4")
    page.fill("#steps", "100")
    page.fill("#prompt", "a lighthouse")
    page.click("#draw")
    page.wait_for_function("() => /^Drawing, step [1-9]/.test(document.querySelector('#state').textContent)")
    page.reload()
    page.wait_for_function("() => /^Drawn/.test(document.querySelector('#state').textContent)", timeout=60_000)
    assert page.locator("#strip button").count() == 4
    assert [picture["request"]["prompt"] for picture in server.pictures()[:4]] == ["a lighthouse"] * 4


@slow
def test_a_training_is_shown(visit: Callable[..., Any]) -> None:
    page = visit("/training")
    assert page.locator("#title").inner_text() == "Training: mine"
    assert "800 of 1,000" in page.locator("#seen-told").inner_text()
    label = page.get_attribute("#chart svg", "aria-label")
    assert "from 1 after 100 pictures to 0.125 after 800" in label
    newest = page.get_attribute("#preview", "src")
    assert newest.endswith("/800")
    page.locator("#preview-at").fill("0")
    assert page.get_attribute("#preview", "src").endswith("/0")
    assert page.locator("#bands tbody tr").count() == 1


@slow
def test_the_theme_is_kept(visit: Callable[..., Any]) -> None:
    page = visit(color_scheme="light")
    background = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    light = background()
    page.click("#theme")
    assert background() != light
    dark = background()
    page.reload()
    assert background() == dark
    page.emulate_media(color_scheme="dark")
    page.click("#theme")
    assert background() == light


def prepared(page: Any, scene: str) -> None:
    """What is looked at: a page as it is, all panels open, or a dialog."""
    if scene == "plain":
        return
    draw(page, "a red heart")
    if scene == "open":
        for panel in ("start", "way", "more"):
            page.evaluate("panel => { document.querySelector(`#${panel}-panel`).open = true; }", panel)
    elif scene == "viewer":
        page.locator("#pictures .thumb").first.click()
    elif scene == "painter":
        page.click("#acts button:has-text('Edit')")
        page.click("#paint")
        paint_by_keys(page)
    elif scene == "comparison":
        draw(page)
        for index in (0, 2):
            page.locator("#pictures .mini button").nth(index).click()


SCENES = [
    *(("/", scene) for scene in ("plain", "open", "viewer", "painter", "comparison")),
    ("/training", "plain"),
    *([("/docs", "plain")] if (STATIC / "docs.html").exists() else []),
]


@slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("path", "scene"), SCENES)
def test_everybody_can_use_it(visit: Callable[..., Any], path: str, scene: str, theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit(path, color_scheme=theme, reduced_motion="reduce")
    prepared(page, scene)
    found = axe.run(page).response["violations"]
    serious = [
        (found["id"], found["help"], [node["target"] for node in found["nodes"]])
        for found in found
        if found["impact"] in ("serious", "critical")
    ]
    assert not serious


@slow
@pytest.mark.parametrize(("path", "scene"), SCENES)
def test_a_phone_needs_no_scrolling_sideways(visit: Callable[..., Any], path: str, scene: str) -> None:
    page = visit(path, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    prepared(page, scene)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    wide = """() => [...document.querySelectorAll('dialog[open] .sheet, main, header')]
        .filter((element) => element.scrollWidth > element.clientWidth + 1).map((element) => element.className)"""
    assert page.evaluate(wide) == []


@slow
def test_all_of_it_can_be_done_with_keys(visit: Callable[..., Any], server: Server) -> None:
    page = visit()
    page.focus("#prompt")
    page.keyboard.type("a teapot")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("() => /^Drawn/.test(document.querySelector('#state').textContent)")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.wait_for_function("() => /is drawn/.test(document.querySelector('#told').textContent)")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.id || document.activeElement.textContent.trim() || document.activeElement.ariaLabel"
            )
        )
        if page.evaluate("document.activeElement.matches('#pictures .thumb')"):
            break
    assert {"negative", "draw", "live", "dice", "lock", "steps", "search"} <= reached
    page.keyboard.press("Enter")
    assert page.locator("#viewer").is_visible()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.matches('#pictures .thumb')")


@slow
def test_many_pictures_come_page_by_page(visit: Callable[..., Any], server: Server) -> None:
    page = visit()
    page.fill("#number", "16")
    page.fill("#steps", "8")
    for prompt in ("a star", "a moon"):
        draw(page, prompt)
    page.reload()
    page.wait_for_selector("#pictures li")
    everything = len(server.pictures())
    assert everything > 24
    for _ in range(20):
        page.mouse.wheel(0, 3000)
        if page.locator("#more").is_hidden():
            break
        page.wait_for_timeout(50)
    page.wait_for_function("count => document.querySelectorAll('#pictures li').length === count", arg=everything)
