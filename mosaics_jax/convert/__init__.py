"""To and from the authors' PyTorch checkpoints. Needs numpy alone, not torch."""

from mosaics_jax.convert.checkpoint import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
