"""The page in a real browser: it draws, keys and clicks move it, and it has nothing to complain about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from specdec.experiments.trace.page import render

from .browser import Browser, find_browser
from .made import EVIL, made_trace

pytestmark = pytest.mark.skipif(find_browser() is None, reason="needs Chromium: make browser, or SPECDEC_BROWSER=...")
STEPS = 12
STEP = "document.getElementById('slider').value"
WORDS = "[...document.querySelectorAll('#nodes th')].map((word) => word.textContent)"
TEXTS = "[...document.querySelectorAll('.text .step')].filter((s) => s.checkVisibility()).map((s) => s.textContent)"
# The least contrast of texts on what is behind them: (lighter + .05) / (darker + .05), of relative luminances.
CONTRAST = """(() => {
  const paint = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const light = (colour) => {
    paint.fillStyle = colour;
    paint.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const pairs = [...document.querySelectorAll("#tree .node text")].map(
    (text) => [text, text.parentNode.querySelector(".frame")].map((part) => getComputedStyle(part).fill));
  for (const [text, box] of [["#said", "html"], [".key", "html"], [".now .own", ".now .own"], [".prompt", ".text"]])
    pairs.push([text, box].map((name) => getComputedStyle(document.querySelector(name)))
      .map((found, which) => (which ? found.backgroundColor : found.color)));
  return Math.min(...pairs.map(([a, b]) => [light(a), light(b)].sort((x, y) => y - x))
    .map(([a, b]) => (a + 0.05) / (b + 0.05)));
})()"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    traces = [made_trace(STEPS, 14, method="first </script>"), made_trace(5, 9, method="second", seed=1)]
    (folder / "two.html").write_text(render(traces), encoding="utf-8")
    (folder / "large.html").write_text(render([made_trace(100, 64)]), encoding="utf-8")
    (folder / "empty.html").write_text(render([made_trace(0, 1)]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(started: Browser, pages: Path) -> Iterator[Browser]:
    """On the page of two methods; whatever a test does, nothing is complained about or fetched."""
    started.complaints.clear()
    started.fetched.clear()
    started.open(pages / "two.html")
    yield started
    started.run("1")
    assert started.complaints == []
    assert [url for url in started.fetched if not url.startswith(("file:", "about:"))] == []


def test_every_step_is_drawn(browser: Browser) -> None:
    trace = made_trace(STEPS, 14)
    for number, step in enumerate(trace.steps, 1):
        assert browser.run(STEP) == str(number)
        words = [EVIL[token] for token in (*step.tokens, step.own)]
        assert browser.run(WORDS) == words
        assert browser.run("document.querySelectorAll('#tree .node').length") == len(words)
        accepted = "[...document.querySelectorAll('#tree .node.accepted title')].map((t) => t.textContent)"
        assert len(browser.run(accepted)) == len(step.path) - 1
        for title, node in zip(browser.run(accepted), step.path[1:], strict=True):
            assert title.startswith(f"{EVIL[step.tokens[node]]}: accepted; drafter ")
            assert title.endswith(f"target {round(100 * (step.target[node] or 0))} %")
        assert browser.run("document.querySelectorAll('#tree .edge').length") == len(words) - 1
        assert browser.run("document.querySelectorAll('#riders .node').length") == 3
        assert browser.run("document.getElementById('said').textContent").startswith(f"Step {number} of {STEPS}: ")
        shown = (
            "[...document.querySelectorAll('.text .step')].filter((s) => s.checkVisibility()).map((s) => s.textContent)"
        )
        assert browser.run(shown) == [a + b for a, b in trace.pieces[: number + 1]]
        browser.press("ArrowRight")
    assert browser.run(STEP) == str(STEPS)  # there is nothing behind it
    assert not browser.run("document.querySelectorAll('#tree b, #tree script').length")


def test_keys_buttons_slider_strip_and_text_move_it(browser: Browser) -> None:
    def at() -> int:
        return int(browser.run(STEP))

    assert at() == 1
    assert browser.run("document.getElementById('back').disabled")
    browser.press("End")
    assert at() == STEPS
    browser.press("ArrowLeft")
    assert at() == STEPS - 1
    browser.press("Home")
    assert at() == 1
    for selector, expected in (("#on", 2), ("#on", 3), ("#back", 2), ("#last", STEPS), ("#first", 1)):
        browser.click(selector)
        assert at() == expected
    browser.click(".strips", across=0.99)
    assert at() == STEPS
    browser.click(".text .step.now")
    browser.run("document.querySelector('.text .step[data-step=\"4\"]').click()")
    assert at() == 4
    browser.run("document.getElementById('slider').focus()")
    browser.press("ArrowRight")  # once, not twice
    assert at() == 5
    assert browser.run("document.getElementById('slider').getAttribute('aria-valuetext')") == f"step 5 of {STEPS}"


def test_methods_can_be_chosen_and_a_step_has_an_address(browser: Browser) -> None:
    browser.run("{const m = document.getElementById('method'); m.value = 1; m.dispatchEvent(new Event('change'))}")
    assert browser.run("document.getElementById('slider').max") == "5"
    browser.press("End")
    assert browser.run("location.hash") == "#1/5"
    assert browser.run("document.title") == "second – specdec trace"
    browser.run("location.hash = '#0/3'; new Promise((done) => setTimeout(done, 50))")
    assert browser.run(STEP) == "3"
    assert browser.run("document.getElementById('method').value") == "0"
    visible = "[...document.querySelectorAll('.text')].filter((t) => t.checkVisibility()).length"
    assert browser.run(visible) == 1


def test_what_a_screen_reader_is_told(browser: Browser) -> None:
    tree = browser.ask("Accessibility.getFullAXTree")["nodes"]
    found = {(n["role"]["value"], n.get("name", {}).get("value", "")) for n in tree if not n.get("ignored")}
    assert {("slider", "Step"), ("button", "Step on"), ("combobox", "Method")} <= found
    assert {("heading", name) for name in ("The draft tree", "The text", "Time of this step")} <= found
    assert any(role in ("image", "img") and name.startswith("Step 1 of") for role, name in found)
    assert browser.run("document.getElementById('said').getAttribute('aria-live')") == "polite"
    browser.press("Tab")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert browser.run("document.activeElement.id") == "method"
    assert browser.run(outline) != "none"
    names = "[...document.querySelectorAll('button, select, input')].every((e) => e.ariaLabel || e.labels.length)"
    assert browser.run(names)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_the_light_and_in_the_dark(browser: Browser, pages: Path, scheme: str) -> None:
    """WCAG's contrast of what is written, on what is behind it; and no motion where none is wanted."""
    browser.open(pages / "two.html", prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    assert browser.run(CONTRAST) >= 4.5
    assert browser.run("getComputedStyle(document.querySelector('.text')).scrollBehavior") == "auto"


def test_a_large_page_and_an_empty_one_work(browser: Browser, pages: Path) -> None:
    browser.open(pages / "large.html")
    browser.press("End")
    assert browser.run(STEP) == "100"
    assert browser.run("document.querySelectorAll('#tree .node').length") == 65
    browser.open(pages / "empty.html")
    browser.press("ArrowRight")
    assert browser.run("document.querySelectorAll('#tree .node').length") == 0
