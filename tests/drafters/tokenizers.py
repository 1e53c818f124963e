"""Tokenizers trained on the spot, as unlike each other as those of two families of models."""

from __future__ import annotations

import json
import textwrap
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from specdec.experiments.training.tokenizer import train_tokenizer

SOURCE = Path(textwrap.__file__).read_text(encoding="utf-8")
KINDS = ("bytes", "more bytes", "pieces")


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerBase:
    """By kind: byte-level with few or many merges, or pieces with a space mark, bytes for what is unknown and a bos."""
    if kind == "pieces":
        return _pieces()
    return train_tokenizer([SOURCE], {"bytes": 330, "more bytes": 900}[kind])


def _pieces() -> PreTrainedTokenizerBase:
    special = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    trained.train_from_iterator([line.replace(" ", "▁") for line in SOURCE.splitlines()], trainer)
    model = json.loads(trained.to_str())["model"]
    words = [*model["vocab"], *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {word: index for index, word in enumerate(words)}
    merges = [(left, right) for left, right in model["merges"]]
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(special)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
