"""The playground, operated by clicks in headless Chromium."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from tests.playground.serving import needs_gradio
from tests.report.browser import CHROMIUM, needs_chromium

pytestmark = [needs_chromium, needs_gradio]
playwright = pytest.importorskip("playwright.sync_api")

PATIENCE = 120_000
"""Milliseconds to wait at most. On an idle machine, everything takes a fraction of it."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("gradio"))}
    environment.pop("GRADIO_ANALYTICS_ENABLED", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "dent", "playground", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "}\n")
        yield json.loads("".join(lines) + "}")["url"]
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        playwright.expect.set_options(timeout=PATIENCE)
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The opened page. Fails at the end if the page called another host or raised an error."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(PATIENCE)
    hosts, errors = set(), []
    opened.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    answer = opened.goto(address)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    opened.wait_for_selector("#chosen img")
    yield opened
    assert hosts - {None} == {"127.0.0.1"}, "data: and blob: have no host"
    assert errors == []
    opened.close()


def choose(page: Any, **values: int) -> None:
    """Set sliders and numbers below "More", and set them again if they do not persist.

    Just after "More" is opened, the page still sets the first values. They can overwrite a value
    that is typed within milliseconds, faster than any visitor could.
    """
    page.get_by_role("button", name="More").click()
    named = {name: re.compile(name.replace("_", " "), re.IGNORECASE) for name in values}
    boxes = {name: page.get_by_role("spinbutton", name=named[name]) for name in values}
    for name, box in boxes.items():
        _type(box, values[name])
    page.wait_for_timeout(500)
    for name, box in boxes.items():
        if box.input_value() != str(values[name]):
            _type(box, values[name])
        playwright.expect(box).to_have_value(str(values[name]))


def _type(box: Any, value: int) -> None:
    box.fill(str(value))
    box.press("Enter")


def text(page: Any, place: str) -> str:
    return str(page.inner_text(place))


def sideways(page: Any) -> int:
    script = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    return int(page.evaluate(script))


def test_picked_image_is_attacked_and_its_queries_can_be_replayed(page: Any) -> None:
    page.click("#gallery button.thumbnail-item >> nth=4")
    playwright.expect(page.locator("#chosen")).to_contain_text("automobile, CIFAR-10 test image")
    page.get_by_label("Model").click()
    page.get_by_role("option", name="resnet-14-2-nominal").click()
    playwright.expect(page.get_by_label("number input for eps, in 1/255")).to_have_value("1.5")
    page.get_by_label("dent-nominal").check()
    playwright.expect(page.locator("#chosen")).to_contain_text("which are noise in a batch of 16")
    choose(page, iterations=2, steps=2, batch_size=3)
    playwright.expect(page.locator("#chosen")).to_contain_text("which are noise in a batch of 3")
    page.click("#run")
    page.wait_for_selector("#verdict h2")

    said = text(page, "#verdict")
    assert re.search(r"Both hold|Both fall|holds where|falls where", said)
    assert "resnet-14-2-nominal, linf 1.5/255, pgd of 2 iterations, unrolled of 1" in said, said
    assert "dent-nominal of 2 steps, batch of 3, seed 0" in said
    cards = page.locator("#watched .card")
    assert [text.split("\n")[0] for text in cards.all_inner_texts()] == [
        "static attacked",
        "dent-nominal transfer",
        "dent-nominal stop-gradient",
        "dent-nominal unrolled",
    ]
    assert "query 3 of 3" in cards.first.inner_text()
    titles = page.locator("figure.chart figcaption").all_inner_texts()
    assert titles == [
        "Margin of the label by query",
        "dent-nominal: entropy by step",
        "dent-nominal: sigma by step",
    ]
    for chart in page.locator("figure.chart").all():
        assert chart.locator(".marker").count() >= 6
        assert chart.locator(".segment").first.bounding_box()["width"] > 0
    served = page.locator("#results table.served tbody tr")
    assert served.count() >= 4
    assert served.nth(1).locator("figcaption").all_inner_texts()[0] == "adversarial"
    assert "smoothed, σ" in served.nth(1).inner_text()
    assert re.search(r"as long as [\d.]+ static forwards", text(page, "#results"))
    loaded = "(images) => images.map((image) => image.naturalWidth)"
    assert set(page.locator("#results img").evaluate_all(loaded)) == {32}

    page.get_by_label("number input for Query").fill("0")
    page.get_by_label("number input for Query").press("Enter")
    playwright.expect(cards.first).to_contain_text("query 0 of 3")
    playwright.expect(cards.first).to_contain_text("no perturbation")
    assert sideways(page) == 0
    page.set_viewport_size({"width": 400, "height": 900})
    assert sideways(page) == 0
    assert cards.first.bounding_box()["width"] > 300


def test_run_on_a_dropped_image_can_be_stopped_and_started_again(page: Any, tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_text("no image")
    page.set_input_files("#upload input[type=file]", tmp_path / "torn.png")
    playwright.expect(page.get_by_test_id("toast-body")).to_contain_text(
        "torn.png could not be read as an image: drop a PNG"
    )
    page.get_by_test_id("toast-close").click()
    Image.linear_gradient("L").convert("RGB").resize((90, 60)).save(tmp_path / "mine.png")
    page.locator("#upload").get_by_label("Clear").click()
    page.set_input_files("#upload input[type=file]", tmp_path / "mine.png")
    shown = page.locator("#chosen")
    playwright.expect(shown).to_contain_text("90 × 60 pixels, resized and cut to the square")
    playwright.expect(shown).to_contain_text("It has no label")

    choose(page, iterations=40, batch_size=32)  # long enough to be stopped
    page.click("#run")
    page.wait_for_selector("#watched .card")
    page.click("#stop")
    playwright.expect(page.locator("#status")).to_contain_text("Nothing is concluded")
    playwright.expect(page.locator("#run")).to_be_enabled()
    assert text(page, "#verdict").strip() == ""

    for name in ("Iterations", "Batch size"):
        _type(page.get_by_role("spinbutton", name=name), 1)
    playwright.expect(shown).to_contain_text("In a batch of 1, dent+ is the static model")
    page.get_by_label("Unrolled").uncheck()
    page.click("#run")
    page.wait_for_selector("#verdict h2")
    assert "mine.png" in text(page, "#verdict")
    assert "The image has no label: what static says of it" in text(page, "#verdict")
    assert "In a batch of 1, dent+ is the static model" in text(page, "#verdict")
    assert page.locator("#watched .card").count() == 3
