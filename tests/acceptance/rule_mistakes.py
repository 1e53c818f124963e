"""Mistakes in the rules that decide, in what they are told of a tree, and in drafters whose drafts they judge."""

from __future__ import annotations

from .mistake import Mistake

RULE_MISTAKES: dict[str, Mistake] = {
    "block leaves the residual of a token, not of the block": Mistake(
        "specdec.acceptance.block:_verify",
        "reject(target, draft, token, chance)",
        "reject(target, draft, token, torch.ones_like(chance))",
        "acceptance/test_block.py::test_block_is_lossless[2-4-random]",
    ),
    "block takes a longer one for certain": Mistake(
        "specdec.acceptance.block:_verify",
        "torch.where(parent, left.chance, chance)",
        "left.chance",
        "acceptance/test_block.py::test_block_is_lossless[2-4-random]",
    ),
    "traversal leaves the target whole above a refused leaf": Mistake(
        "specdec.acceptance.traversal:_traverse",
        "targets.put(above, sibling & (left.total > 0),",
        "targets.put(above, sibling & (left.total < 0),",
        "acceptance/test_traversal.py::test_traversal_is_lossless[two children-random]",
    ),
    "traversal keeps a parent's chance": Mistake(
        "specdec.acceptance.traversal:_traverse",
        "torch.where(refused, left.chance, upper)",
        "upper",
        "acceptance/test_traversal.py::test_traversal_is_lossless[two branches-random]",
    ),
    "traversal forgets the chance at the end": Mistake(
        "specdec.acceptance.traversal:_at_the_end",
        "[:, None]), chance)",
        "[:, None]), torch.ones_like(chance))",
        "acceptance/test_traversal.py::test_traversal_is_lossless[chain of 2-random]",
    ),
    "traversal leaves another node than a walk would": Mistake(
        "specdec.acceptance.traversal:tour",
        "place[:, None])  # [b, j, i]: i before j",
        "place[:, None] - 1)",
        "acceptance/test_traversal.py::test_the_tour_is_a_depth_first_walk",
        "",
    ),
    "a child's arrival does not depend on its parent's": Mistake(
        "specdec.acceptance.residual:arrival",
        "chance * wanted",
        "wanted",
        "acceptance/test_block.py::test_block_is_lossless[2-4-random]",
    ),
    "a refused child leaves its parent the sum, not the chance": Mistake(
        "specdec.acceptance.residual:reject",
        "total / missing.clamp_min(1e-38)",
        "total",
        "acceptance/test_traversal.py::test_traversal_is_lossless[two branches-random]",
    ),
    "a fixed child leaves its own token": Mistake(
        "specdec.acceptance.residual:reject",
        "chance[:, None] * wanted - offered, 0.0)",
        "chance[:, None] * wanted - offered, wanted)",
        "acceptance/test_traversal.py::test_traversal_is_lossless[two children-draft is one token]",
    ),
    "what is left of a draft is not normalised": Mistake(
        "specdec.acceptance.residual:without",
        "others.div_(others.sum(-1, keepdim=True).clamp_min(1e-38))",
        "others",
        "acceptance/test_traversal.py::test_traversal_is_lossless[two children-both have zeros]",
    ),
    "rejection: siblings as if drawn with replacement": Mistake(
        "specdec.acceptance.rejection:_try_children",
        "if not tree.replacement:",
        "if False:",
        "acceptance/test_exact.py::test_rejection_with_drawn_children[two children-both have zeros]",
    ),
    "rejection: siblings as if drawn without replacement": Mistake(
        "specdec.acceptance.rejection:_try_children",
        "if not tree.replacement:",
        "if True:",
        "acceptance/test_exact.py::test_how_siblings_were_drawn_is_needed",
    ),
    "traversal: siblings as if drawn with replacement": Mistake(
        "specdec.acceptance.traversal:_traverse",
        "if not tree.replacement:",
        "if False:",
        "acceptance/test_traversal.py::test_traversal_is_lossless[two children-both have zeros]",
    ),
    "traversal: siblings as if drawn without replacement": Mistake(
        "specdec.acceptance.traversal:_traverse",
        "if not tree.replacement:",
        "if True:",
        "acceptance/test_traversal.py::test_below_one_node_it_is_recursive_rejection[True]",
    ),
    "a kernel: siblings as if drawn without replacement": Mistake(
        "specdec.kernels.tree_rejection.naive:_try_children",
        "if replacement:",
        "if False:",
        "kernels/test_tree_rejection.py::test_siblings_drawn_with_replacement[naive]",
    ),
    "a kernel: the draft is not taken from the residual": Mistake(
        "specdec.kernels.tree_rejection.naive:_try_children",
        "(target - draft).clamp_min(0)",
        "target",
        "kernels/test_tree_rejection.py::test_every_mix_of_settings[7-naive-False]",
    ),
    "a tree that is cut forgets how its siblings were drawn": Mistake(
        "specdec.tree.prefix:first_nodes",
        "tree.replacement,",
        "False,",
        "tree/test_prefix.py::test_what_children_were_drawn_from_and_riders_stay[True]",
    ),
    "adaptive's trees forget how their siblings were drawn": Mistake(
        "specdec.tree.prefix:first_nodes",
        "tree.replacement,",
        "False,",
        "drafters/test_replacement.py::test_adaptive_cuts_and_leaves_levels_out",
    ),
    "the first levels are drawn without replacement": Mistake(
        "specdec.tree.shallow:Shallow.replacement.fget",
        "draws_with_replacement(self.policy)",
        "False",
        "tree/test_prefix.py::test_the_first_levels_are_the_first_nodes[with replacement-own noise]",
    ),
    "siblings are drawn without replacement, whatever is said": Mistake(
        "specdec.sampling.draft:DraftNoise.choose",
        "elif replacement:",
        "elif False:",
        "drafters/test_replacement.py::test_drafters[draft_model-own noise]",
    ),
}
