"""Retrieval from memories whose keys have one norm: softmax over dot products (v1 eq. 3, 7).

Three situations: a memory that fills up along the sequence (`causal_retrieval`), the same one step or chunk at a time
(`stored_retrieval`), and a memory whose pairs are parameters (`slot_retrieval`). Scores carry no 1/sqrt(D): the scale,
if any, belongs to the query. Dropped weights are not renormalised; kept ones are divided by 1 - rate.
"""

import enum
import functools

import chex
import jax
import jax.numpy as jnp
from jax import lax

from mosaics_jax.ops.dropout_mask import keep_mask
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
    if dropout_rate > 0 and dropout_seed is None:
        raise ValueError("dropout_rate > 0 needs a dropout_seed")
    if dropout_seed is None:
        dropout_seed = jnp.zeros((), jnp.uint32)
    if form is RetrievalForm.AUTO:
        form = RetrievalForm.NAIVE if queries_BTHD.shape[1] <= BLOCK else RetrievalForm.BLOCKWISE
    queries, keys, values = (jnp.swapaxes(a, 1, 2) for a in (queries_BTHD, keys_BTHD, values_BTHD))
    if form is RetrievalForm.NAIVE:
        answers = _naive(queries, keys, values, dropout_seed, int(strict), dropout_rate)
    else:
        answers = _blockwise(int(strict), dropout_rate, queries, keys, values, dropout_seed)
    return jnp.swapaxes(answers, 1, 2)


def stored_retrieval(
    queries_BTHD: Array, keys_BHND: Array, values_BHND: Array, length_B: Array, first: int = 0
) -> Array:
    """Answers query t of a chunk from the stored slots ``first`` .. ``length + t``.

    length_B: int32, positions that were already fed before this chunk. Slots past the last written one are never read.
    Returns (B, T, H, D) in the type of the values; a row without a slot is 0.
    """
    dtype = accumulation_dtype(queries_BTHD)
    scores = jnp.einsum("bthd,bhnd->bhtn", queries_BTHD, keys_BHND, preferred_element_type=dtype)
    slot = jnp.arange(keys_BHND.shape[2])
    last_BT = length_B[:, None] + jnp.arange(queries_BTHD.shape[1])
    mask_BTN = (slot >= first) & (slot <= last_BT[..., None])
    weights = masked_softmax(scores, mask_BTN[:, None]).astype(values_BHND.dtype)
    return jnp.einsum("bhtn,bhnd->bthd", weights, values_BHND)


def slot_retrieval(
    queries_BTHD: Array,
    keys_KHMD: Array,
    values_KHMD: Array,
    *,
    dropout_rate: float = 0.0,
    dropout_seed: Array | None = None,
) -> Array:
    """Answers every query from M fixed slots, without a mask; the mean over K banks, each with its own softmax (v1 eq. 9).

    Returns (B, T, H, D) in the type of the values. B and T are folded, so that the slots are read once for all queries.
    """
    batch, time, heads, width = queries_BTHD.shape
    banks = keys_KHMD.shape[0]
    chex.assert_equal_shape([keys_KHMD, values_KHMD])
    chex.assert_shape(keys_KHMD, (banks, heads, None, width))
    dtype = accumulation_dtype(queries_BTHD)
    queries_HQD = jnp.moveaxis(queries_BTHD.reshape(batch * time, heads, width), 1, 0)
    scores = jnp.einsum("hqd,khmd->khqm", queries_HQD, keys_KHMD, preferred_element_type=dtype)
    weights = jax.nn.softmax(scores, axis=-1)
    if dropout_rate > 0:
        if dropout_seed is None:
            raise ValueError("dropout_rate > 0 needs a dropout_seed")
        row = jnp.arange(banks * heads * batch * time).reshape(banks, heads, batch * time, 1)
        keep = keep_mask(dropout_seed, row, jnp.arange(keys_KHMD.shape[2]), dropout_rate)
        weights = jnp.where(keep, weights / (1.0 - dropout_rate), 0.0)
    answers_HQD = jnp.einsum("khqm,khmd->hqd", weights.astype(values_KHMD.dtype), values_KHMD) / banks
    return jnp.moveaxis(answers_HQD, 0, 1).reshape(batch, time, heads, width)


def _row_numbers(batch: int, heads: int, time: int) -> Array:
    """(B, H, T): the number of each (batch, head, query), for the dropout hash."""
    return jnp.arange(batch * heads * time).reshape(batch, heads, time)


def _naive(queries: Array, keys: Array, values: Array, seed: Array, offset: int, rate: float) -> Array:
    batch, heads, time, _ = queries.shape
    scores = jnp.einsum("bhtd,bhnd->bhtn", queries, keys, preferred_element_type=accumulation_dtype(queries))
    mask = jnp.arange(time) <= jnp.arange(time)[:, None] - offset
    weights = masked_softmax(scores, mask)
    if rate > 0:
        keep = keep_mask(seed, _row_numbers(batch, heads, time)[..., None], jnp.arange(time), rate)
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


def _blockwise_forward(
    offset: int, rate: float, queries: Array, keys: Array, values: Array, seed: Array
) -> tuple[Array, tuple[Array, ...]]:
    batch, heads, time, width = queries.shape
    dtype = accumulation_dtype(queries)
    q, k, v = _cut(queries), _cut(keys), _cut(values)
    rows = _cut(_row_numbers(batch, heads, time))

    def query_block(i: Array) -> tuple[Array, Array]:
        def key_block(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            top, total, answer = carry
            scores = jnp.einsum("bhtd,bhnd->bhtn", q[i], k[j], preferred_element_type=dtype)
            scores = jnp.where(_block_mask(i, j, offset), scores, NEVER)
            new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
            shrink = jnp.exp(top - new_top)
            weights = jnp.exp(scores - new_top[..., None])
            total = shrink * total + jnp.sum(weights, axis=-1)
            if rate > 0:
                weights = jnp.where(_block_keep(seed, rows[i], j, rate), weights / (1.0 - rate), 0.0)
            part = jnp.einsum("bhtn,bhnd->bhtd", weights.astype(v.dtype), v[j], preferred_element_type=dtype)
            return new_top, total, shrink[..., None] * answer + part

        empty = jnp.full((batch, heads, BLOCK), NEVER, dtype)
        start = (empty, jnp.zeros_like(empty), jnp.zeros((batch, heads, BLOCK, width), dtype))
        top, total, answer = lax.fori_loop(0, i + 1, key_block, start)
        # A row whose every score is NEVER has the weights of a uniform average: it has no pair and answers 0.
        alive = top > 0.5 * NEVER
        answer = jnp.where(alive[..., None], answer / total[..., None], 0.0)
        return answer.astype(values.dtype), jnp.where(alive, top + jnp.log(total), -NEVER)

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
    rows = _cut(_row_numbers(batch, heads, time))
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
