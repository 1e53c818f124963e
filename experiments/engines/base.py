"""What another engine has to offer so that a method may run on it: one file here and one yaml in conf/backend.

An engine is told which drafter it is to run and how many tokens that drafts; it says what it cannot do before anything
is loaded. Of every request it gives the tokens of each pass and when they came; everything else is counted from these,
for all engines alike, in `counts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec import registry
from specdec.core import TreePolicy
from specdec.drafters.ngram import NGram
from specdec.engine import Engine
from specdec.sampling import SamplingParams

Spec = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Draft:
    """What is to be drafted.

    Attributes:
        kind: the drafter's name in conf/drafter.
        settings: of the drafter.
        tree: of the drafter, a name or a mapping; None if it has none.
        length: tokens of a chain; 0 for `none`.
        ngrams: of prompt lookup, the shortest and the longest suffix that is looked up.
        note: what of the settings a chain leaves out, or nothing.
    """

    kind: str
    settings: Spec
    tree: Spec | str | None = None
    length: int = 0
    ngrams: tuple[int, int] = (0, 0)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request.

    Attributes:
        passes: the new tokens of each pass, in order; those of the one that read the prompt first.
        times: of each pass, when its tokens were there: seconds from the call on.
        drafts: of passes that verified a draft, how many tokens it had and how many of them were accepted, cut or not,
            in any order; the pass that read the prompt apart. None if the engine does not tell.
    """

    passes: list[list[int]]
    times: list[float]
    drafts: list[tuple[int, int]] | None


@dataclass(frozen=True, slots=True)
class Setting:
    """What an engine is given when it is opened.

    Attributes:
        model, tokenizer: the target.
        target: conf/target's mapping, with its name.
        drafting: makes the drafter, bound to the target, of a draft; models it names are loaded once for all methods.
        threads: of torch.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    target: Mapping[str, Any]
    drafting: Callable[[Draft], Any]
    threads: int


class Opened(Protocol):
    """An engine with its weights loaded, for one method.

    Attributes:
        versions: of packages, for the provenance.
        own_memory: it runs in another process, whose memory is not known here.
    """

    versions: Mapping[str, str]
    own_memory: bool

    def serve(
        self, prompts: Sequence[list[int]], max_new_tokens: int, sampling: SamplingParams, eos: frozenset[int]
    ) -> tuple[list[Answer], int]:
        """Serve requests together. Returns an answer each, and how many passes there were besides those that read
        prompts."""

    def close(self) -> None:
        """Free what it holds."""


class OtherEngine(Protocol):
    """A yaml of conf/backend that has a `_target_` makes one.

    Attributes:
        name: for messages.
        drafters: names in conf/drafter of those that it has an equivalent of.
    """

    name: ClassVar[str]
    drafters: ClassVar[tuple[str, ...]]

    def check(self, draft: Draft, sampling: SamplingParams, batch: int) -> None:
        """Refuse what it cannot do.

        Raises:
            ValueError: says what, and what to do instead.
        """

    def open(self, draft: Draft, setting: Setting) -> Opened:
        """Load what it needs.

        Raises:
            ValueError: it cannot be started here.
        """


def draft_of(engine: OtherEngine, drafter: Spec, tree: Spec | str | None, allowed: Sequence[str]) -> Draft:
    """A method's drafter as another engine runs it: a chain.

    Raises:
        ValueError: the engine has no such drafter; the message names those it has.
    """
    kind = registry.yaml_name("drafter", drafter)
    if kind not in engine.drafters:
        raise ValueError(f"{engine.name} has no equivalent of drafter={kind}; it has: {', '.join(engine.drafters)}")
    if kind == "none":
        return Draft(kind, drafter)
    chain = f"{engine.name} drafts chains: one of up to"
    if kind == "ngram":
        lookup: NGram = registry.instantiate(drafter, allowed, "drafter")
        wider = lookup.continuations > 1
        note = f"{chain} {lookup.length} tokens in place of {lookup.continuations} continuations" if wider else ""
        return Draft(kind, drafter, None, lookup.length, (lookup.min_ngram, lookup.max_ngram), note)
    tree = tree if tree is not None else drafter.get("tree", "chain")
    policy: TreePolicy = registry.build("tree", tree, allow_targets=allowed)
    wider, depth = policy.max_nodes - 1 > policy.depth, policy.depth
    note = f"{chain} {depth} tokens in place of a tree of up to {policy.max_nodes - 1}" if wider else ""
    return Draft(kind, drafter, tree, depth, note=note)


def bound_drafter(model: PreTrainedModel, spec: Spec, tree: Spec | str | None, allowed: Sequence[str]) -> Any:
    """The drafter with its weights, made for the target."""
    return Engine(model, spec, tree, "coupled", allow_targets=allowed).drafter
