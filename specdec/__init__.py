"""specdec: speculative decoding research on any Hugging Face causal language model."""

from specdec import hf
from specdec.api import GenerateOutput, generate
from specdec.decoder import SpeculativeDecoder, TextOutput, TextRequest, TextResult
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
