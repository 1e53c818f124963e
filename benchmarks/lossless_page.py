"""Writes the tables of docs/lossless.md: which rule guarantees what, how many cases show it, and what the rule costs.

    pytest tests/acceptance -m "not gpu" --junitxml=outputs/proofs.xml      # the slow ones too
    python benchmarks/lossless_page.py --junit outputs/proofs.xml

tests/acceptance/proofs.yaml says which tests prove which rule. Every one of their cases must have passed, all cases of
a test at the same commit, or nothing is written. Counts are kept in benchmarks/results/cpu/proofs.json; without
--junit the page is made again from them. Costs are those of `specdec bench rules` and `specdec bench accepted`, as far
as rules.json and accepted.json lie beside.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from specdec import registry
from specdec.core import AcceptanceRule

ROOT = Path(__file__).resolve().parent.parent
TESTS, PAGE = ROOT / "tests" / "acceptance", ROOT / "docs" / "lossless.md"
RESULTS = ROOT / "benchmarks" / "results" / "cpu"
BEGIN, END = "<!-- made by benchmarks/lossless_page.py: begin -->", "<!-- made by benchmarks/lossless_page.py: end -->"
Json = dict[str, Any]


class Case(NamedTuple):
    """What became of one case of a test.

    Attributes:
        state: passed, skipped or failed.
        commit: of the code, see tests/acceptance/conftest.py.
    """

    state: str
    commit: str


def write(files: Sequence[Path]) -> None:
    """Count, if there are results, and write the page.

    Raises:
        SystemExit: a proof is missing, failed or was skipped; or the page has no marks.
    """
    proofs = read_proofs()
    if files:
        counted = count(proofs, collect(), read_cases(files))
        (RESULTS / "proofs.json").write_text(json.dumps(counted, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    if not re.search(f"{BEGIN}.*{END}", page, re.DOTALL):
        raise SystemExit(f"{PAGE} has no place for the tables; put these two lines there:\n{BEGIN}\n{END}")
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(before + between_marks(proofs) + rest.partition(END)[2], encoding="utf-8")


def between_marks(proofs: Json) -> str:
    """The tables of what was kept, with their marks.

    Raises:
        SystemExit: nothing was counted yet; or see `tables`.
    """
    kept = read("proofs")
    if kept is None:
        raise SystemExit("no proof was counted yet; give their results: --junit FILE")
    return f"{BEGIN}\n{tables(proofs, kept, read('rules'), read('accepted'))}\n{END}"


def read_proofs() -> Json:
    """rule -> guarantee and proofs: kind -> tests."""
    found: Json = yaml.safe_load((TESTS / "proofs.yaml").read_text(encoding="utf-8"))
    return found


def read(name: str) -> Json | None:
    """A kept result, if there is one."""
    file = RESULTS / f"{name}.json"
    found: Json | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return found


# --- counting


class _Collected:
    """A pytest plugin: the names of all cases."""

    names: Sequence[str] = ()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.names = [f"{item.path.name}::{item.name}" for item in session.items]


def collect(files: Sequence[str] = ("",)) -> Sequence[str]:
    """`file.py::test[id]` of every case that there is, in some of the files or in all.

    Raises:
        SystemExit: they cannot be imported.
    """
    found = _Collected()
    options = ["--collect-only", "-q", "-p", "no:cacheprovider", "-m", "not gpu", "--rootdir", str(ROOT)]
    where = ["-c", str(ROOT / "pyproject.toml"), *(str(TESTS / file) for file in files)]
    with redirect_stdout(StringIO()) as told:
        if pytest.main([*options, *where], plugins=[found]):
            raise SystemExit(told.getvalue())
    return found.names


def read_cases(files: Iterable[Path]) -> dict[str, Case]:
    """`file.py::test[id]` -> what became of it; where it is in several files, the worst."""
    ranks = ("passed", "skipped", "failed")
    found: dict[str, Case] = {}
    for file in files:
        for case in ElementTree.parse(file).iter("testcase"):
            name = f"{case.get('classname', '').rpartition('.')[2]}.py::{case.get('name')}"
            ended = {child.tag for child in case}
            state = "failed" if ended & {"failure", "error"} else "skipped" if "skipped" in ended else "passed"
            commits = [p.get("value", "") for p in case.iter("property") if p.get("name") == "commit"]
            made = Case(state, commits[0] if commits else "unknown")
            found[name] = max(found.get(name, made), made, key=lambda each: ranks.index(each.state))
    return found


def named(proofs: Json) -> list[str]:
    """Every proof of every rule."""
    return [proof for rule in proofs.values() for each in rule["proofs"].values() for proof in each]


def count(proofs: Json, names: Iterable[str], cases: Mapping[str, Case]) -> Json:
    """proof -> how many cases passed, and at which commit.

    Args:
        names: of all cases that there are.
        cases: what became of them.

    Raises:
        SystemExit: of a proof there is no case, or one that did not pass, or they are of several commits, or of files
            that differ from their commit.
    """
    counted, wrong = {}, []
    for proof in named(proofs):
        pattern = re.compile(re.escape(proof).replace(r"\*", ".*") + ("" if "[" in proof else r"(\[.*\])?"), re.DOTALL)
        mine = [name for name in names if pattern.fullmatch(name)]
        states = {name: cases[name].state if name in cases else "not run" for name in mine}
        bad = [f"{name}: {state}" for name, state in states.items() if state != "passed"]
        commits = sorted({cases[name].commit for name in mine if name in cases})
        if not mine:
            wrong.append(f"{proof}: there is no such test")
        elif bad:
            wrong.append(f"{proof}: {len(bad)} of {len(mine)} cases did not pass; {bad[0]}")
        elif len(commits) > 1 or not re.fullmatch(r"[0-9a-f]{40}", commits[0]):
            wrong.append(f"{proof}: run at {', '.join(commits)}; expected one commit, without changes")
        else:
            counted[proof] = {"passed": len(mine), "commit": commits[0]}
    if wrong:
        raise SystemExit("nothing was written:\n" + "\n".join(wrong))
    return counted


# --- the tables


def tables(proofs: Json, counted: Json, costs: Json | None, lengths: Json | None) -> str:
    """Everything between the marks.

    Args:
        proofs: of proofs.yaml.
        counted: what `count` returned.
        costs, lengths: of `specdec bench rules` and `specdec bench accepted`.

    Raises:
        SystemExit: a rule without proofs, a proof without cases, a rule without costs where others have them.
    """
    if differ := set(registry.names("acceptance")) ^ set(proofs):
        raise SystemExit(f"{', '.join(sorted(differ))}: proofs.yaml must have every rule of conf/acceptance, no others")
    if missing := [proof for proof in named(proofs) if proof not in counted]:
        raise SystemExit(f"no cases of {', '.join(missing)} were counted; give their results: --junit FILE")
    lines = _head("rule", "lossless", "guarantee", "proof (cases that passed)", "cost")
    for name, about in proofs.items():
        rule: AcceptanceRule = registry.build("acceptance", name)
        shown = "; ".join(f"{kind}: {_counted(each, counted)}" for kind, each in about["proofs"].items())
        cost = "not measured" if costs is None else _dearest(name, costs["rows"])
        lines.append(_line(f"`{name}`", "yes" if rule.lossless else "no", about["guarantee"], shown, cost))
    commits = sorted({counted[proof]["commit"][:10] for proof in named(proofs)})
    lines += ["", f"Counted at {', '.join(f'`{commit}`' for commit in commits)}."]
    lines += [] if costs is None else ["", *_cost_table(costs)]
    lines += [] if lengths is None else ["", *_length_table(lengths)]
    return "\n".join(lines)


def _counted(proofs: Sequence[str], counted: Json) -> str:
    return ", ".join(f"`{proof.partition('[')[0]}` ({counted[proof]['passed']:,})" for proof in proofs)


def _dearest(rule: str, rows: Sequence[Json]) -> str:
    """Of all that was measured of the rule."""
    shares = [row["share"][1] for row in rows if row["rule"].split(",")[0] == rule]
    if not shares:
        raise SystemExit(f"no cost of {rule} in rules.json; run: specdec bench rules")
    return f"at most {_percent(max(shares))} of a verify pass"


def _cost_table(costs: Json) -> list[str]:
    """A row for every kind of tree, a column for every vocabulary and batch."""
    rows, settings = costs["rows"], costs["provenance"]["config"]
    columns = sorted({(row["vocab"], row["batch"]) for row in rows})
    cells = {(row["rule"], row["vocab"], row["batch"]): row for row in rows}
    rounds = [row["rounds"] for row in rows]
    about = (
        f"Cost: milliseconds a step with {settings['nodes']} nodes a sequence, and the share of one verify pass of as "
        "many nodes by a 1B shape in bfloat16, by turns on the same machine; medians of "
        f"{min(rounds)} to {max(rounds)} rounds of `specdec bench rules`, {_machine(costs['provenance'])}:"
    )
    lines = [
        *_wrapped(about),
        *_head("rule, tree, children", *(f"V = {vocab:,}, batch {batch}" for vocab, batch in columns)),
    ]
    for kind in sorted({row["rule"] for row in rows}):
        found = [cells[kind, vocab, batch] for vocab, batch in columns]
        lines.append(
            _line(kind, *(f"{row['microseconds'][1] / 1000:.1f}, {_percent(row['share'][1])}" for row in found))
        )
    return lines


def _length_table(lengths: Json) -> list[str]:
    """What rules accept of the same drafts."""
    settings = lengths["provenance"]["config"]
    about = (
        f"Tokens a step that rules make of the same drafts, target {settings['target']}, draft model "
        f"{settings['draft']}, temperature {settings['temperature']:g}, {settings['prompts']} prompts, ratios with "
        "95 % bootstrap intervals; `specdec bench accepted`:"
    )
    lines = [
        *_wrapped(about),
        *_head("drafts", "rule", "tokens a step", "`rejection`'s", "ratio"),
    ]
    for row in lengths["rows"]:
        means = row["mean_accepted_length"]
        ratio = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        lines.append(
            _line(row["drafts"], f"`{row['rule']}`", f"{means[row['rule']]:.3f}", f"{means['rejection']:.3f}", ratio)
        )
    return lines


def _machine(about: Json) -> str:
    threads = about["threads"]
    return f"{about['cpu']['model']}, {threads} thread{'s' * (threads > 1)}, torch {about['versions']['torch']}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _wrapped(text: str) -> list[str]:
    """As a paragraph before a table."""
    return [*textwrap.wrap(text, 120, break_on_hyphens=False), ""]


def _head(*texts: str) -> list[str]:
    return [_line(*texts), "|" + "---|" * len(texts)]


def _line(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--junit", type=Path, nargs="+", default=[], metavar="FILE", help="of --junitxml")
    write(parser.parse_args().junit)
