"""`specdec bench curve`: what a step of the loop costs by the nodes it verifies, on this machine, with this target.

All sizes are timed by turns and compared within a round, so that what slows the machine down slows all of them down.
So are steps of plain decoding of several sequences, which cost more than as many rows of one.
Given a drafter, the cost of a level of its drafts is measured in the same rounds, and how often the child of each rank
is the accepted one: what `tree=sequoia` and `drafter=adaptive` want to know.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from transformers import PreTrainedModel

from specdec import loading, registry
from specdec.acceptance.coupled import Coupled
from specdec.capture import CapturedStep
from specdec.engine import Engine
from specdec.experiments.bench.clock import Turn, by_turns, host_turn, ratios
from specdec.experiments.bench.ranks import acceptance_by_rank, takes_trees
from specdec.experiments.bench.results import Json, origin
from specdec.experiments.bench.stand_ins import AnyChain, fill
from specdec.experiments.data import load_questions
from specdec.sampling import SamplingParams
from specdec.step import Step, unheard
from specdec.target import Target

NODES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
SEQUENCES = (1, 2, 4, 8, 16, 32)  # of steps of plain decoding
STEPS = 6  # of a sample of the drafter, or of the target on a GPU


@dataclass(frozen=True)
class Settings:
    """Of `specdec bench curve`.

    Attributes:
        target: a model's name or folder.
        drafter: a yaml's name, or a draft model's name or folder; without one, no draft cost and no acceptance.
        output: the file.
        batch: sequences in a step, whose nodes and drafts are measured.
        context: committed tokens of each.
        seconds: of timing.
        prompts, tokens: held-out texts for the acceptance, and how much of each is decoded.
        ranks: children that are drafted for it.
        temperature: at which it is measured.
        device: auto, or torch's name.
    """

    target: str = "tiny"
    drafter: str = ""
    output: str = "outputs/bench/curve.json"
    batch: int = 1
    context: int = 256
    seconds: float = 30.0
    prompts: int = 20
    tokens: int = 64
    ranks: int = 8
    temperature: float = 0.0
    device: str = "auto"


def measure_curve(settings: Settings) -> Json:
    """Everything, as it goes into the file.

    Raises:
        ValueError: the target, the drafter or the context cannot be used.
    """
    model = loading.load_model(settings.target, settings.device)
    drafter = drafter_spec(settings.drafter) if settings.drafter else None
    engine = None if drafter is None else Engine(model, drafter, None, "coupled")
    texts = [] if drafter is None else prompts(settings, settings.context)
    found = step_costs(model, settings.batch, settings.context, settings.seconds, engine, texts)
    if drafter is not None:
        found["drafter"] = settings.drafter
        if takes_trees(drafter):
            sampling = SamplingParams(temperature=settings.temperature)
            texts = prompts(settings, 0)
            found |= acceptance_by_rank(model, drafter, texts, settings.tokens, settings.ranks, sampling)
    return {"target": settings.target, **found, "provenance": origin(settings)}


def step_costs(
    model: PreTrainedModel,
    batch: int,
    context: int,
    seconds: float,
    engine: Engine | None = None,
    texts: Sequence[list[int]] = (),
) -> Json:
    """What steps cost by their nodes, and by their sequences where nothing is drafted; and with an engine what a level
    of its drafts does, after `texts`.

    Args:
        batch: sequences in a step, whose nodes and drafts are measured.
        context: committed tokens of each.
        seconds: of timing.
        texts: token ids, `context` of each; they take turns.

    Raises:
        ValueError: the target, the drafter or the context cannot be used.
    """
    turns = {str(nodes): verify_turn(model, nodes, batch, context) for nodes in NODES}
    plain = {count: "1" if count == batch else f"plain decoding of {count}" for count in SEQUENCES}
    turns |= {name: verify_turn(model, 1, count, context) for count, name in plain.items() if name not in turns}
    found: Json = {}
    if engine is not None:
        turns["drafter"] = draft_turn(engine, [texts[i % len(texts)] for i in range(batch)])
    with torch.inference_mode():
        samples = by_turns(turns, seconds)
    relative = {name: ratios(samples["1"], taken) for name, taken in samples.items()}
    if engine is not None:
        found["levels"] = getattr(getattr(engine.drafter, "policy", None), "depth", 1)
        found["draft_cost"] = round(relative["drafter"].p50 / found["levels"], 4)
    sizes = [relative[str(nodes)] for nodes in NODES]
    return {
        "what": "cost of a step of the loop by the nodes of each tree, over a step of one node in the same round",
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "batch": batch,
        "context": context,
        "nodes": list(NODES),
        "cost": [round(size.p50, 4) for size in sizes],
        "p20": [round(size.p20, 4) for size in sizes],
        "p80": [round(size.p80, 4) for size in sizes],
        "sequences": list(plain),
        "sequences_cost": [round(relative[name].p50, 4) for name in plain.values()],
        "rounds": len(samples["1"]),
        **found,
    }


def drafter_spec(name: str) -> Json:
    """The yaml of that name; for a model's name or folder that of `draft_model` with this model."""
    if not loading.names_model(name):
        return registry.read_yaml("drafter", name)
    spec = registry.read_yaml("drafter", "draft_model")
    return spec | {"model": spec["model"] | {"name": name}}


def show(measured: Json) -> Table:
    """For the terminal."""
    what = f"{measured['target']}, {measured['dtype']}, batch {measured['batch']}, context {measured['context']}"
    table = Table("nodes", "cost", "p20 to p80", title=f"cost of a step over plain decoding: {what}")
    for nodes, cost, low, high in zip(*(measured[name] for name in ("nodes", "cost", "p20", "p80")), strict=True):
        table.add_row(str(nodes), f"{cost:.3f}", f"{low:.3f} to {high:.3f}")
    if "draft_cost" in measured:
        table.add_row(f"a level of {measured['drafter']}", f"{measured['draft_cost']:.3f}", "")
    if "acceptance" in measured:
        table.caption = "accepted by rank: " + ", ".join(f"{chance:.3f}" for chance in measured["acceptance"])
    return table


def prompts(settings: Settings, length: int) -> list[list[int]]:
    """Token ids of held-out texts; each repeated up to `length` tokens if that is not 0."""
    tokenizer = loading.load_tokenizer(settings.target)
    texts = [tokenizer(q.turns[0])["input_ids"] for q in load_questions(limit=settings.prompts).items]
    return [(ids * (-(-length // len(ids))))[:length] for ids in texts] if length else texts


@torch.inference_mode()
def verify_turn(model: PreTrainedModel, nodes: int, batch: int, context: int) -> Turn:
    """Samples of the loop's step: verify, accept and commit, with chains that cost nothing to draft."""
    kind = CapturedStep if model.device.type == "cuda" else Step
    step = kind(Target(model), AnyChain(nodes), Coupled(), batch, context + 1)
    fill(step.target.cache)
    for slot in range(batch):
        step.sampler.start(slot, SamplingParams(), [0])
    step.roots.zero_()

    def call() -> None:
        step.target.lengths.fill_(context)
        step(range(batch), unheard)

    if model.device.type == "cpu":
        return host_turn([call])
    for _ in range(3):
        call()

    def turn() -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(STEPS):
            call()
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / STEPS

    return turn


@torch.inference_mode()
def draft_turn(engine: Engine, texts: list[list[int]]) -> Turn:
    """Samples of propose and observe in steps of the loop after these texts, which begin anew every time."""
    room = len(texts[0]) + STEPS * engine.drafter.needs.max_nodes
    run = Step(engine.target, engine.drafter, engine.rule, len(texts), room)
    slots, device = list(range(len(texts))), engine.target.device
    clock = time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def turn() -> float:
        run.reset()
        for slot in slots:
            run.sampler.start(slot, SamplingParams(), texts[slot])
        prefill = run.target.prefill(slots, texts)
        engine.drafter.start(run.state, slots, texts, prefill)
        run.roots.copy_(prefill.logits[:, 0].argmax(-1))
        spent, last = 0.0, clock()

        def lap(phase: str) -> None:
            nonlocal spent, last
            if device.type != "cpu":
                torch.cuda.synchronize(device)
            now = clock()
            spent, last = spent + (now - last) * (phase == "draft"), now

        for _ in range(STEPS):
            run(slots, lap)
        return spent / STEPS

    turn()
    return turn
