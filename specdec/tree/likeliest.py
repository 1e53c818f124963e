"""Trees from several sources of continuations: the likeliest nodes of all of them, under a node budget."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import TypeVar

Source = TypeVar("Source")
Children = Callable[[Source], Iterable[tuple[float, int, Source]]]


def likeliest(
    root: int, sources: Iterable[tuple[float, Source]], children: Children[Source], max_nodes: int, least: float = 0.0
) -> tuple[list[int], list[int]]:
    """Tokens and parents of a tree (see `TokenTree.from_lists`) whose nodes come in order of their score.

    A node's score is its source's weight times the probabilities down to it. What several sources propose is one node,
    with the best of its scores. Nothing is asked for that cannot become a node, so sources may be large.

    Args:
        root: its token.
        sources: weights, and what `children` understands.
        children: what may follow a source: probability, token, and the source one token on; the likeliest first where
            they are equally likely.
        max_nodes: the root included.
        least: nodes with a lower score are left out.
    """
    tokens, parents = [root], [-1]
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node
    waiting: list[tuple[float, int, int, int, Source]] = []  # -score, order, parent, token or -1 for a source, source
    for order, (weight, source) in enumerate(sources):
        waiting.append((-weight, order, 0, -1, source))
    heapq.heapify(waiting)
    order = len(waiting)
    while waiting and len(tokens) < max_nodes:
        score, _, node, token, source = heapq.heappop(waiting)
        if token >= 0:
            node, parent = nodes.setdefault((node, token), len(tokens)), node
            if node == len(tokens):
                tokens.append(token)
                parents.append(parent)
        for probability, following, further in children(source):
            if score * probability <= -least:
                heapq.heappush(waiting, (score * probability, order, node, following, further))
                order += 1
    return tokens, parents


Paths = tuple[list[list[int]], int]  # continuations with a common beginning, and its length


def by_frequency(root: int, paths: list[list[int]], max_nodes: int) -> tuple[list[int], list[int]]:
    """The tree of the most frequent beginnings of `paths`; of equally frequent ones that of the earlier path."""

    def children(source: Paths) -> Iterable[tuple[float, int, Paths]]:
        alike, depth = source
        following: dict[int, list[list[int]]] = {}
        for path in alike:
            if len(path) > depth:
                following.setdefault(path[depth], []).append(path)
        ranked = sorted(following.items(), key=lambda item: -len(item[1]))
        return [(len(same) / len(alike), token, (same, depth + 1)) for token, same in ranked]

    return likeliest(root, [(1.0, (paths, 0))], children, max_nodes)
