"""Mistakes in drafters that keep something for every text, or draft in another vocabulary than their own."""

from __future__ import annotations

from .mistake import Mistake

DRAFTER_MISTAKES: dict[str, Mistake] = {
    "intersection drafts the tokens of its own numbers": Mistake(
        "specdec.drafters.intersection:Intersection.propose",
        "known.index_select(-1, own.clamp_min(0))",
        "known[..., : len(own)]",
        "drafters/test_intersection.py::test_children_are_drawn_from_what_is_said_of_them",
    ),
    "intersection reads its drafts by the target's numbers": Mistake(
        "specdec.drafters.intersection:Intersection.propose",
        "fit(run(replace(frontier, tokens=tokens)))",
        "fit(run(frontier))",
        "drafters/test_intersection.py::test_children_are_drawn_from_what_is_said_of_them",
    ),
    "intersection drafts a token that the draft model lacks": Mistake(
        "specdec.drafters.intersection:Intersection.propose",
        '.masked_fill(own < 0, float("-inf"))',
        "",
        "drafters/test_intersection.py::test_children_are_drawn_from_what_is_said_of_them",
    ),
    "recycling reads the first slot's table for all": Mistake(
        "specdec.drafters.recycling:Recycling.propose",
        "own[state.first + above, ranks]",
        "own[above, ranks]",
        "drafters/test_recycling.py::test_texts_do_not_write_over_each_other",
    ),
    "recycling writes the first slot's table for all": Mistake(
        "specdec.drafters.recycling:Recycling.observe",
        "state.first.expand_as(tokens)",
        "(0 * state.first).expand_as(tokens)",
        "drafters/test_recycling.py::test_as_a_dictionary_would[False]",
    ),
    "recycling keeps a request's table for the next one": Mistake(
        "specdec.drafters.recycling:Recycling.start",
        "[slots] = -1",
        "[slots] += 0",
        "drafters/test_recycling.py::test_a_slot_used_again_begins_empty_without_memory",
    ),
    "recycling asks the common table first": Mistake(
        "specdec.drafters.recycling:Recycling.propose",
        "torch.where(found >= 0, found, common[above, ranks])",
        "torch.where(common[above, ranks] >= 0, common[above, ranks], found)",
        "drafters/test_recycling.py::test_texts_do_not_write_over_each_other",
    ),
}
