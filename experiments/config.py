"""The configuration of `specdec run`, looked over before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from specdec import loading, registry
from specdec.attention import choose_backend
from specdec.exact import check_settings
from specdec.experiments.methods import Method, Spec, make_methods, other_backend
from specdec.experiments.predict import Settings as Predict
from specdec.experiments.validation import check_counts, check_keys, check_models, check_name, refuse_missing

TRACES = ("html", "perfetto")


@dataclass(frozen=True, slots=True)
class Measure:
    """How to measure; see conf/run.yaml."""

    max_new_tokens: int = 64
    repeats: int = 1
    batch: int = 1
    warmup_tokens: int = 16
    time_limit: float | None = None
    steps: bool = True
    noise: bool = False
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 2), ("repeats", 1), ("batch", 1), ("warmup_tokens", 0), ("seed", 0)):
            check_counts({f"measure.{name}": getattr(self, name)}, least)
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise ValueError(f"measure.threads is {self.threads!r}; expected a whole number of at least 1, or null")
        for name in ("steps", "noise"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"measure.{name} is {getattr(self, name)!r}; expected true or false")
        limit = self.time_limit
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or limit <= 0):
            raise ValueError(f"measure.time_limit is {limit!r}; expected seconds, or null for no limit")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that decides what a run does. `methods` has every baseline before its methods."""

    name: str
    target: Spec
    methods: tuple[Method, ...]
    data: Spec
    tracker: Spec
    backend: str
    exact: bool
    measure: Measure
    stream: int | None
    trace: tuple[str, ...] = ()
    transformers_batch: int | None = None
    predict: Predict | None = None
    machine: str | None = None
    allow_targets: tuple[str, ...] = ()
    compile: bool = False
    resolved: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def parse(raw: Mapping[str, Any]) -> RunConfig:
        """From the resolved configuration.

        Raises:
            ValueError: a key, name or value is wrong; the message says which.
        """
        if "training" in raw:
            raise ValueError("this configuration trains a model: start it with `specdec train`")
        known = {"name", "target", "drafter", "tree", "acceptance", "sampling", "data", "backend", "tracker"}
        known |= {"methods", "only", "measure", "stream", "trace", "transformers_batch", "allow_targets"}
        known |= {"predict", "grid", "machine", "scaling", "load"}
        check_keys(raw, known, "setting")
        allowed = tuple(raw.get("allow_targets") or ())
        for kind in ("target", "data", "tracker"):
            if kind not in raw:
                raise ValueError(f"no {kind} was chosen; expected {kind}=one of: {', '.join(registry.names(kind))}")
            refuse_missing(raw[kind], kind)
            if kind == "target":
                check_name(raw[kind])
            registry.check(raw[kind], allowed, kind)
        check_models({"target": raw["target"]})
        measure = raw.get("measure") or {}
        check_keys(measure, {f.name for f in fields(Measure)}, "setting of measure")
        backend, exact, compile = _backend(
            {"attention": "auto"} if other_backend(raw.get("backend"), allowed) else raw.get("backend")
        )
        stream = raw.get("stream")
        if stream is not None and (type(stream) is not int or stream < 1):
            raise ValueError(f"stream is {stream!r}; expected a number of new tokens, or null")
        batch = raw.get("transformers_batch")
        if batch is not None and (type(batch) is not int or batch < 2):
            raise ValueError(f"transformers_batch is {batch!r}; expected a number of prompts of at least 2, or null")
        if raw.get("grid") and raw.get("trace"):
            raise ValueError("trace shows a method once, a grid has it in many cells; give trace=null or 'grid=[]'")
        checked = Measure(**measure)
        methods = make_methods(raw, allowed, noise=checked.noise)
        return RunConfig(
            name=str(raw["name"]),
            target=dict(raw["target"]),
            methods=methods,
            data=dict(raw["data"]),
            tracker=dict(raw["tracker"]),
            backend=backend,
            exact=exact,
            compile=compile,
            measure=checked,
            stream=stream,
            trace=_trace(raw.get("trace")),
            transformers_batch=batch,
            predict=Predict.parse(raw["predict"], methods) if raw.get("predict") is not None else None,
            machine=_machine(raw.get("machine")),
            allow_targets=allowed,
            resolved=dict(raw),
        )


def _backend(raw: Any) -> tuple[str, bool, bool]:
    """The attention backend, whether the target is exact, and whether it is compiled."""
    check_keys(raw, {"attention", "exact", "compile"}, "setting of backend")
    name = str(raw["attention"])
    chosen = {key: raw.get(key, False) for key in ("exact", "compile")}
    for key, value in chosen.items():
        if type(value) is not bool:
            raise ValueError(f"backend.{key} is {value!r}; expected true or false")
    backend = choose_backend(name, loading.choose_device("auto"))
    if chosen["exact"]:
        check_settings(backend, chosen["compile"])
    return name, chosen["exact"], chosen["compile"]


def _machine(raw: Any) -> str | None:
    if raw is not None and (not isinstance(raw, str) or not raw):
        raise ValueError(f"machine is {raw!r}; expected measure, a file of `specdec bench machine`, or null")
    return raw


def _trace(raw: Any) -> tuple[str, ...]:
    names = [] if raw is None else [raw] if isinstance(raw, str) else raw
    if not isinstance(names, list) or not all(name in TRACES for name in names):
        raise ValueError(f"trace is {raw!r}; expected {', '.join(TRACES)}, a list of these, or null")
    return tuple(names)
