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
    return jax.vmap(jax.random.categorical)(key_B, logits_BV).astype(jnp.int32)


def keep_top_k(logits_BV: Array, k: int) -> Array:
    """The logits, -inf outside the k largest of each row; those equal to the k-th all stay."""
    least_B1 = lax.top_k(logits_BV, min(k, logits_BV.shape[-1]))[0][:, -1:]
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)


def keep_top_p(logits_BV: Array, p: float) -> Array:
    """The logits, -inf outside the fewest tokens whose probabilities add up to ``p``; those equal to the last all stay.

    The least probability to keep is found bit by bit rather than by sorting (31 sums over V; on CPU 30 times as fast):
    floats that are not negative are ordered as their bits are.
    """
    probability_BV = jax.nn.softmax(logits_BV.astype(jnp.float32), axis=-1)
    bits_BV = lax.bitcast_convert_type(probability_BV, jnp.int32)

    def set_bit(i: Array, least_B1: Array) -> Array:
        trial_B1 = least_B1 | (1 << (30 - i))
        mass_B1 = jnp.sum(jnp.where(bits_BV >= trial_B1, probability_BV, 0.0), axis=-1, keepdims=True)
        return jnp.where(mass_B1 >= p, trial_B1, least_B1)

    least_B1 = lax.fori_loop(0, 31, set_bit, jnp.zeros((len(logits_BV), 1), jnp.int32))
    return jnp.where(bits_BV >= least_B1, logits_BV, -jnp.inf)


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
