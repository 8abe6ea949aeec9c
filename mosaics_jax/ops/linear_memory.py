"""Contextual memory whose keys and values are linear in the signal, neither averaged nor normalised (v1 section 4).

With k_t = W_phi x_t and v_t = W_psi x_{t+1}, each head answers y_t = sum_{s<t} softmax_s(sharpness k_t . k_s) v_s.

Heads are a few channels wide, so that time goes into weights rather than products, and a weight should be computed
once. The gradient allows it: that of a softmax average in its scores is a covariance under the same weights, whose
sums are taken together with those of the answer. Backward then looks at no pair of positions at all.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mosaics_jax.ops.retrieval import NEVER, RetrievalForm, causal_retrieval
from mosaics_jax.shapes import Array

LANES = 16  # blocks of pairs begin and end at multiples of this, for vector instructions
ROWS = 80  # queries of a block, of
SEQUENCES = 4  # sequences at a time: so that their weights stay in the processor's cache

Sums = tuple[Array, Array, Array]  # of weights: the largest score, their sum, their sum times features


def linear_memory(
    x_BTC: Array, w_phi_HDC: Array, w_psi_HDC: Array, sharpness: float, form: RetrievalForm = RetrievalForm.AUTO
) -> Array:
    """Answers y_BTHD of heads of width D to a signal x; the first row, where memory is empty, is 0.

    Gradients are those of the two maps: the signal is data, and none flows into it. All forms but NAIVE are one, which
    holds the weights of ROWS queries at a time.
    """
    chex.assert_equal_shape([w_phi_HDC, w_psi_HDC])
    chex.assert_shape(w_phi_HDC, (None, None, x_BTC.shape[-1]))
    x_BTC = lax.stop_gradient(x_BTC)
    if form is RetrievalForm.NAIVE:
        keys, values = (jnp.einsum("btc,hdc->bthd", x, w) for x, w in ((x_BTC, w_phi_HDC), (ahead(x_BTC), w_psi_HDC)))
        return causal_retrieval(sharpness * keys, keys, values, form=form)
    return _linear_memory(sharpness, x_BTC, w_phi_HDC, w_psi_HDC)


def ahead(x_BTC: Array) -> Array:
    """x_{t+1} in place t, and 0 in the last, which no strictly causal query reads."""
    return jnp.pad(x_BTC[:, 1:], ((0, 0), (0, 1), (0, 0)))


def past_sums(queries_GTD: Array, keys_GND: Array, features_GNE: Array, pairs_T: np.ndarray) -> tuple[Sums, Sums]:
    """For each query, over its first ``pairs_T`` pairs: largest score, sum of weights, sums of weights times features.

    Scores are dot products, weights exp(score - largest). G: sequences and heads in one axis, since XLA's loops on CPU
    are several times slower with another. ``pairs_T``: non-negative integers, known when compiling; a query without
    pairs gives zeros. Returns (G, T), (G, T) and (G, T, E).
    """
    shared, own = [], []
    for start in range(0, len(pairs_T), ROWS):
        pairs = pairs_T[start : start + ROWS]
        queries_GRD = queries_GTD[:, start : start + ROWS]
        # Pairs that all rows of the block see, and those that some do, where a mask is added: comparisons would take
        # longer than the scores themselves.
        common, most = int(pairs.min()) // LANES * LANES, min(-(-int(pairs.max()) // LANES) * LANES, keys_GND.shape[1])
        mask = np.where(np.arange(common, most) < pairs[:, None], 0.0, NEVER).astype(queries_GTD.dtype)
        shared.append(_sums(queries_GRD, keys_GND[:, :common], features_GNE[:, :common]))
        own.append(_sums(queries_GRD, keys_GND[:, common:most], features_GNE[:, common:most], mask))
    return _concatenate(shared), _concatenate(own)


def _concatenate(blocks: list[Sums]) -> Sums:
    top, total, weighted = (jnp.concatenate(parts, axis=1) for parts in zip(*blocks, strict=True))
    return top, total, weighted


def _sums(queries_GRD: Array, keys_GND: Array, features_GNE: Array, mask: np.ndarray | float = 0.0) -> Sums:
    if keys_GND.shape[1] == 0:
        rows = queries_GRD[..., 0]
        return (
            jnp.full_like(rows, NEVER),
            jnp.zeros_like(rows),
            jnp.zeros((*rows.shape, features_GNE.shape[-1]), rows.dtype),
        )
    # Nothing may come between the largest score and the exponentials: XLA would fuse it into their loop, where it
    # costs as much as they do. Hence the largest score of each part alone.
    scores = jnp.einsum("grd,gnd->grn", queries_GRD, keys_GND) + mask
    top = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - top[..., None])
    # A column of ones would give the totals too, but the product is quickest when E is a multiple of 8.
    return top, jnp.sum(weights, axis=-1), jnp.einsum("grn,gne->gre", weights, features_GNE)


def join_sums(one: Sums, other: Sums) -> Sums:
    """The sums over both sets of pairs. A set whose largest score is NEVER holds no pair, whatever its sums."""
    top = jnp.maximum(one[0], other[0])
    shares = [jnp.where(largest > 0.5 * NEVER, jnp.exp(largest - top), 0.0) for largest in (one[0], other[0])]
    total = shares[0] * one[1] + shares[1] * other[1]
    return top, total, shares[0][..., None] * one[2] + shares[1][..., None] * other[2]


def divide(sums: Array, total: Array) -> Array:
    """sums / total, and 0 where the total of the weights is 0: the memory is empty."""
    return jnp.where(total > 0, sums / jnp.where(total > 0, total, 1.0), 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear_memory(sharpness: float, x_BTC: Array, w_phi_HDC: Array, w_psi_HDC: Array) -> Array:
    keys_BHTD = jnp.einsum("btc,hdc->bhtd", x_BTC, w_phi_HDC)
    values_BHTD = jnp.einsum("btc,hdc->bhtd", ahead(x_BTC), w_psi_HDC)
    return jnp.swapaxes(_averages(sharpness * keys_BHTD, keys_BHTD, values_BHTD), 1, 2)


def _forward(
    sharpness: float, x_BTC: Array, w_phi_HDC: Array, w_psi_HDC: Array
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    keys_BHTD = jnp.einsum("btc,hdc->bhtd", x_BTC, w_phi_HDC)
    next_BTC = ahead(x_BTC)
    values_BHTD = jnp.einsum("btc,hdc->bhtd", next_BTC, w_psi_HDC)
    # x_{s+1}, x_s and all products of v_s and x_s.
    both = jnp.concatenate([next_BTC, x_BTC], axis=-1)[:, None]
    products = jnp.einsum("bhtd,btc->bhtdc", values_BHTD, x_BTC).reshape(*values_BHTD.shape[:3], -1)
    features = jnp.concatenate([jnp.broadcast_to(both, (*products.shape[:3], both.shape[-1])), products], axis=-1)
    averages = _averages(sharpness * keys_BHTD, keys_BHTD, features)
    answers = jnp.einsum("bhtc,hdc->bthd", averages[..., : x_BTC.shape[-1]], w_psi_HDC)
    return answers, (x_BTC, w_phi_HDC, w_psi_HDC, averages)


def _backward(
    sharpness: float, saved: tuple[Array, Array, Array, Array], gradient_BTHD: Array
) -> tuple[Array, Array, Array]:
    x_BTC, w_phi_HDC, w_psi_HDC, averages = saved
    width, channels = w_phi_HDC.shape[1:]
    gradient = jnp.swapaxes(gradient_BTHD, 1, 2)
    next_mean, x_mean, products = jnp.split(averages, [channels, 2 * channels], axis=-1)
    # sum_s dscore_ts x_s = E[(v . g) x] - E[v . g] E[x], under the weights of query t.
    products = products.reshape(*products.shape[:-1], width, channels)
    answer = jnp.einsum("bhtc,hdc->bhtd", next_mean, w_psi_HDC)
    moved = jnp.einsum("bhtd,bhtdc->bhtc", gradient, products)
    moved -= jnp.sum(gradient * answer, axis=-1, keepdims=True) * x_mean
    # A score is W x_t . W x_s: W is in the query and in the key.
    queries = jnp.einsum("btc,hdc->bhtd", x_BTC, w_phi_HDC)
    dw_phi = jnp.einsum("bhtd,bhtc->hdc", queries, moved)
    dw_phi += jnp.einsum("bhte,hde,btc->hdc", moved, w_phi_HDC, x_BTC)
    return jnp.zeros_like(x_BTC), sharpness * dw_phi, jnp.einsum("bhtd,bhtc->hdc", gradient, next_mean)


_linear_memory.defvjp(_forward, _backward)


# One network after the other where several are trained at once, each in cache.
@jax.custom_batching.sequential_vmap
def _averages(queries_BHTD: Array, keys_BHTD: Array, features_BHTE: Array) -> Array:
    """The averages of features under the weights of each query, (B, H, T, E); 0 for the first."""

    def chunk(queries_BHTD: Array, keys_BHTD: Array, features_BHTE: Array) -> tuple[Sums, Sums]:
        return past_sums(fold(queries_BHTD), fold(keys_BHTD), fold(features_BHTE), np.arange(keys_BHTD.shape[2]))

    _, total_GT, sums_GTE = join_sums(*in_chunks(chunk, queries_BHTD, keys_BHTD, features_BHTE))
    return unfold(divide(sums_GTE, total_GT[..., None]), keys_BHTD.shape[1])


def fold(x: Array) -> Array:
    """(B, H, ...) to (B * H, ...)."""
    return x.reshape(-1, *x.shape[2:])


def unfold(x: Array, heads: int) -> Array:
    """The inverse of `fold`."""
    return x.reshape(-1, heads, *x.shape[1:])


def in_chunks(function: Callable[..., Any], *arrays: Array) -> Any:
    """``function`` of a few rows of the arrays after the other, joined: as if called on all at once."""
    rows = next(rows for rows in range(SEQUENCES, 0, -1) if len(arrays[0]) % rows == 0)
    cut = [a.reshape(-1, rows, *a.shape[1:]) for a in arrays]
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), lax.map(lambda chunk: function(*chunk), tuple(cut)))
