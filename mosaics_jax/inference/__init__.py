"""Text from a trained network: sampling and beam search, with the memories of past tokens kept between steps."""

from mosaics_jax.inference.beam import Hypothesis, beam_search
from mosaics_jax.inference.decoder import Burst, generate, stream
from mosaics_jax.inference.memories import decodable, longest_continuation
from mosaics_jax.inference.sampling import Sampling
from mosaics_jax.inference.text import stream_text

__all__ = [
    "Burst",
    "Hypothesis",
    "Sampling",
    "beam_search",
    "decodable",
    "generate",
    "longest_continuation",
    "stream",
    "stream_text",
]
