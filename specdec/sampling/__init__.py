"""Sampling: the only place where temperature, top-k, top-p, min-p, penalties, processors and noise live.

`SamplingParams` is what a user asks for. `Sampler` holds it for every slot, with what processors need of the text so
far. `StepSampling` is the sampler at one step: rules draw the target's tokens with it, drafters theirs (`DraftNoise`).
"""

from specdec.sampling.draft import DraftNoise
from specdec.sampling.params import SamplingParams, as_params
from specdec.sampling.sampler import Sampler
from specdec.sampling.step import StepSampling

__all__ = ["DraftNoise", "Sampler", "SamplingParams", "StepSampling", "as_params"]
