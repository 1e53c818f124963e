"""exact=True: a row's bits are the same alone, in a batch and in a tree, and so are whole texts, in every dtype.

That the same rows differ without it is shown in float32, where a product over other numbers of rows is rounded
otherwise; in bfloat16 most of that is rounded away again, and it takes a longer text for a token to change.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec import SamplingParams, SpeculativeDecoder, exact, loading
from specdec.core import TargetOutput
from specdec.drafters.draft_model import DraftModel
from specdec.drafters.early_exit import EarlyExit
from specdec.engine import Engine, serve
from specdec.experiments import lossless
from specdec.packing import Rows
from specdec.request import Request
from specdec.target import Target
from specdec.tree.best_first import BestFirst
from specdec.tree.static import chain
from specdec.tree.token_tree import TokenTree

from .fakes import Scripted, climb
from .models import ARCHITECTURES, VOCAB, make_model, noisy_copy, ragged_batch

PROMPTS = ragged_batch((9, 3, 21, 1, 17))[2]
EXPERTS = {"mixtral", "gpt_oss", "deepseek_v3"}
DTYPES = [torch.float32, torch.bfloat16]
Path = Sequence[int]


def random_tree(nodes: int, seed: int) -> tuple[list[int], list[int]]:
    chosen = random.Random(seed)
    parents = [-1] + [chosen.randrange(j) for j in range(1, nodes)]
    return [chosen.randrange(VOCAB) for _ in parents], parents


def open_with(target: Target, prompts: list[list[int]], nodes: int = 40) -> Target:
    target.open(len(prompts), 80, nodes)
    target.prefill(range(len(prompts)), prompts)
    return target


@torch.inference_mode()
def stepped(target: Target, prompt: list[int], path: Path) -> Tensor:
    """`[len(path), V]`: the logits of one-token decoding, alone."""
    open_with(target, [prompt])
    one, rows = torch.ones(1, dtype=torch.int64), []
    for token in path:
        rows.append(target.verify(TokenTree.roots(torch.tensor([token]))).logits[0, 0])
        target.cache.append(0 * one, one)
    return torch.stack(rows)


def in_trees(target: Target, sizes: Sequence[int], seed: int = 0) -> list[tuple[list[int], Path, Tensor]]:
    """Trees of all prompts in one step: for the last node of each the prompt, the path and the logits `[V]`."""
    trees = [random_tree(size, seed + b) for b, size in enumerate(sizes)]
    logits = open_with(target, PROMPTS).verify(TokenTree.from_lists(trees)).logits
    found: list[tuple[list[int], Path, Tensor]] = []
    for b, (tokens, parents) in enumerate(trees):
        path = climb(parents, len(tokens) - 1)[::-1]
        found.append((PROMPTS[b], [tokens[i] for i in path], logits[b, len(tokens) - 1]))
    return found


# --- rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_row_in_a_tree_in_a_batch_is_that_of_one_token_decoding(architecture: str, dtype: torch.dtype) -> None:
    model = make_model(architecture, dtype=dtype)
    target = Target(model, exact=True)
    assert target.block_rows == (1 if architecture in EXPERTS else exact.ROWS["cpu"])
    for prompt, path, logits in in_trees(target, (5, 2, 1, 4, 3) if architecture in EXPERTS else (19, 5, 1, 12, 7)):
        assert torch.equal(stepped(target, prompt, path)[-1], logits)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_a_chain_is_one_token_decoding_at_every_depth(dtype: torch.dtype) -> None:
    """More nodes than a block and a word of bits have; ragged, beside an empty slot."""
    target = Target(make_model(num_hidden_layers=3, dtype=dtype), exact=True)
    path = [(7 * i + 3) % VOCAB for i in range(37)]
    expected = stepped(target, PROMPTS[0], path)
    open_with(target, [PROMPTS[2], PROMPTS[0], PROMPTS[3]])
    rows = [random_tree(70, 5)[0], path, []]
    trees = [(tokens, list(range(-1, len(tokens) - 1))) for tokens in rows]
    assert torch.equal(target.verify(TokenTree.from_lists(trees)).logits[1, :37], expected)


def test_prompts_are_as_if_they_were_decoded_whatever_their_batch() -> None:
    """Logits and hidden states after a prompt: alone, in a batch, in pieces."""
    model = make_model(dtype=torch.bfloat16)
    target = Target(model, hidden_layers=(0, -1), exact=True)
    target.open(5, 60)
    together = target.prefill(range(5), PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        target.open(1, 60)
        alone = target.prefill([0], [prompt])
        assert torch.equal(alone.logits[0], together.logits[row])
        assert torch.equal(stepped(target, prompt[:1], prompt[1:])[-1], alone.logits[0, 0]) if prompt[1:] else True
        for layer in (0, -1):
            assert torch.equal(alone.hidden[layer][0], together.hidden[layer][row, : len(prompt)])


@pytest.mark.parametrize("settings", [{}, {"hidden_size": 36, "head_dim": 18, "intermediate_size": 49}], ids=str)
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_and_odd_sizes(threads: int, settings: dict[str, Any]) -> None:
    """Where a library does not treat all places of a block alike, a block is one row, and the bits are kept."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        target = Target(make_model(**settings), exact=True)
        for prompt, path, logits in in_trees(target, (9, 5, 1, 12, 7)):
            assert torch.equal(stepped(target, prompt, path)[-1], logits)
    finally:
        torch.set_num_threads(before)


def test_a_library_that_minds_the_place_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = torch.nn.functional.linear

    def uneven(x: Tensor, *rest: Any) -> Tensor:
        out = linear(x, *rest)
        out[:, 1:2] *= 1 + 2**-20
        return out

    assert Target(make_model(seed=3), exact=True).block_rows == exact.ROWS["cpu"]
    monkeypatch.setattr(torch.nn.functional, "linear", uneven)
    assert Target(make_model(seed=3), exact=True).block_rows == 1


def uneven_queries(model: PreTrainedModel, patch: pytest.MonkeyPatch) -> None:
    """One key alone has weight 1 whatever the query is, so texts of one token cannot show it."""

    def uneven(module: torch.nn.Module, given: Any, out: Tensor) -> Tensor:
        return out * torch.where(torch.arange(out.shape[1]) == 1, 1 + 2**-20, 1)[None, :, None]

    model.model.layers[0].self_attn.q_proj.register_forward_hook(uneven)


def uneven_trees(model: PreTrainedModel, patch: pytest.MonkeyPatch) -> None:
    run = Target._pass

    def uneven(self: Target, tokens: Tensor, rows: Rows, keep: Tensor | None) -> TargetOutput:
        output = run(self, tokens, rows, keep)
        if rows.visible.words is not None and (rows.visible.tree_sizes > 1).any():
            output.logits.mul_(1 + 2**-20)
        return output

    patch.setattr(Target, "_pass", uneven)


@pytest.mark.parametrize("spoil", [uneven_queries, uneven_trees])
def test_a_library_that_minds_the_company_is_found_out(monkeypatch: pytest.MonkeyPatch, spoil: Any) -> None:
    model = make_model(seed=3)
    spoil(model, monkeypatch)
    assert Target(model, exact=True).block_rows == 1


@pytest.mark.parametrize("positions", [9, 20])
def test_a_model_with_fewer_positions_than_a_block_has_rows(positions: int) -> None:
    assert Target(make_model(max_position_embeddings=positions), exact=True).block_rows == exact.ROWS["cpu"]


def test_a_model_that_has_moved_is_tried_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """To another dtype or device, in place; and only then."""
    model, tried = make_model(num_hidden_layers=1), []

    def keeps_bits(target: Target, rows: int) -> bool:
        tried.append((target.device.type, rows))
        return True

    monkeypatch.setattr(exact, "_keeps_bits", keeps_bits)

    def choose(device: str) -> int:
        return exact.choose_rows(SimpleNamespace(model=model, backend="auto", device=torch.device(device)))  # type: ignore[arg-type]

    assert [choose(device) for device in ("cpu", "cpu", "cuda", "cpu")] == [16, 16, 64, 16]
    model.to(torch.bfloat16)
    assert [choose(device) for device in ("cpu", "cuda", "cuda")] == [16, 64, 64]
    assert tried == [("cpu", 16), ("cuda", 64)] * 2


def test_without_it_rows_differ() -> None:
    """The tests above can fail: float32 rows of other numbers of rows are rounded otherwise, by any library we know."""
    target = Target(make_model())
    differing = [not torch.equal(stepped(target, p, path)[-1], x) for p, path, x in in_trees(target, (19, 5, 1, 12, 7))]
    if not any(differing):
        pytest.skip("this library's products do not depend on the number of rows")


# --- texts

SETTINGS = {"greedy": SamplingParams(), "sampled": SamplingParams(temperature=0.8, top_p=0.95, seed=3)}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model(dtype=torch.bfloat16)


def texts_of(model: PreTrainedModel, drafter: object, sampling: SamplingParams, together: bool) -> list[Path]:
    """Of all prompts in one batch, or of two of them, each by itself."""
    engine = Engine(model, drafter, None, "coupled", exact=True)
    requests = [Request(prompt, 25, sampling) for prompt in PROMPTS]
    if together:
        return list(serve(engine, requests)[0])
    return [serve(engine, [request])[0][0] for request in requests[1:3]]


@pytest.fixture(scope="module", params=SETTINGS)
def plain(request: pytest.FixtureRequest, model: PreTrainedModel) -> tuple[SamplingParams, list[Path]]:
    sampling = SETTINGS[request.param]
    engine = Engine(model, "none", None, "coupled", exact=True)
    return sampling, [serve(engine, [Request(prompt, 25, sampling)])[0][0] for prompt in PROMPTS]


@pytest.mark.parametrize("together", [False, True], ids=["alone", "batch"])
@pytest.mark.parametrize("kind", ["none", "ngram", "chain", "best_first", "early_exit", "trees", "chains"])
def test_texts_are_those_of_plain_decoding(
    model: PreTrainedModel, plain: tuple[SamplingParams, list[Path]], kind: str, together: bool
) -> None:
    sampling, expected = plain
    known = {tuple(p): [*text, *text] for p, text in zip(PROMPTS, expected, strict=True)}
    drafter: Any = {
        "chain": lambda: DraftModel(noisy_copy(model), chain(4)),
        "best_first": lambda: DraftModel(noisy_copy(model), BestFirst(max_nodes=9, depth=3, top_k=3)),
        "early_exit": lambda: EarlyExit(exit_layer=1),
        "trees": lambda: Scripted(known, hit=0.7, max_nodes=23),
        "chains": lambda: Scripted(known, hit=0.9, max_nodes=19, chains=True),
    }.get(kind, lambda: kind)()
    assert texts_of(model, drafter, sampling, together) == (expected if together else expected[1:3])


@pytest.mark.slow
def test_texts_of_the_shipped_target() -> None:
    """bfloat16, whole texts, for which the drafters' trees differ in rounding without exact=True."""
    model, tokenizer = loading.load_model("tiny"), loading.load_tokenizer("tiny")
    prompts = [tokenizer(text)["input_ids"] for text in ("import os\n", "def add(a, b):\n", "# Sorts\nclass ", "x = [")]
    for sampling in SETTINGS.values():
        requests = [Request(prompt, 64, sampling) for prompt in prompts]
        plain = Engine(model, "none", None, "coupled", exact=True)
        expected = [serve(plain, [request])[0][0] for request in requests]
        assert serve(plain, requests)[0] == expected
        for name, tree in (("ngram", None), ("draft_model", "chain"), ("draft_model", "best_first"), ("eagle", None)):
            assert serve(Engine(model, name, tree, "coupled", exact=True), requests)[0] == expected


# --- faces


def test_every_face_takes_it(model: PreTrainedModel) -> None:
    ids = torch.tensor([PROMPTS[0]])
    expected = specdec.generate(model, ids, drafter="none", exact=True, max_new_tokens=20).sequences
    assert torch.equal(specdec.generate(model, ids, exact=True, max_new_tokens=20).sequences, expected)
    assert Engine(model, "ngram", None, "coupled", exact=True).target.block_rows == exact.ROWS["cpu"]
    given: dict[str, Any] = {"custom_generate": specdec.hf.generate, "drafter": "ngram", "exact": True}
    assert torch.equal(model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0, **given), expected)
    decoder = SpeculativeDecoder(model, None, exact=True)
    assert decoder.engine.target.block_rows == exact.ROWS["cpu"]


@pytest.mark.parametrize("backend", ["sdpa", "flex", "naive"])
def test_backends_that_cannot(model: PreTrainedModel, backend: str) -> None:
    with pytest.raises(
        ValueError, match=f"exact=True needs an attention backend .* auto, packed, cpp or triton; got '{backend}'"
    ):
        Target(model, backend=backend, exact=True)


def test_compiled_passes_cannot(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"exact=True .* cannot be combined with compile"):
        specdec.generate(model, torch.tensor([[1, 2]]), exact=True, compile=True, max_new_tokens=4)


def test_the_fused_kernel_takes_chains_and_refuses_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter: the chain's rows are those of one-token decoding, a tree is refused."""
    monkeypatch.setitem(exact.ROWS, "cpu", 2)
    target = Target(make_model(num_hidden_layers=1), backend="triton", exact=True)
    expected = stepped(target, PROMPTS[1], [5, 6, 7])
    open_with(target, [[9], PROMPTS[1]])
    trees = [([9], [-1]), ([5, 6, 7], [-1, 0, 1])]
    assert torch.equal(target.verify(TokenTree.from_lists(trees)).logits[1], expected)
    with pytest.raises(ValueError, match=r"for chains only, and the drafter proposed a tree; use tree='chain', or bac"):
        target.verify(TokenTree.from_lists([([9], [-1]), ([5, 6, 7], [-1, 0, 0])]))


def test_no_difference_is_a_tie_of_an_exact_target() -> None:
    model = make_model()
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[41] = head[40]
    checks = [lossless.compare(Target(model, exact=e), [5, 6], [40], [41], SamplingParams()) for e in (False, True)]
    assert [check.tie for check in checks] == [True, False]
