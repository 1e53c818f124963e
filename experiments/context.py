"""Prompts of one length: cut to their last tokens, or with the text of other prompts before them."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from specdec.experiments.data import Question


def to_length(
    ids: list[int], length: int, tokenizer: PreTrainedTokenizerBase, question: Question, questions: Sequence[Question]
) -> list[int]:
    """The last `length` tokens of a prompt, behind as many others' first turns as it takes.

    The others come in the order of `questions`, from the one after `question` on and round; they are repeated where
    they are too short in all. So no text stands twice where there are enough, which a drafter could copy.

    Args:
        ids: the prompt, at least a token.
    """
    place = next(i for i, other in enumerate(questions) if other.question_id == question.question_id)
    others = [*questions[place + 1 :], *questions[:place]]
    texts = [tokenizer(other.turns[0], add_special_tokens=False)["input_ids"] for other in others]
    before: list[int] = []
    while len(before) + len(ids) < length:
        before += [token for text in texts for token in text] or ids
    wanted = max(length - len(ids), 0)
    return [*before[:wanted], *ids][-length:]
