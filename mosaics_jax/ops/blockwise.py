"""Causal retrieval in memory linear in T, forward and backward: the weights of a few queries are held at a time.

Forward keeps, for each query, the logarithm of its summed weights; backward makes the weights anew from it (Dao et al.
2022, FlashAttention, algorithms 1 and 4). Queries come in groups, each compiled with the keys up to its own end: of
these, all before the group need no mask, and only its own share is computed to be masked in part.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mosaics_jax.ops.dropout_mask import keep_mask, row_numbers
from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.ops.platform import one_cpu_device
from mosaics_jax.ops.products import product
from mosaics_jax.shapes import Array

BLOCK = 128  # queries whose weights are held at a time
GROUPS = 8  # of blocks; compiled code grows with it, and wasted weights shrink
LANES = 16  # blocks are a multiple of this, for vector instructions
CACHED = 2**18  # weights that fit a CPU core's cache: so many heads of sequences are taken at a time
NEVER = -1e30  # a score that exp sends to 0 without the NaN of inf - inf

Sums = tuple[Array, Array, Array]  # the largest score of each query, its summed weights, its weighted values


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def blockwise_retrieval(
    offset: int, rate: float, queries_BHTD: Array, keys_BHTD: Array, values_BHTD: Array, seed: Array
) -> Array:
    """Answers (B, H, T, D) of queries t from pairs up to t - offset; weights are dropped at ``rate`` under ``seed``."""
    return _forward(offset, rate, queries_BHTD, keys_BHTD, values_BHTD, seed)[0]


def add_pairs(one: Sums, other: Sums) -> Sums:
    """The sums over both sets of pairs."""
    top = jnp.maximum(one[0], other[0])
    (share, total, answer), (other_share, other_total, other_answer) = (
        (jnp.exp(largest - top), *sums) for largest, *sums in (one, other)
    )
    total = share * total + other_share * other_total
    return top, total, share[..., None] * answer + other_share[..., None] * other_answer


def sums_of_pairs(scores: Array, values: Array, keep: Array | None = None, rate: float = 0.0) -> Sums:
    """Scores (..., T, N) of queries, and values (..., N, D)."""
    top = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - top[..., None])
    total = jnp.sum(weights, axis=-1)
    if keep is not None:
        weights = jnp.where(keep, weights / (1.0 - rate), 0.0)
    answer = jnp.einsum("...tn,...nd->...td", weights.astype(values.dtype), values, preferred_element_type=total.dtype)
    return top, total, answer


def normalized(sums: Sums) -> tuple[Array, Array]:
    """The answers, and the logarithms of their summed weights."""
    top, total, answer = sums
    # A row whose every score is NEVER has the weights of a uniform average: it has no pair and answers 0.
    alive = top > 0.5 * NEVER
    return jnp.where(alive[..., None], answer / total[..., None], 0.0), jnp.where(alive, top + jnp.log(total), -NEVER)


def _forward(
    offset: int, rate: float, queries: Array, keys: Array, values: Array, seed: Array
) -> tuple[Array, tuple[Array, ...]]:
    def forward(q: Array, k: Array, v: Array, rows: Array) -> tuple[Array, Array]:
        def block(_: None, first: Array | int, q: Array, rows: Array, low: int, high: int) -> tuple[None, Any]:
            parts = []
            for start, stop, mask in _parts(first, q.shape[-2], low, high, offset):
                scores = _scores(q, k[..., start:stop, :], mask)
                keep = _keep(seed, rows, start, stop, rate)
                parts.append(sums_of_pairs(scores, v[..., start:stop, :], keep, rate))
            answer, log_total = normalized(functools.reduce(add_pairs, parts))
            return None, (answer.astype(v.dtype), log_total)

        return _over_blocks(block, None, (q, rows))[1]

    rows = row_numbers(*queries.shape[:3])
    answers, log_total = map(product, _over_sequences(forward, queries, keys, values, rows))
    return answers, (queries, keys, values, seed, answers, log_total)


def _backward(offset: int, rate: float, saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array, None]:
    queries, keys, values, seed, answers, log_total = saved
    dtype = accumulation_dtype(queries)
    # sum_n weight_n dweight_n of each query, from the answer itself: what the softmax's gradient subtracts.
    inner = jnp.einsum("bhtd,bhtd->bht", gradient, answers, preferred_element_type=dtype)

    def backward(
        q: Array, k: Array, v: Array, g: Array, rows: Array, log_total: Array, inner: Array
    ) -> tuple[Array, Array, Array]:
        def block(
            carry: tuple[Array, Array],
            first: Array | int,
            q: Array,
            g: Array,
            rows: Array,
            log_total: Array,
            inner: Array,
            low: int,
            high: int,
        ) -> tuple[tuple[Array, Array], Array]:
            # Gradients of keys and values with time last: the product then transposes queries, not weights.
            q_T, g_T = jnp.swapaxes(q, -1, -2), jnp.swapaxes(g, -1, -2)
            dk, dv = carry
            dq = jnp.zeros(q.shape, dtype)
            for start, stop, mask in _parts(first, q.shape[-2], low, high, offset):
                k_part, v_part = k[..., start:stop, :], v[..., start:stop, :]
                weights = jnp.exp(_scores(q, k_part, mask) - log_total[..., None])
                dweights = jnp.einsum("...td,...nd->...tn", g, v_part, preferred_element_type=dtype)
                dropped = weights
                keep = _keep(seed, rows, start, stop, rate)
                if keep is not None:
                    dropped = jnp.where(keep, weights / (1.0 - rate), 0.0)
                    dweights = jnp.where(keep, dweights / (1.0 - rate), 0.0)
                dscores = (weights * (dweights - inner[..., None])).astype(q.dtype)
                dropped = dropped.astype(g.dtype)
                dv = dv.at[..., start:stop].add(jnp.matmul(g_T, dropped, preferred_element_type=dtype))
                dk = dk.at[..., start:stop].add(jnp.matmul(q_T, dscores, preferred_element_type=dtype))
                dq += jnp.matmul(dscores, k_part, preferred_element_type=dtype)
            return (dk, dv), dq.astype(q.dtype)

        zero = jnp.zeros(jnp.swapaxes(k, -1, -2).shape, dtype)
        (dk, dv), dq = _over_blocks(block, (zero, zero), (q, g, rows, log_total, inner))
        return dq, jnp.swapaxes(dk, -1, -2).astype(k.dtype), jnp.swapaxes(dv, -1, -2).astype(v.dtype)

    rows = row_numbers(*queries.shape[:3])
    gradient = gradient.astype(queries.dtype)
    dq, dk, dv = _over_sequences(backward, queries, keys, values, gradient, rows, log_total, inner)
    return dq, dk, dv, None


def _scores(queries: Array, keys: Array, mask: Array | None) -> Array:
    scores = jnp.einsum("...td,...nd->...tn", queries, keys, preferred_element_type=accumulation_dtype(queries))
    return scores if mask is None else scores + mask


def _keep(seed: Array, rows: Array, start: int, stop: int, rate: float) -> Array | None:
    return keep_mask(seed, rows[..., None], jnp.arange(start, stop), rate) if rate > 0 else None


def _parts(first: Array | int, size: int, low: int, high: int, offset: int) -> list[tuple[int, int, Any]]:
    """Pairs of a block whose queries begin at ``low + first``: ranges, and a mask to add to their scores, if any."""
    past = np.arange(high - low) <= np.arange(size)[:, None] - offset + first
    # Adding is quicker than choosing, and the first block of a group has its mask when compiling.
    mask = np.where(past, np.float32(0), np.float32(NEVER)) if isinstance(first, int) else jnp.where(past, 0.0, NEVER)
    own = (low, high, mask)
    return [(0, low, None), own] if low else [own]


def _block_size(time: int) -> int:
    size = -(-time // -(-time // BLOCK))
    lanes = min(LANES, BLOCK)
    return -(-size // lanes) * lanes


def _over_blocks(function: Callable[..., tuple[Any, Any]], carry: Any, arrays: tuple[Array, ...]) -> tuple[Any, Any]:
    """``function(carry, first, blocks of arrays, low, high)`` block by block along axis 2, its outputs joined there.

    A group covers positions low to high, and a block in it begins at low + first.
    """
    time = arrays[0].shape[2]
    size = _block_size(time)
    group = -(-(time // size) // GROUPS) * size
    outputs = []
    for low in range(0, time, group):
        high = min(low + group, time)
        taken = [a[:, :, low:high] for a in arrays]
        if high - low == size:
            carry, output = function(carry, 0, *taken, low, high)
        else:
            blocks = [jnp.moveaxis(a.reshape(*a.shape[:2], -1, size, *a.shape[3:]), 2, 0) for a in taken]
            first = jnp.arange(0, high - low, size)
            run = functools.partial(_unpacked, function, low, high)
            carry, output = lax.scan(run, carry, (first, *blocks))
            output = jax.tree.map(lambda a: _merge(jnp.moveaxis(a, 0, 2), 2), output)
        outputs.append(output)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *outputs)


def _unpacked(function: Callable[..., Any], low: int, high: int, carry: Any, xs: tuple[Array, ...]) -> Any:
    return function(carry, *xs, low, high)


def _merge(x: Array, axis: int) -> Array:
    """Axes ``axis`` and the next as one."""
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _over_sequences(function: Callable[..., tuple[Array, ...]], *arrays: Array) -> tuple[Array, ...]:
    """``function`` of arrays (B, H, T, ...) with T padded to whole blocks; on a CPU, of some heads at a time."""
    batch, heads, time = arrays[0].shape[:3]
    padding = -time % _block_size(time)
    arrays = tuple(jnp.pad(a, ((0, 0), (0, 0), (0, padding)) + ((0, 0),) * (a.ndim - 3)) for a in arrays)
    if not one_cpu_device():
        outputs = function(*arrays)
        return tuple(a[:, :, :time] for a in outputs)
    rows = batch * heads
    most = max(1, CACHED // (min(time, BLOCK) * time))
    count = next(n for n in range(min(most, rows), 0, -1) if rows % n == 0)
    parts = tuple(a.reshape(-1, count, 1, *a.shape[2:]) for a in arrays)
    outputs = lax.map(lambda part: function(*part), parts)
    return tuple(a.reshape(batch, heads, *a.shape[3:])[:, :, :time] for a in outputs)


blockwise_retrieval.defvjp(_forward, _backward)
