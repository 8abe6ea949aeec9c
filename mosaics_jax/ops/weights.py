"""The softmax over pairs, and the dropout of its weights: what all forms of retrieval share.

Forms differ in how they cut queries and pairs into blocks. A block's part of a softmax is kept as three sums
(`Sums`), which add up over blocks of pairs (Milakov & Gimelshein 2018; Dao et al. 2022, FlashAttention, algorithm 1).
"""

from typing import NamedTuple

import jax.numpy as jnp

from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array

UNSEEN = -1e30  # the score of a pair that a query does not see: exp gives 0, without the NaN of inf - inf


class Sums(NamedTuple):
    """A softmax over some pairs: the largest score, the sum of exp(score - largest), and that sum of values.

    Shapes (..., T), (..., T) and (..., T, D).
    """

    largest: Array
    total: Array
    weighted: Array


def masked_softmax(scores: Array, mask: Array | None = None) -> Array:
    """Softmax over the last axis among entries where ``mask`` holds; a row with none is all zero, gradient too."""
    if mask is None:
        mask = jnp.ones((), bool)
    if scores.shape[-1] == 0:
        return scores
    top = jnp.max(jnp.where(mask, scores, -jnp.inf), axis=-1, keepdims=True)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores - top, 0.0)), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


def drop(weights: Array, keep: Array | None, rate: float) -> Array:
    """Weights after dropout: those that ``keep`` marks, divided by 1 - rate, and 0. All of them if ``keep`` is None.

    Dropped weights are not renormalised. Gradients of weights pass through the same function.
    """
    return weights if keep is None else jnp.where(keep, weights / (1.0 - rate), 0.0)


def sums_over_pairs(scores: Array, values: Array, keep: Array | None = None, rate: float = 0.0) -> Sums:
    """The sums of one block of pairs: scores (..., T, N), where UNSEEN as said above, and values (..., N, D)."""
    largest = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - largest[..., None])
    total = jnp.sum(weights, axis=-1)
    weights = drop(weights, keep, rate).astype(values.dtype)
    weighted = jnp.einsum("...tn,...nd->...td", weights, values, preferred_element_type=total.dtype)
    return Sums(largest, total, weighted)


def add_sums(one: Sums, other: Sums) -> Sums:
    """The sums over both blocks of pairs."""
    largest = jnp.maximum(one.largest, other.largest)
    share, other_share = jnp.exp(one.largest - largest), jnp.exp(other.largest - largest)
    total = share * one.total + other_share * other.total
    return Sums(largest, total, share[..., None] * one.weighted + other_share[..., None] * other.weighted)


def answers_of(sums: Sums) -> tuple[Array, Array]:
    """The answers (..., T, D), and the logarithm of each query's summed weights, (..., T).

    A query that sees no pair answers 0. Its logarithm is -UNSEEN, so that recomputed weights are 0.
    """
    # Where every score is UNSEEN, the weights are those of a uniform average.
    sees_any = sums.largest > 0.5 * UNSEEN
    answers = jnp.where(sees_any[..., None], sums.weighted / sums.total[..., None], 0.0)
    return answers, jnp.where(sees_any, sums.largest + jnp.log(sums.total), -UNSEEN)


def recomputed_weights(
    scores: Array, log_total: Array, gradients: Array, values: Array, inner: Array, keep: Array | None, rate: float
) -> tuple[Array, Array]:
    """For the backward pass of one block: the weights after dropout, and the gradients of the scores, (..., T, N) each.

    log_total (..., T): from `answers_of`. gradients (..., T, D): of the answers. inner (..., T): the inner product of
    each answer with its gradient, which the gradient of a softmax subtracts.
    """
    weights = jnp.exp(scores - log_total[..., None])
    dweights = jnp.einsum("...td,...nd->...tn", gradients, values, preferred_element_type=accumulation_dtype(scores))
    dscores = weights * (drop(dweights, keep, rate) - inner[..., None])
    return drop(weights, keep, rate), dscores
