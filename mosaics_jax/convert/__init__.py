"""Conversion from and to the authors' PyTorch checkpoints, as numpy arrays: torch is not needed."""

from mosaics_jax.convert.checkpoint import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
