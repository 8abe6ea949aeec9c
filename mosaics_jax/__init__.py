"""Memory Mosaics in JAX: networks of associative memories that work together to predict.

Zhang, Nolte, Sadhukhan, Chen, Bottou: Memory Mosaics (ICLR 2025, arXiv 2405.06394).
"""

from mosaics_jax.models import GPT2, GPT2Config, MemoryMosaic, MosaicConfig, stack_layers, unstack_layers

__all__ = ["GPT2", "GPT2Config", "MemoryMosaic", "MosaicConfig", "stack_layers", "unstack_layers"]
__version__ = "0.1.0"
