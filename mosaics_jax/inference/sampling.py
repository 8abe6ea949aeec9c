"""The choice of a next token from its logits: temperature, top-k, nucleus (top-p), greedy.

Shapes here: J blocks of the vocabulary, W tokens of a block, E entries of a row of weights.
"""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mosaics_jax.settings import setting
from mosaics_jax.shapes import Array

BLOCK = 128  # W
INFINITY_BITS = 0x7F800000  # of an infinite float32


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn. The defaults draw from the model's distribution, slightly sharpened."""

    temperature: float = setting(0.8, "divides the logits; 0 always takes the most probable token")
    top_k: int = setting(0, "draw among this many most probable tokens (0: all)")
    top_p: float = setting(1.0, "draw among the fewest tokens whose probabilities add up to this (1: all)")

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be 0 or more")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1")


def draw(key_B: Array, logits_BV: Array, sampling: Sampling) -> Array:
    """Draws one token for each row: int32 (B,). ``key_B``: random keys. Tokens with logit -inf are never drawn."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    # The largest logit is shifted to 0, so that no temperature turns it into an infinity.
    logits_BV = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / sampling.temperature
    if sampling.top_k:
        logits_BV = keep_top_k(logits_BV, sampling.top_k)
    if sampling.top_p < 1:
        logits_BV = keep_top_p(logits_BV, sampling.top_p)
    return _draw_by_weight(jax.vmap(jax.random.uniform)(key_B), jnp.exp(logits_BV))


def _draw_by_weight(uniform_B: Array, weights_BV: Array) -> Array:
    """The token at which the running sum of weights exceeds the share ``uniform_B`` of their total.

    The block of the token is found first, then the token in it. This takes one random number a row and short sums;
    Gumbel noise for each of V tokens takes 15 times as long on CPU.
    """
    padding = ((0, 0), (0, -weights_BV.shape[1] % BLOCK))
    weights_BJW = jnp.pad(weights_BV, padding).reshape(len(weights_BV), -1, BLOCK)
    block_B, rest_B = _first_exceeding(uniform_B, jnp.sum(weights_BJW, axis=-1), relative=True)
    weights_BW = jnp.take_along_axis(weights_BJW, block_B[:, None, None], axis=1)[:, 0]
    index_B, _ = _first_exceeding(rest_B, weights_BW)
    return (block_B * BLOCK + index_B).astype(jnp.int32)


def _first_exceeding(target_B: Array, weights_BE: Array, relative: bool = False) -> tuple[Array, Array]:
    """The index at which the running sum first exceeds the target, and the target minus the sum before that index.

    ``relative``: the target is a share of the total.
    """
    sum_BE = jnp.cumsum(weights_BE, axis=-1)
    if relative:
        target_B = target_B * sum_BE[:, -1]
    # Rounding must neither choose a weight of 0 nor leave a row without a choice.
    exceeds_BE = (sum_BE > target_B[:, None]) & (weights_BE > 0)
    index_B = jnp.where(jnp.any(exceeds_BE, axis=-1), jnp.argmax(exceeds_BE, axis=-1), jnp.argmax(weights_BE, axis=-1))
    before_BE = sum_BE - weights_BE
    return index_B, target_B - jnp.take_along_axis(before_BE, index_B[:, None], axis=1)[:, 0]


def keep_top_k(logits_BV: Array, k: int) -> Array:
    """The logits, -inf outside the k largest of each row; all logits equal to the k-th stay."""
    return _keep_enough(logits_BV, jnp.ones((), jnp.int32), min(k, logits_BV.shape[-1]))


def keep_top_p(logits_BV: Array, p: float) -> Array:
    """The logits, -inf outside the fewest tokens whose probabilities sum to ``p``; all equal to the last one stay."""
    return _keep_enough(logits_BV, jax.nn.softmax(logits_BV.astype(jnp.float32), axis=-1), p)


def _keep_enough(logits_BV: Array, weights: Array, enough: float) -> Array:
    """The logits, -inf outside the fewest largest ones whose weights, (B, V) or (), sum to ``enough``.

    The smallest logit to keep is found bit by bit instead of by sorting: 31 sums over V, on CPU 15 times as fast. This
    works on the distances from the largest logit, because floats that are not negative have the order of their bits.
    """
    distance_BV = (jnp.max(logits_BV, axis=-1, keepdims=True) - logits_BV).astype(jnp.float32)
    rank_BV = INFINITY_BITS - lax.bitcast_convert_type(distance_BV, jnp.int32)

    def set_bit(i: Array, least_B1: Array) -> Array:
        trial_B1 = least_B1 | (1 << (30 - i))
        sum_B1 = jnp.sum(jnp.where(rank_BV >= trial_B1, weights, 0), axis=-1, keepdims=True)
        return jnp.where(sum_B1 >= enough, trial_B1, least_B1)

    least_B1 = lax.fori_loop(0, 31, set_bit, jnp.zeros((len(logits_BV), 1), jnp.int32))
    return jnp.where(rank_BV >= least_B1, logits_BV, -jnp.inf)


def prompt_keys(seed: int, prompts: Sequence[Sequence[int]]) -> Array:
    """A random key for each prompt, (B,), from the seed, the prompt's tokens, and how many equal prompts precede it.

    The continuation of a prompt therefore depends neither on the other prompts nor on its place among them, and equal
    prompts are continued differently.
    """
    seen: Counter[bytes] = Counter()
    data_B = np.zeros(len(prompts), np.uint32)
    for row, prompt in enumerate(prompts):
        tokens = np.asarray(prompt, np.int32).tobytes()
        data_B[row] = zlib.crc32(tokens + seen[tokens].to_bytes(4, "little"))
        seen[tokens] += 1
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(np.uint32(seed % 2**32)), data_B)
