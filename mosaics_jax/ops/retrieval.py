"""Retrieval from memories whose keys have one norm: softmax over dot products (v1 eq. 3, 7).

A memory that fills up along the sequence (`causal_retrieval`), and the same one step or chunk at a time
(`stored_retrieval`). Scores carry no 1/sqrt(D): the scale, if any, belongs to the query. Dropped weights are not
renormalised; kept ones are divided by 1 - rate.
"""

import enum
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

from mosaics_jax.ops.dropout_mask import check_seed, keep_mask, row_numbers
from mosaics_jax.ops.kernel_regression import masked_softmax
from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array

BLOCK = 128
NEVER = -1e30  # a score that exp sends to 0 without the NaN of inf - inf


class RetrievalForm(enum.Enum):
    """How retrieval along the sequence is computed. AUTO: NAIVE within one block, BLOCKWISE beyond."""

    AUTO = "auto"
    NAIVE = "naive"  # a T x T array of weights
    BLOCKWISE = "blockwise"  # memory linear in T, forward and backward


def causal_retrieval(
    queries_BTHD: Array,
    keys_BTHD: Array,
    values_BTHD: Array,
    *,
    strict: bool = True,
    dropout_rate: float = 0.0,
    dropout_seed: Array | None = None,
    form: RetrievalForm = RetrievalForm.AUTO,
) -> Array:
    """Answers query t from the pairs i < t (``strict``, v1 eq. 7: a value knows the next input) or i <= t.

    Returns (B, T, H, D) in the type of the values; scores and sums are kept in at least float32. With ``strict`` the
    first row is 0: the memory is still empty. dropout_seed: uint32 scalar, needed if dropout_rate > 0. All forms drop
    the same weights under the same seed.
    """
    chex.assert_rank(queries_BTHD, 4)
    chex.assert_equal_shape([queries_BTHD, keys_BTHD, values_BTHD])
    seed = check_seed(dropout_rate, dropout_seed)
    if form is RetrievalForm.AUTO:
        form = RetrievalForm.NAIVE if queries_BTHD.shape[1] <= BLOCK else RetrievalForm.BLOCKWISE
    queries, keys, values = (jnp.swapaxes(a, 1, 2) for a in (queries_BTHD, keys_BTHD, values_BTHD))
    if form is RetrievalForm.NAIVE:
        answers = _naive(queries, keys, values, seed, int(strict), dropout_rate)
    else:
        answers = _blockwise(int(strict), dropout_rate, queries, keys, values, seed)
    return jnp.swapaxes(answers, 1, 2)


def stored_retrieval(
    queries_BTHD: Array, keys_BHND: Array, values_BHND: Array, length_B: Array, first: int = 0
) -> Array:
    """Answers query t of a chunk from the stored slots ``first`` .. ``length + t``.

    length_B: int32, positions that were already fed before this chunk. Slots past the last written one are never read.
    Returns (B, T, H, D) in the type of the values; a row without a slot is 0. The time of a chunk goes with the slots
    in use; that of a single position with the capacity, which it reads without a loop.
    """
    if queries_BTHD.shape[1] == 1:
        return _stored_one(queries_BTHD, keys_BHND, values_BHND, length_B, first)
    return _stored_blockwise(queries_BTHD, keys_BHND, values_BHND, length_B, first)


def _stored_one(queries_BTHD: Array, keys_BHND: Array, values_BHND: Array, length_B: Array, first: int) -> Array:
    # Products of a matrix and a vector, without the time axis: with it XLA transposes the keys on CPU.
    dtype = accumulation_dtype(queries_BTHD)
    scores_BHN = jnp.einsum("bhd,bhnd->bhn", queries_BTHD[:, 0], keys_BHND, preferred_element_type=dtype)
    slot = jnp.arange(keys_BHND.shape[2])
    mask_BN = (slot >= first) & (slot <= length_B[:, None])
    weights_BHN = masked_softmax(scores_BHN, mask_BN[:, None]).astype(values_BHND.dtype)
    return jnp.einsum("bhn,bhnd->bhd", weights_BHN, values_BHND)[:, None]


def _stored_blockwise(queries_BTHD: Array, keys_BHND: Array, values_BHND: Array, length_B: Array, first: int) -> Array:
    batch, time, heads, width = queries_BTHD.shape
    capacity = keys_BHND.shape[2]
    block = min(BLOCK, capacity)
    dtype = accumulation_dtype(queries_BTHD)
    last_BT = length_B[:, None] + jnp.arange(time)

    def add_block(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        # The last block is moved back to end with the store; what it then has in common with its neighbour is masked.
        start = jnp.minimum(j * block, capacity - block)
        keys, values = (lax.dynamic_slice_in_dim(store, start, block, axis=2) for store in (keys_BHND, values_BHND))
        slot = start + jnp.arange(block)
        mask_BTN = (slot >= jnp.maximum(j * block, first)) & (slot <= last_BT[..., None])
        scores = jnp.einsum("bthd,bhnd->bhtn", queries_BTHD, keys, preferred_element_type=dtype)
        return _add_block(carry, jnp.where(mask_BTN[:, None], scores, NEVER), values)

    blocks = jnp.minimum((jnp.max(last_BT) + block) // block, -(-capacity // block))
    answer, _ = _answer(lax.fori_loop(0, blocks, add_block, _no_block((batch, heads, time, width), dtype)))
    return jnp.swapaxes(answer, 1, 2).astype(values_BHND.dtype)


def _naive(queries: Array, keys: Array, values: Array, seed: Array, offset: int, rate: float) -> Array:
    batch, heads, time, _ = queries.shape
    scores = jnp.einsum("bhtd,bhnd->bhtn", queries, keys, preferred_element_type=accumulation_dtype(queries))
    mask = jnp.arange(time) <= jnp.arange(time)[:, None] - offset
    weights = masked_softmax(scores, mask)
    if rate > 0:
        keep = keep_mask(seed, row_numbers(batch, heads, time)[..., None], jnp.arange(time), rate)
        weights = jnp.where(keep, weights / (1.0 - rate), 0.0)
    return jnp.einsum("bhtn,bhnd->bhtd", weights.astype(values.dtype), values)


# The blockwise form keeps, for each query, the logarithm of its summed weights; backward recomputes weights block by
# block from it (Dao et al. 2022, FlashAttention, algorithms 1 and 4). Arrays are (B, H, T, D), cut along T.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blockwise(offset: int, rate: float, queries: Array, keys: Array, values: Array, seed: Array) -> Array:
    return _blockwise_forward(offset, rate, queries, keys, values, seed)[0]


def _cut(x: Array) -> Array:
    """(B, H, T, ...) to (blocks, B, H, block, ...), zero-padded."""
    batch, heads, time, *rest = x.shape
    blocks = -(-time // BLOCK)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, blocks * BLOCK - time)) + ((0, 0),) * len(rest))
    return jnp.moveaxis(x.reshape(batch, heads, blocks, BLOCK, *rest), 2, 0)


def _join(x: Array, time: int) -> Array:
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, :time]


def _block_mask(i: Array, j: Array, offset: int) -> Array:
    position = jnp.arange(BLOCK)
    return j * BLOCK + position <= i * BLOCK + position[:, None] - offset


def _block_keep(seed: Array, rows: Array, j: Array, rate: float) -> Array:
    return keep_mask(seed, rows[..., None], j * BLOCK + jnp.arange(BLOCK), rate)


def _no_block(shape: tuple[int, ...], dtype: Any) -> tuple[Array, Array, Array]:
    """What `_add_block` starts from, for queries of this shape: largest score, sum of weights, weighted values."""
    return jnp.full(shape[:-1], NEVER, dtype), jnp.zeros(shape[:-1], dtype), jnp.zeros(shape, dtype)


def _add_block(
    carry: tuple[Array, Array, Array], scores: Array, values: Array, keep: Array | None = None, rate: float = 0.0
) -> tuple[Array, Array, Array]:
    """Takes one more block of pairs into an answer: scores (..., T, block), values (..., block, D)."""
    top, total, answer = carry
    new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
    shrink = jnp.exp(top - new_top)
    weights = jnp.exp(scores - new_top[..., None])
    total = shrink * total + jnp.sum(weights, axis=-1)
    if keep is not None:
        weights = jnp.where(keep, weights / (1.0 - rate), 0.0)
    part = jnp.einsum("...tn,...nd->...td", weights.astype(values.dtype), values, preferred_element_type=total.dtype)
    return new_top, total, shrink[..., None] * answer + part


def _answer(carry: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    """The answers, and the logarithms of their summed weights."""
    top, total, answer = carry
    # A row whose every score is NEVER has the weights of a uniform average: it has no pair and answers 0.
    alive = top > 0.5 * NEVER
    return jnp.where(alive[..., None], answer / total[..., None], 0.0), jnp.where(alive, top + jnp.log(total), -NEVER)


def _blockwise_forward(
    offset: int, rate: float, queries: Array, keys: Array, values: Array, seed: Array
) -> tuple[Array, tuple[Array, ...]]:
    batch, heads, time, width = queries.shape
    dtype = accumulation_dtype(queries)
    q, k, v = _cut(queries), _cut(keys), _cut(values)
    rows = _cut(row_numbers(batch, heads, time))

    def query_block(i: Array) -> tuple[Array, Array]:
        def key_block(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            scores = jnp.einsum("bhtd,bhnd->bhtn", q[i], k[j], preferred_element_type=dtype)
            scores = jnp.where(_block_mask(i, j, offset), scores, NEVER)
            keep = _block_keep(seed, rows[i], j, rate) if rate > 0 else None
            return _add_block(carry, scores, v[j], keep, rate)

        carry = lax.fori_loop(0, i + 1, key_block, _no_block((batch, heads, BLOCK, width), dtype))
        answer, log_total = _answer(carry)
        return answer.astype(values.dtype), log_total

    answer, log_total = lax.map(query_block, jnp.arange(len(q)))
    answer = _join(answer, time)
    return answer, (queries, keys, values, seed, answer, log_total)


def _blockwise_backward(
    offset: int, rate: float, saved: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, Array, None]:
    queries, keys, values, seed, answer, log_total = saved
    batch, heads, time, _ = queries.shape
    dtype = accumulation_dtype(queries)
    # sum_n weight_n dweight_n of each query, from the answer itself: what the softmax's gradient subtracts.
    inner = _cut(jnp.einsum("bhtd,bhtd->bht", gradient, answer, preferred_element_type=dtype))
    q, k, v, g = _cut(queries), _cut(keys), _cut(values), _cut(gradient.astype(queries.dtype))
    rows = _cut(row_numbers(batch, heads, time))
    blocks = len(q)

    def key_block(dq: Array, j: Array) -> tuple[Array, tuple[Array, Array]]:
        def query_block(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            dq, dk, dv = carry
            scores = jnp.einsum("bhtd,bhnd->bhtn", q[i], k[j], preferred_element_type=dtype)
            weights = jnp.where(_block_mask(i, j, offset), jnp.exp(scores - log_total[i][..., None]), 0.0)
            dweights = jnp.einsum("bhtd,bhnd->bhtn", g[i], v[j], preferred_element_type=dtype)
            dropped = weights
            if rate > 0:
                keep = _block_keep(seed, rows[i], j, rate)
                dropped = jnp.where(keep, weights / (1.0 - rate), 0.0)
                dweights = jnp.where(keep, dweights / (1.0 - rate), 0.0)
            dv += jnp.einsum("bhtn,bhtd->bhnd", dropped.astype(g.dtype), g[i], preferred_element_type=dtype)
            dscores = (weights * (dweights - inner[i][..., None])).astype(q.dtype)
            dk += jnp.einsum("bhtn,bhtd->bhnd", dscores, q[i], preferred_element_type=dtype)
            part = jnp.einsum("bhtn,bhnd->bhtd", dscores, k[j], preferred_element_type=dtype)
            return dq.at[i].add(part), dk, dv

        zero = jnp.zeros(k.shape[1:], dtype)
        dq, dk, dv = lax.fori_loop(j, blocks, query_block, (dq, zero, zero))
        return dq, (dk, dv)

    dq, (dk, dv) = lax.scan(key_block, jnp.zeros(q.shape, dtype), jnp.arange(blocks))
    return (
        _join(dq, time).astype(queries.dtype),
        _join(dk, time).astype(keys.dtype),
        _join(dv, time).astype(values.dtype),
        None,
    )


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)
