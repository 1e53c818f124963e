"""specdec: speculative decoding research on any Hugging Face causal language model.

A name is imported when it is first used: `specdec --help` and mistakes in a command are told without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specdec import hf
    from specdec.api import GenerateOutput, generate
    from specdec.decoder import SpeculativeDecoder, TextOutput
    from specdec.many import TextRequest, TextResult
    from specdec.metrics import DecodingStats
    from specdec.sampling import SamplingParams
    from specdec.tree.token_tree import TokenTree

__version__ = "0.1.0"
__all__ = [
    "DecodingStats",
    "GenerateOutput",
    "SamplingParams",
    "SpeculativeDecoder",
    "TextOutput",
    "TextRequest",
    "TextResult",
    "TokenTree",
    "__version__",
    "generate",
    "hf",
]
_HOMES = {
    "DecodingStats": "metrics",
    "GenerateOutput": "api",
    "SamplingParams": "sampling",
    "SpeculativeDecoder": "decoder",
    "TextOutput": "decoder",
    "TextRequest": "many",
    "TextResult": "many",
    "TokenTree": "tree.token_tree",
    "generate": "api",
}


def __getattr__(name: str) -> Any:
    """A public name, or a module of this package."""
    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        try:
            return import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
