"""Draw the pictures of the page in docs/: start a server on a folder of its own, use it as people do, and look.

python scripts/screenshots.py [--run runs/mine]     (about half a minute; needs chromium and playwright)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

CHROMIUM = os.environ.get("UNSTIR_CHROMIUM", "/usr/bin/chromium")
DOCS = Path("docs")
WIDE, PHONE = {"width": 1280, "height": 940}, {"width": 360, "height": 780}
PROMPTS = (
    "a red heart with an arrow",
    "a blue whale",
    "a cat with tears of joy",
    "a slice of pizza",
    "a house with a garden",
    "a strawberry",
    "a violin",
    "an old woman with brown skin",
    "a rocket",
    "a sunflower",
    "a penguin",
    "a lighthouse",
    "a cup of coffee",
    "a smiling sun",
)
DRAWN = "() => /^Drawn/.test(document.querySelector('#state').textContent)"
DRAFTED = "() => /^Draft in/.test(document.querySelector('#state').textContent)"


def draw(page: Any, prompt: str) -> None:
    """Draw a picture and wait until it is in the gallery."""
    count = page.locator("#pictures li").count()
    page.fill("#prompt", prompt)
    page.click("#draw")
    page.wait_for_function("count => document.querySelectorAll('#pictures li').length > count", arg=count)
    page.wait_for_function(DRAWN)


def shoot(page: Any, name: str) -> None:
    """Take the picture, when all pictures in it have come."""
    page.wait_for_function(
        "() => [...document.images].every((image) => image.complete || image.getBoundingClientRect().top > innerHeight)"
    )
    page.wait_for_timeout(300)  # a bar that slides comes to rest
    page.screenshot(path=str(DOCS / f"serve-{name}.png"))


def scenes(browser: Any, url: str, run: str) -> None:
    """Use the page as people do."""
    page = browser.new_context(viewport=WIDE, color_scheme="light").new_page()
    page.goto(url)
    page.wait_for_selector("html[data-ready]")
    page.fill("#seed", "7")
    page.click("#lock")
    for prompt in reversed(PROMPTS):
        draw(page, prompt)
    page.set_viewport_size({**WIDE, "height": 1400})
    page.evaluate("scrollTo(0, 0)")
    page.mouse.move(0, 0)
    shoot(page, "light")

    page.set_viewport_size(WIDE)
    page.fill("#prompt", "a strawberry")
    page.wait_for_function(DRAFTED)
    draw(page, "a strawberry")
    page.click("#acts button:has-text('Edit')")
    page.fill("#prompt", "a pineapple")
    page.click("#paint")
    box = page.locator("#canvas").bounding_box()
    page.locator("#brush").fill("14")
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.22 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.2 * box["height"], steps=8)
    page.mouse.up()
    shoot(page, "mask")
    page.context.close()

    page = browser.new_context(viewport=WIDE, color_scheme="dark").new_page()
    page.goto(url)
    page.wait_for_selector("#pictures li")
    page.fill("#seed", "7")
    page.fill("#prompt", "a blue heart")
    page.click("#way-panel summary")
    page.fill("#to-prompt", "a fox")
    page.click("#draw-way")
    page.wait_for_function(DRAWN)
    page.locator("#way-at").fill("4")
    page.set_viewport_size({**WIDE, "height": 1180})
    page.evaluate("scrollTo(0, 0)")
    shoot(page, "dark")
    page.context.close()

    page = browser.new_context(viewport=PHONE, color_scheme="light", device_scale_factor=2, has_touch=True).new_page()
    page.goto(url)
    page.wait_for_selector("#pictures li")
    page.fill("#seed", "7")
    page.fill("#prompt", "a smiling cat")
    page.wait_for_function(DRAFTED)
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    shoot(page, "phone")
    page.context.close()

    if run:
        page = browser.new_context(viewport=WIDE, color_scheme="light").new_page()
        page.goto(f"{url}training#{run}")
        page.wait_for_selector("#chart svg")
        shoot(page, "training")
        page.context.close()


def main() -> None:
    """Start a server, and look at it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a run folder, for the picture of a training")
    run = parser.parse_args().run
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "unstir", "serve", "--port", "0", "--json", "--quiet", "--data", folder]
        command += ["--runs", str(run.resolve().parent)] if run else []
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["ready"]
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                scenes(browser, url, run.resolve().name if run else "")
                browser.close()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
