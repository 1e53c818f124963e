"""Methods: what `specdec run` compares. Each is measured against plain decoding with the same sampling settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from specdec import registry
from specdec.core import AcceptanceRule
from specdec.experiments.engines.base import Draft, OtherEngine, draft_of
from specdec.experiments.grid import Place, read_grid, sized
from specdec.experiments.validation import check_counts, check_keys, check_models, refuse_missing
from specdec.sampling import SamplingParams

Spec = dict[str, Any]
NO_DRAFTER = "specdec.drafters.none.NoDrafter"


@dataclass(frozen=True, slots=True)
class Method:
    """A way to decode.

    Attributes:
        drafter, tree, acceptance: mappings with `_target_`; tree None for the drafter's own.
        sampling: how tokens are chosen.
        baseline: the method it is measured against; None if it is a baseline itself.
        synthetic: its drafter is told the text beforehand. The name of such a method always says so.
        batch: questions that are served together.
        backend: another engine's mapping with `_target_`, as in conf/backend; None for specdec itself.
        draft: what that engine is to draft.
        place: its cell in the run's grid; None without a grid.
    """

    name: str
    drafter: Spec
    tree: Spec | None
    acceptance: Spec
    sampling: SamplingParams
    baseline: str | None
    synthetic: bool = False
    batch: int = 1
    backend: Spec | None = None
    draft: Draft | None = None
    place: Place | None = None

    @property
    def context(self) -> int | None:
        """Tokens of every prompt; None for as many as it has."""
        return self.place.context if self.place else None

    @property
    def is_again(self) -> bool:
        """Whether it is a baseline's second measurement, see machine_noise.py."""
        return self.baseline is not None and self.is_plain

    @property
    def is_plain(self) -> bool:
        """Whether it is specdec's plain decoding."""
        return self.backend is None and self.drafter["_target_"] == NO_DRAFTER


def make_methods(raw: Mapping[str, Any], allowed: tuple[str, ...], noise: bool = False) -> tuple[Method, ...]:
    """Every method with its settings filled in, after the baseline of its sampling settings and batch.

    Args:
        raw: the resolved configuration: `methods`, `only`, and the groups that fill in what these leave out.
        allowed: `_target_`s that may run besides specdec's.
        noise: measure every baseline once more, after its methods.

    Raises:
        ValueError: a name, key or value is wrong; the message says which.
    """
    named = dict(raw.get("methods") or {})
    chosen: Spec | None = None
    if raw.get("drafter") is not None:
        chosen = {"drafter": raw["drafter"], **({"tree": raw["tree"]} if raw.get("tree") is not None else {})}
        other = other_backend(raw.get("backend"), allowed)
        named.setdefault("_".join([*([_yaml_of("backend", other)] if other else []), _label(chosen)]), chosen)
    named = _only(named, raw.get("only"))
    cells = read_grid(raw.get("grid"))
    methods = [
        _method(name, given, raw, allowed, "" if given is chosen else f"methods.{name}.")
        for name, given in named.items()
    ]
    if not methods:
        raise ValueError(f"nothing to measure; choose drafter=one of: {', '.join(registry.names('drafter'))}")
    if cells:
        placed = [made for cell in cells for m in methods if (made := _in_cell(m, cell, allowed)) is not None]
        methods = list({m.name: m for m in placed}.values())
    kinds = list(dict.fromkeys((m.sampling, m.batch, m.context) for m in methods))
    several, batches = len({kind[0] for kind in kinds}) > 1, len({kind[1] for kind in kinds}) > 1
    plain = registry.read_yaml("acceptance", "coupled")
    ordered: list[Method] = []
    for sampling, batch, context in kinds:
        family = "none" + f"_t{sampling.temperature:g}" * several
        place = Place(family, batch, context) if cells else None
        name = place.name if place else family + f"_b{batch}" * batches
        if any(b.name == name for b in ordered):
            name = f"none_{len(ordered)}"
        none = {"_target_": NO_DRAFTER}
        baseline = Method(name, none, None, plain, sampling, None, batch=batch, place=place)
        ordered.append(baseline)
        for m in methods:
            if (m.sampling, m.batch, m.context) == (sampling, batch, context) and not m.is_plain:
                ordered.append(replace(m, baseline=name))
        if noise and any(m.baseline == name for m in ordered):  # else there is no speed-up
            again = f"{name}_again"
            if any(m.name == again for m in methods):
                raise ValueError(f"methods.{again}: measure.noise=true needs this name; call the method something else")
            place = replace(baseline.place, family=f"{baseline.place.family}_again") if baseline.place else None
            ordered.append(replace(baseline, name=again, baseline=name, place=place))
    return tuple(ordered)


def _in_cell(method: Method, cell: Mapping[str, Any], allowed: tuple[str, ...]) -> Method | None:
    """A method in a cell of the grid; None if the cell has a tree size, and the method none that can be set."""
    place = Place(method.name, **{**cell, "batch": cell["batch"] or method.batch})
    made = replace(method, name=place.name, batch=place.batch, place=place)
    if method.backend is not None and method.draft is not None:
        registry.instantiate(method.backend, allowed, "backend").check(method.draft, method.sampling, place.batch)
        return made if place.nodes is None else None
    if place.nodes is None:
        return made
    found = sized(method.drafter, method.tree, place.nodes)
    if found is None:
        return None
    drafter, tree = found
    if tree is not None:
        registry.build("tree", tree, allow_targets=allowed)
    return replace(made, drafter=drafter, tree=tree)


def _only(named: dict[str, Any], chosen: Any) -> dict[str, Any]:
    """The methods chosen, in the order chosen; all for None."""
    if chosen is None:
        return named
    if not isinstance(chosen, list) or not all(isinstance(name, str) for name in chosen):
        raise ValueError(f"only is {chosen!r}; expected a list of methods' names, or null for all")
    for name in chosen:
        if name not in named:
            raise registry.unknown("method in only", name, named)
    return {name: named[name] for name in chosen}


def _label(chosen: Mapping[str, Any]) -> str:
    """A name for the method of the groups: the drafter's yaml, or its class, and the tree's."""
    return "_".join(_yaml_of(kind, spec) for kind, spec in chosen.items())


def _yaml_of(kind: str, spec: Any) -> str:
    return spec.rpartition(".")[2] if isinstance(spec, str) else registry.yaml_name(kind, spec)


def _method(name: str, given: Any, raw: Mapping[str, Any], allowed: tuple[str, ...], group: str) -> Method:
    """`group` is what its settings begin with on the command line; nothing for the groups' own."""
    check_keys(given, {"drafter", "tree", "acceptance", "sampling", "backend", "batch"}, f"setting of methods.{name}")
    if "drafter" not in given:
        raise ValueError(f"methods.{name} has no drafter; expected one of: {', '.join(registry.names('drafter'))}")
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"methods: {name!r} cannot be a method's name; expected letters, digits, - and _")
    specs = {
        kind: _resolve(kind, given.get(kind, raw.get(kind) if kind != "tree" else None), f"{group}{kind}")
        for kind in ("drafter", "tree", "acceptance", "sampling")
    }
    drafter, tree, acceptance = specs["drafter"] or {}, specs["tree"], specs["acceptance"] or {}
    if tree is not None:
        registry.check_takes_tree(drafter, allowed)
    registry.check({**drafter, **({} if tree is None else {"tree": tree})}, allowed, f"drafter of {name}")
    check_models({"drafter": drafter})
    if tree is not None:
        registry.build("tree", tree, allow_targets=allowed)
    rule: AcceptanceRule = registry.build("acceptance", acceptance, allow_targets=allowed)
    if not hasattr(rule, "lossless"):
        raise ValueError(f"methods.{name}.acceptance does not say whether it is lossless; see core.AcceptanceRule")
    synthetic = _is_synthetic(drafter, allowed)
    name = f"{name}_synthetic" if synthetic and "synthetic" not in name else name
    sampling = SamplingParams.from_dict(specs["sampling"] or {})
    if "batch" in given:
        check_counts({f"methods.{name}.batch": given["batch"]})
    batch = given.get("batch", (raw.get("measure") or {}).get("batch", 1))
    method = Method(name, drafter, tree, acceptance, sampling, None, synthetic, batch)
    backend = other_backend(given.get("backend", raw.get("backend")), allowed)
    if "backend" in given and backend is None:
        raise ValueError(
            f"methods.{name}.backend names no other engine; the kernel is the whole run's, as in backend=naive"
        )
    return method if backend is None else _elsewhere(method, backend, rule, raw, allowed)


def other_backend(given: Any, allowed: tuple[str, ...]) -> Spec | None:
    """The mapping of another engine, looked over; None where an attention kernel of ours is chosen."""
    found = registry.read_yaml("backend", given) if isinstance(given, str) else given
    if not isinstance(found, Mapping) or "_target_" not in found:
        return None
    registry.check(found, allowed, "backend")
    return dict(found)


def _elsewhere(
    method: Method, backend: Spec, rule: AcceptanceRule, raw: Mapping[str, Any], allowed: tuple[str, ...]
) -> Method:
    """A method as another engine runs it, with that engine's own rule: at temperature 0 the target's best token, else
    rejection."""
    if not rule.lossless:
        raise ValueError(
            f"methods.{method.name}: another engine judges drafts by its own lossless rule; take acceptance out"
        )
    try:
        engine: OtherEngine = registry.instantiate(backend, allowed, "backend")
        draft = draft_of(engine, method.drafter, method.tree, allowed)
        engine.check(draft, method.sampling, method.batch)
    except ValueError as error:
        raise ValueError(f"method {method.name}: {error}") from error
    own = registry.read_yaml("acceptance", "rejection")
    return replace(method, acceptance=own, backend=backend, draft=draft)


def _is_synthetic(spec: Any, allowed: tuple[str, ...]) -> bool:
    """Whether a drafter is, or has a part that is; see `core.Drafter`."""
    if isinstance(spec, str):
        return spec in registry.names("drafter") and _is_synthetic(registry.read_yaml("drafter", spec), allowed)
    if isinstance(spec, Mapping):
        made = "_target_" in spec and getattr(registry.find_target(spec["_target_"], allowed), "synthetic", False)
        return bool(made) or _is_synthetic(list(spec.values()), allowed)
    return isinstance(spec, list) and any(_is_synthetic(part, allowed) for part in spec)


def _resolve(kind: str, spec: Any, where: str) -> Spec | None:
    """A yaml's name to its content; a dotted path to a mapping."""
    if spec is None:
        return None
    if isinstance(spec, str):
        return {"_target_": spec} if "." in spec else registry.read_yaml(kind, spec)
    if not isinstance(spec, Mapping):
        raise ValueError(f"{where} is {spec!r}; expected a name in conf/{kind}, a dotted path or a mapping")
    name = registry.yaml_name(kind, spec) if kind == "drafter" else ""
    trained = (registry.CONF / "training" / f"{name}.yaml").is_file()
    refuse_missing(spec, where, f"; `specdec train drafter={name}` makes one" if trained else "")
    return dict(spec)
