"""The leaderboard by category: what counts as a speed-up beside the machine's noise, and what is recommended of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console

from specdec.experiments.leaderboard import best, markdown, recommendations, show_leaderboard
from specdec.experiments.machine_noise import AGAIN, add_noise, is_faster, is_unclear, noise_of, noise_words, warning
from specdec.experiments.report.headline import headline

SHARES = {"draft": 0.1, "verify": 0.8, "accept": 0.05, "commit": 0.03, "host": 0.02}
Entry = dict[str, Any]


def speedup(ratio: float | None, spread: float | None = 0.02, label: str = "", noise: float | None = None) -> Entry:
    low, high = (None, None) if ratio is None or spread is None else (ratio - spread, ratio + spread)
    return {"ratio": ratio, "low": low, "high": high, "label": label, "noise": noise}


def method(name: str, baseline: str | None, parts: Mapping[str, Entry | None], verdict: str = "yes") -> Entry:
    """`parts` by category, `overall` among them."""
    metrics = {"mean_accepted_length_pooled": 2.0, "phase_share": SHARES}
    found = {c: {"requests": 4, "metrics": metrics, "speedup": part} for c, part in parts.items() if c != "overall"}
    entry: Entry = {"name": name, "baseline": baseline, "metrics": metrics, "speedup": parts["overall"], "requests": 8}
    lossless = {"verdict": verdict, "compared": 8, "different": 0, "ties": 0}
    return entry | {"lossless": lossless, "by_category": found, "sampling": {"temperature": 0.0}}


def summary(**methods: dict[str, Entry | None]) -> Entry:
    """Each with its speed-ups by category, beside a machine whose noise is 5 % in code and 10 % in prose."""
    again = {"code": speedup(1.05, 0, AGAIN), "prose": speedup(1 / 1.1, 0, AGAIN), "overall": speedup(1.02, 0, AGAIN)}
    entries = [method("none", None, dict.fromkeys(again), "baseline")]
    entries += [method(name, "none", parts) for name, parts in methods.items()]
    entries.append(method("none_again", "none", again))
    add_noise(entries)
    target = {"name": "t", "dtype": "float32"}
    return {"experiment": "compare", "target": target, "methods": entries, "notes": ["a note"]}


def both(code: Entry, prose: Entry, overall: Entry) -> dict[str, Entry | None]:
    return {"code": dict(code), "prose": dict(prose), "overall": dict(overall)}


@pytest.mark.parametrize(
    ("found", "noise"),
    [
        (speedup(1.02, 0.01), 1.03),
        (speedup(0.8, None), 1.25),
        (speedup(1.0, 0.2), 1.25),  # the interval's lower end is further away
        (speedup(None), None),
        (None, None),
    ],
)
def test_noise_is_how_far_plain_decoding_is_from_itself(found, noise) -> None:
    assert noise_of(found) == (None if noise is None else pytest.approx(noise))


@pytest.mark.parametrize(
    ("found", "faster", "none"),
    [
        (speedup(1.2, noise=1.1), True, False),
        (speedup(1.2, noise=None), True, False),  # not measured
        (speedup(1.08, noise=1.1), False, True),  # its interval is above 1, but the machine does that by itself
        (speedup(1.2, 0.3, noise=1.1), False, True),  # beyond the noise, but perhaps chance
        (speedup(1.2, None, noise=1.1), False, True),  # a single prompt
        (speedup(0.95, noise=1.1), False, True),
        (speedup(0.8, noise=1.1), False, False),  # slower indeed
        (speedup(1.2, label="failed check", noise=1.1), False, False),
        (speedup(None, noise=1.1), False, False),
    ],
)
def test_what_is_a_speed_up(found, faster, none) -> None:
    assert is_faster(found) is faster
    assert is_unclear(found) is none
    assert noise_words(found).startswith("unclear: ") == none


def test_what_stands_beside_a_speed_up() -> None:
    said = {
        "unclear: within noise (factor 2.98)": speedup(0.6, noise=2.98),
        "unclear: within noise (±3.1 %)": speedup(1.02, 0.3, noise=1.031),
        "unclear: may be chance": speedup(1.2, 0.3, noise=1.031),
        "noise ±3.1 %": speedup(1.2, noise=1.031),
        "noise ±31 %": speedup(2.0, noise=1.31),
        "noise factor 1.50": speedup(2.0, noise=1.5),
        "noise not measured": speedup(1.2, noise=None),
        "": speedup(None, noise=1.1),
    }
    assert {noise_words(found): found for found in said.values()} == said
    assert noise_words(speedup(1.2, None, noise=None)) == "unclear: may be chance"
    assert noise_words(speedup(1.0, label=AGAIN, noise=1.25)) == "noise measurement: ±25 %"
    assert warning(speedup(1.0, label=AGAIN)) == ""
    assert warning(speedup(1.0, label="failed check")) == "failed check"
    assert warning(speedup(1.0)) == ""


def test_noise_is_of_the_same_questions_and_the_same_baseline() -> None:
    entries = summary(a=both(speedup(1.2), speedup(1.2), speedup(1.2)))["methods"]
    warm = method("b", "none_warm", {"code": speedup(1.2), "overall": speedup(1.2)})
    rare = method("c", "none", {"rare": speedup(1.2), "overall": speedup(1.2)})
    add_noise([*entries, warm, rare])
    assert entries[1]["by_category"]["code"]["speedup"]["noise"] == pytest.approx(1.05)
    assert entries[1]["by_category"]["prose"]["speedup"]["noise"] == pytest.approx(1.1)
    assert entries[1]["speedup"]["noise"] == pytest.approx(1.02)
    assert warm["speedup"]["noise"] is None
    assert rare["by_category"]["rare"]["speedup"]["noise"] is None
    assert rare["speedup"]["noise"] == pytest.approx(1.02)


def test_each_category_has_its_own_recommendation() -> None:
    made = summary(
        a=both(speedup(2.0), speedup(1.05), speedup(1.5)),
        b=both(speedup(1.94), speedup(0.7), speedup(1.4)),  # as fast as a but for the noise
        c=both(speedup(1.5), speedup(1.3, label="not lossless"), speedup(1.45)),
    )
    assert best(made["methods"], "code") == ["a", "b"]
    (sentence,) = recommendations(made)
    nowhere = "no drafter for prose, where nothing is faster beyond chance and noise"
    assert sentence == (
        f"Recommended: a or b for code; {nowhere}; over all, a. Chosen among 9 cells by each cell's own interval: "
        "the best of many looks better than it is."
    )


def test_one_drafter_for_all_and_none_for_any() -> None:
    fast, slow = (both(*[speedup(ratio)] * 3) for ratio in (2.0, 1.01))
    (sentence,) = recommendations(summary(a=fast, b=slow))
    assert sentence.startswith("Recommended: a for code and prose. Chosen among 6 cells by")
    assert recommendations(summary(b=slow)) == [
        "Recommended: no drafter; nothing is faster than plain decoding beyond chance and this machine's noise."
    ]
    few = both(speedup(2.0, None), speedup(1.05), speedup(2.0))  # one prompt of code, and prose within the noise
    (sentence,) = recommendations(summary(a=few))
    assert sentence.startswith("Recommended: over all, a; too few prompts a category to say more. Chosen among 3 cells")
    many = {name: both(*[speedup(2.0)] * 3) for name in "abcde"}
    (sentence,) = recommendations(summary(**many))
    assert sentence.startswith("Recommended: e, d, c or 2 more for code and prose. Chosen among 15 cells")


def test_without_a_second_measurement_nothing_is_recommended() -> None:
    made = summary(a=both(*[speedup(2.0)] * 3))
    made["methods"] = made["methods"][:-1]
    assert recommendations(made) == []


def test_every_speed_up_has_its_words_beside_it() -> None:
    made = summary(
        good=both(speedup(2.0), speedup(1.05), speedup(1.5)),
        broken=both(*[speedup(3.0, label="failed check")] * 3),
    )
    text = markdown(made)
    good, broken, again = (
        line for line in text.splitlines() if line.startswith(("| good", "| broken", "| none_again"))
    )
    assert "**2.00x** [1.98, 2.02]<br>noise ±5.0 %<br>2.00 accepted" in good
    assert "| 1.05x [1.03, 1.07]<br>unclear: within noise (±10 %)<br>" in good
    assert "10/80/5/3/2" in good
    assert broken.count("failed check") == 3
    assert "**" not in broken + again
    assert "plain again" not in text
    assert "noise measurement: ±" in again
    assert "Note: a note" in text
    caveat = "An interval is of its cell alone, not corrected for the number of cells: the best of many looks better "
    caveat += "than it is."
    assert caveat in text
    console = Console(width=80, record=True)
    show_leaderboard(console, made)
    shown = console.export_text()
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "~1.05" in shown
    assert "2.00*" in shown
    assert shown.count("*") == 3  # code, over all, and the legend
    assert shown.count("failed") == 3
    assert "Recommended: good for code;" in shown
    assert caveat in " ".join(shown.split())


def test_the_headline_does_not_call_noise_a_speed_up() -> None:
    (sentence,) = headline(summary(a=both(*[speedup(1.015, 0.01)] * 3))["methods"])
    assert "no more than this machine's noise (±2.0 %)" in sentence
    (sentence,) = headline(summary(a=both(*[speedup(2.0)] * 3))["methods"])
    assert sentence.startswith("a decodes 2.00× as fast")
