"""Steps of the real loop with a random model, against what their reads and products must take at least.

What it covers: chains, greedy, no draft cost. The text means nothing, so the draft is any chain and the rule accepts a
set number of its nodes. The contexts' keys and values are set by hand, there is no prefill; all else is
`specdec.decode.Decoding`, with its records, events and lists.
"""

from __future__ import annotations

import time

import torch
from transformers import LlamaForCausalLM

from specdec.capture import CapturedStep
from specdec.decode import Decoding
from specdec.experiments.bench.clock import quantiles
from specdec.experiments.bench.cost import step_cost
from specdec.experiments.bench.grid import StepCell
from specdec.experiments.bench.rates import Rates
from specdec.experiments.bench.results import Json
from specdec.experiments.bench.stand_ins import Accepting, AnyChain, fill
from specdec.metrics import DecodingStats
from specdec.request import Generation, Request
from specdec.request_stats import RequestStats
from specdec.step import Step
from specdec.target import Target

ACCEPTED = 3  # nodes a step, the root included
WARM, STEPS, ROUNDS = 4, 24, 5
TIME, HOST = 1.15, 0.03  # targets: step over floor, and the host's share
HEAD_START = 4_000_000  # cycles, 2 ms: a GPU's wait in which the host launches a step whole


@torch.inference_mode()
def measure_step(model: LlamaForCausalLM, cell: StepCell, rates: Rates | None) -> Json:
    """The entry of a cell.

    Returns:
        `red` names what is not as it should be: the committed lengths, the texts. With rates: `seconds` of a step of
        the loop on the host's clock (quantiles), `gpu_seconds` of a step alone between two events (p50), `floor` and
        which of `bytes` and `flops` makes it, `over_floor`, and `host_share` = 1 - gpu_seconds / seconds: the part of a
        step's time in which the GPU waits for the host, or copies records to it. A little below 0 is noise.
    """
    accepted = min(ACCEPTED, cell.nodes)
    decoding = _begin(model, cell, accepted)
    loop: list[float] = []
    alone: list[float] = []
    _run(decoding, cell.context, WARM)
    for _ in range(ROUNDS if rates else 1):
        before = [len(generation.ids) for generation in decoding.slots if generation]
        loop.append(_run(decoding, cell.context, STEPS))
        grown = decoding.run.target.lengths - cell.context
        written = [len(generation.ids) for generation in decoding.slots if generation]
        red = ["lengths"] * bool((grown != accepted * STEPS).any())
        red += ["texts"] * any(b - a != accepted * STEPS for a, b in zip(before, written, strict=True))
        if red:
            return {"cell": vars(cell), "red": red}
        decoding.run.target.lengths.fill_(cell.context)
        alone += [_alone(decoding.run) for _ in range(STEPS)]
    return {"cell": vars(cell), "red": [], **(_tell(model, cell, rates, loop, alone) if rates else {})}


def _begin(model: LlamaForCausalLM, cell: StepCell, accepted: int) -> Decoding:
    """Requests in all slots, as if they had been admitted, that never end."""
    kind = CapturedStep if model.device.type == "cuda" else Step
    longest = cell.context + accepted * (STEPS + 1)
    run = kind(Target(model), AnyChain(cell.nodes), Accepting(accepted), cell.batch, longest)
    fill(run.target.cache)
    decoding = Decoding(run, DecodingStats())
    for slot in range(cell.batch):
        request = Request([0], max_new_tokens=1 << 60)
        decoding.slots[slot] = Generation(slot, request, [0], RequestStats(prompt_tokens=1))
        run.sampler.start(slot, request.sampling, [0])
    run.roots.zero_()
    return decoding


def _run(decoding: Decoding, context: int, steps: int) -> float:
    """Seconds per step of the loop. Where the host reads late, the first read is of the run before."""
    device = decoding.run.target.device
    decoding.run.target.lengths.fill_(context)
    _wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        decoding.step()
        decoding.clock.skip()  # as `decode` does
    _wait(device)
    return (time.perf_counter() - started) / steps


def _alone(run: Step) -> float:
    """Seconds of one step without the loop, on a GPU by its own clock, the launch not in it."""
    slots = range(run.capacity)
    device = run.target.device
    _wait(device)
    if device.type != "cuda":
        started = time.perf_counter()
        run(slots, _unheard)
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(HEAD_START)
    begin.record()
    run(slots, _unheard)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _tell(model: LlamaForCausalLM, cell: StepCell, rates: Rates, loop: list[float], alone: list[float]) -> Json:
    needs = step_cost(model, cell)
    parts = {"bytes": needs.bytes / rates.copy_bandwidth, "flops": needs.flops / rates.matmul_rate}
    binds = max(parts, key=lambda name: parts[name])
    seconds, gpu = quantiles(loop), quantiles(alone).p50
    return {
        "seconds": list(seconds), "gpu_seconds": gpu, "floor": parts[binds], "binds": binds,
        "over_floor": seconds.p50 / parts[binds], "host_share": 1 - gpu / seconds.p50,
    }  # fmt: skip


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _unheard(phase: str) -> None:
    """No clock."""
