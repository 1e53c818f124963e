"""The report in a real browser, in a window of 1000 pixels: no table leaves its box."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from specdec.experiments.report import write_report
from specdec.experiments.report.joint import write_joint

from .test_report import make_run
from .trace.browser import Browser, find_browser

pytestmark = pytest.mark.skipif(find_browser() is None, reason="needs Chromium: make browser, or SPECDEC_BROWSER=...")
WIDTH = 1000
# What is wider than the window, or than the box around it unless that one scrolls.
TOO_WIDE = """[document.documentElement, ...document.querySelectorAll("table")].filter((e) =>
  e.scrollWidth > innerWidth && !e.closest(".scroll")).map((e) => e.className || e.tagName)"""
BOX = """(() => { const box = document.querySelector(".scroll:has(> .results)");
  return [box.scrollWidth, box.clientWidth, getComputedStyle(box).overflowX] })()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile"), width=WIDTH) as browser:
        yield browser


def test_the_results_of_few_methods_fit(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_report(make_run(tmp_path, ["none", "ngram", "draft_model"])))
    inside, box, _ = browser.run(BOX)
    assert inside == box
    assert browser.run(TOO_WIDE) == []


def test_a_table_that_is_too_wide_scrolls_in_its_box(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_report(make_run(tmp_path / "a")))
    browser.run("document.querySelector('.results tbody th').append('long_'.repeat(40))")
    inside, box, overflow = browser.run(BOX)
    assert inside > box
    assert overflow == "auto"
    assert browser.run(TOO_WIDE) == []
    written, _ = write_joint([tmp_path / "a", make_run(tmp_path / "b")])
    browser.open(written[-1])
    assert browser.run(TOO_WIDE) == []
