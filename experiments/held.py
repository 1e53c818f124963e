"""What a run's methods are held against: the machine, and what its target and drafters read and compute."""

from __future__ import annotations

import json
from pathlib import Path

from specdec.experiments import roofline
from specdec.experiments.bench.machine import measure_machine
from specdec.experiments.bench.results import write
from specdec.experiments.config import RunConfig
from specdec.experiments.conversation import encode
from specdec.experiments.data import Questions
from specdec.experiments.machine_file import MEASURE, Machine, read_machine
from specdec.experiments.measure import tell_reference
from specdec.experiments.weight_reads import Reads, drafter_reads
from specdec.experiments.workbench import Bench

FILE = "machine.json"  # in the run's directory, where it is measured
SECONDS = 5.0  # of timing, about
TOKENS = 16  # of a text, to see what drafters read


def given_machine(config: RunConfig) -> Machine | None:
    """Of the file that was given; None where there is none, or it is to be measured.

    Raises:
        ValueError: it cannot be read.
    """
    return None if config.machine in (None, MEASURE) else read_machine(Path(str(config.machine)))


def machine_of(config: RunConfig, bench: Bench, directory: Path) -> Machine | None:
    """Given, or measured now and kept in the run's directory: a run that goes on takes what it began with.

    Raises:
        ValueError: the file is of another machine, or cannot be read; or there is too little memory to measure.
    """
    machine = given_machine(config)
    if config.machine == MEASURE:
        file = directory / FILE
        if not file.exists():
            write(measure_machine(bench.device, bench.model.dtype, SECONDS), file)
        machine = read_machine(file)
    if machine is not None:
        machine.check(bench.device, bench.dtype)
    return machine


def roofline_of(config: RunConfig, bench: Bench, questions: Questions, machine: Machine) -> roofline.Roofline:
    """What drafters read is counted now, while they draft for the first question."""
    tokens = min(config.measure.max_new_tokens, TOKENS)
    prompt, _ = encode(bench.tokenizer, questions.items[0].turns, [], bench.room(tokens))
    found: dict[str, Reads | None] = {}
    drafts: dict[str, Reads] = {}
    for method in (m for m in config.methods if m.backend is None):
        kind = json.dumps([method.drafter, method.tree], sort_keys=True)
        if kind not in found:
            engine = bench.make(method, None if config.exact else "naive")
            tell_reference(engine.drafter, prompt)
            found[kind] = drafter_reads(engine, prompt, tokens, method.sampling)
        if (reads := found[kind]) is not None:
            drafts[method.name] = reads
    attention = roofline.attention_flops(next(iter(bench.engines.values())))
    return roofline.Roofline(bench.cost, attention, machine.bandwidth, machine.flops[bench.dtype], drafts)
