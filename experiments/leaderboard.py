"""Methods by category, as Spec-Bench prints them, and what follows for a user, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from specdec.experiments.display import folded, number
from specdec.experiments.machine_noise import (
    BEST_OF_MANY,
    is_again,
    is_faster,
    is_unclear,
    noise_words,
    percent,
    warning,
)
from specdec.experiments.records import write_text
from specdec.metrics import DECODING_PHASES

OVERALL = "overall"
NUMBERS = ("requests", "accepted_length", "ratio", "low", "high", "noise", "label")
MOST_NAMES = 3  # of drafters that are told apart by nothing but noise
CAVEAT = f"An interval is of its cell alone, not corrected for the number of cells: {BEST_OF_MANY}"

Part = Mapping[str, Any]  # of summary.json: a method's entry, or one of its categories'


def is_compared(summary: Mapping[str, Any]) -> bool:
    """Whether plain decoding was measured twice, which everything here rests on."""
    return any(is_again(entry) for entry in summary["methods"])


def columns(summary: Mapping[str, Any]) -> list[str]:
    """The categories, and `overall`."""
    return [*sorted({c for entry in summary["methods"] for c in entry["by_category"]}), OVERALL]


def part_of(entry: Mapping[str, Any], column: str) -> Part | None:
    """A method's figures in a column; None if it served no such question."""
    part: Part | None = entry if column == OVERALL else entry["by_category"].get(column)
    return part


def recommendations(summary: Mapping[str, Any]) -> list[str]:
    """One sentence for each sampling setting that plain decoding was measured twice with."""
    baselines = [entry["baseline"] for entry in summary["methods"] if is_again(entry)]
    found = []
    for baseline in baselines:
        methods = [e for e in summary["methods"] if e["baseline"] == baseline and not is_again(e)]
        sentence = _sentence(methods, columns(summary)[:-1])
        found.append(sentence if len(baselines) == 1 else f"Against {baseline}: {sentence}")
    return found


def best(methods: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    """Names of those that pay there and are no further from the fastest than the machine's noise, that one first."""
    found = [(e["name"], (part_of(e, column) or {}).get("speedup")) for e in methods]
    paying = sorted((f["ratio"], name, f.get("noise") or 1) for name, f in found if f and is_faster(f))
    if not paying:
        return []
    highest = paying[-1][0]
    return [name for ratio, name, noise in reversed(paying) if ratio * noise >= highest]


def _sentence(methods: Sequence[Mapping[str, Any]], categories: Sequence[str]) -> str:
    chosen: dict[str, list[str]] = {}
    for category in categories:
        chosen.setdefault(_either(best(methods, category)), []).append(category)
    nowhere = chosen.pop("", [])
    overall = best(methods, OVERALL)
    cells = len(methods) * (len(categories) + 1)
    chance = f"Chosen among {cells} cells by each cell's own interval: {BEST_OF_MANY}"
    if not chosen and overall:
        return f"Recommended: over all, {_either(overall)}; too few prompts a category to say more. {chance}"
    if not chosen:
        return "Recommended: no drafter; nothing is faster than plain decoding beyond chance and this machine's noise."
    parts = [f"{names} for {_list(those, 'and')}" for names, those in chosen.items()]
    if nowhere:
        parts.append(f"no drafter for {_list(nowhere, 'and')}, where nothing is faster beyond chance and noise")
    whole = f"; over all, {_either(overall)}" if overall and (len(chosen) > 1 or nowhere) else ""
    return f"Recommended: {'; '.join(parts)}{whole}. {chance}"


def _either(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return _list([*names[:MOST_NAMES], *([f"{more} more"] if more > 0 else [])], "or")


def _list(words: Sequence[str], last: str) -> str:
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def numbers(summary: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """For a tracker: columns, and a row a method, with numbers or null where there are any."""
    names = ["method", *NUMBERS, "tokens_per_second", *DECODING_PHASES, "lossless"]
    rows = []
    for entry in summary["methods"]:
        found = entry["metrics"]
        shares = [found["phase_share"].get(phase) for phase in DECODING_PHASES]
        rows.append(
            [entry["name"], *_numbers(entry), found["tokens_per_second"], *shares, entry["lossless"]["verdict"]]
        )
    return names, rows


def by_category(summary: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """The same of every category, a row a method and category."""
    parts = [(e["name"], c, part) for e in summary["methods"] for c, part in sorted(e["by_category"].items())]
    return ["method", "category", *NUMBERS], [[name, category, *_numbers(part)] for name, category, part in parts]


def _numbers(part: Part) -> list[Any]:
    found = part["speedup"] or {}
    speeds = [found.get(name) for name in ("ratio", "low", "high", "noise", "label")]
    return [part["requests"], part["metrics"]["mean_accepted_length_pooled"], *speeds]


def markdown(summary: Mapping[str, Any]) -> str:
    """The whole leaderboard: in a cell the speed-up with its interval, the noise beside it, and the accepted length."""
    names = columns(summary)
    head = ["method", *names, f"{'/'.join(DECODING_PHASES)} %", "lossless"]
    lines = [f"# {summary['experiment']}: {summary['target']['name']}, {summary['target']['dtype']}", ""]
    lines += [f"{sentence}\n" for sentence in recommendations(summary)]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for entry in summary["methods"]:
        shares = [number(entry["metrics"]["phase_share"].get(phase), ".0f", 100) for phase in DECODING_PHASES]
        cells = [_cell(part_of(entry, name)) for name in names]
        lines.append(f"| {' | '.join([entry['name'], *cells, '/'.join(shares), entry['lossless']['verdict']])} |")
    lines += [
        "",
        "In a cell: tokens per second over plain decoding's on the same prompts, with a 95 % bootstrap interval over "
        "prompts; how far plain decoding, measured twice, is away from itself; and the mean accepted length (pooled, "
        "the target's own token included). Bold: above 1 with its whole interval and beyond the noise. Unclear: "
        "neither faster nor slower could be shown, beside chance and the noise. "
        f"{CAVEAT}",
    ]
    lines += [f"\nNote: {note}" for note in summary["notes"]]
    return "\n".join(lines) + "\n"


def write_leaderboard(directory: Path, summary: Mapping[str, Any]) -> Path:
    """Write `leaderboard.md`."""
    file = directory / "leaderboard.md"
    write_text(file, markdown(summary))
    return file


def show_leaderboard(console: Console, summary: Mapping[str, Any]) -> None:
    """Speed-ups over accepted lengths, a column a category; then the recommendations."""
    names = columns(summary)
    title = "By category: speed-up over mean accepted tokens"
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("method", no_wrap=True)
    for name in names:
        table.add_column(name.replace("_", "_\n"), justify="right", overflow="fold")
    for entry in summary["methods"]:
        table.add_row(folded(entry["name"]), *[_short_cell(part_of(entry, name)) for name in names])
        if is_again(entry):
            parts = [part_of(entry, name) for name in names]
            table.add_row("noise", *[percent(part["speedup"]["noise"]) if part else "-" for part in parts], style="dim")
    console.print(table)
    console.print(
        "*: above 1 with its whole 95 % interval and beyond the noise, which is how far plain decoding, measured "
        f"twice, is away from itself. ~: neither faster nor slower could be shown. {CAVEAT}",
        style="dim",
    )
    for sentence in recommendations(summary):
        console.print(sentence, style="bold")


def _short_cell(part: Part | None) -> Text:
    if part is None:
        return Text("-")
    found, accepted = part["speedup"], number(part["metrics"]["mean_accepted_length_pooled"], ".2f")
    if found is None:
        return Text(f"1\n{accepted}")
    faster = is_faster(found)
    ratio = f"{'~' * is_unclear(found)}{number(found['ratio'], '.2f')}{'*' * faster}"
    label = warning(found)
    return Text.assemble((ratio, "bold" if faster else ""), f"\n{accepted}", f"\n{label}" * bool(label))


def _cell(part: Part | None) -> str:
    if part is None:
        return "-"
    accepted = number(part["metrics"]["mean_accepted_length_pooled"], ".2f")
    found = part["speedup"]
    if found is None or found["ratio"] is None:
        return f"{'1.00x' if found is None else '-'}<br>{accepted} accepted"
    ratio = f"**{found['ratio']:.2f}x**" if is_faster(found) else f"{found['ratio']:.2f}x"
    interval = f" [{found['low']:.2f}, {found['high']:.2f}]" if found["low"] is not None else ""
    words = ", ".join(word for word in (warning(found), noise_words(found)) if word)
    return f"{ratio}{interval}<br>{words}<br>{accepted} accepted"
