"""A model with some of its layers, over the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TypeVar

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from specdec import inspection
from specdec.attention import attention_configs
from specdec.probe import stored_layers

Module = TypeVar("Module", bound=nn.Module)


def with_layers(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """The model with these layers alone, in order; they and all else are the same modules.

    Only what leads to the list of layers is copied, without its weights, and the configuration, where some decoders
    look up what kind of layer comes next. Layers keep the number under which they store their KV.

    Raises:
        ValueError: the layers cannot be found, or the forward pass does not keep to their list.
    """
    name, blocks = inspection.layer_list(model)
    made = _copy(model)
    parents: list[nn.Module] = [made]
    for part in name.split(".")[:-1]:
        child = _copy(getattr(parents[-1], part))
        setattr(parents[-1], part, child)
        parents.append(child)
    if name:
        setattr(parents[-1], name.split(".")[-1], nn.ModuleList(blocks[i] for i in kept))
    shorter: dict[int, PreTrainedConfig] = {}
    for module in parents:
        config = getattr(module, "config", None)
        if config is not None:
            module.config = shorter.setdefault(id(config), _shorter_config(config, kept))
    if stored_layers(made, attention_configs(made)) != list(kept):
        raise ValueError(f"it is not known how to leave layers out of a {type(model).__name__}; use another drafter")
    return made


def _copy(module: Module) -> Module:
    """Another module with the same parts, which may be exchanged."""
    made = copy(module)
    made._modules = dict(module._modules)
    return made


def _shorter_config(config: PreTrainedConfig, kept: Sequence[int]) -> PreTrainedConfig:
    """With what it says of the kept layers alone: their number, and lists by layer, as `layer_types`."""
    made, count = copy(config), getattr(config, "num_hidden_layers", None)
    settings = vars(made)  # past the checks of transformers' own attribute access
    for name, value in vars(config).items():
        if "layer" in name and isinstance(value, list | tuple) and len(value) == count:
            settings[name] = [value[i] for i in kept]
    number = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if number in settings:
        settings[number] = len(kept)
    return made
