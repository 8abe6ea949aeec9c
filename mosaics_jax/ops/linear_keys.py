"""Contextual memory whose keys and values are linear in the signal, neither averaged nor normalised (v1 section 4).

With k_t = W_phi x_t and v_t = W_psi x_{t+1}, the answer of each head is

    y_t = sum_{s<t} softmax_s(sharpness k_t . k_s) v_s

The heads of the moon networks are a few channels wide: computing weights then takes more time than multiplying by them,
and each weight should be computed only once. The gradient of a softmax average with respect to its scores is a
covariance under the same weights. The forward pass therefore sums the answer and all terms of that covariance together,
and the backward pass visits no pair of positions.

Shapes here: E features that are averaged, R queries of a block.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mosaics_jax.ops.averages import next_position
from mosaics_jax.ops.retrieval import RetrievalForm, causal_retrieval
from mosaics_jax.ops.weights import UNSEEN, Sums, add_sums
from mosaics_jax.shapes import Array

LANES = 16  # blocks of pairs begin and end at multiples of this, for vector instructions
ROWS = 80  # queries of a block


def linear_memory(
    x_BTC: Array, w_phi_HDC: Array, w_psi_HDC: Array, sharpness: float, form: RetrievalForm = RetrievalForm.AUTO
) -> Array:
    """The answers y_BTHD to a signal; position 0, where the memory is empty, is 0.

    Gradients flow into both weights, not into the signal. NAIVE computes the T x T array of weights; every other
    ``form`` selects one computation, which processes one sequence after the other and holds the weights of ROWS queries
    at a time.
    """
    chex.assert_equal_shape([w_phi_HDC, w_psi_HDC])
    chex.assert_shape(w_phi_HDC, (None, None, x_BTC.shape[-1]))
    x_BTC = lax.stop_gradient(x_BTC)
    if form is RetrievalForm.NAIVE:
        keys_BTHD = jnp.einsum("btc,hdc->bthd", x_BTC, w_phi_HDC)
        values_BTHD = jnp.einsum("btc,hdc->bthd", next_position(x_BTC), w_psi_HDC)
        return causal_retrieval(sharpness * keys_BTHD, keys_BTHD, values_BTHD, form=form)
    return _linear_memory(sharpness, x_BTC, w_phi_HDC, w_psi_HDC)


def past_sums(queries_HTD: Array, keys_HND: Array, features_HNE: Array, pairs_T: np.ndarray) -> Sums:
    """`Sums` of each query over its first ``pairs_T`` pairs, with features as values: (H, T), (H, T), (H, T, E).

    Scores are dot products. pairs_T: non-negative integers, known at compile time; the sums over 0 pairs are 0. The
    function takes one sequence, so that its weights stay in the processor's cache.
    """
    keys_HDN = jnp.swapaxes(keys_HND, 1, 2)
    # The product of weights and features is fastest if E is a multiple of 8. The added features are ones, so that their
    # sums are the sums of weights.
    width = features_HNE.shape[-1]
    features_HNE = jnp.pad(features_HNE, ((0, 0), (0, 0), (0, -width % 8)), constant_values=1.0)
    blocks = []
    for start in range(0, len(pairs_T), ROWS):
        pairs = pairs_T[start : start + ROWS]
        queries_HRD = queries_HTD[:, start : start + ROWS]
        # All queries of the block see the pairs before ``seen_by_all``, and none sees a pair from ``end`` on. Scores
        # between the two get a constant mask, which is faster than comparing positions.
        seen_by_all = int(pairs.min()) // LANES * LANES
        end = max(min(-(-int(pairs.max()) // LANES) * LANES, keys_HND.shape[1]), 1)
        parts = [
            _sums(queries_HRD, keys_HDN[..., low:high], features_HNE[:, low:high], pairs - low, width)
            for low, high in ((0, seen_by_all), (seen_by_all, end))
            if low < high
        ]
        blocks.append(functools.reduce(add_sums, parts))
    largest, total, weighted = (jnp.concatenate(parts, axis=1) for parts in zip(*blocks, strict=True))
    return Sums(largest, total, weighted[..., :width])


def _sums(queries_HRD: Array, keys_HDN: Array, features_HNE: Array, pairs_R: np.ndarray, ones: int) -> Sums:
    """The sums over one block of pairs. pairs_R: how many of them each query sees. Features from ``ones`` on are 1."""
    # Two loops read the scores. XLA recomputes a sum of outer products in each, which is faster than storing it.
    count = keys_HDN.shape[2]
    products = (queries_HRD[:, :, d, None] * keys_HDN[:, None, d] for d in range(keys_HDN.shape[1]))
    scores_HRN = functools.reduce(jnp.add, products)
    if pairs_R.min() < count:
        scores_HRN += jnp.asarray(np.where(np.arange(count) < pairs_R[:, None], 0.0, UNSEEN), queries_HRD.dtype)
    largest_HR = jnp.max(scores_HRN, axis=-1)
    weights_HRN = jnp.exp(scores_HRN - largest_HR[..., None])
    weighted_HRE = jnp.einsum("hrn,hne->hre", weights_HRN, features_HNE)
    total_HR = weighted_HRE[..., ones] if ones < features_HNE.shape[-1] else jnp.sum(weights_HRN, axis=-1)
    if pairs_R.min() <= 0:  # such a query sees no pair of this block
        seen_R = jnp.asarray(pairs_R > 0, queries_HRD.dtype)
        total_HR, weighted_HRE = seen_R * total_HR, seen_R[:, None] * weighted_HRE
    return Sums(largest_HR, total_HR, weighted_HRE)


def divide_by_total(sums: Array, total: Array) -> Array:
    """sums / total; 0 where the total of the weights is 0, because there is no pair."""
    return jnp.where(total > 0, sums / jnp.where(total > 0, total, 1.0), 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear_memory(sharpness: float, x_BTC: Array, w_phi_HDC: Array, w_psi_HDC: Array) -> Array:
    return _forward(sharpness, x_BTC, w_phi_HDC, w_psi_HDC)[0]


def _forward(
    sharpness: float, x_BTC: Array, w_phi_HDC: Array, w_psi_HDC: Array
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    averages_BHTE = _averages(sharpness * w_phi_HDC, x_BTC, w_phi_HDC, w_psi_HDC)
    answers_BTHD = jnp.einsum("bhtc,hdc->bthd", averages_BHTE[..., : x_BTC.shape[-1]], w_psi_HDC)
    return answers_BTHD, (x_BTC, w_phi_HDC, w_psi_HDC, averages_BHTE)


# Under vmap, where several networks train at once, networks are processed one after the other.
@jax.custom_batching.sequential_vmap
def _averages(w_query_HDC: Array, x_BTC: Array, w_phi_HDC: Array, w_psi_HDC: Array) -> Array:
    """(B, H, T, E): averages of x_{s+1}, x_s and the outer product of v_s and x_s under the weights of each query.

    The averages of the first query, which sees no pair, are 0.
    """
    # Features are computed for all sequences at once, queries and keys for one at a time: otherwise their memory
    # layout would make the scores slow.
    next_BTC = next_position(x_BTC)
    values_BHTD = jnp.einsum("btc,hdc->bhtd", next_BTC, w_psi_HDC)
    both_BTE = jnp.concatenate([next_BTC, x_BTC], axis=-1)
    both_BHTE = jnp.broadcast_to(both_BTE[:, None], (*values_BHTD.shape[:3], both_BTE.shape[-1]))
    products = [values_BHTD[..., d, None] * x_BTC[:, None] for d in range(values_BHTD.shape[-1])]
    features_BHTE = jnp.concatenate([both_BHTE, *products], axis=-1)

    def averages_of_sequence(arrays: tuple[Array, Array]) -> Array:
        x_TC, features_HTE = arrays
        queries_HTD, keys_HTD = (jnp.einsum("tc,hdc->htd", x_TC, w) for w in (w_query_HDC, w_phi_HDC))
        _, total_HT, sums_HTE = past_sums(queries_HTD, keys_HTD, features_HTE, np.arange(len(x_TC)))
        return divide_by_total(sums_HTE, total_HT[..., None])

    return lax.map(averages_of_sequence, (x_BTC, features_BHTE))


def _backward(
    sharpness: float, saved: tuple[Array, Array, Array, Array], gradient_BTHD: Array
) -> tuple[Array, Array, Array]:
    x_BTC, w_phi_HDC, w_psi_HDC, averages_BHTE = saved
    width = w_phi_HDC.shape[1]

    def gradients_of_sequence(arrays: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        x_TC, averages_HTE, gradient_THD = arrays
        next_mean_HTC, x_mean_HTC, *products = jnp.split(averages_HTE, 2 + width, axis=-1)
        # sum_s dscore_ts x_s = E[(v . g) x] - E[v . g] E[x], under the weights of query t.
        answer_HTD = jnp.einsum("htc,hdc->htd", next_mean_HTC, w_psi_HDC)
        terms = (gradient_THD[..., d].T[..., None] * product for d, product in enumerate(products))
        covariance_HTC = functools.reduce(jnp.add, terms)
        covariance_HTC -= jnp.einsum("thd,htd->ht", gradient_THD, answer_HTD)[..., None] * x_mean_HTC
        # A score is sharpness (W_phi x_t) . (W_phi x_s): W_phi is in the query and in the key.
        queries_HTD = jnp.einsum("tc,hdc->htd", x_TC, w_phi_HDC)
        dw_phi_HDC = jnp.einsum("htd,htc->hdc", queries_HTD, covariance_HTC)
        dw_phi_HDC += jnp.einsum("hte,hde,tc->hdc", covariance_HTC, w_phi_HDC, x_TC)
        return sharpness * dw_phi_HDC, jnp.einsum("thd,htc->hdc", gradient_THD, next_mean_HTC)

    dw_phi_BHDC, dw_psi_BHDC = lax.map(gradients_of_sequence, (x_BTC, averages_BHTE, gradient_BTHD))
    return jnp.zeros_like(x_BTC), jnp.sum(dw_phi_BHDC, axis=0), jnp.sum(dw_psi_BHDC, axis=0)


_linear_memory.defvjp(_forward, _backward)
