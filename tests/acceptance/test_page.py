"""docs/lossless.md says what is there."""

from __future__ import annotations

import re
from pathlib import Path

from specdec import registry
from specdec.core import AcceptanceRule

TESTS = Path(__file__).parent
PAGE = (TESTS.parent.parent / "docs" / "lossless.md").read_text()


def test_every_rule_has_its_row() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (yes|no) \|", PAGE, flags=re.MULTILINE))
    assert sorted(rows) == sorted(registry.names("acceptance"))
    for name, lossless in rows.items():
        rule: AcceptanceRule = registry.build("acceptance", name)
        assert rule.lossless == (lossless == "yes")


def test_every_named_test_exists() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)
    assert len(named) > 15
    for file, test in named:
        assert f"\ndef {test}(" in (TESTS / file).read_text(), f"{file}::{test}"


def test_lossy_yamls_say_so_in_their_first_line() -> None:
    for name in registry.names("acceptance"):
        rule: AcceptanceRule = registry.build("acceptance", name)
        first = (registry.CONF / "acceptance" / f"{name}.yaml").read_text().splitlines()[0]
        assert first.startswith("# LOSSY. ") == (not rule.lossless)
