"""What followed this text's last tokens in a corpus: a suffix array of it is searched, continuations become a tree.

He et al., REST, arXiv 2311.08252.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specdec.drafters.datastore import Datastore
from specdec.drafters.text_drafter import TextDrafter
from specdec.loading import ZOO
from specdec.tree.likeliest import by_frequency


class Retrieval(TextDrafter[list[int]]):
    """See the module. A text is its last `longest` tokens.

    Args:
        path: a datastore, made with the target's tokenizer by `specdec train experiment=train_retrieval`; or a shipped
            one's name.
        longest, shortest: tokens of the text that are looked up: the longest suffix that occurs, or none.
        length: tokens of a continuation.
        samples: places that are looked at, spread evenly over all that match.
        max_nodes: most nodes of a tree, the root included.

    Raises:
        ValueError: a number is out of range, or the datastore cannot be used (see Datastore).
    """

    def __init__(
        self,
        path: str | Path,
        longest: int = 16,
        shortest: int = 2,
        length: int = 10,
        samples: int = 32,
        max_nodes: int = 16,
    ):
        if not 1 <= shortest <= longest or length < 1 or samples < 1 or max_nodes < 2:
            raise ValueError(
                "retrieval needs 1 <= shortest <= longest, length >= 1, samples >= 1 and max_nodes >= 2; "
                f"got {shortest}, {longest}, {length}, {samples} and {max_nodes}"
            )
        super().__init__(max_nodes)
        self.longest, self.shortest, self.length, self.samples = longest, shortest, length, samples
        shipped = ZOO / path / "datastore.bin"
        self.datastore = Datastore(shipped if shipped.is_file() else path)
        self.vocab_size, self.tokenizer = self.datastore.vocab_size, self.datastore.tokenizer

    def read(self, prompts: list[list[int]], max_length: int) -> list[list[int]]:
        """The ends of the prompts."""
        return [prompt[-self.longest :] for prompt in prompts]

    def append(self, text: list[int], tokens: Sequence[int]) -> None:
        """What is too far back is forgotten."""
        text.extend(tokens)
        del text[: -self.longest]

    def draft(self, text: list[int], vocab_size: int) -> tuple[list[int], list[int]]:
        """The most frequent continuations; tokens that only the tokenizer knows end one."""
        known = [min(token, self.vocab_size - 1) for token in text]  # ids that only pad the target's vocabulary
        match = self.datastore.find(known, self.shortest)
        paths = self.datastore.continuations(match, self.length, self.samples)
        if vocab_size < self.vocab_size:
            paths = [path[: next((i for i, t in enumerate(path) if t >= vocab_size), None)] for path in paths]
        return by_frequency(text[-1], paths, self.needs.max_nodes)
