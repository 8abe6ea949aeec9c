"""Retrieval in memory linear in T, forward and backward: the weights of one block of queries exist at a time.

Forward keeps the logarithm of each query's summed weights; backward recomputes the weights from it (Dao et al. 2022,
FlashAttention, algorithms 1 and 4). Pairs that no query of a block sees are skipped: under a window, time is
O(T window). Without one, blocks of queries form groups: the code of a group is compiled for the pairs up to the end of
that group, and only pairs that some of its queries do not see are masked.

Shapes here: E pairs of one part of a block, S blocks.
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

BLOCK = 128  # queries whose weights exist at a time
GROUPS = 8  # of blocks; compiled code grows with it, and masked weights shrink
LANES = 16  # a block is a multiple of this, for vector instructions
CACHED = 2**18  # weights that fit a CPU core's cache: so many heads of sequences are computed at a time


def block_of_slots() -> int:
    """Queries of one block if all see all pairs: on CPU the weights should stay in cache, elsewhere fill the device."""
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
    (H, N, D), the layout of the parameters that they are. Weights are dropped at ``rate`` under ``seed``. rows_BTH:
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

        def block(_: None, place: _Place, queries: tuple[Array, ...]) -> tuple[None, tuple[Array, Array]]:
            q_BHTD, rows_BHT, *documents = queries
            sums = []
            for part in blocks.parts(place, documents, pair_documents):
                keep = part.keep(seed, rows_BHT, rate)
                sums.append(sums_over_pairs(part.scores(q_BHTD, keys_BHND), part.of(values_BHND), keep, rate))
            answers_BHTD, log_total_BHT = answers_of(functools.reduce(add_sums, sums))
            return None, (answers_BHTD.astype(values_BHND.dtype), log_total_BHT)

        return blocks.run(block, None, queries)[1]

    answers_BHTD, log_total_BHT = blocks.over_heads(forward, (queries_BTHD, rows_BTH), (keys_BNHD, values_BNHD))
    answers_BTHD, log_total_BHT = product(blocks.back(answers_BHTD)), product(log_total_BHT)
    # Kept in the layout of the arguments, in which the caller keeps them as well.
    return answers_BTHD, (queries_BTHD, keys_BNHD, values_BNHD, reach, seed, rows_BTH, answers_BTHD, log_total_BHT)


def _backward(rate: float, saved: tuple[Any, ...], gradients_BTHD: Array) -> tuple[Array | None, ...]:
    queries_BTHD, keys_BNHD, values_BNHD, reach, seed, rows_BTH, answers_BTHD, log_total_BHT = saved
    blocks = _Blocks(reach, queries_BTHD.shape, keys_BNHD.shape)
    dtype = accumulation_dtype(queries_BTHD)
    inner_BTH = jnp.einsum("bthd,bthd->bth", gradients_BTHD, answers_BTHD, preferred_element_type=dtype)

    def backward(queries: tuple[Array, ...], pairs: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        keys_BHND, values_BHND, *pair_documents = pairs

        def block(carry: tuple[Array, Array], place: _Place, queries: tuple[Array, ...]) -> tuple[Any, Array]:
            q_BHTD, rows_BHT, g_BHTD, inner_BHT, log_total_BHT, *documents = queries
            # Gradients of keys and values with pairs last: the product then transposes queries, not weights.
            q_BHDT, g_BHDT = jnp.swapaxes(q_BHTD, -1, -2), jnp.swapaxes(g_BHTD, -1, -2)
            dk_BHDN, dv_BHDN = carry
            dq_BHTD = jnp.zeros(q_BHTD.shape, dtype)
            for part in blocks.parts(place, documents, pair_documents):
                weights_BHTE, dscores_BHTE = recomputed_weights(
                    part.scores(q_BHTD, keys_BHND),
                    log_total_BHT,
                    g_BHTD,
                    part.of(values_BHND),
                    inner_BHT,
                    part.keep(seed, rows_BHT, rate),
                    rate,
                )
                weights_BHTE, dscores_BHTE = weights_BHTE.astype(g_BHTD.dtype), dscores_BHTE.astype(q_BHTD.dtype)
                dv_BHDN = part.add(dv_BHDN, jnp.matmul(g_BHDT, weights_BHTE, preferred_element_type=dtype))
                dk_BHDN = part.add(dk_BHDN, jnp.matmul(q_BHDT, dscores_BHTE, preferred_element_type=dtype))
                dq_BHTD += jnp.matmul(dscores_BHTE, part.of(keys_BHND), preferred_element_type=dtype)
            return (dk_BHDN, dv_BHDN), dq_BHTD.astype(q_BHTD.dtype)

        zero_BHDN = jnp.zeros(jnp.swapaxes(keys_BHND, -1, -2).shape, dtype)
        (dk_BHDN, dv_BHDN), dq_BHTD = blocks.run(block, (zero_BHDN, zero_BHDN), queries)
        dk_BHND, dv_BHND = jnp.swapaxes(dk_BHDN, -1, -2), jnp.swapaxes(dv_BHDN, -1, -2)
        return dq_BHTD, dk_BHND.astype(keys_BHND.dtype), dv_BHND.astype(values_BHND.dtype)

    queries = queries_BTHD, rows_BTH, gradients_BTHD.astype(queries_BTHD.dtype), inner_BTH
    gradients = blocks.over_heads(backward, queries, (keys_BNHD, values_BNHD), log_total_BHT)
    dq_BHTD, dk_BHND, dv_BHND = gradients
    of_pairs = (a[0] if reach is None else jnp.swapaxes(a, 1, 2) for a in (dk_BHND, dv_BHND))
    return blocks.back(dq_BHTD), *of_pairs, None, None, None


blockwise_retrieval.defvjp(_forward, _backward)


class _Place(NamedTuple):
    """A block of queries: it begins at ``low + first`` in the group ``low`` to ``high``. ``first`` may be traced."""

    low: int
    high: int
    first: int | Array


@dataclasses.dataclass(frozen=True)
class _Part:
    """``length`` pairs from ``start`` on, which may be traced, and what is added to scores: 0 or UNSEEN, or None."""

    start: int | Array
    length: int
    mask: Any

    def of(self, pairs_BHND: Array) -> Array:
        """These pairs, (B, H, E, ...), of all."""
        if isinstance(self.start, int):
            return pairs_BHND[:, :, self.start : self.start + self.length]
        return lax.dynamic_slice_in_dim(pairs_BHND, self.start, self.length, axis=2)

    def scores(self, queries_BHTD: Array, keys_BHND: Array) -> Array:
        """The scores (B, H, T, E) of a block of queries, UNSEEN where the mask says so."""
        dtype = accumulation_dtype(queries_BHTD)
        scores_BHTE = jnp.einsum("...td,...nd->...tn", queries_BHTD, self.of(keys_BHND), preferred_element_type=dtype)
        return scores_BHTE if self.mask is None else scores_BHTE + self.mask

    def keep(self, seed: Array, rows_BHT: Array, rate: float) -> Array | None:
        """Which weights dropout keeps, (B, H, T, E); None if it keeps all."""
        return keep_mask(seed, rows_BHT[..., None], self.start + jnp.arange(self.length), rate) if rate > 0 else None

    def add(self, total_BHDN: Array, part_BHDE: Array) -> Array:
        """The sum over pairs so far, and the share of these pairs added to it."""
        if isinstance(self.start, int):
            return total_BHDN.at[..., self.start : self.start + self.length].add(part_BHDE)
        before_BHDE = lax.dynamic_slice_in_dim(total_BHDN, self.start, self.length, axis=3)
        return lax.dynamic_update_slice_in_dim(total_BHDN, before_BHDE + part_BHDE, self.start, axis=3)


class _Blocks:
    """How queries are cut into blocks, and which of N pairs each block is computed with.

    Inside, heads come before positions. Where all queries see the same pairs, B and T are folded into one axis of
    queries, so that the pairs are read once for all sequences.
    """

    def __init__(self, reach: Reach | None, queries: tuple[int, ...], pairs: tuple[int, ...]):
        """``queries``, ``pairs``: shapes of the arguments of `blockwise_retrieval`."""
        self.reach, self.batch = reach, queries[0]
        self.pairs = pairs[1]
        time = queries[0] * queries[1] if reach is None else queries[1]
        self.time = time
        most = block_of_slots() if reach is None else BLOCK
        size = -(-time // -(-time // most))
        self.size = size if reach is None and size == time else _round_up(size, min(LANES, most))
        self.span = self.pairs  # pairs that a block is computed with, at most
        self.is_windowed = False
        if reach is not None and reach.is_static and reach.window is not None:
            span = _round_up(self.size + int(reach.window) - 1, min(LANES, BLOCK))
            if span < self.pairs:
                self.span, self.is_windowed = span, True

    def groups(self) -> list[tuple[int, int]]:
        """Ranges of queries whose code is compiled together."""
        padded = _round_up(self.time, self.size)
        if self.reach is None or self.is_windowed or not isinstance(self.reach.delay, int):
            return [(0, padded)]
        length = -(-(padded // self.size) // GROUPS) * self.size
        return [(low, min(low + length, padded)) for low in range(0, padded, length)]

    def parts(self, place: _Place, documents: list[Array], pair_documents: list[Array]) -> list[_Part]:
        """The pairs that a block is computed with. ``documents``: those of its queries (B, H, T), if there are several;
        ``pair_documents``: those of all pairs (B, H, N)."""
        reach, size = self.reach, self.size
        if reach is None:
            return [_Part(0, self.pairs, None)]

        def masked(start: int | Array, length: int) -> _Part:
            numpy: Any = np if reach.is_static and isinstance(place.first, int) and isinstance(start, int) else jnp
            query_T1 = place.low + place.first + numpy.arange(size)[:, None]
            seen = reach.sees(query_T1, start + numpy.arange(length))
            if documents:
                of_pairs = _Part(start, length, None).of(pair_documents[0])
                seen = seen & (documents[0][..., None] == of_pairs[..., None, :])
                numpy = jnp
            # Adding is quicker than choosing.
            return _Part(start, length, numpy.where(seen, numpy.float32(0.0), numpy.float32(UNSEEN)))

        if not isinstance(reach.delay, int):
            return [masked(0, self.pairs)]
        if self.is_windowed:
            start = place.low + place.first - reach.delay - reach.window + 1  # type: ignore[operator]  # a window
            if isinstance(start, int):
                return [masked(min(max(start, 0), self.pairs - self.span), self.span)]
            return [masked(jnp.clip(start, 0, self.pairs - self.span), self.span)]
        # All queries of the group see the pairs before ``seen_by_all``, none those from ``end`` on.
        end = min(max(_round_up(place.high - reach.delay, size), min(size, self.pairs)), self.pairs)
        seen_by_all = max(place.low - reach.delay + 1, 0) // size * size
        if reach.window is not None or documents or seen_by_all == 0:
            return [masked(0, end)]
        return [_Part(0, seen_by_all, None), *([masked(seen_by_all, end - seen_by_all)] if seen_by_all < end else [])]

    def run(self, function: Callable[..., Any], carry: Any, queries: tuple[Array, ...]) -> tuple[Any, Any]:
        """``function(carry, place, block of the arrays of queries)`` block by block; outputs are joined along time."""
        outputs = []
        for low, high in self.groups():
            group = tuple(a[:, :, low:high] for a in queries)
            if high - low == self.size:
                carry, output = function(carry, _Place(low, high, 0), group)
            else:
                cut = tuple(jnp.moveaxis(a.reshape(*a.shape[:2], -1, self.size, *a.shape[3:]), 2, 0) for a in group)
                step = functools.partial(_step, function, low, high)
                carry, output = lax.scan(step, carry, (jnp.arange(0, high - low, self.size), cut))
                output = jax.tree.map(lambda a: _merge(jnp.moveaxis(a, 0, 2)), output)
            outputs.append(output)
        return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *outputs)

    def inside(self, x_BTHD: Array) -> Array:
        """Arrays of queries (B, T, H, ...) as (B, H, T, ...), or (1, H, B T, ...)."""
        if self.reach is not None:
            return jnp.swapaxes(x_BTHD, 1, 2)
        return jnp.moveaxis(x_BTHD, 2, 0).reshape(1, x_BTHD.shape[2], self.time, *x_BTHD.shape[3:])

    def back(self, x_BHTD: Array) -> Array:
        """The inverse of `inside`."""
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
        """``function(arrays of queries, arrays of pairs)``; on a CPU, of some heads of some sequences at a time.

        ``queries`` are arrays (B, T, H, ...), ``inside`` arrays of queries in the layout of `inside`, and ``pairs``
        keys and values. Documents follow both, if there are several. The function sees T padded to whole blocks.
        Its first result, and results without channels, are of queries and lose the padding.
        """
        of_queries = [*map(self.inside, queries), *inside]
        of_pairs = [a[None] if self.reach is None else jnp.swapaxes(a, 1, 2) for a in pairs]
        batch, heads = of_queries[0].shape[:2]
        if self.reach is not None and self.reach.documents_BT is not None and self.reach.pair_documents is not None:
            of_queries.append(jnp.repeat(self.reach.documents_BT[:, None], heads, axis=1))
            of_pairs.append(jnp.repeat(self.reach.pair_documents[:, None], heads, axis=1))
        padding = _round_up(self.time, self.size) - self.time
        of_queries = [jnp.pad(a, ((0, 0), (0, 0), (0, padding)) + ((0, 0),) * (a.ndim - 3)) for a in of_queries]
        most = max(1, CACHED // (min(self.time, self.size) * self.span))
        count = next(n for n in range(min(most, batch * heads), 0, -1) if batch * heads % n == 0)
        if one_cpu_device() and count < batch * heads:
            # One head at a time is cut without an axis of size 1, for which XLA would copy the slots.
            rows = (-1,) if count == 1 else (-1, count)
            cut = jax.tree.map(lambda a: a.reshape(*rows, *a.shape[2:]), (of_queries, of_pairs))

            def of_rows(arrays: Any) -> tuple[Array, ...]:
                return function(*jax.tree.map(lambda a: a.reshape(count, 1, *a.shape[len(rows) - 1 :]), arrays))

            outputs = tuple(a.reshape(batch, heads, *a.shape[3:]) for a in lax.map(of_rows, cut))
        else:
            outputs = function(of_queries, of_pairs)
        return tuple(a[:, :, : self.time] if i == 0 or a.ndim == 3 else a for i, a in enumerate(outputs))


def _step(function: Callable[..., Any], low: int, high: int, carry: Any, xs: tuple[Array, Any]) -> Any:
    return function(carry, _Place(low, high, xs[0]), xs[1])


def _merge(x_BHSTD: Array) -> Array:
    """Blocks (B, H, blocks, size, ...) as one axis of time."""
    return x_BHSTD.reshape(*x_BHSTD.shape[:2], math.prod(x_BHSTD.shape[2:4]), *x_BHSTD.shape[4:])


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
