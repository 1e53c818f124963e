"""Lines of cells.jsonl and requests.jsonl, see experiments/README.md."""

from __future__ import annotations

from specdec.experiments.load.requests import Asked
from specdec.experiments.load.serve import Outcome
from specdec.experiments.load.settings import Cell
from specdec.experiments.records import Row


def cell_row(cell: Cell, number: int, slots: int, rate: float | None, outcome: Outcome) -> Row:
    """A line of cells.jsonl."""
    return {
        "cell": cell.name,
        "loop": cell.loop,
        "level": cell.level,
        "speculation": cell.speculation,
        "batching": cell.batching,
        "round": number,
        "slots": slots,
        "rate": rate,
        "requests": len(outcome.texts),
        "seconds": outcome.ended - outcome.began,
        "forwards": outcome.stats.forwards,
        "phases": outcome.stats.phases,
        "pool": outcome.pool,
    }


def row_of(cell: Cell, number: int, place: int, asked: Asked, outcome: Outcome) -> Row:
    """A line of requests.jsonl. Moments are seconds from the cell's beginning."""
    told, began, due = outcome.stats.requests[place], outcome.began, outcome.due[place]
    count, tokens = len(outcome.texts), outcome.texts[place]
    phases = {phase: seconds / count for phase, seconds in outcome.stats.phases.items()}
    return {
        "question_id": asked.question.question_id,
        "category": asked.question.category,
        "method": cell.name,
        "repeat": number,
        "turn": 0,
        "request": place,
        "prompt_tokens": told.prompt_tokens,
        "cut_tokens": asked.cut,
        "new_tokens": told.new_tokens,
        "first_tokens": told.first_tokens,
        "steps": told.steps,
        "forwards": outcome.stats.forwards / count,
        "accept_lengths": told.accept_lengths,
        "nodes": told.nodes,
        "riders": told.riders,
        "proposed_depth": told.proposed_depth,
        "accepted": told.accepted,
        "offered_by_depth": told.offered_by_depth,
        "accepted_by_depth": told.accepted_by_depth,
        "due": due - began,
        "end": told.end - began,
        "ttft": told.first - due,
        "tpot": told.tpot,
        "queue": told.start + told.queued - due,
        "preemptions": told.preemptions,
        "shared_tokens": told.shared_tokens,
        "seconds": sum(phases.values()),
        "phases": phases,
        "visits": [[slot, what, start - began, end - began] for slot, what, start, end in outcome.visits[place]],
        "token_ids": tokens,
    }
