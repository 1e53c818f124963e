"""transformers' own texts, each prompt alone and several in a padded batch: what rounding does there, too.

The same model, no code of ours in the forward pass: a rate of differences like that of a method is the rounding of the
libraries below both. The logits of both runs are kept while they decode, so that a difference's noise is the very one
that decided it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from specdec.experiments import lossless
from specdec.experiments.conversation import encode
from specdec.experiments.data import Question
from specdec.experiments.engines.hf_generate import plain_settings
from specdec.experiments.measure import check_row
from specdec.experiments.records import Row
from specdec.experiments.workbench import Bench
from specdec.inputs import eos_ids

Decoded = tuple[list[int], Tensor]  # new tokens, and the logits [T, V] float32 that chose them


def compare_batches(
    bench: Bench, questions: Sequence[Question], batch: int, max_new_tokens: int, tell: Callable[[], None]
) -> list[Row]:
    """Every question's first turn, decoded greedily alone and beside others, left padded.

    Args:
        batch: prompts at once.
        tell: called after every question.

    Returns:
        For each question the ids, both texts and the check, as `requests.jsonl` has it.
    """
    rows = []
    for first in range(0, len(questions), batch):
        group = questions[first : first + batch]
        prompts = [encode(bench.tokenizer, q.turns, [], bench.room(max_new_tokens))[0] for q in group]
        together = _decode(bench, prompts, max_new_tokens)
        for question, prompt, beside in zip(group, prompts, together, strict=True):
            (alone,) = _decode(bench, [prompt], max_new_tokens)
            identity = {"question_id": question.question_id, "category": question.category, "repeat": 0, "turn": 0}
            texts = {"new_tokens": len(alone[0]), "token_ids": alone[0], "token_ids_in_batch": beside[0]}
            check = check_row(bench, _check(alone, beside, bench.model.dtype))
            rows.append(identity | {"together": [q.question_id for q in group]} | texts | {"check": check})
            tell()
    return rows


def _check(alone: Decoded, beside: Decoded, dtype: torch.dtype) -> lossless.Check:
    found = lossless.parting(alone[0], beside[0])
    if isinstance(found, lossless.Check):
        return found
    logits = alone[1][found]  # [V]
    noise = lossless.difference(logits, beside[1][found])
    return lossless.judge(found, (alone[0][found], beside[0][found]), logits, logits, noise, dtype)


@torch.inference_mode()
def _decode(bench: Bench, prompts: Sequence[list[int]], max_new_tokens: int) -> list[Decoded]:
    """All prompts in one call of transformers' `generate`, each token the one with the largest raw logit."""
    longest, eos = max(map(len, prompts)), sorted(eos_ids(bench.model))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=bench.device)  # [B, L]
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=bench.device)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=eos or None, pad_token_id=0,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    with plain_settings(bench.model):
        output: Any = bench.model.generate(ids, attention_mask=mask, generation_config=settings)
    logits = torch.stack(output.logits, 1).float()  # [B, T, V]
    texts = output.sequences[:, longest:].tolist()
    ends = [next((i + 1 for i, token in enumerate(text) if token in eos), len(text)) for text in texts]
    return [(text[:end], row[:end]) for text, row, end in zip(texts, logits, ends, strict=True)]
