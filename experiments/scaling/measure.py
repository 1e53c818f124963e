"""Steps of the loop timed along four axes; all points of an axis by turns, a round after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from specdec.experiments.bench.clock import Turn, by_turns, quantiles
from specdec.experiments.bench.curve import verify_turn
from specdec.experiments.scaling.fit import fit
from specdec.experiments.validation import check_above_0, check_counts, check_keys, check_whole

Json = dict[str, Any]
AXES = {"contexts": "context", "nodes": "nodes", "batches": "batch", "vocabularies": "vocabulary"}
LEAST_POINTS = 3


@dataclass(frozen=True, slots=True)
class Settings:
    """Of `scaling`, see conf/experiment/scaling.yaml.

    Attributes:
        contexts: committed tokens of each sequence.
        nodes: of each tree, a chain: the shape changes nothing but the mask.
        batches: sequences in a step.
        vocabularies: tokens that there are: models of the target's architecture with random weights.
        at: context, nodes and batch where they are not what varies.
        seconds: of timing, an axis.
        seed: of the bootstrap.
    """

    contexts: tuple[int, ...]
    nodes: tuple[int, ...]
    batches: tuple[int, ...]
    vocabularies: tuple[int, ...]
    at: dict[str, int]
    seconds: float
    seed: int = 0

    @staticmethod
    def parse(raw: Any) -> Settings:
        """Look over the setting. An empty axis is left out.

        Raises:
            ValueError: something is wrong with it.
        """
        names = {field.name for field in fields(Settings)}
        check_whole(raw, names, "scaling", optional={"seed"})
        axes: Json = {}
        for axis in AXES:
            values = raw[axis]
            if not isinstance(values, list) or (values and len(set(values)) < LEAST_POINTS):
                raise ValueError(
                    f"scaling.{axis} is {values!r}; expected {LEAST_POINTS} different whole numbers at least, or []"
                )
            for value in values:
                check_counts({f"scaling.{axis}": value})
            axes[axis] = tuple(sorted(set(values)))
        if not any(axes.values()):
            raise ValueError("scaling has no axis; give values of contexts, nodes, batches or vocabularies")
        check_keys(raw["at"], {"context", "nodes", "batch"}, "setting of scaling.at")
        check_counts({f"scaling.at.{name}": raw["at"].get(name) for name in ("context", "nodes", "batch")})
        seconds = raw["seconds"]
        check_above_0("scaling.seconds", seconds)
        check_counts({"scaling.seed": raw.get("seed", 0)}, 0)
        return Settings(**axes, at=dict(raw["at"]), seconds=float(seconds), seed=raw.get("seed", 0))


def measure_scaling(
    settings: Settings, model: PreTrainedModel, tell: Callable[[str], None] = lambda axis: None
) -> dict[str, Json]:
    """By axis: its points, and the laws through them.

    Args:
        tell: called with every axis that is done.

    Raises:
        ValueError: a context is longer than the target's positions, or the model cannot be used.
    """
    found: dict[str, Json] = {}
    for axis, name in AXES.items():
        values = getattr(settings, axis)
        if not values:
            continue
        with torch.inference_mode():
            turns = {str(value): _turn(model, settings.at, name, value) for value in values}
            samples = by_turns(turns, settings.seconds)
        points = [
            {"value": value, "seconds": quantiles(samples[str(value)])._asdict(), "samples": samples[str(value)]}
            for value in values
        ]
        rounds = [point["samples"] for point in points]
        found[name] = {"points": points, **fit(values, rounds, settings.seed)}
        tell(name)
    return found


def _turn(model: PreTrainedModel, at: dict[str, int], name: str, value: int) -> Turn:
    """Samples of a step that differs from `at` in one thing."""
    here = at | {name: value}
    chosen = with_vocabulary(model, value) if name == "vocabulary" else model
    return verify_turn(chosen, here["nodes"], here["batch"], here["context"])


def with_vocabulary(model: PreTrainedModel, size: int) -> PreTrainedModel:
    """A model of the same architecture, dtype and device with random weights and so many tokens."""
    config = copy.deepcopy(model.config)
    inner = config.get_text_config()
    inner.vocab_size = size
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):  # which may lie beyond it
        setattr(inner, name, None)
    with torch.device(model.device):
        made: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    return made.eval()
