"""`specdec bench retrieval`: what a lookup of drafter=retrieval costs, in datastores of several sizes.

The texts that are looked up are beginnings of the shipped prompts, which no shipped datastore holds. A file has been
read whole before, to check it, so that its pages are in memory.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from specdec import loading, registry
from specdec.drafters.retrieval import Retrieval
from specdec.experiments.bench.results import Json, origin
from specdec.experiments.data import load_questions
from specdec.experiments.training.datastore import DatastoreConfig, Progress, build, check

PASSES = 5


@dataclass(frozen=True)
class Settings:
    """Of `specdec bench retrieval`.

    Attributes:
        datastore: a shipped one's name, or a file.
        packages: installed distributions, with commas between: of their texts a second datastore is made, for this run.
        tokens: how many that one holds.
        lookups: how many are timed.
        target: whose tokenizer the datastores have.
        output: the file.
    """

    datastore: str = "tiny-datastore"
    packages: str = ""
    tokens: int = 10_000_000
    lookups: int = 2000
    target: str = "tiny"
    output: str = "outputs/bench/retrieval.json"


def measure_lookups(settings: Settings, progress: Progress) -> Json:
    """Everything, as it goes into the file.

    Args:
        progress: is told how much of the second datastore's texts has been read.

    Raises:
        ValueError: a datastore cannot be used or made, or has another tokenizer.
    """
    tokenizer = loading.load_tokenizer(settings.target)
    prompts = [tokenizer(question.turns[0])["input_ids"] for question in load_questions().items]
    with tempfile.TemporaryDirectory() as folder:
        files = [settings.datastore]
        if settings.packages:
            files.append(str(_build(settings, folder, progress)))
        rows = []
        for file in files:
            drafter = registry.build("drafter", "retrieval", path=file)
            if drafter.tokenizer != loading.fingerprint(tokenizer):
                raise ValueError(f"datastore {file!r} has another tokenizer than {settings.target}; build it again")
            texts = beginnings(prompts, settings.lookups, drafter.longest)
            rows.append(time_lookups(drafter, texts, len(tokenizer)))
    return {
        "what": f"microseconds a lookup, batch 1, of the thread's own time; each is the median of {PASSES} passes",
        "drafter": {k: v for k, v in registry.read_yaml("drafter", "retrieval").items() if isinstance(v, int)},
        "lookups": settings.lookups,
        "datastores": rows,
        "provenance": origin(settings),
    }


def _build(settings: Settings, folder: str, progress: Progress) -> Path:
    packages = settings.packages.split(",")
    config = DatastoreConfig(folder, settings.target, packages, most_tokens=settings.tokens)
    check(config)
    made = build(config, progress)
    if made.tokens < settings.tokens:
        raise ValueError(
            f"the texts of {settings.packages} have {made.tokens:,} tokens; expected {settings.tokens:,}: name more "
            "packages, or give tokens="
        )
    return made.file


def beginnings(prompts: Sequence[list[int]], count: int, longest: int) -> list[list[int]]:
    """The last `longest` tokens of `count` beginnings of prompts, spread evenly over all there are.

    Raises:
        ValueError: there are not so many.
    """
    places = [(prompt, end) for prompt in prompts for end in range(1, len(prompt) + 1)]
    if count > len(places):
        raise ValueError(f"lookups={count}; the shipped prompts have {len(places)} beginnings")
    chosen = (places[(2 * i + 1) * len(places) // (2 * count)] for i in range(count))
    return [prompt[max(0, end - longest) : end] for prompt, end in chosen]


def time_lookups(drafter: Retrieval, texts: Sequence[list[int]], vocab_size: int) -> Json:
    """Microseconds of finding a match, and of a whole lookup up to the tree."""
    found: list[list[float]] = [[] for _ in texts]
    whole: list[list[float]] = [[] for _ in texts]
    nodes = [0] * len(texts)
    for _ in range(PASSES):
        for i, text in enumerate(texts):
            started = time.thread_time_ns()
            drafter.datastore.find(text, drafter.shortest)
            between = time.thread_time_ns()
            nodes[i] = len(drafter.draft(text, vocab_size)[0]) - 1
            found[i].append((between - started) / 1000)
            whole[i].append((time.thread_time_ns() - between) / 1000)
    return {
        "tokens": drafter.datastore.tokens,
        "matched": round(sum(count > 0 for count in nodes) / len(texts), 4),
        "drafted": round(sum(nodes) / len(texts), 2),
        "find": _spread(found),
        "lookup": _spread(whole),
    }


def _spread(samples: Sequence[Sequence[float]]) -> dict[str, float]:
    ordered = sorted(map(statistics.median, samples))
    return {f"p{share}": round(ordered[-(-share * (len(ordered) - 1) // 100)], 1) for share in (50, 99)}


def show(measured: Json) -> Table:
    """For the terminal."""
    table = Table("tokens", "matched", "nodes", "find p50, p99", "lookup p50, p99", title=measured["what"])
    for row in measured["datastores"]:
        times = (f"{row[part]['p50']:.0f}, {row[part]['p99']:.0f}" for part in ("find", "lookup"))
        table.add_row(f"{row['tokens']:,}", f"{row['matched']:.0%}", f"{row['drafted']:.1f}", *times)
    return table
