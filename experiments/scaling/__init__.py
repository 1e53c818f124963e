"""How the cost of a step grows with context, tree, batch and vocabulary: `specdec run experiment=scaling`."""

from specdec.experiments.scaling.command import run_scaling

__all__ = ["run_scaling"]
