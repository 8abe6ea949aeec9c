"""Whole networks; `reference` is the Memory Mosaic on one page."""

from mosaics_jax.models.gpt2 import GPT2, GPT2Config
from mosaics_jax.models.language_model import LanguageModel, stack_layers, unstack_layers
from mosaics_jax.models.mosaic import MemoryMosaic, MosaicConfig
from mosaics_jax.models.registry import ALIASES, MODELS, build_model, canonical_name

__all__ = [
    "ALIASES",
    "GPT2",
    "MODELS",
    "GPT2Config",
    "LanguageModel",
    "MemoryMosaic",
    "MosaicConfig",
    "build_model",
    "canonical_name",
    "stack_layers",
    "unstack_layers",
]
