"""Every metric against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from specdec import metrics, phase_clock
from specdec.metrics import DecodingStats, TargetCost
from specdec.request_stats import RequestStats


def request(
    prompt: int, steps: list[tuple[int, int, int, list[int], list[int]]], times: tuple[float, float, float]
) -> RequestStats:
    """Steps are (kept, size, height, children, ranks)."""
    made = RequestStats(prompt_tokens=prompt, start=times[0], first=times[1], end=times[2])
    for step in steps:
        made.record(*step)
    return made


@pytest.fixture
def stats() -> DecodingStats:
    # first: a chain of 3 whose 2 first tokens were accepted; a chain of 3 of which none was; a root alone
    steps = [(3, 4, 3, [1, 1, 1], [0, 0]), (1, 4, 3, [1], list[int]()), (1, 1, 0, [0], list[int]())]
    first = request(10, steps, (0.0, 0.5, 2.0))
    # second: a chain of 2 accepted to its leaf, but the text ended one token earlier
    second = request(4, [(2, 3, 2, [1, 1, 0], [0, 0])], (1.0, 1.25, 2.25))
    phases = {"prefill": 1.0, "draft": 0.5, "verify": 2.0, "accept": 0.25, "commit": 0.25, "host": 1.0}
    return DecodingStats([first, second], phases, forwards=4)


def test_counts(stats):
    assert stats.steps == 4
    assert stats.accept_lengths == [[3, 1, 1], [2]]
    assert stats.new_tokens == (5 + 1) + (2 + 1)  # and one of each prefill


def test_mean_accepted_length(stats):
    assert stats.mean_accepted_length_pooled == 7 / 4
    assert stats.mean_accepted_length_per_request == (5 / 3 + 2) / 2


def test_block_efficiency(stats):
    assert stats.block_efficiency == 9 / 6  # 9 tokens, 4 steps and 2 prefills


def test_acceptance_rates(stats):
    accepted = 2 + 0 + 0 + 2
    assert stats.draft_acceptance_rate == accepted / (3 + 3 + 0 + 2)
    assert stats.node_acceptance_rate == accepted / (3 + 3 + 0 + 2)


def test_acceptance_by_depth(stats):
    # depth 1: offered in three steps, accepted in two; depth 2: offered twice, accepted twice; depth 3: offered once
    found = stats.acceptance_by_depth
    assert found["conditional"] == [2 / 3, 2 / 2, 0 / 1]
    assert found["unconditional"] == [2 / 4, 2 / 4, 0 / 4]


def test_a_tree_proposes_its_height_along_the_depth_and_all_its_nodes():
    tree = DecodingStats([request(1, [(2, 9, 3, [3, 2], [1])], (0.0, 1.0, 2.0))])
    assert tree.draft_acceptance_rate == 1 / 3
    assert tree.node_acceptance_rate == 1 / 8


def test_times(stats):
    assert stats.tokens_per_second == 9 / 5
    assert stats.decode_seconds == 4
    assert stats.prefill_share == 1 / 5
    assert stats.phase_share == {"draft": 0.125, "verify": 0.5, "accept": 0.0625, "commit": 0.0625, "host": 0.25}
    # ttft 0.5 and 0.25, tpot 1.5 / 5 and 1 / 2: percentiles lie on the line between the two
    assert stats.ttft == pytest.approx({"p20": 0.3, "p50": 0.375, "p80": 0.45, "p99": 0.4975})
    assert stats.tpot == pytest.approx({"p20": 0.34, "p50": 0.4, "p80": 0.46, "p99": 0.498})


def test_nothing_has_no_ratio():
    empty = DecodingStats()
    assert math.isnan(empty.mean_accepted_length_pooled)
    assert math.isnan(empty.tokens_per_second)
    assert all(math.isnan(v) for v in empty.tpot.values())
    assert empty.acceptance_by_depth == {"conditional": [], "unconditional": []}


def test_bytes_moved(stats):
    cost = TargetCost(parameters=100, weight_bytes=1000, kv_bytes_per_token=8)
    # cached texts at the steps: 10, 13, 14 and 4
    assert cost.bytes_moved(stats) == 4 * 1000 + (10 + 13 + 14 + 4) * 8


def test_mbu(stats):
    cost = TargetCost(parameters=100, weight_bytes=1000, kv_bytes_per_token=0)
    assert cost.mbu(stats, peak_bandwidth=2000.0) == 4000 / 4 / 2000


def test_model_flops(stats):
    cost = TargetCost(parameters=100, weight_bytes=1000, kv_bytes_per_token=8)
    assert cost.model_flops(stats) == 2 * 100 * (14 + (4 + 4 + 1) + 3)


def test_speedup_is_the_ratio_of_totals():
    # one long prompt at 2x and a short one at 4x: not the mean of the two
    found = metrics.speedup([(90, 1.0), (10, 0.1)], [(90, 2.0), (10, 0.4)])
    assert found.ratio == pytest.approx((100 / 1.1) / (100 / 2.4))
    assert 0 < found.low < 2 < found.ratio < 4 < found.high, "of two prompts little is known"
    assert metrics.speedup([(1, 1.0)] * 5, [(1, 3.0)] * 5) == pytest.approx((3, 3, 3))


@pytest.mark.parametrize("prompts", [2, 3, 4, 8, 40])
def test_speedup_interval_covers_the_truth(prompts):
    rng, covered = np.random.default_rng(0), 0
    for trial in range(400):
        seconds = rng.lognormal(0, 0.3, (prompts, 2))
        found = metrics.speedup(
            [(1, 0.5 * s) for s, _ in seconds], [(1, s) for _, s in seconds], samples=300, seed=trial
        )
        covered += found.low <= 2 <= found.high
    assert covered >= 364  # 91 %; of 95 %, fewer have probability 0.0005


@pytest.mark.parametrize(("degrees", "t"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (7, 2.36462), (39, 2.02269)])
def test_students_t_is_that_of_the_tables(degrees, t):
    assert metrics.students_t(degrees, 0.95) == pytest.approx(t, rel=1e-5)
    assert metrics.students_t(1000, 0.95) == pytest.approx(1.96234, rel=1e-4)


def test_speedup_of_nothing_and_its_seed():
    assert math.isnan(metrics.speedup([], []).ratio)
    pairs = [(5, 1.0), (6, 2.0), (7, 1.5)], [(5, 2.0), (6, 2.5), (7, 4.5)]
    assert metrics.speedup(*pairs, seed=1) == metrics.speedup(*pairs, seed=1)
    with pytest.raises(ValueError):
        metrics.speedup([(1, 1.0)], [])


def test_divergence_rate_and_peak_memory():
    assert metrics.divergence_rate(1, 4) == 0.25
    assert math.isnan(metrics.divergence_rate(0, 0))
    assert metrics.peak_memory([3, 7, 5]) == 7
    assert metrics.peak_memory([]) == 0


def test_merge_adds_up(stats):
    both = DecodingStats.merge([stats, stats])
    assert both.forwards == 8
    assert both.new_tokens == 18
    assert both.phases["verify"] == 4.0
    assert both.mean_accepted_length_pooled == stats.mean_accepted_length_pooled


def test_every_metric_has_a_definition():
    named = (
        "mean_accepted_length_pooled mean_accepted_length_per_request draft_acceptance_rate node_acceptance_rate "
        "acceptance_by_depth block_efficiency ttft tpot tokens_per_second speedup phase_share bytes_moved mbu "
        "model_flops peak_memory divergence_rate"
    )
    found = metrics.definitions()
    assert set(named.split()) <= set(found)
    assert all(len(text) > 20 and "\n" not in text for text in found.values())


def test_one_prompt_has_a_ratio_and_no_interval() -> None:
    found = metrics.speedup([(10, 1.0)], [(10, 2.0)])
    assert found.ratio == 2.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_phases_on_a_gpu_are_settled_as_they_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            self.at = now[0]

        def elapsed_time(self, later: Event) -> float:
            return 1000 * (later.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(phase_clock, "MOST_EVENTS", 5)
    stats = DecodingStats()
    clock = phase_clock.PhaseClock(stats, torch.device("cuda"))
    for _ in range(20):
        for phase, seconds in (("draft", 1.0), ("verify", 5.0), ("", 100.0)):
            now[0] += seconds
            clock.lap(phase) if phase else clock.skip()
        assert len(clock._events) <= 5
    clock.finish()
    assert stats.phases["draft"] == pytest.approx(20)
    assert stats.phases["verify"] == pytest.approx(100)
    assert stats.phases["host"] == 0


def test_what_another_engine_does_not_tell():
    """Counts that are not known are no number, and neither is what is made of them; tokens are what they are."""
    untold = RequestStats(4, [3, 1], first=0.5, end=1.0, first_tokens=2)
    untold.nodes = untold.proposed_depth = untold.accepted = math.nan
    stats = DecodingStats([untold], {"prefill": 0.5, metrics.UNDIVIDED: 1.5}, forwards=2)
    assert (stats.new_tokens, stats.steps, stats.mean_accepted_length_pooled) == (6, 2, 2)
    assert stats.block_efficiency == 6 / 3
    assert stats.tokens_per_second == 6 / 2
    assert math.isnan(stats.draft_acceptance_rate)
    assert math.isnan(TargetCost(1, 1, 1).model_flops(stats))
    assert all(map(math.isnan, stats.phase_share.values()))
    assert stats.decode_seconds == 1.5
    assert DecodingStats.merge([stats, stats]).phases[metrics.UNDIVIDED] == 3
