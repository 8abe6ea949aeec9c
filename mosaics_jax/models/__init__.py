"""Whole networks."""

from mosaics_jax.models.gpt2 import GPT2, GPT2Config
from mosaics_jax.models.language_model import stack_layers, unstack_layers
from mosaics_jax.models.mosaic import MemoryMosaic, MosaicConfig

__all__ = ["GPT2", "GPT2Config", "MemoryMosaic", "MosaicConfig", "stack_layers", "unstack_layers"]
