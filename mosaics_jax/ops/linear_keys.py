"""Contextual memory whose keys and values are linear in the signal, neither averaged nor normalised (v1 section 4).

With k_t = W_phi x_t and v_t = W_psi x_{t+1}, each head answers y_t = sum_{s<t} softmax_s(sharpness k_t . k_s) v_s.

Heads are a few channels wide, so that time goes into weights rather than products, and a weight should be computed
once. The gradient allows it: that of a softmax average in its scores is a covariance under the same weights, whose
sums are taken together with those of the answer. Backward then looks at no pair of positions at all.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mosaics_jax.ops.retrieval import RetrievalForm, causal_retrieval
from mosaics_jax.ops.weights import UNSEEN, Sums, add_sums
from mosaics_jax.shapes import Array

LANES = 16  # blocks of pairs begin and end at multiples of this, for vector instructions
ROWS = 80  # queries of a block, of


def linear_memory(
    x_BTC: Array, w_phi_HDC: Array, w_psi_HDC: Array, sharpness: float, form: RetrievalForm = RetrievalForm.AUTO
) -> Array:
    """Answers y_BTHD of heads of width D to a signal x; the first row, where memory is empty, is 0.

    Gradients are those of the two maps: the signal is data, and none flows into it. All forms but NAIVE are one, which
    goes through the sequences one after the other and holds the weights of ROWS queries at a time.
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


def past_sums(queries_HTD: Array, keys_HND: Array, features_HNE: Array, pairs_T: np.ndarray) -> Sums:
    """For each query, over its first ``pairs_T`` pairs: largest score, sum of weights, sums of weights times features.

    Scores are dot products, weights exp(score - largest). Written for one sequence, whose weights stay in the
    processor's cache. ``pairs_T``: non-negative integers, known when compiling; sums over no pair are 0. Returns
    (H, T), (H, T) and (H, T, E).
    """
    keys_HDN = jnp.swapaxes(keys_HND, 1, 2)
    # The product of weights and features is quickest when E is a multiple of 8: it is filled up with ones, whose sums
    # are the totals.
    width = features_HNE.shape[-1]
    features_HNE = jnp.pad(features_HNE, ((0, 0), (0, 0), (0, -width % 8)), constant_values=1.0)
    blocks = []
    for start in range(0, len(pairs_T), ROWS):
        pairs = pairs_T[start : start + ROWS]
        queries_HRD = queries_HTD[:, start : start + ROWS]
        # Pairs that all rows of the block see, and those that some do, where a mask is added: comparisons would take
        # longer than the scores themselves.
        common, most = int(pairs.min()) // LANES * LANES, min(-(-int(pairs.max()) // LANES) * LANES, keys_HND.shape[1])
        parts = [
            _sums(queries_HRD, keys_HDN[..., low:high], features_HNE[:, low:high], pairs - low, width)
            for low, high in ((0, common), (common, max(most, 1)))
            if low < high
        ]
        blocks.append(functools.reduce(add_sums, parts))
    top, total, weighted = (jnp.concatenate(parts, axis=1) for parts in zip(*blocks, strict=True))
    return Sums(top, total, weighted[..., :width])


def _sums(queries_HRD: Array, keys_HDN: Array, features_HNE: Array, pairs_R: np.ndarray, ones: int) -> Sums:
    """The sums of one block of pairs. Features from column ``ones`` on, if there are any, are ones."""
    # Scores as sums of outer products, which XLA computes anew in each of the two loops that read them: quicker than
    # to write them to memory and read them twice.
    count = keys_HDN.shape[2]
    products = (queries_HRD[:, :, d, None] * keys_HDN[:, None, d] for d in range(keys_HDN.shape[1]))
    scores_HRN = functools.reduce(jnp.add, products)
    if pairs_R.min() < count:
        scores_HRN += jnp.asarray(np.where(np.arange(count) < pairs_R[:, None], 0.0, UNSEEN), queries_HRD.dtype)
    top_HR = jnp.max(scores_HRN, axis=-1)
    weights_HRN = jnp.exp(scores_HRN - top_HR[..., None])
    weighted_HRE = jnp.einsum("hrn,hne->hre", weights_HRN, features_HNE)
    total_HR = weighted_HRE[..., ones] if ones < features_HNE.shape[-1] else jnp.sum(weights_HRN, axis=-1)
    if pairs_R.min() <= 0:  # such a row has no pair here, whatever its sums
        seen_R = jnp.asarray(pairs_R > 0, queries_HRD.dtype)
        total_HR, weighted_HRE = seen_R * total_HR, seen_R[:, None] * weighted_HRE
    return Sums(top_HR, total_HR, weighted_HRE)


def divide(sums: Array, total: Array) -> Array:
    """sums / total, and 0 where the total of the weights is 0: the memory is empty."""
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


# One network after the other where several are trained at once.
@jax.custom_batching.sequential_vmap
def _averages(w_query_HDC: Array, x_BTC: Array, w_phi_HDC: Array, w_psi_HDC: Array) -> Array:
    """Averages under the weights of each query, (B, H, T, E) and 0 for the first: of x_{s+1}, x_s and all products of
    v_s and x_s."""

    # Features of all sequences at once; queries and keys of one at a time, or they would lie in memory in an order that
    # makes scores slow.
    next_BTC = ahead(x_BTC)
    values_BHTD = jnp.einsum("btc,hdc->bhtd", next_BTC, w_psi_HDC)
    both_BTE = jnp.concatenate([next_BTC, x_BTC], axis=-1)
    both_BHTE = jnp.broadcast_to(both_BTE[:, None], (*values_BHTD.shape[:3], both_BTE.shape[-1]))
    products = [values_BHTD[..., d, None] * x_BTC[:, None] for d in range(values_BHTD.shape[-1])]
    features_BHTE = jnp.concatenate([both_BHTE, *products], axis=-1)

    def averages_of_one(one: tuple[Array, Array]) -> Array:
        x_TC, features_HTE = one
        queries_HTD, keys_HTD = (jnp.einsum("tc,hdc->htd", x_TC, w) for w in (w_query_HDC, w_phi_HDC))
        _, total_HT, sums_HTE = past_sums(queries_HTD, keys_HTD, features_HTE, np.arange(len(x_TC)))
        return divide(sums_HTE, total_HT[..., None])

    return lax.map(averages_of_one, (x_BTC, features_BHTE))


def _backward(
    sharpness: float, saved: tuple[Array, Array, Array, Array], gradient_BTHD: Array
) -> tuple[Array, Array, Array]:
    x_BTC, w_phi_HDC, w_psi_HDC, averages_BHTE = saved
    width = w_phi_HDC.shape[1]

    def gradients_of_one(one: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        x_TC, averages_HTE, gradient_THD = one
        next_mean_HTC, x_mean_HTC, *products = jnp.split(averages_HTE, 2 + width, axis=-1)
        # sum_s dscore_ts x_s = E[(v . g) x] - E[v . g] E[x], under the weights of query t.
        answer_HTD = jnp.einsum("htc,hdc->htd", next_mean_HTC, w_psi_HDC)
        moves = (gradient_THD[..., d].T[..., None] * product for d, product in enumerate(products))
        moved_HTC = functools.reduce(jnp.add, moves)
        moved_HTC -= jnp.einsum("thd,htd->ht", gradient_THD, answer_HTD)[..., None] * x_mean_HTC
        # A score is W x_t . W x_s: W is in the query and in the key.
        queries_HTD = jnp.einsum("tc,hdc->htd", x_TC, w_phi_HDC)
        dw_phi_HDC = jnp.einsum("htd,htc->hdc", queries_HTD, moved_HTC)
        dw_phi_HDC += jnp.einsum("hte,hde,tc->hdc", moved_HTC, w_phi_HDC, x_TC)
        return sharpness * dw_phi_HDC, jnp.einsum("thd,htc->hdc", gradient_THD, next_mean_HTC)

    dw_phi_BHDC, dw_psi_BHDC = lax.map(gradients_of_one, (x_BTC, averages_BHTE, gradient_BTHD))
    return jnp.zeros_like(x_BTC), jnp.sum(dw_phi_BHDC, axis=0), jnp.sum(dw_psi_BHDC, axis=0)


_linear_memory.defvjp(_forward, _backward)
