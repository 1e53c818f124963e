"""The README's table is the committed result, and nothing else."""

from __future__ import annotations

from pathlib import Path

from specdec.experiments.bench import tables
from specdec.experiments.bench.results import load

ROOT = Path(__file__).parents[2]


def test_the_readme_shows_the_committed_result(tmp_path: Path) -> None:
    readme = ROOT / "kernels" / "tree_attention" / "README.md"
    copy = tmp_path / "README.md"
    copy.write_text(readme.read_text(encoding="utf-8"), encoding="utf-8")
    tables.insert(copy, tables.markdown(load(ROOT / "benchmarks" / "results" / "cpu" / "kernels.json"), None))
    assert copy.read_text(encoding="utf-8") == readme.read_text(encoding="utf-8"), "run: specdec bench table, see there"
