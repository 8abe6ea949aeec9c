"""Retrieval as a Pallas kernel for TPU: weights stay on the chip, and may be dropped there.

What library kernels of attention lack: strict causality with a first row that is 0, dropout by the hash that every
other form uses, and pairs that all sequences share. The algorithm is that of `blockwise` (Dao et al. 2022,
FlashAttention). All blocks of weights are kept with pairs in rows and queries in columns, so that what belongs to a
query (the largest score, the summed weights, its number) is a row of a vector register.
"""

import dataclasses
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
from mosaics_jax.ops.products import product
from mosaics_jax.shapes import Array

BLOCKS = (512, 256, 128)  # queries, and pairs, of a block: the largest that divides the padded number
LANES = BLOCKS[-1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def pallas_retrieval(
    offset: int | None,
    rate: float,
    queries_NTD: Array,
    keys_NMD: Array,
    values_NMD: Array,
    seed: Array,
    numbers_NT: Array,
) -> Array:
    """Answers (N, T, D) of queries t from pairs up to t - offset, or from all M if there is no offset.

    Weights are dropped at ``rate`` under ``seed``. numbers_NT: of the queries, for the dropout hash (`row_numbers`).
    """
    return _forward(offset, rate, queries_NTD, keys_NMD, values_NMD, seed, numbers_NT)[0]


def _forward(
    offset: int | None, rate: float, queries: Array, keys: Array, values: Array, seed: Array, numbers: Array
) -> tuple[Array, tuple[Array, ...]]:
    call = _Call(queries, keys, offset, rate)
    q, n = call.padded("query", queries, numbers)
    k, v = call.padded("pair", keys, values)
    results = call(
        _forward_kernel,
        seed,
        {"row": (n,), "query": (q,), "pair": (k, v)},
        out={"query": (jax.ShapeDtypeStruct(q.shape, v.dtype),), "row": (jax.ShapeDtypeStruct(n.shape, jnp.float32),)},
        scratch=((1, call.block["query"]), (1, call.block["query"]), (call.width, call.block["query"])),
    )
    answers, log_total = map(product, results)
    return answers[:, : queries.shape[1]], (queries, keys, values, seed, numbers, answers, log_total)


def _backward(
    offset: int | None, rate: float, saved: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, Array, None, None]:
    queries, keys, values, seed, numbers, answers, log_total = saved
    call = _Call(queries, keys, offset, rate)
    q, g, n = call.padded("query", queries, gradient.astype(queries.dtype), numbers)
    k, v = call.padded("pair", keys, values)
    inner = jnp.einsum("ntd,ntd->nt", g, answers, preferred_element_type=jnp.float32)[:, None]
    given = {"row": (n, log_total, inner), "query": (q, g), "pair": (k, v)}
    of_query = (jax.ShapeDtypeStruct(q.shape, q.dtype),)
    of_pair = (jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype))
    query_sum, pair_sum = ((call.block[kind], call.width) for kind in ("query", "pair"))
    (dq,) = call(_query_kernel, seed, given, out={"query": of_query}, scratch=(query_sum,))
    dk, dv = call(_pair_kernel, seed, given, out={"pair": of_pair}, scratch=(pair_sum, pair_sum), pairs_outside=True)
    time, pairs = queries.shape[1], keys.shape[1]
    return dq[:, :time], dk[:, :pairs], dv[:, :pairs], None, None


pallas_retrieval.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class _Rule:
    """Which pairs a query may see, and the share of weights that is dropped. ``pairs``: those that are not padding."""

    offset: int | None
    rate: float
    pairs: int

    def sees(self, query: Array, pair: Array) -> Array:
        return pair < self.pairs if self.offset is None else pair <= query - self.offset

    def any_seen(self, i: Array, j: Array, q: Any, k: Any) -> Array:
        """Whether a query of block i may see a pair of block j; q, k: the blocks."""
        last = i * q.shape[0] + q.shape[0] - 1
        return self.sees(last, j * k.shape[0])


class _Call:
    """One geometry of blocks for all kernels: "query" (N, T, D), "pair" (N, M, D) and, of queries, "row" (N, 1, T)."""

    def __init__(self, queries: Array, keys: Array, offset: int | None, rate: float):
        self.count, _, self.width = queries.shape
        self.rule = _Rule(offset, rate, keys.shape[1])
        self.size = {kind: -(-a.shape[1] // LANES) * LANES for kind, a in (("query", queries), ("pair", keys))}
        self.block = {kind: next(b for b in BLOCKS if size % b == 0) for kind, size in self.size.items()}

    def padded(self, kind: str, *arrays: Array) -> list[Array]:
        """Arrays of queries or pairs in whole blocks, (N, T) as (N, 1, T). The rest does not see what is added."""
        pads = ((0, self.size[kind] - arrays[0].shape[1]), (0, 0))
        return [jnp.pad(a, ((0, 0), *pads)) if a.ndim == 3 else jnp.pad(a, ((0, 0), pads[0]))[:, None] for a in arrays]

    def __call__(
        self,
        kernel: Callable[..., None],
        seed: Array,
        arrays: Mapping[str, tuple[Array, ...]],
        out: Mapping[str, tuple[Any, ...]],
        scratch: tuple[tuple[int, int], ...],
        pairs_outside: bool = False,
    ) -> list[Array]:
        """Runs ``kernel`` on blocks: pairs inside queries, or queries inside pairs (``pairs_outside``)."""
        order = ("pair", "query") if pairs_outside else ("query", "pair")

        def spec(kind: str) -> pl.BlockSpec:
            place = 1 + order.index("pair" if kind == "pair" else "query")
            if kind == "row":
                return pl.BlockSpec((None, 1, self.block["query"]), lambda *ids: (ids[0], 0, ids[place]))
            return pl.BlockSpec((None, self.block[kind], self.width), lambda *ids: (ids[0], ids[place], 0))

        def flat(groups: Mapping[str, tuple[Any, ...]]) -> tuple[list[Any], list[pl.BlockSpec]]:
            pairs = [(value, spec(kind)) for kind, values in groups.items() for value in values]
            return [value for value, _ in pairs], [place for _, place in pairs]

        given, in_specs = flat(arrays)
        shapes, out_specs = flat(out)
        return pl.pallas_call(
            functools.partial(kernel, self.rule),
            grid=(self.count, *(self.size[kind] // self.block[kind] for kind in order)),
            in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *in_specs],
            out_specs=out_specs,
            out_shape=shapes,
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        )(jnp.asarray(seed, jnp.uint32).reshape(1), *given)


def _forward_kernel(
    rule: _Rule, seed: Any, number: Any, q: Any, k: Any, v: Any, answer: Any, log_total: Any, *sums: Any
) -> None:
    i, j = pl.program_id(1), pl.program_id(2)
    top, total, weighted = sums

    @pl.when(j == 0)
    def _() -> None:
        top[...] = jnp.full_like(top, NEVER)
        total[...] = jnp.zeros_like(total)
        weighted[...] = jnp.zeros_like(weighted)

    @pl.when(rule.any_seen(i, j, q, k))
    def _() -> None:
        seen, keep = _masks(rule, seed, number, i, j, q, k)
        scores = jnp.where(seen, _dot(k[...], q[...], (1, 1)), NEVER)
        largest = jnp.maximum(top[...], jnp.max(scores, axis=0, keepdims=True))
        weights = jnp.where(seen, jnp.exp(scores - largest), 0.0)
        share = jnp.exp(top[...] - largest)
        top[...] = largest
        total[...] = share * total[...] + jnp.sum(weights, axis=0, keepdims=True)
        dropped = _drop(weights, keep, rule.rate).astype(v.dtype)
        weighted[...] = share * weighted[...] + _dot(v[...], dropped, (0, 0))

    @pl.when(j == pl.num_programs(2) - 1)
    def _() -> None:
        alive = total[...] > 0
        divisor = jnp.where(alive, total[...], 1.0)
        answer[...] = (weighted[...] / divisor).T.astype(answer.dtype)
        # Weights made anew of a query without pairs are 0.
        log_total[...] = jnp.where(alive, top[...] + jnp.log(divisor), -NEVER)


def _query_kernel(
    rule: _Rule, seed: Any, number: Any, log_total: Any, inner: Any, q: Any, g: Any, k: Any, v: Any,
    dq: Any, sum_dq: Any,
) -> None:  # fmt: skip
    i, j = pl.program_id(1), pl.program_id(2)

    @pl.when(j == 0)
    def _() -> None:
        sum_dq[...] = jnp.zeros_like(sum_dq)

    @pl.when(rule.any_seen(i, j, q, k))
    def _() -> None:
        _, dscores = _weights(rule, seed, number, log_total, inner, i, j, q, g, k, v)
        sum_dq[...] += _dot(dscores, k[...], (0, 0))

    @pl.when(j == pl.num_programs(2) - 1)
    def _() -> None:
        dq[...] = sum_dq[...].astype(dq.dtype)


def _pair_kernel(
    rule: _Rule, seed: Any, number: Any, log_total: Any, inner: Any, q: Any, g: Any, k: Any, v: Any,
    dk: Any, dv: Any, sum_dk: Any, sum_dv: Any,
) -> None:  # fmt: skip
    j, i = pl.program_id(1), pl.program_id(2)

    @pl.when(i == 0)
    def _() -> None:
        sum_dk[...] = jnp.zeros_like(sum_dk)
        sum_dv[...] = jnp.zeros_like(sum_dv)

    @pl.when(rule.any_seen(i, j, q, k))
    def _() -> None:
        dropped, dscores = _weights(rule, seed, number, log_total, inner, i, j, q, g, k, v)
        sum_dk[...] += _dot(dscores, q[...], (1, 0))
        sum_dv[...] += _dot(dropped, g[...], (1, 0))

    @pl.when(i == pl.num_programs(2) - 1)
    def _() -> None:
        dk[...] = sum_dk[...].astype(dk.dtype)
        dv[...] = sum_dv[...].astype(dv.dtype)


def _weights(
    rule: _Rule, seed: Any, number: Any, log_total: Any, inner: Any, i: Array, j: Array, q: Any, g: Any, k: Any, v: Any
) -> tuple[Array, Array]:
    """Weights of a block after dropout, and the gradients of its scores, both in the type of the queries."""
    seen, keep = _masks(rule, seed, number, i, j, q, k)
    weights = jnp.where(seen, jnp.exp(_dot(k[...], q[...], (1, 1)) - log_total[...]), 0.0)
    dweights = _drop(_dot(v[...], g[...], (1, 1)), keep, rule.rate)
    dscores = weights * (dweights - inner[...])
    return _drop(weights, keep, rule.rate).astype(q.dtype), dscores.astype(q.dtype)


def _masks(rule: _Rule, seed: Any, number: Any, i: Array, j: Array, q: Any, k: Any) -> tuple[Array, Array | None]:
    """Which pairs (rows) queries (columns) may see, and which weights are kept, if any are dropped."""
    shape = k.shape[0], q.shape[0]
    pair = j * shape[0] + lax.broadcasted_iota(jnp.int32, shape, 0)
    query = i * shape[1] + lax.broadcasted_iota(jnp.int32, shape, 1)
    keep = keep_mask(seed[0], number[...], pair, rule.rate) if rule.rate else None
    return rule.sees(query, pair), keep


def _drop(weights: Array, keep: Array | None, rate: float) -> Array:
    return weights if keep is None else jnp.where(keep, weights / (1.0 - rate), 0.0)


def _dot(one: Array, other: Array, axes: tuple[int, int]) -> Array:
    """The product over these axes, summed in float32."""
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(one, other, dimensions, preferred_element_type=jnp.float32)
