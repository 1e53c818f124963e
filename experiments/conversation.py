"""Turns and answers to token ids: the tokenizer's chat template where it has one, else the texts in a row."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def encode(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[str], answers: Sequence[str], room: int
) -> tuple[list[int], int]:
    """The prompt of the turn after `answers`.

    Args:
        turns: the user's, at least one more than there are answers.
        answers: to the turns before.
        room: most tokens of a prompt; 0 for no limit.

    Returns:
        Token ids, and how many more there were on the left.

    Raises:
        ValueError: the prompt has no tokens.
    """
    if tokenizer.chat_template is not None:
        messages = []
        for i, turn in enumerate(turns[: len(answers) + 1]):
            messages.append({"role": "user", "content": turn})
            if i < len(answers):
                messages.append({"role": "assistant", "content": answers[i]})
        ids: list[int] = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    else:
        pieces = [text for pair in zip(turns, [*answers, ""], strict=False) for text in pair]
        ids = tokenizer("".join(pieces))["input_ids"]
    if not ids:
        raise ValueError("a prompt has no tokens; take the empty turn out of the question file")
    cut = max(len(ids) - room, 0) if room else 0
    return ids[cut:], cut
