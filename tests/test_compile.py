"""compile=True: the same results from graphs that are made once per (slots, nodes), whatever the texts' lengths."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from transformers import PreTrainedModel

import specdec
from specdec import compiled
from specdec.buckets import bucket, buckets
from specdec.drafters.draft_model import DraftModel
from specdec.engine import Engine
from specdec.kernels.tree_attention import cpp, tree_attention
from specdec.target import Target
from specdec.tree.token_tree import TokenTree
from tests.models import make_model, noisy_copy, ragged_batch

TIE = 1e-4  # top-2 gaps in float32 below this may fall either way
RAGGED = [([7, 8, 9], [-1, 0, 0]), ([3], [-1]), ([], [])]


def graphs() -> int:
    """Graphs that torch has made in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def opened(model: PreTrainedModel, max_length: int = 40, **settings: Any) -> Target:
    """Three slots, two of them with texts; rooms of different lengths need no other graph."""
    target = Target(model, **settings)
    target.open(3, max_length, 4)
    target.prefill([0, 1], [list(range(5, 25)), list(range(9, 20))])
    return target


def assert_same_pass(eager: Target, fast: Target, trees: list[tuple[list[int], list[int]]], tolerance: float) -> None:
    """Logits and hidden states of live nodes, the arena; and it is the arena that was there before."""
    tree = TokenTree.from_lists(trees)
    before = [arena.data_ptr() for arena in fast.cache.arenas]
    expected, got = eager.verify(tree), fast.verify(tree)
    assert got.logits.shape == expected.logits.shape
    for row, size in enumerate(tree.sizes.tolist()):
        for mine, theirs in [(got.logits, expected.logits), *zip(got.hidden.values(), expected.hidden.values())]:
            torch.testing.assert_close(mine[row, :size], theirs[row, :size], atol=tolerance, rtol=tolerance)
    assert got.logits.isfinite().all()
    assert [arena.data_ptr() for arena in fast.cache.arenas] == before
    for mine, theirs in zip(fast.cache.arenas, eager.cache.arenas, strict=True):
        torch.testing.assert_close(mine[:, :2], theirs[:, :2], atol=tolerance, rtol=tolerance)  # slots with texts


def assert_same_extension(eager: Target, fast: Target) -> None:
    """Nodes that go on from those of RAGGED; the same bucket, but other places."""
    tokens = torch.tensor([[1, 2, 3], [3, 4, 5], [0, 0, 0]])
    depths = torch.tensor([[1, 2, 3], [1, 2, 3], [0, 0, 0]], dtype=torch.int32)
    words = torch.tensor([[[0b1001], [0b10101], [0b110101]], [[0b1001], [0b11001], [0b111001]], [[0], [0], [0]]])
    counts = torch.tensor([3, 2, 0], dtype=torch.int32)
    expected, got = (target.extend(tokens, depths, words, counts, first=3) for target in (eager, fast))
    for row, count in enumerate(counts.tolist()):
        torch.testing.assert_close(got.logits[row, :count], expected.logits[row, :count], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_one_graph_for_all_lengths() -> None:
    model = make_model("llama", num_hidden_layers=1)
    eager, fast = opened(model), opened(model, compile=True)
    assert_same_pass(eager, fast, RAGGED, 1e-4)
    made = graphs()
    assert made > 0
    assert_same_extension(eager, fast)
    for target in (eager, fast):
        target.prefill([2], [list(range(30, 38))])
        target.cache.append(torch.arange(2), torch.tensor([3, 1]))  # the text has grown
    assert_same_pass(eager, fast, [([4], [-1]), ([5, 6, 7], [-1, 0, 1]), ([8, 9, 10, 11], [-1, 0, 0, 2])], 1e-4)
    eager, fast = opened(model, 90), opened(model, 90, compile=True)  # another Target, another arena
    for target in (eager, fast):
        for arena in target.cache.arenas:
            arena[:, 0, :, 23:], arena[:, 1, :, 12:] = 1e30, 1e30  # nobody reads what nobody wrote
    given: list[int] = []
    attend = cpp.attend

    def watched(
        q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *others: Any, **settings: Any
    ) -> torch.Tensor:
        given.extend((keys.data_ptr(), values.data_ptr()))
        return attend(q, keys, values, *others, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpp, "attend", watched)
        assert_same_pass(eager, fast, RAGGED, 1e-4)
    pools = [x.data_ptr() for target in (eager, fast) for x in (target.cache.keys[0], target.cache.values[0])]
    assert given == pools  # in place: the graph was given the arena itself, no copy of it
    assert graphs() == made


def test_buckets() -> None:
    assert buckets(1) == [1]
    assert buckets(8) == [1, 2, 4, 8]
    assert buckets(12) == [1, 2, 4, 8, 12]
    assert [bucket(n, 12) for n in (1, 3, 8, 9, 12)] == [1, 4, 8, 12, 12]
    assert bucket(5, 1) == 8


@pytest.mark.parametrize("batch", [1, 2, 6])  # one text, copies by span, one indexed write
@pytest.mark.parametrize(("backend", "size"), [("packed", 16), ("cpp", 16), ("cpp", 8), ("naive", 16)])
def test_the_operator_writes_live_rows_and_attends(batch: int, backend: str, size: int) -> None:
    nodes, heads, room, layer = 3, 2, 12, 1
    tree = TokenTree.from_lists([([1, 2, 3][: 3 - b % 3], [-1, 0, 0][: 3 - b % 3]) for b in range(batch)])
    context = torch.arange(1, batch + 1, dtype=torch.int32)
    keys, values = (torch.randn(2, batch, heads, room, size) for _ in range(2))
    q, k, v = (torch.randn(1, h, batch * nodes, size) for h in (4, heads, heads))
    table = torch.arange(batch, dtype=torch.int32)[:, None]
    starts = torch.arange(0, batch * nodes + 1, nodes, dtype=torch.int32)
    words = tree.words.flatten(0, 1)
    expected = [x.clone() for x in (keys, values)]
    for arena, rows in zip(expected, (k, v), strict=True):
        for b, count in enumerate(tree.sizes.tolist()):
            arena[layer, b, :, context[b] : context[b] + count] = rows[0, :, b * nodes : b * nodes + count]
    right = tree_attention(
        q[0].transpose(0, 1), expected[0][layer], expected[1][layer], table, starts, context, tree.sizes, words,
        backend="naive",
    )  # fmt: skip
    arguments = (q, k, v, keys, values, layer, layer, table, starts, context, tree.sizes, words, tree.sizes, context)
    settings = (0, size**-0.5, 0, 0.0, None, backend)
    got = torch.ops.specdec.tree_attention(*arguments, *settings)
    torch.testing.assert_close(got[0], right, atol=1e-5, rtol=1e-5)
    assert got.is_contiguous()  # as graphs are told
    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])
    torch.library.opcheck(
        torch.ops.specdec.tree_attention.default,
        (*arguments, *settings),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_no_compiler_is_said_before_anything_runs() -> None:
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ValueError, match=r"needs a C\+\+ compiler.*install g\+\+"),
    ):
        Target(make_model("llama"), compile=True)


def test_other_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"compiled for the CPU only.*cuda"):
        compiled.check_compiler(torch.device("cuda"))


def test_without_compile_warmup_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    made = graphs()
    Engine(make_model("llama"), "ngram", None, "coupled").warmup()
    assert graphs() == made
    assert not capsys.readouterr().err


def texts(model: PreTrainedModel, new: int = 40, **settings: Any) -> list[list[int]]:
    """Greedy continuations of three ragged prompts."""
    ids, mask, _ = ragged_batch((5, 9, 7))
    out = specdec.generate(model, ids, mask, max_new_tokens=new, eos_token_id=[], **settings)
    return out.sequences[:, ids.shape[1] :].tolist()


def assert_same_texts(model: PreTrainedModel, got: list[list[int]], expected: list[list[int]]) -> None:
    """Equal, or different for the first time at a tie."""
    _, _, prompts = ragged_batch((5, 9, 7))
    for prompt, mine, theirs in zip(prompts, got, expected, strict=True):
        if mine != theirs:
            at = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
            with torch.inference_mode():
                top = model(torch.tensor([prompt + theirs[:at]])).logits[0, -1].topk(2).values
            assert top[0] - top[1] < TIE


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "mistral"])
def test_same_text_and_an_untouched_model(architecture: str) -> None:
    model = make_model(architecture)
    ids = torch.arange(5, 15)[None]
    with torch.inference_mode():
        before = model(ids).logits
    implementation = model.config._attn_implementation
    for drafter in ("none", {"_target_": "specdec.drafters.ngram.NGram", "max_nodes": 4}):
        expected = texts(model, drafter=drafter)
        assert_same_texts(model, texts(model, drafter=drafter, compile=True), expected)
        made = graphs()
        texts(model, new=60, drafter=drafter, compile=True)  # longer texts, another Target, a larger arena
        assert graphs() == made
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, before)
    assert model.config._attn_implementation == implementation
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.slow
def test_after_warmup_nothing_is_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model("llama", num_hidden_layers=1)
    small = DraftModel(noisy_copy(model, 0.1), compile=True)
    ids, _, prompts = ragged_batch((6, 9))
    for drafter in ({"_target_": "specdec.drafters.ngram.NGram", "max_nodes": 4}, small):
        engine = Engine(model, drafter, None, "coupled", compile=True)
        engine.warmup(2)
        assert "compiling LlamaForCausalLM for 2 slots: 100%" in capsys.readouterr().err
        made = graphs()
        stats = specdec.DecodingStats()
        requests = [specdec.request.Request(prompt, 30) for prompt in prompts]
        assert sum(len(new) for _, new in engine.run(requests, stats)) == 60
        assert graphs() == made
        engine.warmup(2)
        assert graphs() == made


@pytest.mark.slow
def test_hidden_states_and_earlier_nodes() -> None:
    """`extend` goes on from scratch nodes of an earlier call, as draft models do."""
    model = make_model("gemma3")
    eager = opened(model, hidden_layers=(0, -1))
    fast = opened(model, hidden_layers=(0, -1), compile=True)
    assert_same_pass(eager, fast, RAGGED, 1e-4)
    assert_same_extension(eager, fast)


@pytest.mark.slow
def test_new_weights_make_new_graphs_and_models_can_go() -> None:
    model = make_model("llama", dtype=torch.bfloat16, num_hidden_layers=1)
    fast, eager = Target(model, compile=True), Target(model)
    for target in (eager, fast):
        target.open(1, 40, 16)
        target.prefill([0], [list(range(5, 25))])
    for nodes in (1, 2, 8, 16):
        assert_same_pass(eager, fast, [(list(range(7, 7 + nodes)), list(range(-1, nodes - 1)))], 0.15)
    kept = compiled._kept[model]
    assert len(kept.packed) == 10  # of the layer four products and the head, once for few rows and once for many
    packed = [weakref.ref(x) for x in kept.packed.values()]
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    made = graphs()
    assert_same_pass(opened(model), opened(model, compile=True), RAGGED, 0.15)
    assert graphs() == made + 1
    gone = weakref.ref(model)
    del model, eager, fast, target, kept
    gc.collect()
    assert gone() is None
    assert not any(some() is not None for some in packed)


@pytest.mark.slow
def test_what_cannot_be_compiled_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama", num_hidden_layers=1)
    fast = opened(model, compile=True)

    def breaks(forward: Callable[..., Any]) -> Callable[..., Any]:
        def broken(*args: Any, **kwargs: Any) -> Any:
            torch._dynamo.graph_break()
            return forward(*args, **kwargs)

        return broken

    monkeypatch.setattr(model.model, "forward", breaks(model.model.forward))
    with pytest.raises(ValueError, match=r"LlamaForCausalLM could not be compiled.*use compile=False"):
        fast.verify(TokenTree.from_lists(RAGGED))
