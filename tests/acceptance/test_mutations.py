"""Mistakes that are planted, one line of code each, and the test of the suite that fails because of it.

The test is the suite's own: pytest runs it within this process, first as the code is, then with the mistake.
"""

from __future__ import annotations

import inspect
import pkgutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from .drafter_mistakes import DRAFTER_MISTAKES
from .loop_mistakes import LOOP_MISTAKES
from .mistake import Mistake
from .rule_mistakes import RULE_MISTAKES

ROOT = Path(__file__).resolve().parent.parent.parent
MISTAKES = LOOP_MISTAKES | RULE_MISTAKES | DRAFTER_MISTAKES
QUICK = ("the root counts twice", "the residual is not normalised", "an end within a path is not seen")


@contextmanager
def made(mistake: Mistake) -> Iterator[None]:
    """The function with the mistake in it, wherever it was imported to.

    Raises:
        ValueError: the function does not have that code, once.
    """
    function = inspect.unwrap(pkgutil.resolve_name(mistake.function))
    source = textwrap.dedent(inspect.getsource(function))
    if (count := source.count(mistake.code)) != 1:
        raise ValueError(f"{mistake.function} has {mistake.code!r} {count} times; expected once. Mend MISTAKES")
    wrong, right = code_of(source.replace(mistake.code, mistake.mistake), function.__name__), function.__code__
    function.__code__ = wrong
    try:
        yield
    finally:
        function.__code__ = right


def code_of(source: str, name: str) -> CodeType:
    """The code of the one function in `source`."""
    module = compile(source, f"<{name} with a mistake>", "exec")
    return next(x for x in module.co_consts if isinstance(x, CodeType) and x.co_name == name)


class Reports:
    """A pytest plugin: what became of the tests."""

    def __init__(self) -> None:
        self.passed: list[str] = []  # their names
        self.failed: list[str] = []  # their errors

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash: Any = getattr(report.longrepr, "reprcrash", report.longrepr)
            self.failed.append(getattr(crash, "message", str(crash)))
        elif report.passed and report.when == "call":
            self.passed.append(report.nodeid)


def run(test: str) -> Reports:
    """One test of the ordinary suite, within this process."""
    reports = Reports()
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", "--rootdir", str(ROOT)]
    pytest.main([*options, "-c", str(ROOT / "pyproject.toml"), str(ROOT / "tests" / test)], plugins=[reports])
    return reports


@cache
def passes(test: str) -> bool:
    """As the code is. Run before any mistake, so that what is remembered between runs is right."""
    reports = run(test)
    return len(reports.passed) == 1 and not reports.failed


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MISTAKES])
def test_a_planted_mistake_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    mistake = MISTAKES[name]
    assert passes(mistake.test), f"{mistake.test} does not pass as it is"
    with made(mistake):
        reports = run(mistake.test)
    assert len(reports.failed) == 1, f"{mistake.test} does not see it"
    (message,) = reports.failed
    assert message.startswith((mistake.told, "AssertionError")), message


@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_can_be_made(name: str) -> None:
    """The code has not changed under it, which the slow proofs would tell too late."""
    with made(MISTAKES[name]):
        pass


@pytest.mark.parametrize(
    "mistake",
    [
        Mistake("specdec.cache:TreeCache.commit", "no such code", "pass", ""),
        Mistake("specdec.cache:TreeCache.commit", "self", "this", ""),
    ],
)
def test_a_mistake_that_does_not_apply_is_told(mistake: Mistake) -> None:
    with pytest.raises(ValueError, match=r"expected once\. Mend MISTAKES"), made(mistake):
        pass
