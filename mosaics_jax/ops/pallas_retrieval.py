"""Causal retrieval as a Pallas kernel for TPU: weights stay on the chip, and may be dropped there.

What library kernels of attention lack: strict causality with a first row that is 0, and dropout by the hash that every
other form uses. The algorithm is that of `blockwise` (Dao et al. 2022, FlashAttention). All blocks of weights are kept
with pairs in rows and queries in columns, so that what belongs to a query (the largest score, the summed weights) is a
row of a vector register.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mosaics_jax.ops.blockwise import NEVER
from mosaics_jax.ops.dropout_mask import keep_mask
from mosaics_jax.shapes import Array

BLOCKS = (512, 256, 128)  # queries, and pairs, of a block: the largest that divides the padded time
LANES = BLOCKS[-1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def pallas_retrieval(
    offset: int,
    rate: float,
    queries_BHTD: Array,
    keys_BHTD: Array,
    values_BHTD: Array,
    seed: Array,
    first_row_BH: Array,
) -> Array:
    """Answers (B, H, T, D) of queries t from pairs up to t - offset; weights are dropped at ``rate`` under ``seed``.

    first_row_BH: the number of query 0 of each sequence and head, for the dropout hash (`row_numbers`).
    """
    return _forward(offset, rate, queries_BHTD, keys_BHTD, values_BHTD, seed, first_row_BH)[0]


def _forward(
    offset: int, rate: float, queries: Array, keys: Array, values: Array, seed: Array, first_row: Array
) -> tuple[Array, tuple[Array, ...]]:
    call = _Call(queries.shape, offset, rate)
    q, k, v = (call.padded(a) for a in (queries, keys, values))
    answers, log_total = call(
        _forward_kernel,
        (seed, first_row),
        {"query": (q,), "pair": (k, v)},
        out={"query": (jax.ShapeDtypeStruct(q.shape, v.dtype),), "row": (call.row_shape,)},
        scratch=((1, call.block), (1, call.block), (call.width, call.block)),
    )
    return call.cut(answers), (queries, keys, values, seed, first_row, answers, log_total)


def _backward(
    offset: int, rate: float, saved: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, Array, None, None]:
    queries, keys, values, seed, first_row, answers, log_total = saved
    call = _Call(queries.shape, offset, rate)
    q, k, v, g = (call.padded(a) for a in (queries, keys, values, gradient.astype(queries.dtype)))
    inner = jnp.einsum("ntd,ntd->nt", g, answers, preferred_element_type=jnp.float32)[:, None]
    given = {"query": (q, g), "pair": (k, v), "row": (log_total, inner)}
    like = functools.partial(jax.ShapeDtypeStruct, q.shape)
    tile = (call.block, call.width)
    (dq,) = call(_query_kernel, (seed, first_row), given, out={"query": (like(queries.dtype),)}, scratch=(tile,))
    dk, dv = call(
        _pair_kernel,
        (seed, first_row),
        given,
        out={"pair": (like(keys.dtype), like(values.dtype))},
        scratch=(tile, tile),
        pairs_outside=True,
    )
    return call.cut(dq), call.cut(dk), call.cut(dv), None, None


pallas_retrieval.defvjp(_forward, _backward)


class _Call:
    """One geometry of blocks for all kernels; arrays are (N, T, D), N for sequences and heads, or (N, 1, T)."""

    def __init__(self, shape_BHTD: tuple[int, ...], offset: int, rate: float):
        self.shape, self.offset, self.rate = shape_BHTD, offset, rate
        batch, heads, time, self.width = shape_BHTD
        self.count, self.time = batch * heads, -(-time // LANES) * LANES
        self.block = next(size for size in BLOCKS if self.time % size == 0)
        self.row_shape = jax.ShapeDtypeStruct((self.count, 1, self.time), jnp.float32)

    def padded(self, a: Array) -> Array:
        """Queries and pairs that are added come after all others, which never look ahead."""
        a = a.reshape(self.count, *self.shape[2:])
        return jnp.pad(a, ((0, 0), (0, self.time - a.shape[1]), (0, 0)))

    def cut(self, a: Array) -> Array:
        return a[:, : self.shape[2]].reshape(self.shape)

    def __call__(
        self,
        kernel: Callable[..., None],
        numbers: tuple[Array, Array],
        arrays: Mapping[str, tuple[Array, ...]],
        out: Mapping[str, tuple[Any, ...]],
        scratch: tuple[tuple[int, int], ...],
        pairs_outside: bool = False,
    ) -> list[Array]:
        """Runs ``kernel`` on blocks: pairs inside queries, or queries inside pairs (``pairs_outside``)."""

        def spec(kind: str) -> pl.BlockSpec:
            query, pair = (2, 1) if pairs_outside else (1, 2)
            place = pair if kind == "pair" else query
            if kind == "row":
                return pl.BlockSpec((None, 1, self.block), lambda *ids: (ids[0], 0, ids[place]))
            return pl.BlockSpec((None, self.block, self.width), lambda *ids: (ids[0], ids[place], 0))

        def flat(groups: Mapping[str, tuple[Any, ...]]) -> tuple[list[Any], list[pl.BlockSpec]]:
            pairs = [(value, spec(kind)) for kind, values in groups.items() for value in values]
            return [value for value, _ in pairs], [place for _, place in pairs]

        given, in_specs = flat(arrays)
        shapes, out_specs = flat(out)
        blocks = self.time // self.block
        seed, first_row = (jnp.asarray(number, jnp.uint32).reshape(-1) for number in numbers)
        in_scalar_memory = pl.BlockSpec(memory_space=pltpu.SMEM)
        return pl.pallas_call(
            functools.partial(kernel, self.offset, self.rate),
            grid=(self.count, blocks, blocks),
            in_specs=[in_scalar_memory, in_scalar_memory, *in_specs],
            out_specs=out_specs,
            out_shape=shapes,
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        )(seed, first_row, *given)


def _forward_kernel(
    offset: int, rate: float, seed: Any, first_row: Any, q: Any, k: Any, v: Any, answer: Any, log_total: Any, *sums: Any
) -> None:
    i, j = pl.program_id(1), pl.program_id(2)
    block = q.shape[0]
    top, total, weighted = sums

    @pl.when(j == 0)
    def _() -> None:
        top[...] = jnp.full_like(top, NEVER)
        total[...] = jnp.zeros_like(total)
        weighted[...] = jnp.zeros_like(weighted)

    @pl.when(_any_past(i, j, block, offset))
    def _() -> None:
        past, keep = _masks(offset, rate, seed, first_row, i, j, block)
        scores = jnp.where(past, _dot(k[...], q[...], (1, 1)), NEVER)
        largest = jnp.maximum(top[...], jnp.max(scores, axis=0, keepdims=True))
        weights = jnp.where(past, jnp.exp(scores - largest), 0.0)
        share = jnp.exp(top[...] - largest)
        top[...] = largest
        total[...] = share * total[...] + jnp.sum(weights, axis=0, keepdims=True)
        dropped = _drop(weights, keep, rate).astype(v.dtype)
        weighted[...] = share * weighted[...] + _dot(v[...], dropped, (0, 0))

    @pl.when(j == pl.num_programs(2) - 1)
    def _() -> None:
        alive = total[...] > 0
        divisor = jnp.where(alive, total[...], 1.0)
        answer[...] = (weighted[...] / divisor).T.astype(answer.dtype)
        # Weights made anew of a query without pairs are 0.
        log_total[...] = jnp.where(alive, top[...] + jnp.log(divisor), -NEVER)


def _query_kernel(
    offset: int, rate: float, seed: Any, first_row: Any, q: Any, g: Any, k: Any, v: Any, log_total: Any, inner: Any,
    dq: Any, sum_dq: Any,
) -> None:  # fmt: skip
    i, j = pl.program_id(1), pl.program_id(2)

    @pl.when(j == 0)
    def _() -> None:
        sum_dq[...] = jnp.zeros_like(sum_dq)

    @pl.when(_any_past(i, j, q.shape[0], offset))
    def _() -> None:
        _, dscores = _weights(offset, rate, seed, first_row, i, j, q, g, k, v, log_total, inner)
        sum_dq[...] += _dot(dscores, k[...], (0, 0))

    @pl.when(j == pl.num_programs(2) - 1)
    def _() -> None:
        dq[...] = sum_dq[...].astype(dq.dtype)


def _pair_kernel(
    offset: int, rate: float, seed: Any, first_row: Any, q: Any, g: Any, k: Any, v: Any, log_total: Any, inner: Any,
    dk: Any, dv: Any, sum_dk: Any, sum_dv: Any,
) -> None:  # fmt: skip
    j, i = pl.program_id(1), pl.program_id(2)

    @pl.when(i == 0)
    def _() -> None:
        sum_dk[...] = jnp.zeros_like(sum_dk)
        sum_dv[...] = jnp.zeros_like(sum_dv)

    @pl.when(_any_past(i, j, q.shape[0], offset))
    def _() -> None:
        dropped, dscores = _weights(offset, rate, seed, first_row, i, j, q, g, k, v, log_total, inner)
        sum_dk[...] += _dot(dscores, q[...], (1, 0))
        sum_dv[...] += _dot(dropped, g[...], (1, 0))

    @pl.when(i == pl.num_programs(2) - 1)
    def _() -> None:
        dk[...] = sum_dk[...].astype(dk.dtype)
        dv[...] = sum_dv[...].astype(dv.dtype)


def _weights(
    offset: int, rate: float, seed: Any, first_row: Any, i: Array, j: Array, q: Any, g: Any, k: Any, v: Any,
    log_total: Any, inner: Any,
) -> tuple[Array, Array]:  # fmt: skip
    """Weights of a block after dropout, and the gradients of its scores, both in the type of the queries."""
    past, keep = _masks(offset, rate, seed, first_row, i, j, q.shape[0])
    weights = jnp.where(past, jnp.exp(_dot(k[...], q[...], (1, 1)) - log_total[...]), 0.0)
    dweights = _drop(_dot(v[...], g[...], (1, 1)), keep, rate)
    dscores = weights * (dweights - inner[...])
    return _drop(weights, keep, rate).astype(q.dtype), dscores.astype(q.dtype)


def _any_past(i: Array, j: Array, block: int, offset: int) -> Array:
    """Whether a query of block i may see a pair of block j."""
    return j * block <= i * block + block - 1 - offset


def _masks(
    offset: int, rate: float, seed: Any, first_row: Any, i: Array, j: Array, block: int
) -> tuple[Array, Array | None]:
    """Which pairs (rows) queries (columns) may see, and which weights are kept, if any are dropped."""
    pair = j * block + lax.broadcasted_iota(jnp.int32, (block, block), 0)
    query = i * block + lax.broadcasted_iota(jnp.int32, (block, block), 1)
    past = pair <= query - offset
    if rate == 0:
        return past, None
    row = first_row[pl.program_id(0)] + query[:1].astype(jnp.uint32)
    return past, keep_mask(seed[0], row, pair, rate)


def _drop(weights: Array, keep: Array | None, rate: float) -> Array:
    return weights if keep is None else jnp.where(keep, weights / (1.0 - rate), 0.0)


def _dot(one: Array, other: Array, axes: tuple[int, int]) -> Array:
    """The product over these axes, summed in float32."""
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(one, other, dimensions, preferred_element_type=jnp.float32)
