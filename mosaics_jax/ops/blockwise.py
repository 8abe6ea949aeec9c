"""Retrieval in memory linear in T, forward and backward: only the weights of one block of queries exist at a time.

The forward pass stores the logarithm of each query's summed weights; the backward pass recomputes the weights from it
(Dao et al. 2022, FlashAttention, algorithms 1 and 4).

Each block of queries is computed with a range of pairs that contains all pairs that its queries see. With a static
window that is shorter than the sequence, all ranges have one size, and time is O(T window). With any other
static reach, blocks are grouped: one loop over the blocks of a group is compiled, with the pairs up to the end of the
group. Without a window, the pairs that all queries of the group see need no mask.

Shapes here: J pairs of one range, I blocks.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mosaics_jax.ops.dropout_mask import keep_mask
from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.ops.platform import one_cpu_device, platform
from mosaics_jax.ops.products import product
from mosaics_jax.ops.reach import Reach
from mosaics_jax.ops.weights import UNSEEN, add_sums, answers_of, recomputed_weights, sums_over_pairs
from mosaics_jax.shapes import Array

BLOCK = 128  # queries of a block
GROUPS = 8  # of blocks: more groups waste less work on masked weights, but compile longer
LANES = 16  # the size of a block is a multiple of this, for vector instructions
CACHED_WEIGHTS = 2**18  # how many weights fit into the cache of a CPU core


def block_size_for_slots() -> int:
    """Queries of a block if every query sees all pairs: on CPU, the weights should fit into the cache."""
    return 512 if platform() == "cpu" else 65536


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def blockwise_retrieval(
    rate: float,
    queries_BTHD: Array,
    keys_BNHD: Array,
    values_BNHD: Array,
    reach: Reach | None,
    seed: Array,
    rows_BTH: Array,
) -> Array:
    """Answers (B, T, H, D) of queries from the N pairs that ``reach`` lets them see.

    Where ``reach`` is None, all queries see all pairs, which are the same for all sequences: keys and values are then
    (H, N, D), as they are parameters. Weights are dropped at ``rate`` under ``seed``. rows_BTH:
    the queries' numbers in the dropout hash (`row_numbers`).
    """
    return _forward(rate, queries_BTHD, keys_BNHD, values_BNHD, reach, seed, rows_BTH)[0]


def _forward(
    rate: float,
    queries_BTHD: Array,
    keys_BNHD: Array,
    values_BNHD: Array,
    reach: Reach | None,
    seed: Array,
    rows_BTH: Array,
) -> tuple[Array, tuple[Any, ...]]:
    blocks = _Blocks(reach, queries_BTHD.shape, keys_BNHD.shape)

    def forward(queries: tuple[Array, ...], pairs: tuple[Array, ...]) -> tuple[Array, ...]:
        keys_BHND, values_BHND, *pair_documents = pairs

        def block(_: None, place: _QueryBlock, queries: tuple[Array, ...]) -> tuple[None, tuple[Array, Array]]:
            q_BHTD, rows_BHT, *documents = queries
            sums = []
            for part in blocks.pair_ranges(place, documents, pair_documents):
                keep_BHTJ = part.keep(seed, rows_BHT, rate)
                scores_BHTJ = part.scores(q_BHTD, keys_BHND)
                sums.append(sums_over_pairs(scores_BHTJ, part.slice(values_BHND), keep_BHTJ, rate))
            answers_BHTD, log_total_BHT = answers_of(functools.reduce(add_sums, sums))
            return None, (answers_BHTD.astype(values_BHND.dtype), log_total_BHT)

        return blocks.scan(block, None, queries)[1]

    answers_BHTD, log_total_BHT = blocks.over_heads(forward, (queries_BTHD, rows_BTH), (keys_BNHD, values_BNHD))
    answers_BTHD, log_total_BHT = product(blocks.positions_first(answers_BHTD)), product(log_total_BHT)
    # Arrays are kept in the layout of the arguments: the caller keeps most of them too, so that memory holds them once.
    return answers_BTHD, (queries_BTHD, keys_BNHD, values_BNHD, reach, seed, rows_BTH, answers_BTHD, log_total_BHT)


def _backward(rate: float, saved: tuple[Any, ...], gradients_BTHD: Array) -> tuple[Array | None, ...]:
    queries_BTHD, keys_BNHD, values_BNHD, reach, seed, rows_BTH, answers_BTHD, log_total_BHT = saved
    blocks = _Blocks(reach, queries_BTHD.shape, keys_BNHD.shape)
    dtype = accumulation_dtype(queries_BTHD)
    inner_BTH = jnp.einsum("bthd,bthd->bth", gradients_BTHD, answers_BTHD, preferred_element_type=dtype)

    def backward(queries: tuple[Array, ...], pairs: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        keys_BHND, values_BHND, *pair_documents = pairs

        def block(carry: tuple[Array, Array], place: _QueryBlock, queries: tuple[Array, ...]) -> tuple[Any, Array]:
            q_BHTD, rows_BHT, g_BHTD, inner_BHT, log_total_BHT, *documents = queries
            # The gradients of keys and values have pairs last, so that their products transpose queries, not weights.
            q_BHDT, g_BHDT = jnp.swapaxes(q_BHTD, -1, -2), jnp.swapaxes(g_BHTD, -1, -2)
            dk_BHDN, dv_BHDN = carry
            dq_BHTD = jnp.zeros(q_BHTD.shape, dtype)
            for part in blocks.pair_ranges(place, documents, pair_documents):
                weights_BHTJ, dscores_BHTJ = recomputed_weights(
                    part.scores(q_BHTD, keys_BHND),
                    log_total_BHT,
                    g_BHTD,
                    part.slice(values_BHND),
                    inner_BHT,
                    part.keep(seed, rows_BHT, rate),
                    rate,
                )
                weights_BHTJ, dscores_BHTJ = weights_BHTJ.astype(g_BHTD.dtype), dscores_BHTJ.astype(q_BHTD.dtype)
                dv_BHDN = part.add_to(dv_BHDN, jnp.matmul(g_BHDT, weights_BHTJ, preferred_element_type=dtype))
                dk_BHDN = part.add_to(dk_BHDN, jnp.matmul(q_BHDT, dscores_BHTJ, preferred_element_type=dtype))
                dq_BHTD += jnp.matmul(dscores_BHTJ, part.slice(keys_BHND), preferred_element_type=dtype)
            return (dk_BHDN, dv_BHDN), dq_BHTD.astype(q_BHTD.dtype)

        zero_BHDN = jnp.zeros(jnp.swapaxes(keys_BHND, -1, -2).shape, dtype)
        (dk_BHDN, dv_BHDN), dq_BHTD = blocks.scan(block, (zero_BHDN, zero_BHDN), queries)
        dk_BHND, dv_BHND = jnp.swapaxes(dk_BHDN, -1, -2), jnp.swapaxes(dv_BHDN, -1, -2)
        return dq_BHTD, dk_BHND.astype(keys_BHND.dtype), dv_BHND.astype(values_BHND.dtype)

    queries = queries_BTHD, rows_BTH, gradients_BTHD.astype(queries_BTHD.dtype), inner_BTH
    dq_BHTD, *dpairs = blocks.over_heads(backward, queries, (keys_BNHD, values_BNHD), log_total_BHT)
    dk_BNHD, dv_BNHD = (a[0] if reach is None else jnp.swapaxes(a, 1, 2) for a in dpairs)
    return blocks.positions_first(dq_BHTD), dk_BNHD, dv_BNHD, None, None, None


blockwise_retrieval.defvjp(_forward, _backward)


class _QueryBlock(NamedTuple):
    """Where a block of queries stands: in the group ``group_start`` .. ``group_end``, ``offset`` after its start.

    ``offset`` may be traced.
    """

    group_start: int
    group_end: int
    offset: int | Array


@dataclasses.dataclass(frozen=True)
class _PairRange:
    """The pairs ``start`` .. ``start + length``, and the mask of their scores. ``start`` may be traced.

    mask: 0 or UNSEEN, an array that broadcasts against scores (B, H, T, J) and is added to them; None: no mask.
    """

    start: int | Array
    length: int
    mask: Any

    def slice(self, pairs_BHND: Array) -> Array:
        """The entries (B, H, J, ...) of these pairs."""
        if isinstance(self.start, int):
            return pairs_BHND[:, :, self.start : self.start + self.length]
        return lax.dynamic_slice_in_dim(pairs_BHND, self.start, self.length, axis=2)

    def scores(self, queries_BHTD: Array, keys_BHND: Array) -> Array:
        """The masked scores (B, H, T, J) of queries and these pairs."""
        dtype = accumulation_dtype(queries_BHTD)
        k_BHJD = self.slice(keys_BHND)
        scores_BHTJ = jnp.einsum("...td,...nd->...tn", queries_BHTD, k_BHJD, preferred_element_type=dtype)
        return scores_BHTJ if self.mask is None else scores_BHTJ + self.mask

    def keep(self, seed: Array, rows_BHT: Array, rate: float) -> Array | None:
        """Which weights dropout keeps, (B, H, T, J); None if it keeps all."""
        return keep_mask(seed, rows_BHT[..., None], self.start + jnp.arange(self.length), rate) if rate > 0 else None

    def add_to(self, total_BHDN: Array, share_BHDJ: Array) -> Array:
        """``total_BHDN`` with ``share_BHDJ`` added to the entries of these pairs."""
        if self.length == total_BHDN.shape[-1]:
            return total_BHDN + share_BHDJ  # a scatter would crash XLA's partitioner within shard_map (jaxlib 0.11)
        if isinstance(self.start, int):
            return total_BHDN.at[..., self.start : self.start + self.length].add(share_BHDJ)
        before_BHDJ = lax.dynamic_slice_in_dim(total_BHDN, self.start, self.length, axis=3)
        return lax.dynamic_update_slice_in_dim(total_BHDN, before_BHDJ + share_BHDJ, self.start, axis=3)


class _Blocks:
    """How queries are split into blocks, and which of the N pairs each block is computed with.

    The computation has heads before positions. If all queries see all pairs, B and T are folded into one axis of
    queries, so that the pairs are read once for all sequences.
    """

    def __init__(self, reach: Reach | None, queries: tuple[int, ...], pairs: tuple[int, ...]):
        """``queries``, ``pairs``: the shapes of the arguments of `blockwise_retrieval`."""
        self.reach, self.batch, self.pairs = reach, queries[0], pairs[1]
        self.time = queries[0] * queries[1] if reach is None else queries[1]
        largest = block_size_for_slots() if reach is None else BLOCK
        size = -(-self.time // -(-self.time // largest))
        self.size = size if reach is None and size == self.time else _round_up(size, min(LANES, largest))
        self.span = self.pairs  # the largest number of pairs that a block is computed with
        self.is_windowed = False
        if reach is not None and isinstance(reach.window, int):
            span = _round_up(self.size + reach.window - 1, min(LANES, BLOCK))
            if span < self.pairs:
                self.span, self.is_windowed = span, True

    def groups(self) -> list[tuple[int, int]]:
        """The ranges (start, end) of queries that are compiled as one loop over blocks."""
        padded = _round_up(self.time, self.size)
        if self.reach is None or self.is_windowed or not isinstance(self.reach.delay, int):
            return [(0, padded)]
        length = -(-(padded // self.size) // GROUPS) * self.size
        return [(start, min(start + length, padded)) for start in range(0, padded, length)]

    def pair_ranges(self, place: _QueryBlock, documents: list[Array], pair_documents: list[Array]) -> list[_PairRange]:
        """The pairs that a block is computed with, in one or two ranges.

        Both lists are empty if there is one document. Otherwise they have one array each: the documents (B, H, T) of
        the queries of the block, and those of all pairs, (B, H, N).
        """
        reach, size = self.reach, self.size
        if reach is None:
            return [_PairRange(0, self.pairs, None)]

        def masked(start: int | Array, length: int) -> _PairRange:
            numpy: Any = np if reach.is_static and isinstance(place.offset, int) and isinstance(start, int) else jnp
            query_T1 = place.group_start + place.offset + numpy.arange(size)[:, None]
            seen = reach.sees(query_T1, start + numpy.arange(length))
            if documents:
                pair_documents_BHJ = _PairRange(start, length, None).slice(pair_documents[0])
                seen = seen & (documents[0][..., None] == pair_documents_BHJ[..., None, :])
                numpy = jnp
            # Adding a mask is faster than selecting by it.
            return _PairRange(start, length, numpy.where(seen, numpy.float32(0.0), numpy.float32(UNSEEN)))

        if self.is_windowed:
            start = place.group_start + place.offset - reach.delay - reach.window + 1  # type: ignore[operator]  # not None
            if isinstance(start, int):
                return [masked(min(max(start, 0), self.pairs - self.span), self.span)]
            return [masked(jnp.clip(start, 0, self.pairs - self.span), self.span)]
        if not isinstance(reach.delay, int):
            return [masked(0, self.pairs)]
        # All queries of the group see the pairs before ``seen_by_all``; none sees a pair from ``end`` on.
        end = min(max(_round_up(place.group_end - reach.delay, size), min(size, self.pairs)), self.pairs)
        seen_by_all = max(place.group_start - reach.delay + 1, 0) // size * size
        if reach.window is not None or documents or seen_by_all == 0:
            return [masked(0, end)]
        unmasked = _PairRange(0, seen_by_all, None)
        return [unmasked, masked(seen_by_all, end - seen_by_all)] if seen_by_all < end else [unmasked]

    def scan(self, function: Callable[..., Any], carry: Any, queries: tuple[Array, ...]) -> tuple[Any, Any]:
        """`lax.scan` of ``function(carry, place, queries of one block)`` over all blocks.

        queries: arrays (B, H, T, ...), T padded to whole blocks. Returns the last carry and the outputs, whose blocks
        are joined along T.
        """
        outputs = []
        for start, end in self.groups():
            group = tuple(a[:, :, start:end] for a in queries)
            if end - start == self.size:
                carry, output = function(carry, _QueryBlock(start, end, 0), group)
            else:
                split = tuple(jnp.moveaxis(a.reshape(*a.shape[:2], -1, self.size, *a.shape[3:]), 2, 0) for a in group)
                step = functools.partial(_step, function, start, end)
                carry, output = lax.scan(step, carry, (jnp.arange(0, end - start, self.size), split))
                output = jax.tree.map(lambda a: _join_blocks(jnp.moveaxis(a, 0, 2)), output)
            outputs.append(output)
        return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *outputs)

    def heads_first(self, x_BTHD: Array) -> Array:
        """Arrays of queries (B, T, H, ...) as (B, H, T, ...), or (1, H, B T, ...)."""
        if self.reach is not None:
            return jnp.swapaxes(x_BTHD, 1, 2)
        return jnp.moveaxis(x_BTHD, 2, 0).reshape(1, x_BTHD.shape[2], self.time, *x_BTHD.shape[3:])

    def positions_first(self, x_BHTD: Array) -> Array:
        """The inverse of `heads_first`."""
        if self.reach is not None:
            return jnp.swapaxes(x_BHTD, 1, 2)
        return jnp.moveaxis(x_BHTD.reshape(x_BHTD.shape[1], self.batch, -1, *x_BHTD.shape[3:]), 0, 2)

    def over_heads(
        self,
        function: Callable[..., tuple[Array, ...]],
        queries: tuple[Array, ...],
        pairs: tuple[Array, ...],
        *inside: Array,
    ) -> tuple[Array, ...]:
        """``function(arrays of queries, arrays of pairs)``; one CPU device computes a few heads at a time.

        queries: arrays (B, T, H, ...). inside: arrays of queries as `heads_first` gives them. pairs: keys and values.
        The function gets queries padded to whole blocks, and documents after the other arrays if there are several. The
        padding is removed from its first output and from every output (B, H, T).
        """
        of_queries = [*map(self.heads_first, queries), *inside]
        of_pairs = [a[None] if self.reach is None else jnp.swapaxes(a, 1, 2) for a in pairs]
        batch, heads = of_queries[0].shape[:2]
        if self.reach is not None and self.reach.documents_BT is not None and self.reach.pair_documents is not None:
            of_queries.append(jnp.repeat(self.reach.documents_BT[:, None], heads, axis=1))
            of_pairs.append(jnp.repeat(self.reach.pair_documents[:, None], heads, axis=1))
        padding = _round_up(self.time, self.size) - self.time
        of_queries = [jnp.pad(a, ((0, 0), (0, 0), (0, padding)) + ((0, 0),) * (a.ndim - 3)) for a in of_queries]
        most = max(1, CACHED_WEIGHTS // (min(self.time, self.size) * self.span))
        count = next(n for n in range(min(most, batch * heads), 0, -1) if batch * heads % n == 0)
        if one_cpu_device() and count < batch * heads:
            # Without an axis of size 1 for single heads, for which XLA would copy the slots.
            rows = (-1,) if count == 1 else (-1, count)
            split = jax.tree.map(lambda a: a.reshape(*rows, *a.shape[2:]), (of_queries, of_pairs))

            def of_rows(arrays: Any) -> tuple[Array, ...]:
                return function(*jax.tree.map(lambda a: a.reshape(count, 1, *a.shape[len(rows) - 1 :]), arrays))

            outputs = tuple(a.reshape(batch, heads, *a.shape[3:]) for a in lax.map(of_rows, split))
        else:
            outputs = function(of_queries, of_pairs)
        return tuple(a[:, :, : self.time] if i == 0 or a.ndim == 3 else a for i, a in enumerate(outputs))


def _step(function: Callable[..., Any], start: int, end: int, carry: Any, xs: tuple[Array, Any]) -> Any:
    offset, queries = xs
    return function(carry, _QueryBlock(start, end, offset), queries)


def _join_blocks(x_BHITD: Array) -> Array:
    """(B, H, I, T, ...), T queries in each of I blocks, to (B, H, I T, ...)."""
    return x_BHITD.reshape(*x_BHITD.shape[:2], math.prod(x_BHITD.shape[2:4]), *x_BHITD.shape[4:])


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
