"""Sampling settings, and their processing of logits against transformers' own."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from specdec.acceptance.coupled import Coupled
from specdec.acceptance.rejection import Rejection
from specdec.sampling import Sampler, SamplingParams, StepSampling, as_params
from specdec.tree.token_tree import TokenTree

from .chance import chi_square
from .models import make_model

VOCAB = 12
CPU = torch.device("cpu")
PROMPT = [3, 1, 4, 1, 5]


def logits_like(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def no_path(batch: int, nodes: int = 1) -> Tensor:
    return torch.empty(batch, nodes, 0, dtype=torch.int64)


def make_sampler(*params: SamplingParams | None, texts: list[list[int]] | None = None) -> Sampler:
    """A slot for each; None for an empty one."""
    sampler = Sampler(len(params), VOCAB, CPU)
    for slot, p in enumerate(params):
        if p is not None:
            sampler.start(slot, p, list(texts[slot]) if texts else list(PROMPT))
    return sampler


def step(sampler: Sampler, position: int = 10, max_depth: int = 8, slots: list[int] | None = None) -> StepSampling:
    everyone = list(range(len(sampler._params)))
    return sampler.at(torch.full((len(everyone),), position), max_depth, everyone if slots is None else slots)


def many(count: int, **settings: Any) -> Sampler:
    """A sampler with a seed of its own in every slot."""
    return make_sampler(*[SamplingParams(**settings, seed=seed) for seed in range(count)])


# --- settings


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", -0.1, "at least 0 (0 takes the most likely token)"),
        ("temperature", float("nan"), "a finite number"),
        ("temperature", float("inf"), "a finite number"),
        ("temperature", "hot", "a finite number"),
        ("temperature", True, "a finite number"),
        ("temperature", None, "a finite number"),
        ("top_k", -1, "at least 0 (0 keeps all tokens)"),
        ("top_k", 2.0, "an integer"),
        ("top_k", True, "an integer"),
        ("top_p", 0.0, "in (0, 1]"),
        ("top_p", 1.5, "in (0, 1]"),
        ("min_p", 1.0, "in [0, 1)"),
        ("min_p", -0.5, "in [0, 1)"),
        ("repetition_penalty", 0.0, "above 0 (1 is no penalty)"),
        ("seed", 1.0, "an integer"),
        ("seed", None, "an integer"),
    ],
)
def test_refuses(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError) as error:
        SamplingParams(**{name: value})
    assert str(error.value) == f"sampling.{name} is {value!r}; expected {expected}"


def test_from_dict() -> None:
    assert SamplingParams.from_dict({"temperature": 0.5, "top_k": 3}) == SamplingParams(temperature=0.5, top_k=3)
    with pytest.raises(ValueError, match="unknown sampling setting 'topk'; expected one of: temperature, top_k, top_p"):
        SamplingParams.from_dict({"topk": 3})


def test_one_for_all_or_one_each() -> None:
    hot = SamplingParams(temperature=1.0)
    assert as_params(None, 2) == [SamplingParams()] * 2
    assert as_params(hot, 2) == [hot, hot]
    assert as_params([hot, SamplingParams()], 2) == [hot, SamplingParams()]
    with pytest.raises(ValueError, match=r"sampling has 1 entries; expected one SamplingParams, or one per row \(2\)"):
        as_params([hot], 2)


# --- processing, against transformers

SETTINGS = [
    SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m, repetition_penalty=r)
    for t, k, p, m, r in itertools.product([0.0, 0.6, 1.0], [0, 4, 100], [1.0, 0.8], [0.0, 0.1], [1.0, 1.3, 0.7])
]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model(vocab_size=VOCAB)


def theirs(
    model: PreTrainedModel, params: SamplingParams, own: LogitsProcessorList | None = None
) -> LogitsProcessorList:
    """What `model.generate` would apply, in its order."""
    config = GenerationConfig(
        do_sample=params.temperature > 0,
        temperature=params.temperature or 1.0,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p or None,
        repetition_penalty=params.repetition_penalty,
    )
    return model._get_logits_processor(config, input_ids_seq_length=len(PROMPT), logits_processor=own, device="cpu")


@pytest.mark.parametrize("params", SETTINGS, ids=str)
def test_as_transformers(model: PreTrainedModel, params: SamplingParams) -> None:
    """Bit for bit, over several nodes with paths of their own."""
    sampler = make_sampler(params)
    step(sampler)
    logits = logits_like(1, 4)
    path = torch.tensor([[[-1, -1], [0, -1], [2, 7], [7, 7]]])
    ours = sampler.process(logits, path)
    for node in range(4):
        ids = torch.tensor([PROMPT + [t for t in path[0, node].tolist() if t >= 0]])
        wanted = theirs(model, params)(ids, logits[0, node][None].clone())
        assert torch.equal(ours[0, node], wanted[0])


def test_mixed_batch_is_its_rows() -> None:
    """Greedy beside sampled beside penalised beside empty: every row as if it were alone."""
    kinds = [SETTINGS[i] for i in (0, 5, 17, 40, 41, 60, 71, 100)]
    params = [kinds[0], None, *kinds[1:], kinds[3]]
    texts = [[i % VOCAB, (3 * i) % VOCAB, 2] for i in range(len(params))]
    together = make_sampler(*params, texts=texts)
    logits, path = logits_like(len(params), 3), torch.tensor([[[-1, -1], [0, -1], [4, 2]]]).repeat(len(params), 1, 1)
    now = step(together)
    ours = together.process(logits, path)
    assert torch.equal(ours[1], logits[1])
    for slot, p in enumerate(params):
        if p is None:
            continue
        alone = make_sampler(p, texts=[texts[slot]])
        single = step(alone)
        assert torch.equal(alone.process(logits[slot, None], path[slot, None])[0], ours[slot])
        one = slice(slot, slot + 1)
        for depth in (0, 1, 2):
            at = path[:, depth, :depth]
            assert torch.equal(now.draw(logits[:, 0], depth, at)[one], single.draw(logits[one, 0], depth, at[one]))
            assert torch.equal(now.probs(logits[:, 0], at)[one], single.probs(logits[one, 0], at[one]))


def test_bfloat16_logits_become_float32() -> None:
    sampler = make_sampler(SamplingParams(temperature=0.7))
    step(sampler)
    logits = logits_like(1, 1).bfloat16()
    assert torch.equal(sampler.process(logits, no_path(1)), sampler.process(logits.float(), no_path(1)))


def test_logits_are_left_as_they_were() -> None:
    sampler = make_sampler(SamplingParams(temperature=0.7, repetition_penalty=2.0, top_k=2))
    sampler.start(0, SamplingParams(temperature=0.7, repetition_penalty=2.0), PROMPT, LogitsProcessorList([Ban(3)]))
    now, logits = step(sampler), logits_like(1, 1)
    before = logits.clone()
    sampler.process(logits, no_path(1), [0])
    now.draw(logits[:, 0], 0, no_path(1)[:, 0])
    assert torch.equal(logits, before)


# --- penalty


@pytest.mark.parametrize("token", [0, 5])
def test_penalty_sees_path_tokens(token: int) -> None:
    """Token 0 too, also where another path of the batch is padded."""
    sampler = make_sampler(
        SamplingParams(repetition_penalty=2.0), SamplingParams(repetition_penalty=2.0), texts=[[3], [3]]
    )
    step(sampler)
    logits = torch.ones(2, 2, VOCAB)
    path = torch.tensor([[[token, -1, -1], [-1, -1, -1]], [[7, token, -1], [7, -1, token]]])
    ours = sampler.process(logits, path)
    for b, m in itertools.product(range(2), range(2)):
        seen = {3} | {t for t in path[b, m].tolist() if t >= 0}
        assert ours[b, m].tolist() == [0.5 if t in seen else 1.0 for t in range(VOCAB)]


def test_penalty_remembers_the_text() -> None:
    sampler = make_sampler(SamplingParams(repetition_penalty=2.0), SamplingParams(), texts=[[3], [3]])
    step(sampler)
    sampler.commit(torch.tensor([[5, 6], [5, 6]]))
    ours = sampler.process(torch.ones(2, 1, VOCAB), no_path(2))
    assert ours[0, 0].tolist() == [0.5 if t in (3, 5, 6) else 1.0 for t in range(VOCAB)]
    assert (ours[1] == 1).all()


def test_slots_entering_and_leaving() -> None:
    """Nothing of a request is left for the next one in its slot."""
    penalised = SamplingParams(repetition_penalty=2.0, temperature=0.5, seed=1)
    sampler = make_sampler(penalised, SamplingParams(temperature=1.0), texts=[[3], [4]])
    sampler.start(0, penalised, [3], LogitsProcessorList([Ban(2)]))
    step(sampler)
    sampler.commit(torch.tensor([[5], [5]]))
    sampler.stop(0)
    now = step(sampler)
    assert not sampler.has_processors
    assert torch.equal(sampler.process(logits_like(2, 1), no_path(2)), logits_like(2, 1))
    assert not now.raw
    sampler.stop(1)
    assert step(sampler).raw
    sampler.start(0, penalised, [8])
    now = step(sampler)
    fresh = make_sampler(penalised, None, texts=[[8], []])
    other = step(fresh)
    assert torch.equal(sampler.process(logits_like(2, 1), no_path(2)), fresh.process(logits_like(2, 1), no_path(2)))
    for depth in range(3):
        at = torch.zeros(2, depth, dtype=torch.int64)
        assert torch.equal(now.draw(logits_like(2), depth, at), other.draw(logits_like(2), depth, at))


# --- processors


class Ban(LogitsProcessor):
    """Rules a token out and remembers the histories it was asked about."""

    def __init__(self, token: int):
        self.token = token
        self.seen: list[list[int]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        assert input_ids.shape[0] == scores.shape[0] == 1
        self.seen.append(input_ids[0].tolist())
        return scores.index_fill(-1, torch.tensor([self.token]), -torch.inf)


@pytest.mark.parametrize("draft_probs", [None, "one-hot"])
@pytest.mark.parametrize("temperature", [0.0, 1e-3])
def test_processors_are_called_once_per_visited_node(temperature: float, draft_probs: str | None) -> None:
    """With the node's own history, in the slot that brought them, and not where another slot's walk goes on alone."""
    sampler = Sampler(4, VOCAB, CPU)
    bans = [Ban(9), Ban(9), Ban(9)]
    texts = [[1, 2], [5], [7]]
    for slot, ban in enumerate(bans):
        sampler.start(slot, SamplingParams(temperature=temperature), texts[slot], LogitsProcessorList([ban]))
    # the target wants 4, then 6, then 8, but for its favourite, 9, which the processors rule out
    tree = TokenTree.from_paths([2, 5, -1, -1], [[[3], [4, 6, 1], [4, 2]], [[2, 6]], [], []])
    logits = torch.zeros(4, tree.max_nodes, VOCAB)
    for b, j in itertools.product(range(4), range(tree.max_nodes)):
        logits[b, j, 4 + 2 * int(tree.depths[b, j])] = 50.0
        logits[b, j, 9] = 100.0
    rule: Any = Coupled()
    if draft_probs:
        probs = torch.zeros(4, tree.max_nodes, VOCAB)
        for b, j in itertools.product(range(4), range(1, tree.max_nodes)):
            probs[b, max(int(tree.parents[b, j]), 0), tree.tokens[b, j]] = 1.0
        tree = TokenTree(tree.tokens, tree.parents, tree.sizes, probs)
        rule = Rejection()
    verdict = rule(tree, logits, step(sampler, slots=[0, 1]))
    assert verdict.num_accepted.tolist() == [3, 1, 0, 0]
    assert verdict.next_token[:2].tolist() == [8, 4]
    assert bans[0].seen == [[1, 2], [1, 2, 4], [1, 2, 4, 6]]
    assert bans[1].seen == [[5]]
    assert bans[2].seen == []


def test_processors_run_between_penalty_and_warpers(model: PreTrainedModel) -> None:
    """As in transformers: a banned token does not count among the top k."""
    params = SamplingParams(temperature=0.5, top_k=2, repetition_penalty=1.5)
    sampler = Sampler(1, VOCAB, CPU)
    logits = logits_like(1, 1)
    best = int(logits.argmax())
    sampler.start(0, params, list(PROMPT), LogitsProcessorList([Ban(best)]))
    step(sampler)
    wanted = theirs(model, params, LogitsProcessorList([Ban(best)]))(torch.tensor([PROMPT]), logits[0].clone())
    assert torch.equal(sampler.process(logits, no_path(1), [0])[0], wanted)
    assert not sampler.process(logits, no_path(1))[0, 0, best].isinf(), "drafters call no processors"


# --- draws


def test_greedy_rows_ignore_the_noise() -> None:
    sampler = make_sampler(SamplingParams(seed=1), SamplingParams(temperature=1.0, seed=1))
    logits = logits_like(1, seed=3).repeat(2, 1)
    drawn = torch.stack([step(sampler, position).draw(logits, 0, no_path(2)[:, 0]) for position in range(50)])
    assert (drawn[:, 0] == logits[0].argmax()).all()
    assert len(drawn[:, 1].unique()) > 1


def test_draws_follow_the_distribution() -> None:
    """Draws of `draw` and of `draw_from` over positions; each fails by chance once in 10**6."""
    slots = 300
    sampler = many(slots, temperature=0.8, top_k=6)
    logits = logits_like(1).expand(slots, -1)
    probs = step(sampler).probs(logits, no_path(slots)[:, 0])[0]
    assert float(probs.sum()) == pytest.approx(1)
    assert int((probs > 0).sum()) == 6
    residual = torch.tensor([[0.2, 0.0, 0.1, 0.4] + [0.0] * (VOCAB - 4)]).expand(slots, -1)
    own, rest = torch.zeros(VOCAB), torch.zeros(VOCAB)
    for position in range(0, 40, 4):
        now = step(sampler, position, max_depth=4)
        for depth in range(4):
            at = torch.zeros(slots, depth, dtype=torch.int64)
            own += now.draw(logits, depth, at).bincount(minlength=VOCAB)
            rest += now.draw_from(residual, depth).bincount(minlength=VOCAB)
    for counts, wanted in ((own, probs), (rest, residual[0] / residual[0].sum())):
        assert counts[wanted == 0].sum() == 0
        assert chi_square(counts[wanted > 0], wanted[wanted > 0]) > 1e-6


def test_the_noise_belongs_to_the_position() -> None:
    """The draw at depth d of a root at position P is that at depth 0 of a root at P + d: steps may fall anywhere."""
    sampler = make_sampler(SamplingParams(temperature=1.0, seed=9))
    logits = logits_like(1)
    for depth in range(5):
        at = torch.zeros(1, depth, dtype=torch.int64)
        assert torch.equal(
            step(sampler, 20).draw(logits, depth, at), step(sampler, 20 + depth).draw(logits, 0, at[:, :0])
        )
        for stream in range(4):
            assert torch.equal(step(sampler, 20).keys(stream, depth), step(sampler, 20 + depth).keys(stream, 0))


def test_acceptance_has_its_chance() -> None:
    """`accept` is true as often as it says, certain at 1 and impossible at 0; turns are independent."""
    slots = 400
    sampler = many(slots, temperature=1.0)
    chance = torch.full((slots,), 0.3)
    hits = torch.zeros(4)
    for position in range(10):
        now = step(sampler, position, max_depth=3)
        assert not now.accept(torch.zeros(slots), 0, 0).any()
        assert now.accept(torch.ones(slots), 0, 2).all()
        first, second = now.accept(chance, 1, 0), now.accept(chance, 1, 1)
        assert torch.equal(first, now.accept(chance, 1, 0))
        hits += (2 * first.long() + second).bincount(minlength=4)
    marginal = torch.tensor([0.7, 0.3])
    assert chi_square(hits, torch.outer(marginal, marginal).flatten()) > 1e-6


# --- drafters' noise


def test_shared_noise_proposes_what_the_target_would_draw() -> None:
    sampler = make_sampler(SamplingParams(temperature=0.9, seed=4), SamplingParams(), None)
    logits = logits_like(3)
    for position in range(30):
        now = step(sampler, position)
        tokens, scores, probs = now.draft_noise(shared=True).choose(logits[:, None], 0, 3, no_path(3), fixed=True)
        assert probs is None
        assert scores is not None
        assert torch.equal(tokens[:, 0, 0], now.draw(logits, 0, no_path(3)[:, 0]))
        assert (scores <= 0).all()
        assert (scores.diff(dim=-1) <= 0).all()


def test_own_noise_draws_without_replacement() -> None:
    """Pairs of children: the first from the distribution, the second from what is left. Fails once in 10**6."""
    slots = 500
    sampler = many(slots, temperature=1.0, top_k=4)
    logits = logits_like(1, seed=1).expand(slots, -1)
    probs = step(sampler).probs(logits, no_path(slots)[:, 0])[0].double()
    counts = torch.zeros(VOCAB, VOCAB)
    for position in range(10):
        own = step(sampler, position).draft_noise(shared=False)
        tokens, scores, drawn_from = own.choose(logits[:, None], 0, 2, no_path(slots))
        assert drawn_from is not None
        assert torch.allclose(drawn_from[:, 0].double(), probs.expand(slots, -1), atol=1e-6)
        assert scores is None
        pair = tokens[:, 0, 0] * VOCAB + tokens[:, 0, 1]
        counts += pair.bincount(minlength=VOCAB * VOCAB).view(VOCAB, VOCAB)
    pairs = torch.outer(probs, probs) / (1 - probs)[:, None]
    pairs.fill_diagonal_(0.0)
    assert counts[pairs == 0].sum() == 0
    assert chi_square(counts[pairs > 0], pairs[pairs > 0]) > 1e-6


def test_fixed_children_are_the_most_likely() -> None:
    """Asked for fixed children, or at temperature 0, nothing is drawn and no distribution given."""
    logits = logits_like(1)
    for params in (SamplingParams(temperature=1.0), SamplingParams()):
        now = step(make_sampler(params)).draft_noise(shared=False)
        tokens, scores, probs = now.choose(logits[:, None], 0, 3, no_path(1), fixed=True)
        assert probs is None
        assert scores is not None
        assert torch.equal(tokens[:, 0], logits.topk(3).indices)
        assert torch.allclose(scores[:, 0], logits.log_softmax(-1).topk(3).values, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "reads_paths"), [({}, False), ({"temperature": 1.0}, False), ({"repetition_penalty": 1.5}, True)]
)
def test_who_reads_paths(settings: dict[str, Any], reads_paths: bool) -> None:
    """Where nobody does, any tensor may stand for them."""
    now = step(make_sampler(SamplingParams(), SamplingParams(**settings))).draft_noise(shared=True)
    assert now.reads_paths == reads_paths
    logits, path = logits_like(2, 3), torch.tensor([[[4], [2], [0]], [[1], [1], [3]]])  # [B, F, V], [B, F, 1]
    wanted = now.choose(logits, 1, 3, path, fixed=True)
    if not reads_paths:
        found = now.choose(logits, 1, 3, no_path(2), fixed=True)
        assert torch.equal(found[0], wanted[0])


def test_greedy_beside_sampled_drafts() -> None:
    """Where one slot samples, a greedy one's distribution is its one token, and its children are ranked."""
    sampler = make_sampler(SamplingParams(), SamplingParams(temperature=1.0))
    logits = logits_like(2)
    tokens, _, probs = step(sampler).draft_noise(shared=False).choose(logits[:, None], 0, 3, no_path(2))
    assert probs is not None
    assert torch.equal(tokens[0, 0], logits[0].topk(3).indices)
    assert probs[0, 0].tolist() == [float(t == logits[0].argmax()) for t in range(VOCAB)]
    assert torch.allclose(probs[1, 0], logits[1].softmax(-1))


def test_draft_and_target_noise_differ() -> None:
    """Draws of the drafter's own are not the target's, as rejection needs."""
    slots = 300
    sampler = many(slots, temperature=1.0)
    flat = torch.zeros(slots, 1, VOCAB)
    same = 0
    for position in range(4):
        now = step(sampler, position)
        own = now.draft_noise(shared=False).choose(flat, 0, 1, no_path(slots))[0]
        same += int((own[:, 0, 0] == now.draw(flat[:, 0], 0, no_path(slots)[:, 0])).sum())
    assert abs(same - 100) < 5 * 9.6  # binomial(1200, 1/12): 5 sigma


def test_filters_that_a_gpu_reads_keep_what_transformers_keeps() -> None:
    """On a GPU settings are tensors; the scores, -inf included, are those of transformers' warpers."""
    params = [
        SamplingParams(),
        SamplingParams(temperature=0.6),
        SamplingParams(temperature=1.0, top_k=3),
        SamplingParams(temperature=1.5, top_p=0.7),
        SamplingParams(temperature=0.9, top_k=9, top_p=0.9, min_p=0.1),
        SamplingParams(temperature=0.8, min_p=0.2),
    ]
    logits = torch.randn(len(params), 3, 31, generator=torch.Generator().manual_seed(0)) * 3
    for chosen in (params, params[:2]):
        sampler = Sampler(len(params), 31, torch.device("cpu"))
        for slot, each in enumerate(chosen):
            sampler.start(slot, each, [1])
        assert sampler.kinds == (False, False, chosen is params, False)
        wanted = sampler.process(logits, torch.empty(len(params), 3, 0, dtype=torch.int64))
        torch.testing.assert_close(sampler._filter(logits), wanted)
