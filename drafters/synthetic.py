"""Drafts that are right as often as they are told to be: to study what a step costs, not a method.

What is right comes from a decoding that has been done before: texts that are handed in (`specdec run` hands in those of
the baseline), or else the target's own greedy text, decoded token by token when a request enters, at its expense.
Nothing is read from the request that is being served, so a text that leaves its reference, as one that is sampled
leaves a greedy reference, is drafted wrongly from there on, in trees of the same size.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from specdec.core import TreePolicy
from specdec.drafters.text_drafter import TextDrafter
from specdec.target import Target
from specdec.tree.static import StaticTree, chain
from specdec.tree.token_tree import TokenTree

MOST_KNOWN = 4096  # references of the model that are kept


@dataclass(slots=True)
class Text:
    """A request beside its reference.

    Attributes:
        reference: prompt and continuation.
        key: of the prompt, for the draws.
        length: tokens of the text so far.
        last: its last token.
        lost: it has left the reference.
        begun: prompt, and most tokens of the text, until the first token is there.
    """

    reference: Sequence[int]
    key: int
    length: int
    last: int
    begun: tuple[list[int], int] | None
    lost: bool = False


class Synthetic(TextDrafter[Text]):
    """See the module.

    Args:
        acceptance: how often a node on the right path has a right child, by depth (the last number holds for all depths
            below), or one number. Draws depend on the seed, the prompt and the place alone.
        tree: a chain of 4, or another static tree. The right token is the first child.
        model: decodes what is not among the references: the target itself, for greedy decoding.
        references: whole texts, each a prompt and its continuation; of several for a prompt the last one counts.
        seed: of the draws.

    Raises:
        ValueError: a number is out of range, the tree is not static, or there are neither references nor a model.
    """

    synthetic: ClassVar[bool] = True

    def __init__(
        self,
        acceptance: float | Sequence[float] = 0.7,
        tree: TreePolicy | None = None,
        model: PreTrainedModel | None = None,
        references: Sequence[Sequence[int]] | None = None,
        seed: int = 0,
    ):
        policy = tree if tree is not None else chain(4)
        self.acceptance = tuple(acceptance) if isinstance(acceptance, Sequence) else (acceptance,)
        if not self.acceptance or not all(0 <= a <= 1 for a in self.acceptance):
            raise ValueError(
                f"synthetic.acceptance is {acceptance!r}; expected numbers from 0 to 1, one for each depth"
            )
        if not isinstance(policy, StaticTree):
            raise ValueError(f"synthetic has no probabilities to grow {policy!r} by; give tree=chain or tree=static")
        if model is None and references is None:
            raise ValueError("synthetic needs the target as `model`, or `references`: prompts with their continuations")
        super().__init__(policy.max_nodes)
        self.model, self.references, self.seed = model, list(references or ()), seed
        self.paths = policy.paths
        places = {path: j for j, path in enumerate(((), *policy.paths))}
        self._parents = [-1, *(places[path[:-1]] for path in policy.paths)]
        self._known: dict[tuple[int, ...], list[int]] = {}

    def read(self, prompts: list[list[int]], max_length: int) -> list[Text]:
        """Find or decode the references.

        Raises:
            ValueError: no reference begins with a prompt, and there is no model.
        """
        found = [self._find(prompt) for prompt in prompts]
        missing = [prompt for prompt, reference in zip(prompts, found, strict=True) if reference is None]
        if missing and self.model is None:
            raise ValueError(
                f"none of the {len(self.references)} references of drafter synthetic begins with the prompt "
                f"{missing[0][:8]}... ({len(missing[0])} tokens); add its whole text to `references`"
            )
        decoded = iter(self._decode(missing, max_length))
        references = [next(decoded) if reference is None else reference for reference in found]
        return [
            Text(ref, hash(tuple(p)), len(p), p[-1] if p else 0, (p, max_length))
            for p, ref in zip(prompts, references, strict=True)
        ]

    def _find(self, prompt: list[int]) -> Sequence[int] | None:
        return next((text for text in reversed(self.references) if list(text[: len(prompt)]) == prompt), None)

    def _decode(self, prompts: list[list[int]], max_length: int) -> list[list[int]]:
        known = self._known
        new = [p for p in prompts if len(known.get(tuple(p), ())) < max_length]
        if len(known) + len(new) > MOST_KNOWN:
            known.clear()
            new = prompts
        if new:
            known.update(zip(map(tuple, new), greedy(self.model, new, max_length), strict=True))
        return [known[tuple(p)] for p in prompts]

    def append(self, text: Text, tokens: Sequence[int]) -> None:
        """Compare with the reference. Where the first token is not its next one, perhaps because a user wrote it (in
        flight the last token of a prompt comes so), look for one that goes on with it."""
        if text.begun is not None and text.reference[text.length : text.length + 1] != [tokens[0]]:
            prompt, max_length = text.begun
            begun = [*prompt, tokens[0]]
            text.reference = self._find(begun) or (self._decode([begun], max_length)[0] if self.model else [])
        text.begun = None
        beside = list(text.reference[text.length : text.length + len(tokens)])
        text.lost = text.lost or beside != list(tokens)
        text.length += len(tokens)
        text.last = tokens[-1]

    def draft(self, text: Text, vocab_size: int) -> tuple[list[int], list[int]]:
        """As deep as the draw says, first children carry the reference; all others carry something else."""
        right = [] if text.lost else text.reference[text.length :]
        draw = random.Random(hash((self.seed, text.key, text.length)))
        depth = 0
        while draw.random() < self.acceptance[min(depth, len(self.acceptance) - 1)] and depth < len(right):
            depth += 1
        tokens = [text.last]
        for path in self.paths:
            true = right[len(path) - 1] if len(path) <= len(right) else text.last
            wrong = (true + 1 + path[-1] % (vocab_size - 1)) % vocab_size
            tokens.append(true if len(path) <= depth and not any(path) else wrong)
        return tokens, self._parents


@torch.inference_mode()
def greedy(model: PreTrainedModel | None, prompts: list[list[int]], max_length: int) -> list[list[int]]:
    """Every prompt with its greedy continuation, `max_length` tokens in all, one token a step."""
    assert model is not None
    target = Target(model)
    target.open(len(prompts), max_length, 1)
    logits = target.prefill(list(range(len(prompts))), prompts).logits  # [B, 1, V]
    found = [logits[:, 0].argmax(-1)]
    for _ in range(max_length - min(map(len, prompts)) - 1):
        room = target.lengths < max_length - 1
        tree = TokenTree.roots(torch.where(room, found[-1], -1))
        found.append(target.verify(tree).logits[:, 0].argmax(-1))
        target.cache.append(torch.arange(len(prompts), device=target.device), room.to(torch.int32))
    new = torch.stack(found, 1).tolist()
    return [(p + tokens)[:max_length] for p, tokens in zip(prompts, new, strict=True)]
