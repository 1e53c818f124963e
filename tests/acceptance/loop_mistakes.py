"""Mistakes in the loop around the rules: positions, visibility, KV, noise, states of requests; in rejection, and in
exact passes."""

from __future__ import annotations

from .mistake import Mistake

PROBE = "ValueError: LlamaForCausalLM gives other logits in a tree than by itself"  # Target tries its model out
LOOP_MISTAKES: dict[str, Mistake] = {
    "positions are one too many": Mistake(
        "specdec.packing:pack_nodes",
        "(lengths[:, None] + depths)",
        "(lengths[:, None] + depths + 1)",
        "test_decode.py::test_plain_decoding_is_the_models_own",
        PROBE,
    ),
    "a node's position is its place, not its depth": Mistake(
        "specdec.packing:pack_nodes",
        "(lengths[:, None] + depths)",
        "(lengths[:, None] + _steps(first, nodes, device))",
        "test_decode.py::test_more_than_a_word_of_nodes",
        PROBE,
    ),
    "siblings see each other": Mistake(
        "specdec.tree.token_tree:_visible_bits",
        "visible[parent] if j else 0",
        "visible[j - 1] if j else 0",
        "test_decode.py::test_more_than_a_word_of_nodes",
        PROBE,
    ),
    "siblings see each other, by the kernel's maths": Mistake(
        "specdec.kernels.ancestor_words.host:ancestor_words_host",
        "seen[parent] | 1 << j",
        "seen[j - 1] | 1 << j",
        "kernels/test_small_ops.py::test_ancestor_words_of_a_chain_and_of_a_forest[host]",
    ),
    "the bonus token is another node's": Mistake(
        "specdec.kernels.accept.host:accept_host",
        "nexts.append(target[best])",
        "nexts.append(target[parent[best]])",
        "test_decode.py::test_plain_decoding_is_the_models_own",
    ),
    "the bonus token is another node's, where tokens are drawn": Mistake(
        "specdec.acceptance.coupled:walk",
        "next_token = torch.where(walking, token, next_token)",
        "next_token = torch.where(walking & (depth == 0), token, next_token)",
        "test_decode.py::test_a_queue_longer_than_the_slots[3]",
    ),
    "accepted KV stays where it is": Mistake(
        "specdec.cache:TreeCache.commit",
        "self.lengths, path, num_accepted)",
        "self.lengths, path, 0 * num_accepted)",
        "test_decode.py::test_more_than_a_word_of_nodes",
    ),
    "another row's KV is kept": Mistake(
        "specdec.kernels.kv_commit.naive:kv_commit_naive",
        "(b, first + node, first + i)",
        "(b, first + node - 1, first + i)",
        "test_decode.py::test_more_than_a_word_of_nodes",
    ),
    "the root's KV is kept twice, the last row's not": Mistake(
        "specdec.target:Target.commit",
        "self.cache.commit(verdict.path, ",
        "self.cache.commit(torch.cat([verdict.path[:, :1], verdict.path[:, :-1]], 1), ",
        "test_decode.py::test_more_than_a_word_of_nodes",
    ),
    "the root counts twice": Mistake(
        "specdec.cache:TreeCache.commit",
        "num_accepted.to(torch.int32)",
        "num_accepted.to(torch.int32) + (num_accepted > 0).int()",
        "test_riders.py::test_what_is_kept_is_the_path",
    ),
    "the length is one short where all is accepted": Mistake(
        "specdec.cache:TreeCache.commit",
        "num_accepted.to(torch.int32)",
        "num_accepted.to(torch.int32) - (num_accepted == path.shape[1]).int()",
        "test_decode.py::test_fakes_that_match[coupled-always]",
    ),
    "a draft model never reads an accepted leaf": Mistake(
        "specdec.drafters.draft_model:DraftModel.observe",
        "count > run",
        "count > run + 1",
        "drafters/test_draft_model.py::test_cache_equals_a_fresh_prefill[some-chain-shared noise]",
    ),
    "draft probabilities from before the filters": Mistake(
        "specdec.sampling.draft:DraftNoise.choose",
        "return tokens, None, self._step._distribution(scores)",
        "return tokens, None, self._step._distribution(logits.float())",
        "test_sampling.py::test_own_noise_draws_without_replacement",
    ),
    "target probabilities from before the filters": Mistake(
        "specdec.sampling.step:StepSampling.probs",
        "self._distribution(self._process(logits, path))",
        "self._distribution(logits.float())",
        "acceptance/test_steps.py::test_steps_in_a_row_with_top_k[rejection]",
    ),
    "top-k keeps the wrong side": Mistake(
        "specdec.kernels.common.filters.naive:filter_rows",
        "~(scores < cut)",
        "~(scores > cut)",
        "test_sampling.py::test_filters_that_a_gpu_reads_keep_what_transformers_keeps",
    ),
    "the same draft noise at every step": Mistake(
        "specdec.sampling.step:StepSampling.draft_keys",
        "return noise.keys(self.keys(noise.DRAFT_STREAM, 0), nodes[None], noise.DRAFT_STREAM)",
        "return self.keys(noise.DRAFT_STREAM, depth)[..., None].expand(-1, -1, count)",
        "acceptance/test_steps.py::test_steps_in_a_row[block]",
    ),
    "acceptance has the draft's noise": Mistake(
        "specdec.sampling.step:StepSampling.accept",
        "self.keys(noise.ACCEPT_STREAM, depth)",
        "self.draft_keys(depth, 1)[..., 0]",
        "acceptance/test_steps.py::test_steps_in_a_row[rejection]",
    ),
    "the target's noise belongs to the step, not to the position": Mistake(
        "specdec.sampling.step:StepSampling.keys",
        "self._positions[:, None] + steps",
        "0 * self._positions[:, None] + steps",
        "acceptance/test_equality.py::test_a_few_texts[ngram]",
    ),
    "the draft is not taken from the residual": Mistake(
        "specdec.acceptance.rejection:_try_children",
        "target_probs - draft_probs",
        "target_probs",
        "acceptance/test_exact.py::test_rejection_with_drawn_children[chain of 1-random]",
    ),
    "the residual is not normalised": Mistake(
        "specdec.acceptance.rejection:_try_children",
        "_normalise(left.clamp_min(0), target_probs)",
        "left.clamp_min(0)",
        "acceptance/test_exact.py::test_rejection_with_drawn_children[two children-both have zeros]",
    ),
    "the draft is not normalised after a rejected sibling": Mistake(
        "specdec.acceptance.rejection:_try_children",
        "_normalise(draft_probs.scatter(1, token, 0.0), None)",
        "draft_probs.scatter(1, token, 0.0)",
        "acceptance/test_exact.py::test_rejection_with_drawn_children[two children-both have zeros]",
    ),
    "a rejected sibling stays in the draft": Mistake(
        "specdec.acceptance.rejection:_try_children",
        "_normalise(draft_probs.scatter(1, token, 0.0), None)",
        "draft_probs",
        "acceptance/test_exact.py::test_rejection_with_drawn_children[two children-both have zeros]",
    ),
    "an end within a path is not seen": Mistake(
        "specdec.request:Generation.extend",
        "if self._ends(token):",
        "if count == len(tokens) and self._ends(token):",
        "test_decode.py::test_eos_ends_a_text_in_the_middle_of_a_step",
    ),
    "a released slot keeps its length": Mistake(
        "specdec.cache:TreeCache.release",
        "self.lengths[slot] = 0",
        "pass",
        "test_decode.py::test_a_queue_longer_than_the_slots[3]",
    ),
    "a draft model reads a token of the request before": Mistake(
        "specdec.drafters.draft_model:DraftModel.start",
        "unread[slots] = -1",
        "pass",
        "drafters/test_draft_model.py::test_cache_equals_a_fresh_prefill[all-chain-shared noise]",
    ),
    "a released slot keeps the tokens that are penalised": Mistake(
        "specdec.sampling.sampler:Sampler.start",
        "self._present[slot] = False",
        "pass",
        "test_sampling.py::test_slots_entering_and_leaving",
    ),
    "the penalty does not see a node's own path": Mistake(
        "specdec.sampling.sampler:Sampler.penalise",
        "if path.shape[-1]:",
        "if False:",
        "test_decode.py::test_plain_decoding_is_the_models_own",
    ),
    "exact: a row of a chain sees those after its block": Mistake(
        "specdec.exact:cut",
        "sizes = sizes - (",
        "sizes = sizes - 0 * (",
        "test_exact_mode.py::test_prompts_are_as_if_they_were_decoded_whatever_their_batch",
    ),
    "exact: a later block's KV is written over the first one's": Mistake(
        "specdec.exact:cut",
        "place + low - row, low",
        "place, low",
        "test_exact_mode.py::test_a_chain_is_one_token_decoding_at_every_depth[torch.float32]",
    ),
    "exact: a block has as many rows as there are": Mistake(
        "specdec.exact:in_blocks",
        "wanted = None if keep is None else keep.tolist()",
        "wanted, size = None if keep is None else keep.tolist(), min(size, len(tokens))",
        "test_exact_mode.py::test_a_row_in_a_tree_in_a_batch_is_that_of_one_token_decoding[llama-torch.float32]",
    ),
    "exact: a path's keys are added in another order": Mistake(
        "specdec.kernels.tree_attention.packed:_attend_rows",
        "x.index_select(2, slots)",
        "x.index_select(2, slots.flip(0))",
        "test_exact_mode.py::test_a_row_in_a_tree_in_a_batch_is_that_of_one_token_decoding[llama-torch.float32]",
    ),
    "exact: a library that minds the place of a row is trusted": Mistake(
        "specdec.exact:_keeps_bits",
        "return _keeps_bits_in_any_order(target, rows) and _keeps_bits_in_company(target, rows)",
        "return True",
        "test_exact_mode.py::test_a_library_that_minds_the_place_is_found_out",
    ),
    "exact: a library that minds the company of a row is trusted": Mistake(
        "specdec.exact:_keeps_bits",
        " and _keeps_bits_in_company(target, rows)",
        "",
        "test_exact_mode.py::test_a_library_that_minds_the_company_is_found_out[uneven_queries]",
    ),
    "exact: a model that was moved is not tried again": Mistake(
        "specdec.exact:choose_rows",
        "target.model.dtype, target.device)",
        "None, target.device)",
        "test_exact_mode.py::test_a_model_that_has_moved_is_tried_anew",
    ),
    "exact: the fused kernel takes trees": Mistake(
        "specdec.exact:check_chains",
        "(depths == node + first)",
        "(depths <= node + first)",
        "test_exact_mode.py::test_the_fused_kernel_takes_chains_and_refuses_trees",
        "Failed: DID NOT RAISE",
    ),
}
