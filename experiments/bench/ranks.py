"""How often the child of each rank is the accepted one, measured with trees of one level at every place of a text."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec import registry
from specdec.acceptance.coupled import Coupled
from specdec.core import Verdict
from specdec.engine import Engine, serve
from specdec.request import Request
from specdec.sampling import SamplingParams, StepSampling
from specdec.tree.static import StaticTree
from specdec.tree.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class OneToken:
    """The coupled rule, but a step emits one token only: so every place of the text is a root once, and none is left
    out for having been easy to guess.

    Attributes:
        counts: `[K + 1]` int64, steps in which the root's child of that rank carried the target's token; none at K.
    """

    counts: Tensor
    lossless: ClassVar[bool] = True
    shared_noise: ClassVar[bool] = True

    def __call__(self, tree: TokenTree, logits: Tensor, sampling: StepSampling) -> Verdict:
        """See AcceptanceRule; of a tree of one level, node k + 1 is the child of rank k."""
        verdict = Coupled()(tree, logits, sampling)
        none = len(self.counts) - 1
        hit = verdict.num_accepted > 1
        rank = torch.where(hit, verdict.path[:, min(1, verdict.path.shape[1] - 1)] - 1, none)  # [B]
        self.counts.index_add_(0, rank, (tree.sizes > 1).long())
        return Verdict(verdict.path[:, :1], verdict.num_accepted.clamp_max(1), verdict.emitted(tree)[:, 0])


def takes_trees(drafter: Mapping[str, Any]) -> bool:
    """Whether the drafter of this yaml has the setting `tree`."""
    return "tree" in inspect.signature(registry.find_target(drafter["_target_"])).parameters


def acceptance_by_rank(
    model: PreTrainedModel,
    drafter: Mapping[str, Any],
    prompts: Sequence[list[int]],
    tokens: int,
    ranks: int,
    sampling: SamplingParams,
) -> dict[str, Any]:
    """`acceptance`, the share of places by rank, and `places`, how many there were.

    Raises:
        ValueError: the drafter made no tree with children, or the texts are too long for the target.
    """
    rule = OneToken(torch.zeros(ranks + 1, dtype=torch.int64, device=model.device))
    engine = Engine(model, dict(drafter), StaticTree([[rank] for rank in range(ranks)]), rule)
    room = (engine.target.max_positions or 1 << 30) - tokens
    serve(engine, [Request(prompt[-room:], tokens, sampling) for prompt in prompts])
    counts = rule.counts.tolist()
    if not sum(counts):
        raise ValueError("the drafter proposed no children in any step; no acceptance can be measured with it")
    return {"acceptance": [round(count / sum(counts), 4) for count in counts[:-1]], "places": sum(counts)}
