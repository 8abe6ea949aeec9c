"""The tiny task of the training tests."""

from tests.training.conftest import tiny

__all__ = ["tiny"]
