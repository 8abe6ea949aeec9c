"""The choice of a next token from its logits: temperature, top-k, nucleus, greedy."""

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

BLOCK = 128
INFINITY_BITS = 0x7F800000  # of a float32


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn. The defaults draw from the model's own distribution, a little sharpened."""

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
    """One token a row, int32 (B,), with a random key for each row. Tokens of logit -inf are never drawn."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    # The largest logit is moved to 0, so that no temperature makes an infinity of it.
    logits_BV = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / sampling.temperature
    if sampling.top_k:
        logits_BV = keep_top_k(logits_BV, sampling.top_k)
    if sampling.top_p < 1:
        logits_BV = keep_top_p(logits_BV, sampling.top_p)
    return _pick(jax.vmap(jax.random.uniform)(key_B), jnp.exp(logits_BV))


def _pick(uniform_B: Array, weights_BV: Array) -> Array:
    """The token at which the summed weights pass a random share of their total: first its block, then its place there.

    One random number a row and short sums; noise for each of V tokens takes 15 times as long on CPU.
    """
    blocks = jnp.pad(weights_BV, ((0, 0), (0, -weights_BV.shape[1] % BLOCK))).reshape(len(weights_BV), -1, BLOCK)
    block_B, rest_B = _pass(uniform_B, jnp.sum(blocks, axis=-1), relative=True)
    inside = jnp.take_along_axis(blocks, block_B[:, None, None], axis=1)[:, 0]
    place_B, _ = _pass(rest_B, inside)
    return (block_B * BLOCK + place_B).astype(jnp.int32)


def _pass(target_B: Array, weights_BN: Array, relative: bool = False) -> tuple[Array, Array]:
    """Where the running sum of weights first exceeds a target (or that share of the total), and what was left of it."""
    sum_BN = jnp.cumsum(weights_BN, axis=-1)
    if relative:
        target_B = target_B * sum_BN[:, -1]
    # Rounding must neither choose a weight of 0 nor leave a row without a choice.
    passed_BN = (sum_BN > target_B[:, None]) & (weights_BN > 0)
    index_B = jnp.where(jnp.any(passed_BN, axis=-1), jnp.argmax(passed_BN, axis=-1), jnp.argmax(weights_BN, axis=-1))
    before_BN = sum_BN - weights_BN
    return index_B, target_B - jnp.take_along_axis(before_BN, index_B[:, None], axis=1)[:, 0]


def keep_top_k(logits_BV: Array, k: int) -> Array:
    """The logits, -inf outside the k largest of each row; those equal to the k-th all stay."""
    return _keep_enough(logits_BV, jnp.ones((), jnp.int32), min(k, logits_BV.shape[-1]))


def keep_top_p(logits_BV: Array, p: float) -> Array:
    """The logits, -inf outside the fewest tokens whose probabilities add up to ``p``; all equal to the last stay."""
    return _keep_enough(logits_BV, jax.nn.softmax(logits_BV.astype(jnp.float32), axis=-1), p)


def _keep_enough(logits_BV: Array, weights: Array, enough: float) -> Array:
    """The logits, -inf outside the fewest largest whose weights add up to ``enough``.

    The least logit to keep is found bit by bit rather than by sorting (31 sums over V; on CPU 15 times as fast): floats
    that are not negative, as distances from the largest, are ordered as their bits are.
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
    """A random key for each prompt, (B,): from the seed, the prompt's tokens, and how many equal ones came before it.

    So a prompt's continuation does not depend on the others, nor on its place among them; equal prompts continue
    differently.
    """
    seen: Counter[bytes] = Counter()
    data_B = np.zeros(len(prompts), np.uint32)
    for row, prompt in enumerate(prompts):
        tokens = np.asarray(prompt, np.int32).tobytes()
        data_B[row] = zlib.crc32(tokens + seen[tokens].to_bytes(4, "little"))
        seen[tokens] += 1
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(np.uint32(seed % 2**32)), data_B)
