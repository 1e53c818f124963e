"""A result as a table in the terminal and in a README."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table

from specdec.experiments.bench.results import Json
from specdec.experiments.bench.step import HOST, TIME
from specdec.experiments.bench.targets import verdicts

BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
RATIOS = "p50 of interleaved runs (p20 to p80); above 1 ours is faster; * the host's time is in it"
PLAN = "the plan kernel, once a step and not once a layer, is in the time of rows 'with the plan' only"


def rivals(result: Json) -> list[str]:
    """Names of the rivals that were timed, in the order in which they first occur."""
    return list(dict.fromkeys(name for entry in result["cells"].values() for name in entry.get("times_as_fast", {})))


def rows(result: Json) -> list[list[str]]:
    """A row a cell: its key, our time and share of the copy's bandwidth where there are any, a ratio a rival."""
    names, timed = rivals(result), result["machine"]["device"] == "cuda"
    return [[key, *(_ours(entry) if timed else []), *_ratios(entry, names)] for key, entry in result["cells"].items()]


def header(result: Json) -> list[str]:
    """Names of the columns of `rows`."""
    timed = ["us", "of copy"] if result["machine"]["device"] == "cuda" else []
    return ["cell", *timed, *(f"over {name}" for name in rivals(result))]


def table(result: Json, title: str) -> Table:
    """For the terminal."""
    made = Table(*header(result), title=title, caption="\n".join([RATIOS, *remarks(result)]))
    for row in rows(result):
        made.add_row(*row)
    return made


def remarks(result: Json) -> list[str]:
    """What must be known beside the numbers: the machine's rates, notes of methods, which way SDPA went."""
    machine, cells = result["machine"], result["cells"]
    found = []
    if "read_bandwidth" in machine:
        copy, read, rate = (machine[name] / 1e12 for name in ("copy_bandwidth", "read_bandwidth", "matmul_rate"))
        found.append(f"a copy moves {copy:.2f} TB/s, a sum reads {read:.2f} TB/s, a product does {rate:.0f} TFLOP/s")
    if machine["device"] == "cuda" and any(key.startswith(("tree B=", "chain B=")) for key in cells):
        found.append(PLAN)
    for what in ("notes", "sdpa"):
        told = Counter((name, text) for entry in cells.values() for name, text in entry.get(what, {}).items())
        found += [f"{name}: {text} ({count} of {len(cells)} cells)" for (name, text), count in told.items()]
    return found


def targets_table(result: Json | None) -> Table:
    """Every target and whether it is reached, for the terminal."""
    made = Table("target", "wanted", "measured", "verdict", title="targets on a GPU")
    for verdict in verdicts(result):
        made.add_row(*verdict)
    return made


def step_table(result: Json) -> Table:
    """Steps of the loop against their floor, for the terminal; a CPU's are checked, not timed."""
    names = ("cell", "ms", "GPU's ms", f"over floor, at most {TIME}", "bound by", f"host share, at most {HOST}")
    told = remarks(result) if result["machine"]["device"] == "cuda" else ["on a CPU steps are checked, not timed"]
    made = Table(*names, title="steps of the loop: chains, greedy, no draft cost", caption="\n".join(told))
    for key, entry in result["cells"].items():
        if "floor" not in entry:
            made.add_row(key, f"wrong: {', '.join(entry['red'])}" if entry["red"] else "right")
            continue
        over, host = entry["over_floor"], entry["host_share"]
        judged = [
            f"{value:.3f}, {'reached' if value <= most else 'missed'}" for value, most in ((over, TIME), (host, HOST))
        ]
        ms = [f"{seconds * 1e3:.3f}" for seconds in (entry["seconds"][1], entry["gpu_seconds"])]
        made.add_row(key, *ms, judged[0], {"bytes": "copy", "flops": "product"}[entry["binds"]], judged[1])
    return made


def markdown(cpu: Json, gpu: Json | None) -> str:
    """The part of a README between its markers: a CPU's ratios, and what is known of a GPU."""
    about = cpu["provenance"]
    machine = f"{about['cpu']['model']}, threads: {about['threads']}"
    where = f"{machine}, torch {about['versions']['torch']}, {about['time'][:10]}"
    others = rivals(cpu)
    ours = "cpp" if "packed" in others else "packed"  # the first is left out where there was no compiler
    lines = [f"How many times as fast `{ours}` is, medians of interleaved runs. {where}."]
    for rival in others:
        lines += ["", f"Over {rival}:", "", *_by_nodes(cpu, rival)]
    judged = verdicts(gpu)
    count = Counter(verdict.state.split(" by ")[0] for verdict in judged)
    summary = ", ".join(f"{number} {state}" for state, number in count.items())
    lines += ["", "<details>", f"<summary>Targets on a GPU: {summary}</summary>", ""]
    return "\n".join([*lines, *_grid(["target", "wanted", "measured", "verdict"], judged), "", "</details>"])


def _by_nodes(result: Json, rival: str) -> list[str]:
    """A row a batch, a column a number of nodes."""
    found: dict[tuple[str, ...], dict[int, str]] = {}
    for entry in result["cells"].values():
        cell, ratio = entry["cell"], entry.get("times_as_fast", {}).get(rival)
        if ratio or entry["red"]:
            key = tuple(str(cell[name]) for name in ("heads", "dtype", "batch", "context"))
            found.setdefault(key, {})[cell["nodes"]] = f"{ratio[1]:.2f}" if ratio else "wrong"
    nodes = sorted({n for row in found.values() for n in row})
    head = ["heads / KV heads / size", "dtype", "B", "context", *(f"N = {n}" for n in nodes)]
    return _grid(head, ([*key, *(row.get(n, "") for n in nodes)] for key, row in found.items()))


def insert(readme: Path, text: str) -> None:
    """Put the text between the markers.

    Raises:
        ValueError: there are no markers.
    """
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{str(readme)!r} has no {BEGIN} ... {END}")
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def _grid(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    return [_line(head), _line(["---"] * len(head)), *map(_line, body)]


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _ours(entry: Json) -> list[str]:
    if "seconds" not in entry:
        return ["wrong" if entry["red"] else "", ""]
    name = next(iter(entry["seconds"]))
    share = entry.get("share_of_copy", {}).get(name)
    return [f"{entry['seconds'][name][1] * 1e6:.1f}{_mark(entry, name)}", "" if share is None else f"{share:.0%}"]


def _ratios(entry: Json, names: Sequence[str]) -> list[str]:
    if entry["red"]:
        return [f"wrong: {', '.join(entry['red'])}", *[""] * (len(names) - 1)]
    found = entry["times_as_fast"]
    return [
        f"{found[name][1]:.2f}{_mark(entry, name)} ({found[name][0]:.2f} to {found[name][2]:.2f})"
        if name in found
        else ""
        for name in names
    ]


def _mark(entry: Json, name: str) -> str:
    """Of what is timed, though a graph could not hold it."""
    return "*" * (name in entry.get("notes", {}))
