"""A step that is watched: what was proposed, what the target made of it, what was accepted, and when.

The parts are wrapped and handed to the loop like any others, so that a step that nobody watches knows nothing of this.
Watching reads to the host and takes time, which the clock cuts out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specdec.chunks import Chunk
from specdec.core import Verdict
from specdec.engine import Engine
from specdec.experiments.trace.record import Span, TracedStep
from specdec.sampling import DraftNoise, StepSampling
from specdec.step import Lap, Step
from specdec.tree.token_tree import TokenTree

Path = tuple[int, ...]  # drafted tokens from below the root to a node, its own included


class Clock:
    """Seconds since it was made, without those in which it was stopped. On a GPU it waits for what was launched."""

    def __init__(self, device: torch.device):
        self._device, self._cut, self._began = device, 0.0, time.perf_counter()
        self._last, self.spans = 0.0, list[Span]()

    def now(self) -> float:
        """Seconds."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - self._began - self._cut

    def begin(self) -> None:
        """A step begins."""
        self.spans, self._last = [], self.now()

    def lap(self, phase: str) -> None:
        """What happened since the last lap was `phase`."""
        now = self.now()
        self.spans.append(Span(phase, self._last, now))
        self._last = now

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens within does not count."""
        before = self.now()
        yield
        self._cut += self.now() - before


class Through:
    """A part that is watched; what is not watched is its own."""

    def __init__(self, part: Any):
        self.part = part

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)


class WatchedNoise(DraftNoise):
    """Remembers what drafters say about the tokens after each node of the first slot: see `heard`."""

    def __init__(self, noise: DraftNoise, clock: Clock, heard: dict[Path, Tensor]):
        super().__init__(noise._step, noise.shared)
        self._clock, self._heard = clock, heard

    @property
    def reads_paths(self) -> bool:
        """See DraftNoise: what is heard is remembered by them."""
        return True

    def choose(self, logits: Tensor, depth: int, count: int, path: Tensor, *settings: Any, **named: Any) -> Any:
        """See DraftNoise."""
        chosen = super().choose(logits, depth, count, path, *settings, **named)
        with self._clock.stopped():
            probs = self._sampler.process(logits, path)[0].softmax(-1)  # [F, V]
            for row, tokens in enumerate(path[0].tolist()):
                self._heard.setdefault(tuple(tokens), probs[row])  # of several drafters the first
        return chosen


class WatchedDrafter(Through):
    """Proposes with noise that listens. `heard`: by path, the drafter's distribution `[V]` after it."""

    def __init__(self, part: Any, clock: Clock):
        super().__init__(part)
        self._clock, self.heard = clock, dict[Path, Tensor]()

    def propose(self, state: Any, roots: Tensor, noise: DraftNoise) -> TokenTree:
        """See Drafter."""
        self.heard.clear()
        tree: TokenTree = self.part.propose(state, roots, WatchedNoise(noise, self._clock, self.heard))
        return tree


class WatchedRule(Through):
    """Tells what it decided, and by what."""

    def __init__(self, part: Any, tell: Callable[[TokenTree, Tensor, Verdict], None]):
        super().__init__(part)
        self._tell = tell

    def __call__(self, tree: TokenTree, logits: Tensor, sampling: StepSampling) -> Verdict:
        """See AcceptanceRule."""
        verdict: Verdict = self.part(tree, logits, sampling)
        self._tell(tree, logits, verdict)
        return verdict


class Seen(NamedTuple):
    """A node's token, its parent, and its path."""

    token: int
    parent: int
    path: Path


class WatchedStep(Step):
    """One slot, and `steps`: what every step did.

    Args:
        engine: what to watch; it is left as it is.
        max_length: of the text, with its prompt.
    """

    def __init__(self, engine: Engine, max_length: int):
        self.clock, self.steps = Clock(engine.target.device), list[TracedStep]()
        watched: Any = WatchedDrafter(engine.drafter, self.clock)
        rule: Any = WatchedRule(engine.rule, self._note)
        self._heard = watched.heard
        super().__init__(engine.target, watched, rule, 1, max_length)

    def __call__(self, slots: Sequence[int], lap: Lap, chunks: Sequence[Chunk] = ()) -> Tensor:
        """See Step."""
        self.clock.begin()
        found = super().__call__(slots, self.clock.lap, chunks)
        self.steps[-1].spans += self.clock.spans
        lap("verify")  # the loop's own clock knows no phases of a step that is watched
        return found

    def _note(self, tree: TokenTree, logits: Tensor, verdict: Verdict) -> None:
        """`logits` `[1, N, V]`. Called before the step is committed, while the sampler still knows the text before it.
        The prompt's last token is judged by the rule, too, before there is a step."""
        if not self.clock.spans:
            return
        with self.clock.stopped():
            nodes = read_nodes(tree)
            on_path = tree.ancestors.clone()  # [1, N, N]
            on_path[..., 0] = False  # the root is text
            history = torch.where(on_path, tree.tokens[:, None], -1)
            probs = self.sampler.process(logits, history, [0])[0].softmax(-1)  # [N, V]
            path = verdict.path[0, : int(verdict.num_accepted[0])].tolist()
            own = int(verdict.next_token[0])
            self.steps.append(
                TracedStep(
                    tokens=[node.token for node in nodes],
                    parents=[node.parent for node in nodes],
                    draft=[None, *(self._draft_prob(tree, node) for node in nodes[1:])],
                    target=[None, *(round(float(probs[node.parent, node.token]), 6) for node in nodes[1:])],
                    path=path,
                    own=own,
                    own_target=round(float(probs[path[-1], own]), 6),
                    sources=self._sources(nodes),
                    rider_tokens=[] if tree.riders is None else tree.riders.tokens[0].tolist(),
                    rider_parents=[] if tree.riders is None else tree.riders.parents.tolist(),
                )
            )

    def _draft_prob(self, tree: TokenTree, node: Seen) -> float | None:
        """None where the drafter gave none: n-grams, and whatever else is fixed without a distribution."""
        given = 0.0 if tree.draft_probs is None else float(tree.draft_probs[0, node.parent, node.token])
        if not given and (row := self._heard.get(node.path[:-1])) is not None:
            given = float(row[node.token])
        return round(given, 6) or None

    def _sources(self, nodes: Sequence[Seen]) -> dict[str, list[int]]:
        """Whose the nodes are, if the drafter says, see `core.Drafter`."""
        parts: dict[str, TokenTree] = getattr(self.drafter, "proposals", lambda _: {})(self.state)
        paths = {name: {node.path for node in read_nodes(tree)} for name, tree in parts.items()}
        return {name: [j for j, node in enumerate(nodes) if j and node.path in own] for name, own in paths.items()}


def read_nodes(tree: TokenTree) -> list[Seen]:
    """The first slot's, the root first."""
    size = int(tree.sizes[0])
    nodes: list[Seen] = []
    for token, parent in zip(tree.tokens[0, :size].tolist(), tree.parents[0, :size].tolist(), strict=True):
        nodes.append(Seen(token, parent, () if parent < 0 else (*nodes[parent].path, token)))
    return nodes
