"""What the trained drafter does in the real loop, with the tree of its yaml."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from transformers import PreTrainedModel

from specdec import registry
from specdec.engine import Engine
from specdec.experiments.training.heads.sequences import Sequences
from specdec.inputs import eos_ids
from specdec.metrics import DecodingStats
from specdec.request import Request

PROMPTS = 16


def decode_held_out(
    model: PreTrainedModel, drafter: Mapping[str, Any], held_out: Sequences, allow_targets: Collection[str] = ()
) -> float:
    """Pooled mean accepted length, greedy, over the first held-out prompts, as long as the target's own texts were.

    Args:
        drafter: its yaml, with the trained head.
    """
    made = registry.build("drafter", drafter, allow_targets=allow_targets)
    engine = Engine(model, made, None, "coupled")
    requests = []
    for row in range(min(PROMPTS, len(held_out))):
        prompt, length = int(held_out.prompt_lengths[row]), int(held_out.lengths[row])
        ids = held_out.row(row)[:prompt]
        requests.append(Request(ids, length - prompt, eos=eos_ids(model, None)))
    stats = DecodingStats()
    for _ in engine.run(requests, stats):
        pass
    return float(stats.mean_accepted_length_pooled)
