"""A draft model's distribution over shared tokens: it is what children are drawn from, and the text is the target's."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import specdec
from specdec import registry
from specdec.acceptance.rejection import Rejection
from specdec.acceptance.traversal import Traversal
from specdec.core import AcceptanceRule, TreePolicy
from specdec.decode import decode
from specdec.drafters import translation
from specdec.drafters.draft_model import DraftModel
from specdec.drafters.intersection import Intersection
from specdec.drafters.translation import Codec
from specdec.drafters.universal import State
from specdec.request import Request
from specdec.sampling import DraftNoise, SamplingParams
from specdec.step import Step
from specdec.target import Target
from specdec.tree.best_first import BestFirst
from specdec.tree.static import StaticTree, chain
from specdec.tree.token_tree import TokenTree

from ..acceptance.joint import agreement, exact_joint
from ..fakes import Harness, check_shape, climb
from ..models import make_model, ragged_batch
from .test_universal import LENGTHS, SAMPLINGS, knowing, prompts
from .tokenizers import tokenizer

VOCAB = 6  # letters
PAIRS = [("more bytes", "bytes"), ("bytes", "pieces"), ("pieces", "more bytes")]  # target, draft


def make(draft: str, target: str, **settings: Any) -> Intersection:
    return Intersection(knowing(draft), tokenizer=tokenizer(target), draft_tokenizer=tokenizer(draft), **settings)


def letters(words: str) -> PreTrainedTokenizerBase:
    """A token for every letter, and no others; what it does not know is left out."""
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(words)}, []))
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def lettered(target: str, draft: str, model: PreTrainedModel, seed: int = 1, **settings: Any) -> Intersection:
    """Between alphabets, attached to the target."""
    drafting = make_model(vocab_size=len(draft), num_hidden_layers=1, initializer_range=0.15, seed=seed)
    made = Intersection(drafting.to(model.dtype), tokenizer=letters(target), draft_tokenizer=letters(draft), **settings)
    return made.attach(Target(model))


# --- which tokens are shared


@pytest.mark.parametrize(("target", "draft"), PAIRS)
def test_shared_tokens_are_the_same_text(target: str, draft: str) -> None:
    """Between other tokens, too; no special ones; and whatever is a word in both is shared."""
    drafter = make(draft, target).attach(Target(knowing(target)))
    assert drafter.own is not None
    theirs, ours = (Codec(tokenizer(kind)) for kind in (target, draft))
    shared = [(token, own) for token, own in enumerate(drafter.own.tolist()) if own >= 0]
    assert len({own for _, own in shared}) == len(shared) > 100
    for token, own in shared:
        assert token not in theirs.special
        assert own not in ours.special
        texts = [c.text([*c.tokens("a"), t]) for c, t in ((theirs, token), (ours, own))]
        assert texts[0] == texts[1] != "a"
    for word in (" the", "e", " in", "\n"):
        single = [c.tokens("a" + word)[len(c.tokens("a")) :] for c in (theirs, ours)]
        if all(len(tokens) == 1 for tokens in single):
            assert (single[0][0], single[1][0]) in shared


def test_a_character_is_not_the_token_of_its_byte() -> None:
    pieces = Codec(tokenizer("pieces"))
    words = pieces.words(10_000)
    names = tokenizer("pieces").convert_ids_to_tokens([words["e"], words["\t"]])
    assert names == ["e", "<0x09>"]
    assert set(words.values()) <= set(range(len(tokenizer("pieces"))))
    assert max(pieces.words(300).values()) < 300


def test_a_vocabulary_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By tokenizers of the same words; not where more of the tokens count, or other ones are special."""
    decoded: list[int] = []

    def count(self: Codec, size: int, decode: Any = Codec._decode_words) -> Any:
        decoded.append(size)
        return decode(self, size)

    monkeypatch.setattr(translation, "_WORDS", {})
    monkeypatch.setattr(Codec, "_decode_words", count)
    first, again = (lettered("abcdef", "xfbzea", make_model(vocab_size=VOCAB)) for _ in range(2))
    assert decoded == [VOCAB] * 2  # the target's and the draft model's
    assert first.own is not None
    assert again.own is not None
    assert first.own.tolist() == again.own.tolist() == [5, 2, -1, -1, 4, 1]
    special = letters("abcdef")
    special.add_special_tokens({"eos_token": "a"})
    assert Codec(letters("abcdef")).words(2) == {"a": 0, "b": 1}
    assert "a" not in Codec(special).words(2)
    assert len(decoded) == 4


# --- what is drafted


def test_children_are_drawn_from_what_is_said_of_them() -> None:
    """At every node that has children: the draft model's distribution after its own tokens of the text and of the path,
    over shared tokens alone, through the sampling settings; and under those 0 for every other token."""
    model, kind = knowing("pieces"), "bytes"
    params = SamplingParams(temperature=0.8)
    tree = StaticTree([[0], [1], [0, 0], [1, 0], [0, 0, 0]])
    drafter = make("pieces", kind, tree=tree).attach(Target(knowing(kind)))
    own = drafter.own
    assert own is not None
    harness = Harness(drafter, 3, len(tokenizer(kind)), params, False)
    harness.enter([0, 2], [tokenizer(kind).encode("return x"), tokenizer(kind).encode("def a(self")])
    before: dict[int, list[int]] = {}

    def look(state: State, roots: Tensor, noise: DraftNoise) -> TokenTree:
        made = Intersection.propose(drafter, state, roots, noise)
        before.update({slot: list(text.tokens) for slot, text in state.texts.items()})
        return made

    harness.drafter = drafter_with(drafter, look)
    for _ in range(4):
        drawn = harness.step()
        check_shape(drawn)
        assert drawn.draft_probs is not None
        for slot, text in before.items():
            parents = drawn.parents[slot].tolist()
            for node in set(parents[1:]):
                path = [int(own[drawn.tokens[slot, j]]) for j in reversed(climb(parents, node)[:-1])]
                assert min(path, default=0) >= 0, "only shared tokens are drafted"
                with torch.inference_mode():
                    logits = model(torch.tensor([text + path])).logits[0, -1]
                scores = torch.where(own >= 0, logits[own.clamp_min(0)], float("-inf"))
                wanted = (scores / 0.8).softmax(-1)
                got = drawn.draft_probs[slot, node].double()
                assert torch.allclose(got, wanted, atol=1e-6)
                assert (got[own < 0] == 0).all()


def drafter_with(drafter: Any, propose: Any) -> Any:
    """The drafter, but for what it does to propose."""

    class Other:
        def __getattr__(self, name: str) -> Any:
            return propose if name == "propose" else getattr(drafter, name)

    return Other()


def test_with_one_tokenizer_it_is_a_draft_model() -> None:
    """The same tokens are accepted, but where a text that was drawn is not spelt as the tokenizer would."""
    ids, mask = prompts("bytes", LENGTHS["ragged"])
    settings: dict[str, Any] = {"max_new_tokens": 40, "eos_token_id": [], "pad_token_id": 0}
    for name, sampling in SAMPLINGS.items():
        plain, ours = (
            specdec.generate(knowing("bytes"), ids, mask, drafter=drafter, sampling=sampling, **settings).stats
            for drafter in (DraftModel(knowing("bytes")), make("bytes", "bytes"))
        )
        assert plain.mean_accepted_length_pooled > 4
        assert ours.mean_accepted_length_pooled > 0.8 * plain.mean_accepted_length_pooled
        assert ours.accept_lengths == plain.accept_lengths or name != "greedy"


def test_a_text_of_which_the_draft_model_can_read_nothing() -> None:
    """Of a prompt of letters that it has not, and none of its own begin a text: any shared token, all alike."""
    model = make_model(vocab_size=VOCAB, dtype=torch.float64)
    drafter = lettered("abcdef", "xfbzea", model)
    harness = Harness(drafter, 2, VOCAB, SamplingParams(temperature=1.0), False)
    harness.enter([0, 1], [[3, 2], [2]])
    harness.roots[:] = 2
    tree = harness.step()
    check_shape(tree)
    assert tree.draft_probs is not None
    assert torch.allclose(tree.draft_probs[:, 0], torch.tensor([0.25, 0.25, 0.0, 0.0, 0.25, 0.25]))


# --- the text


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize(
    ("target", "draft", "number"), [(*PAIRS[0], "ragged"), (*PAIRS[1], "one"), (*PAIRS[2], "ragged")]
)
def test_text_is_the_targets_own(target: str, draft: str, number: str, sampling: SamplingParams) -> None:
    """Token for token under coupled noise; and a draft model that knows the text is believed."""
    ids, mask = prompts(target, LENGTHS[number])
    settings: dict[str, Any] = {"max_new_tokens": 20, "eos_token_id": [], "pad_token_id": 0, "sampling": sampling}
    plain = specdec.generate(knowing(target), ids, mask, drafter="none", **settings)
    for tree in ("chain", "best_first"):
        drafter = make(draft, target, tree=registry.build("tree", tree))
        ours = specdec.generate(knowing(target), ids, mask, drafter=drafter, **settings)
        assert torch.equal(ours.sequences, plain.sequences)
        assert ours.stats.mean_accepted_length_pooled > 1.2, (tree, ours.stats.mean_accepted_length_pooled)


@pytest.mark.parametrize("acceptance", ["rejection", "block", "traversal"])
def test_greedy_text_with_every_lossless_rule(acceptance: str) -> None:
    ids, mask = prompts("bytes", LENGTHS["ragged"])
    settings: dict[str, Any] = {"max_new_tokens": 30, "eos_token_id": [], "pad_token_id": 0}
    plain = specdec.generate(knowing("bytes"), ids, mask, drafter="none", **settings)
    ours = specdec.generate(
        knowing("bytes"), ids, mask, drafter=make("pieces", "bytes"), acceptance=acceptance, **settings
    )
    assert torch.equal(ours.sequences, plain.sequences)


def test_texts_of_no_sense() -> None:
    """Random models, prompts of any bytes, a vocabulary padded beyond the tokenizer's."""
    target = make_model(vocab_size=350, dtype=torch.float64)
    ids, mask, _ = ragged_batch((9, 4, 1, 17, 2), vocab=350)
    settings: dict[str, Any] = {"max_new_tokens": 30, "eos_token_id": [], "pad_token_id": 0}
    for sampling in (SamplingParams(), SamplingParams(temperature=1.0, repetition_penalty=1.2, seed=5)):
        plain = specdec.generate(target, ids, mask, drafter="none", sampling=sampling, **settings)
        ours = specdec.generate(target, ids, mask, drafter=make("pieces", "bytes"), sampling=sampling, **settings)
        assert torch.equal(ours.sequences, plain.sequences)


# --- its distribution

TREES: dict[str, TreePolicy] = {"chain": chain(2), "static": StaticTree([[0], [1], [0, 0], [0, 1], [1, 0]])}
RULES: dict[str, AcceptanceRule] = {"rejection": Rejection(), "traversal": Traversal()}
SETTINGS = {"temperature": 0.7}
SLOTS = 256
PROMPT = [3, 1, 4]
ALARM = 1e-8  # probability that a slow test fails by chance


@cache
def small() -> PreTrainedModel:
    return make_model(vocab_size=VOCAB, num_hidden_layers=1, initializer_range=0.15)


def drawn(rule: str, tree: str, draws: int, wrong: bool = False) -> tuple[Tensor, float]:
    """`[draws, 3]`, a seed for each, and how many drafted tokens were accepted a step. The alphabets share four of the
    target's six letters, at other ids."""
    drafter: Any = lettered("abcdef", "xfbzea", small(), tree=TREES[tree])
    if wrong:
        drafter = drafter_with(drafter, spread_over_all(drafter))
    step = Step(Target(small()), drafter, RULES[rule], SLOTS, len(PROMPT) + 3)
    texts = torch.zeros(draws, 3, dtype=torch.int64)
    accepted = steps = 0
    requests = (Request(PROMPT, 3, SamplingParams.from_dict({**SETTINGS, "seed": seed})) for seed in range(draws))
    for generation, _ in decode(step, requests):
        if generation.finished:
            texts[generation.index] = torch.tensor(generation.new_ids)
            accepted, steps = accepted + generation.stats.accepted, steps + generation.stats.steps
    return texts, accepted / steps


def spread_over_all(drafter: Intersection) -> Any:
    """Says of the children that they were drawn from all tokens: the mistake of one who does not renormalise."""

    def propose(state: State, roots: Tensor, noise: DraftNoise) -> TokenTree:
        made = drafter.propose(state, roots, noise)
        assert made.draft_probs is not None
        probs = 0.7 * made.draft_probs + 0.3 / VOCAB
        return TokenTree(made.tokens, made.parents, made.sizes, probs)

    return propose


@pytest.mark.parametrize(("rule", "tree"), [("rejection", "chain"), ("traversal", "static")])
def test_joint_distribution_quickly(rule: str, tree: str) -> None:
    """Fails by chance with a probability below 1e-3; the seeds are fixed."""
    texts, accepted = drawn(rule, tree, 4 * SLOTS)
    assert 0.1 < accepted < 1.9
    assert agreement(texts, exact_joint(small(), PROMPT, SETTINGS, 3)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("rule", RULES)
def test_joint_distribution(rule: str, tree: str) -> None:
    texts, accepted = drawn(rule, tree, 64 * SLOTS)
    assert 0.1 < accepted < 1.9
    assert agreement(texts, exact_joint(small(), PROMPT, SETTINGS, 3)) > ALARM


@pytest.mark.slow
def test_probabilities_that_are_not_of_what_was_drawn_are_seen() -> None:
    texts, _ = drawn("rejection", "chain", 64 * SLOTS, wrong=True)
    assert agreement(texts, exact_joint(small(), PROMPT, SETTINGS, 3)) < ALARM


def test_refuses() -> None:
    model = make_model(vocab_size=VOCAB)
    with pytest.raises(ValueError, match=r"share 0 tokens, of 4 and 6; expected 1% of .* drafter=universal"):
        lettered("abcdef", "wxyz", model)
    with pytest.raises(ValueError, match="drafts 3 children a node; 2 tokens can be drafted"):
        lettered("abcdef", "bxay", model, tree=BestFirst(max_nodes=5, depth=2, top_k=3))
    with pytest.raises(ValueError, match="intersection needs max_nodes >= 2 and window >= 8"):
        lettered("abcdef", "abcd", model, window=4)
    with pytest.raises(ValueError, match="intersection finds no tokenizer beside a model made in memory"):
        Intersection(model)
    with pytest.raises(ValueError, match="attach it to a target"):
        Intersection(model, draft_tokenizer=letters("abcdef")).open(1, 9, torch.device("cpu"))
