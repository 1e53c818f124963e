"""A target and the methods that are compared on it, built from a looked-over configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec import loading, registry
from specdec.engine import Engine
from specdec.experiments.config import RunConfig
from specdec.experiments.engines.base import Draft, Opened, OtherEngine, Setting, bound_drafter
from specdec.experiments.methods import Method
from specdec.experiments.validation import LOAD_MODEL
from specdec.metrics import TargetCost
from specdec.quantization import stored_bytes


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything that is needed to serve requests.

    Attributes:
        engines: by method name, baselines before their methods.
        make: a new engine of a method, which has seen nothing; with an attention backend's name, over that one.
        others: engines that are not ours, by method name; see `close`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    methods: tuple[Method, ...]
    engines: dict[str, Engine]
    cost: TargetCost
    make: Callable[..., Engine]
    others: dict[str, Opened] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Of the target."""
        return self.model.device

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """By method, the paths of its drafter's tree, for those that have a fixed one."""
        policies: dict[str, Any] = {n: getattr(e.drafter, "policy", None) for n, e in self.engines.items()}
        return {name: policy.paths for name, policy in policies.items() if hasattr(policy, "paths")}

    @property
    def dtype(self) -> str:
        """Of the target, by name."""
        return str(self.model.dtype).removeprefix("torch.")

    def room(self, max_new_tokens: int, setting: str = "measure.max_new_tokens") -> int:
        """Most tokens of a prompt; 0 for no limit. `setting` is what says how many new ones there are to be.

        Raises:
            ValueError: there is none left for a prompt.
        """
        limit = next(iter(self.engines.values())).target.max_positions
        if limit and limit <= max_new_tokens:
            raise ValueError(f"{setting} is {max_new_tokens}, but the target has {limit} positions in all")
        return limit - max_new_tokens if limit else 0

    @property
    def versions(self) -> dict[str, str]:
        """Of other engines' packages."""
        return {package: v for other in self.others.values() for package, v in other.versions.items()}

    def close(self) -> None:
        """Let other engines go."""
        for other in self.others.values():
            other.close()

    def describe(self, name: str, quantize: str | None) -> dict[str, Any]:
        """The target, for the summary."""
        return {
            "name": name,
            "class": type(self.model).__name__,
            "dtype": self.dtype,
            "quantize": quantize,
            "exact": next(iter(self.engines.values())).target.block_rows > 0,
            "device": str(self.device),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "weight_bytes": self.cost.weight_bytes,
            "kv_bytes_per_token": self.cost.kv_bytes_per_token,
        }


def build(config: RunConfig) -> Bench:
    """Load the weights.

    Raises:
        ValueError: a model or drafter does not fit; the message says which and why.
    """
    model = registry.instantiate(config.target, config.allow_targets, "target")
    tokenizer = loading.load_tokenizer(config.target["name"], bool(config.target.get("trust_remote_code", False)))
    loaded: dict[str, PreTrainedModel] = {}

    def make(method: Method, attention: str | None = None) -> Engine:
        try:
            return Engine(
                model,
                _with_models(method.drafter, loaded),
                method.tree,
                method.acceptance,
                backend=attention or config.backend,
                exact=config.exact,
                compile=config.compile,
                allow_targets=config.allow_targets,
            )
        except ValueError as error:
            raise ValueError(f"method {method.name}: {error}") from error

    engines = {method.name: make(method) for method in config.methods if method.backend is None}
    for method in config.methods if config.compile else ():
        if method.backend is None:
            engines[method.name].warmup(method.batch)

    def drafting(draft: Draft) -> Any:
        return bound_drafter(model, _with_models(draft.settings, loaded), draft.tree, config.allow_targets)

    setting = Setting(model, tokenizer, config.target, drafting, torch.get_num_threads())
    others: dict[str, Opened] = {}
    with ExitStack() as opened:
        for method in config.methods:
            if method.backend is not None and method.draft is not None:
                engine: OtherEngine = registry.instantiate(method.backend, config.allow_targets, "backend")
                try:
                    others[method.name] = engine.open(method.draft, setting)
                except ValueError as error:
                    raise ValueError(f"method {method.name}: {error}") from error
                opened.callback(others[method.name].close)
        cost = target_cost(model, next(iter(engines.values())))
        opened.pop_all()  # from here on Bench.close does it
    return Bench(model, tokenizer, config.methods, engines, cost, make, others)


def _with_models(spec: Mapping[str, Any], loaded: dict[str, PreTrainedModel]) -> dict[str, Any]:
    """`spec` with the models it names, each loaded once however many methods draft with it."""
    made: dict[str, Any] = {}
    for key, value in spec.items():
        if isinstance(value, Mapping) and value.get("_target_") == LOAD_MODEL:
            name = json.dumps(value, sort_keys=True)
            if name not in loaded:
                loaded[name] = registry.instantiate(value, (), key)
            made[key] = loaded[name]
        else:
            made[key] = value
    return made


def target_cost(model: PreTrainedModel, engine: Engine) -> TargetCost:
    """See TargetCost. The embedding's table counts where it is the LM head, too."""
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is embedding
    weights = [p for p in model.parameters() if tied or p is not embedding]
    cache = engine.target.cache
    kv = sum(t.shape[1] * t.shape[3] * t.element_size() for t in (*cache.keys, *cache.values))
    return TargetCost(sum(p.numel() for p in weights), sum(map(stored_bytes, weights)), kv)
