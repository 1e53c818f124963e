"""Another engine's answers in our counts: the same functions count them, so that every metric means the same."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from specdec.experiments.engines.base import Answer
from specdec.metrics import UNDIVIDED, DecodingStats
from specdec.request_stats import RequestStats

Step = tuple[int, float, dict[str, float]]  # emitted tokens, draft nodes so far, seconds by phase so far
UNTOLD = float("nan")


def count(
    prompts: Sequence[list[int]], answers: Sequence[Answer], forwards: int
) -> tuple[DecodingStats, list[list[Step]]]:
    """Counts and times of requests that were served together, and of each what every pass had come to.

    A pass that reads a prompt is no step, as in our own loop. What came of a draft that was verified in that very pass
    is in the tokens and in no rate of acceptance.
    """
    stats = DecodingStats(requests=[_request(len(p), a) for p, a in zip(prompts, answers, strict=True)])
    stats.forwards = forwards
    first, last = (max(answer.times[place] for answer in answers) for place in (0, -1))
    stats.phases = {"prefill": first, UNDIVIDED: last - first}
    return stats, [_steps(answer) for answer in answers]


def _request(prompt_tokens: int, answer: Answer) -> RequestStats:
    kept = [len(tokens) for tokens in answer.passes]
    request = RequestStats(prompt_tokens, first=answer.times[0], end=answer.times[-1], first_tokens=kept[0])
    told, in_order = answer.drafts is not None, _in_order(answer)
    drafts = (answer.drafts or []) + [(0, 0)] * (len(kept) - 1)
    for emitted, (drafted, accepted) in zip(kept[1:], drafts, strict=False):
        children = [1] * accepted + [int(drafted > accepted)]
        request.record(emitted, drafted + 1, drafted, children, [0] * accepted)
    if not told:
        for name in ("nodes", "proposed_depth", "accepted"):
            setattr(request, name, UNTOLD)
    if not in_order:  # sums are right, but which step had which draft is not known
        request.children, request.ranks = [], []
    return request


def _in_order(answer: Answer) -> bool:
    """Whether it is known which pass had which draft: all had one, or none is told of."""
    return answer.drafts is not None and len(answer.drafts) in (0, len(answer.passes) - 1)


def _steps(answer: Answer) -> list[Step]:
    first = answer.times[0]
    spent = [{"prefill": first, UNDIVIDED: time - first} for time in answer.times]
    drafted: list[float] = [UNTOLD] * len(answer.passes)
    if _in_order(answer):
        drafted = [0, *(d for d, _ in answer.drafts or [(0, 0)] * (len(answer.passes) - 1))]
    return [
        (len(tokens), nodes, seconds)
        for tokens, nodes, seconds in zip(answer.passes, accumulate(drafted), spent, strict=True)
    ]
