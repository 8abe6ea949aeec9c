"""The softmax over pairs and the dropout of its weights, shared by all forms of retrieval.

Forms differ in how they split queries and pairs into blocks. The softmax over one block of pairs is represented by
`Sums`, and the sums of several blocks can be added (Milakov & Gimelshein 2018; Dao et al. 2022, FlashAttention,
algorithm 1).
"""

from typing import NamedTuple

import jax.numpy as jnp

from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array

UNSEEN = -1e30  # the score of a pair that a query does not see; its exp is 0, and inf - inf = NaN cannot occur


class Sums(NamedTuple):
    """The softmax of each query over some of its pairs, before division.

    largest (..., T): the largest score. total (..., T): the sum of the weights exp(score - largest). weighted
    (..., T, D): the sum of weights times values.
    """

    largest: Array
    total: Array
    weighted: Array


def masked_softmax(scores: Array, mask: Array | None = None) -> Array:
    """Softmax over the entries of the last axis where ``mask`` is true (default: all).

    The other entries are 0. A row without a true entry is 0, with gradient 0.
    """
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
    """The weights after dropout: divided by 1 - rate where ``keep`` is true, 0 elsewhere; unchanged without ``keep``.

    The result is not renormalised. The gradient of the weights is the same function of the gradient of the result.
    """
    return weights if keep is None else jnp.where(keep, weights / (1.0 - rate), 0.0)


def sums_over_pairs(scores: Array, values: Array, keep: Array | None = None, rate: float = 0.0) -> Sums:
    """The sums over one block of pairs, from scores (..., T, N) and values (..., N, D).

    The score of a pair that a query does not see must be UNSEEN. keep (..., T, N): the weights that dropout keeps.
    """
    largest = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - largest[..., None])
    total = jnp.sum(weights, axis=-1)
    weights = drop(weights, keep, rate).astype(values.dtype)
    weighted = jnp.einsum("...tn,...nd->...td", weights, values, preferred_element_type=total.dtype)
    return Sums(largest, total, weighted)


def add_sums(one: Sums, other: Sums) -> Sums:
    """The sums over the pairs of both."""
    largest = jnp.maximum(one.largest, other.largest)
    share, other_share = jnp.exp(one.largest - largest), jnp.exp(other.largest - largest)
    total = share * one.total + other_share * other.total
    return Sums(largest, total, share[..., None] * one.weighted + other_share[..., None] * other.weighted)


def answers_of(sums: Sums) -> tuple[Array, Array]:
    """The answers (..., T, D), and the logarithm of each query's sum of exp(score), (..., T).

    A query that sees no pair is answered by 0. Its logarithm is -UNSEEN, so that the weights recomputed from it are 0.
    """
    # A query whose scores are all UNSEEN sees no pair: its sums, of a uniform average, are discarded.
    sees_any = sums.largest > 0.5 * UNSEEN
    answers = jnp.where(sees_any[..., None], sums.weighted / sums.total[..., None], 0.0)
    return answers, jnp.where(sees_any, sums.largest + jnp.log(sums.total), -UNSEEN)


def recomputed_weights(
    scores: Array, log_total: Array, gradients: Array, values: Array, inner: Array, keep: Array | None, rate: float
) -> tuple[Array, Array]:
    """For the backward pass of one block: the weights after dropout, and the gradients of the scores, (..., T, N) each.

    log_total (..., T): from `answers_of`. gradients (..., T, D): of the answers. inner (..., T): the inner product of
    each answer and its gradient. keep (..., T, N): the weights that dropout keeps.
    """
    weights = jnp.exp(scores - log_total[..., None])
    dweights = jnp.einsum("...td,...nd->...tn", gradients, values, preferred_element_type=accumulation_dtype(scores))
    dscores = weights * (drop(dweights, keep, rate) - inner[..., None])
    return drop(weights, keep, rate), dscores
