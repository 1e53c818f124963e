"""`curve: measure`: a run measures what steps cost on its machine before it begins, by `specdec bench curve`'s code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from specdec.experiments.bench.curve import NODES, STEPS, step_costs
from specdec.experiments.machine_file import MEASURE
from specdec.experiments.methods import Method
from specdec.experiments.predict import CURVE, Settings
from specdec.experiments.records import write_text
from specdec.experiments.workbench import Bench


def write_curve(
    bench: Bench, around: Method | None, texts: Sequence[Sequence[int]], context: int, seconds: float, directory: Path
) -> Path:
    """Measure what `around`'s drafter and steps of the target cost on this machine, as `specdec bench curve` does;
    a curve that is there is left as it is.

    Args:
        around: None: no draft cost.
        texts: token ids; each is repeated up to the context.
        context: committed tokens; fewer where the target has no positions for them and drafts.
        seconds: of timing.
    """
    file = directory / CURVE
    if not file.exists():
        engine = None if around is None else bench.make(around)
        if limit := next(iter(bench.engines.values())).target.max_positions:
            behind = max(NODES[-1], STEPS * engine.drafter.needs.max_nodes if engine else 0)
            context = max(min(context, limit - 1 - behind), 1)
        long = [(list(ids) * (-(-context // len(ids))))[:context] for ids in texts]
        found = step_costs(bench.model, 1, context, seconds, engine, long)
        write_text(file, json.dumps(found, indent=1) + "\n")
    return file


def with_measured_curve(
    settings: Settings, bench: Bench, methods: Sequence[Method], prompts: Sequence[str], tokens: int, directory: Path
) -> Settings:
    """With the curve's file in place of MEASURE: measured around the method with a tree of fixed shape that has the
    most levels, and of these the fewest nodes, or any that drafts, halfway through answers of so many `tokens`."""
    if settings.curve != MEASURE:
        return settings
    shapes = bench.shapes
    ours = [m for m in methods if m.baseline and not m.is_plain and m.name in bench.engines]

    def levels(method: Method) -> tuple[int, int]:
        paths = shapes.get(method.name, ())
        return max(map(len, paths), default=0), -len(paths)

    around = max(ours, key=levels, default=None)
    room = bench.room(tokens)
    texts = [bench.tokenizer(prompt)["input_ids"][-room:] for prompt in prompts]  # all of it where room is 0
    texts = [ids for ids in texts if ids]
    context = round(sum(map(len, texts)) / len(texts) + tokens / 2)
    return replace(settings, curve=str(write_curve(bench, around, texts, context, settings.curve_seconds, directory)))
