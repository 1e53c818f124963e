"""The README's table is the committed result, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from specdec.experiments.bench import tables
from specdec.experiments.bench.results import load
from specdec.experiments.bench.settings import read_settings
from specdec.experiments.bench.usage import USAGE

ROOT = Path(__file__).parents[2]


def test_the_readme_shows_the_committed_result(tmp_path: Path) -> None:
    readme = ROOT / "kernels" / "tree_attention" / "README.md"
    copy = tmp_path / "README.md"
    copy.write_text(readme.read_text(encoding="utf-8"), encoding="utf-8")
    tables.insert(copy, tables.markdown(load(ROOT / "benchmarks" / "results" / "cpu" / "kernels.json"), None))
    assert copy.read_text(encoding="utf-8") == readme.read_text(encoding="utf-8"), "run: specdec bench table, see there"


def test_every_part_and_every_file_is_told() -> None:
    section = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8").partition("## `specdec bench`")[2]
    parts = re.findall(r"^  specdec bench (\w+)", USAGE, flags=re.MULTILINE)
    assert len(parts) == 10
    files = [file.name for file in (ROOT / "experiments" / "bench").glob("[!_]*.py")]
    assert [name for name in [*parts, *files] if f"`{name}`" not in section] == []


def test_the_usage_has_the_defaults() -> None:
    found = read_settings([], "kernels")
    assert f"minutes={found.minutes:g} " in USAGE
    assert f"seconds={found.seconds:g} " in USAGE
    assert "again=false" in USAGE
    assert "temperature=1.0 device=auto output=outputs/bench/accepted.json" in " ".join(USAGE.split())
