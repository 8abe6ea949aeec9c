"""Text from a trained network: sampling with stored memories, and beam search."""

from mosaics_jax.inference.beam import Hypothesis, beam_search
from mosaics_jax.inference.decoder import Burst, generate, stream
from mosaics_jax.inference.memories import decodable, longest_continuation
from mosaics_jax.inference.sampling import Sampling
from mosaics_jax.inference.text import stories_in_order
from mosaics_jax.inference.trained import Trained, load_trained

__all__ = [
    "Burst",
    "Hypothesis",
    "Sampling",
    "Trained",
    "beam_search",
    "decodable",
    "generate",
    "load_trained",
    "longest_continuation",
    "stories_in_order",
    "stream",
]
