"""What a run shows in the terminal: a completion as it is written, progress, and the table. Plain lines in a log."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from specdec.experiments.machine_noise import noise_words, warning
from specdec.experiments.methods import Method
from specdec.experiments.workbench import Bench
from specdec.inputs import eos_ids
from specdec.metrics import STEP_PHASES, DecodingStats
from specdec.request import Request
from specdec.text import TextPieces

LOG_LINES = 10  # of progress, where the output is no terminal
REFRESHES = 1  # of a bar in a second, 2 ms each: rich's ten take 2 % of a core from what is measured
NAME_WIDTH = 18  # of a method in the table, so that it fits 80 columns
SHOWN_PROMPT = 300  # characters of a prompt's end
STREAM_SECONDS = 20  # a completion that is only shown takes no longer


class Bar:
    """Progress over `total` steps: a bar in a terminal, a few lines in a log. Use as a context manager."""

    def __init__(self, console: Console, total: int, what: str):
        self._console, self._total, self._what = console, total, what
        self._done, self._began = 0, time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        live: dict[str, Any] = {"console": console, "disable": not console.is_terminal}
        self._bar = Progress(*columns, *times, **live, refresh_per_second=REFRESHES)
        self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, note: str = "", done: int | None = None, total: int | None = None) -> None:
        """One more, or `done` in all; `total` where it was not known before."""
        if total is not None and total != self._total:
            self._total = total
            self._bar.update(self._task, total=total)
        before, self._done = self._done, self._done + 1 if done is None else done
        self._bar.update(self._task, completed=self._done, description=f"{self._what} {note}".rstrip())
        part = max(self._total // LOG_LINES, 1)
        if not self._console.is_terminal and (self._done // part > before // part or self._done == self._total):
            spent = time.monotonic() - self._began
            self._console.print(f"{self._what}: {self._done} of {self._total}, {spent:.0f} s {note}".rstrip())


def show_stream(console: Console, bench: Bench, method: Method, prompt: str, max_new_tokens: int) -> None:
    """Write one completion, token by token: drafted and accepted ones in green, the target's own as they are."""
    ids = bench.tokenizer(prompt)["input_ids"]
    ids = ids[-bench.room(max_new_tokens) :] if bench.room(max_new_tokens) else ids
    shown = prompt[-SHOWN_PROMPT:].partition("\n")[2] if len(prompt) > SHOWN_PROMPT else prompt
    console.print(f"One completion by [bold]{method.name}[/]: what was [green]drafted and accepted[/] is green.\n")
    console.print(Text(shown, style="dim"), end="", soft_wrap=True)
    pieces, stats = TextPieces(bench.tokenizer), DecodingStats()
    request = Request(ids, max_new_tokens, method.sampling, eos_ids(bench.model))
    for _, tokens in bench.engines[method.name].run([request], stats):
        for part, style in ((tokens[:-1], "green"), (tokens[-1:], "")):
            _write(console, pieces.push(part), style)
        if sum(stats.phases.values()) > STREAM_SECONDS:
            break
    _write(console, pieces.flush(), "")
    seconds = sum(stats.phases.values())
    console.print(f"\n\n{stats.new_tokens} tokens in {stats.steps} steps and {seconds:.2f} s.\n")


def _write(console: Console, piece: str, style: str) -> None:
    if piece:
        console.print(Text(piece, style=style), end="", soft_wrap=True)
        console.file.flush()


def leaderboard(summary: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """The table's columns and rows, as text: shown in the terminal and given to the tracker."""
    columns = ["method", "accepted", "tokens/s", "speed-up", *STEP_PHASES, "lossless"]
    rows = []
    for entry in summary["methods"]:
        found = entry["metrics"]
        shares = [found["phase_share"][p] for p in STEP_PHASES]
        rows.append(
            [
                entry["name"],
                number(found["mean_accepted_length_pooled"], ".2f"),
                number(found["tokens_per_second"], ".0f"),
                _speedup(entry["speedup"]),
                *[number(share, ".0%") for share in shares],
                entry["lossless"]["verdict"],
            ]
        )
    return columns, rows


def show_table(console: Console, summary: Mapping[str, Any]) -> None:
    """The leaderboard, in 80 columns."""
    target = summary["target"]
    packed = f" with {target['quantize']} weights" if target.get("quantize") else ""
    exact = ", exact" if target.get("exact") else ""
    title = f"{summary['experiment']}: {target['name']}, {target['dtype']}{packed}{exact}"
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("method", no_wrap=True)
    for name in ("accepted", "speed-up", "draft/verify/\naccept/commit %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("lossless", overflow="fold")
    for method, accepted, _, speedup, *shares, lossless in leaderboard(summary)[1]:
        bad = lossless in ("no", "not lossless")
        joined = "/".join(share.rstrip("%") for share in shares)
        speedup = speedup.replace(" (", "\n(").replace(", noise", ",\nnoise").replace(": ", ":\n")
        table.add_row(folded(method), accepted, speedup, joined, lossless, style="red" if bad else "")
    console.print(table)
    console.print(
        "accepted: mean tokens a step, the target's own included. speed-up: tokens/s over the baseline, with a 95 % "
        "interval; unclear: neither faster nor slower beyond chance and noise. Shares are of the time after the "
        "prefill.",
        style="dim",
    )


def folded(name: str, width: int = NAME_WIDTH) -> str:
    """A method's name in lines of at most `width`, broken after underscores where there are any."""
    lines = [""]
    for part in re.findall(r"[^_]*_|[^_]+", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line[i : i + width] for line in lines for i in range(0, len(line), width))


def show_notes(console: Console, notes: Sequence[str]) -> None:
    """What a reader of the numbers has to know."""
    for note in notes:
        console.print(f"note: {note}", style="yellow", highlight=False)


def number(value: float | None, form: str = "", times: float = 1) -> str:
    """In this form, else with one decimal below 100 and none above; a dash where there is none."""
    return "-" if value is None else format(value * times, form or (",.1f" if value * times < 100 else ",.0f"))


def _speedup(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "1"
    if found["ratio"] is None:
        return "-"
    words = ", ".join(word for word in (warning(found), noise_words(found)) if word)
    label = f" ({words})" if words else ""
    interval = "one prompt" if found["low"] is None else f"{found['low']:.2f}, {found['high']:.2f}"
    return f"{found['ratio']:.2f} [{interval}]{label}"
