"""Retrieval as a Pallas kernel for TPU: weights stay on the chip, and may be dropped there.

Library kernels of attention lack a first row that is 0, dropout by the hash that every other form uses, traced delays
and windows, and pairs that all sequences share. The algorithm is that of `blockwise` (Dao et al. 2022, FlashAttention).
Blocks of weights are kept with pairs in rows and queries in columns, so that what belongs to a query (the largest
score, the summed weights, its number) is a row of a vector register.

Shapes here: G sequences or heads that meet no other, each with queries T and pairs M of its own.
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

from mosaics_jax.ops.dropout_mask import keep_mask
from mosaics_jax.ops.products import product
from mosaics_jax.ops.reach import Reach
from mosaics_jax.ops.weights import UNSEEN, drop
from mosaics_jax.shapes import Array

BLOCKS = (512, 256, 128)  # queries, and pairs, of a block: the largest that divides the padded number
LANES = BLOCKS[-1]
NO_WINDOW = 2**30  # more pairs than any sequence has

Refs = Mapping[str, Any]  # the blocks that a kernel reads, by name


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def pallas_retrieval(
    rate: float,
    queries_GTD: Array,
    keys_GMD: Array,
    values_GMD: Array,
    reach: Reach | None,
    seed: Array,
    rows_GT: Array,
) -> Array:
    """Answers (G, T, D) of queries from the M pairs that ``reach`` lets them see; all of them where it is None.

    Weights are dropped at ``rate`` under ``seed``. rows_GT: the queries' numbers in the dropout hash (`row_numbers`).
    """
    return _forward(rate, queries_GTD, keys_GMD, values_GMD, reach, seed, rows_GT)[0]


def _forward(
    rate: float,
    queries_GTD: Array,
    keys_GMD: Array,
    values_GMD: Array,
    reach: Reach | None,
    seed: Array,
    rows_GT: Array,
) -> tuple[Array, tuple[Any, ...]]:
    call = _Call(queries_GTD, keys_GMD, reach, rate, seed)
    given = {"q": ("query", queries_GTD), "k": ("pair", keys_GMD), "v": ("pair", values_GMD), "rows": ("row", rows_GT)}
    of_query = call.block["query"]
    results = call(
        _forward_kernel,
        given,
        out=(("query", values_GMD.dtype), ("row", jnp.float32)),
        scratch=((1, of_query), (1, of_query), (call.width, of_query)),
    )
    answers_GTD, log_total_GT = map(product, results)
    return answers_GTD, (queries_GTD, keys_GMD, values_GMD, reach, seed, rows_GT, answers_GTD, log_total_GT)


def _backward(rate: float, saved: tuple[Any, ...], gradients_GTD: Array) -> tuple[Array | None, ...]:
    queries_GTD, keys_GMD, values_GMD, reach, seed, rows_GT, answers_GTD, log_total_GT = saved
    call = _Call(queries_GTD, keys_GMD, reach, rate, seed)
    gradients_GTD = gradients_GTD.astype(queries_GTD.dtype)
    inner_GT = jnp.einsum("gtd,gtd->gt", gradients_GTD, answers_GTD, preferred_element_type=jnp.float32)
    given = {
        "q": ("query", queries_GTD),
        "g": ("query", gradients_GTD),
        "k": ("pair", keys_GMD),
        "v": ("pair", values_GMD),
        "rows": ("row", rows_GT),
        "log_total": ("row", log_total_GT),
        "inner": ("row", inner_GT),
    }
    of_query, of_pair = ((call.block[kind], call.width) for kind in ("query", "pair"))
    (dq,) = call(_query_kernel, given, out=(("query", queries_GTD.dtype),), scratch=(of_query,))
    out = (("pair", keys_GMD.dtype), ("pair", values_GMD.dtype))
    dk, dv = call(_pair_kernel, given, out=out, scratch=(of_pair, of_pair), pairs_outside=True)
    return dq, dk, dv, None, None, None


pallas_retrieval.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class _Rule:
    """What a kernel is compiled for.

    sees_all: whether every query sees all pairs; if not, the scalars ``reach`` of a call are delay and window.
    pairs: the number of pairs that are no padding. rate: the share of weights that is dropped.
    """

    sees_all: bool
    has_documents: bool
    pairs: int
    rate: float

    def any_seen(self, refs: Refs, i: Array, j: Array) -> Array:
        """Whether a query of block i may see a pair of block j, documents aside."""
        queries, pairs = refs["q"].shape[0], refs["k"].shape[0]
        if self.sees_all:
            return j * pairs < self.pairs
        delay, window = refs["reach"][0], refs["reach"][1]
        newest_for_last_query = i * queries + queries - 1 - delay
        oldest_for_first_query = i * queries - delay - window + 1
        return (j * pairs <= newest_for_last_query) & (j * pairs + pairs - 1 >= oldest_for_first_query)

    def masks(self, refs: Refs, i: Array, j: Array) -> tuple[Array, Array | None]:
        """Which pairs (rows) queries (columns) see, and which weights dropout keeps, if it drops any."""
        shape = refs["k"].shape[0], refs["q"].shape[0]
        pair = j * shape[0] + lax.broadcasted_iota(jnp.int32, shape, 0)
        seen = pair < self.pairs
        if not self.sees_all:
            query = i * shape[1] + lax.broadcasted_iota(jnp.int32, shape, 1)
            seen &= Reach(refs["reach"][0], refs["reach"][1]).sees(query, pair)
        if self.has_documents:
            seen &= refs["pair_documents"][...] == refs["documents"][...]
        keep = keep_mask(refs["seed"][0], refs["rows"][...], pair, self.rate) if self.rate else None
        return seen, keep


class _Call:
    """One geometry of blocks for all kernels.

    Kinds of arrays: "query" (G, T, D) and "row" (G, T), one number a query; "pair" (G, M, D) and "column" (G, M).
    """

    def __init__(self, queries_GTD: Array, keys_GMD: Array, reach: Reach | None, rate: float, seed: Array):
        self.count, self.time, self.width = queries_GTD.shape
        self.pairs = keys_GMD.shape[1]
        sizes = {"query": -(-self.time // LANES) * LANES, "pair": -(-self.pairs // LANES) * LANES}
        self.size = sizes | {"row": sizes["query"], "column": sizes["pair"]}
        blocks = {kind: next(block for block in BLOCKS if size % block == 0) for kind, size in sizes.items()}
        self.block = blocks | {"row": blocks["query"], "column": blocks["pair"]}
        has_documents = reach is not None and reach.documents_BT is not None
        self.rule = _Rule(reach is None, has_documents, self.pairs, rate)
        self.scalars = {"seed": jnp.asarray(seed, jnp.uint32).reshape(1)}
        self.documents: dict[str, tuple[str, Array]] = {}
        if reach is not None:
            window = NO_WINDOW if reach.window is None else reach.window
            self.scalars["reach"] = jnp.stack([jnp.asarray(reach.delay, jnp.int32), jnp.asarray(window, jnp.int32)])
            if reach.documents_BT is not None and reach.pair_documents is not None:
                self.documents = {
                    "documents": ("row", reach.documents_BT),
                    "pair_documents": ("column", reach.pair_documents),
                }

    def __call__(
        self,
        kernel: Callable[..., None],
        given: Mapping[str, tuple[str, Array]],
        out: tuple[tuple[str, Any], ...],
        scratch: tuple[tuple[int, int], ...],
        pairs_outside: bool = False,
    ) -> list[Array]:
        """Runs ``kernel`` on blocks: pairs inside queries, or queries inside pairs (``pairs_outside``).

        given: name -> (kind, array). out: (kind, type) of each result. Results come without padding.
        """
        order = ("pair", "query") if pairs_outside else ("query", "pair")
        arrays = {**given, **self.documents}
        names = [*self.scalars, *arrays]

        def run(*refs: Any) -> None:
            inputs, outputs = refs[: len(names)], refs[len(names) : len(names) + len(out)]
            kernel(self.rule, dict(zip(names, inputs, strict=True)), outputs, refs[len(names) + len(out) :])

        results = pl.pallas_call(
            run,
            grid=(self.count, *(self.size[kind] // self.block[kind] for kind in order)),
            in_specs=[
                *(pl.BlockSpec(memory_space=pltpu.SMEM) for _ in self.scalars),
                *(self._spec(kind, order) for kind, _ in arrays.values()),
            ],
            out_specs=[self._spec(kind, order) for kind, _ in out],
            out_shape=[jax.ShapeDtypeStruct(self._shape(kind), dtype) for kind, dtype in out],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        )(*self.scalars.values(), *(self._padded(kind, array) for kind, array in arrays.values()))
        lengths = {"query": self.time, "pair": self.pairs}
        return [
            result[:, 0, : self.time] if kind == "row" else result[:, : lengths[kind]]
            for result, (kind, _) in zip(results, out, strict=True)
        ]

    def _shape(self, kind: str) -> tuple[int, ...]:
        size = self.size[kind]
        shapes = {"query": (size, self.width), "pair": (size, self.width), "row": (1, size), "column": (size, 1)}
        return (self.count, *shapes[kind])

    def _padded(self, kind: str, array: Array) -> Array:
        """The array in whole blocks. No query sees a pair that is added."""
        padding = (0, self.size[kind] - array.shape[1])
        return jnp.pad(array, ((0, 0), padding) + ((0, 0),) * (array.ndim - 2)).reshape(self._shape(kind))

    def _spec(self, kind: str, order: tuple[str, str]) -> pl.BlockSpec:
        axis = 1 + order.index("query" if kind in ("query", "row") else "pair")
        block = self.block[kind]
        if kind == "row":
            return pl.BlockSpec((None, 1, block), lambda *ids: (ids[0], 0, ids[axis]))
        width = 1 if kind == "column" else self.width
        return pl.BlockSpec((None, block, width), lambda *ids: (ids[0], ids[axis], 0))


def _forward_kernel(rule: _Rule, refs: Refs, out: tuple[Any, ...], scratch: tuple[Any, ...]) -> None:
    i, j = pl.program_id(1), pl.program_id(2)
    (answers, log_total), (largest, total, weighted) = out, scratch

    @pl.when(j == 0)
    def _() -> None:
        largest[...] = jnp.full_like(largest, UNSEEN)
        total[...] = jnp.zeros_like(total)
        weighted[...] = jnp.zeros_like(weighted)

    @pl.when(rule.any_seen(refs, i, j))
    def _() -> None:
        seen, keep = rule.masks(refs, i, j)
        values = refs["v"][...]
        scores = jnp.where(seen, _dot(refs["k"][...], refs["q"][...], (1, 1)), UNSEEN)
        largest_now = jnp.maximum(largest[...], jnp.max(scores, axis=0, keepdims=True))
        weights = jnp.where(seen, jnp.exp(scores - largest_now), 0.0)
        share = jnp.exp(largest[...] - largest_now)
        largest[...] = largest_now
        total[...] = share * total[...] + jnp.sum(weights, axis=0, keepdims=True)
        dropped = drop(weights, keep, rule.rate).astype(values.dtype)
        weighted[...] = share * weighted[...] + _dot(values, dropped, (0, 0))

    @pl.when(j == pl.num_programs(2) - 1)
    def _() -> None:
        sees_any = total[...] > 0
        divisor = jnp.where(sees_any, total[...], 1.0)
        answers[...] = (weighted[...] / divisor).T.astype(answers.dtype)
        # So that the recomputed weights of a query without pairs are 0.
        log_total[...] = jnp.where(sees_any, largest[...] + jnp.log(divisor), -UNSEEN)


def _query_kernel(rule: _Rule, refs: Refs, out: tuple[Any, ...], scratch: tuple[Any, ...]) -> None:
    i, j = pl.program_id(1), pl.program_id(2)
    (dq,), (sum_dq,) = out, scratch

    @pl.when(j == 0)
    def _() -> None:
        sum_dq[...] = jnp.zeros_like(sum_dq)

    @pl.when(rule.any_seen(refs, i, j))
    def _() -> None:
        _, dscores = _weights(rule, refs, i, j)
        sum_dq[...] += _dot(dscores, refs["k"][...], (0, 0))

    @pl.when(j == pl.num_programs(2) - 1)
    def _() -> None:
        dq[...] = sum_dq[...].astype(dq.dtype)


def _pair_kernel(rule: _Rule, refs: Refs, out: tuple[Any, ...], scratch: tuple[Any, ...]) -> None:
    j, i = pl.program_id(1), pl.program_id(2)
    (dk, dv), (sum_dk, sum_dv) = out, scratch

    @pl.when(i == 0)
    def _() -> None:
        sum_dk[...] = jnp.zeros_like(sum_dk)
        sum_dv[...] = jnp.zeros_like(sum_dv)

    @pl.when(rule.any_seen(refs, i, j))
    def _() -> None:
        weights, dscores = _weights(rule, refs, i, j)
        sum_dk[...] += _dot(dscores, refs["q"][...], (1, 0))
        sum_dv[...] += _dot(weights, refs["g"][...], (1, 0))

    @pl.when(i == pl.num_programs(2) - 1)
    def _() -> None:
        dk[...] = sum_dk[...].astype(dk.dtype)
        dv[...] = sum_dv[...].astype(dv.dtype)


def _weights(rule: _Rule, refs: Refs, i: Array, j: Array) -> tuple[Array, Array]:
    """Weights of a block after dropout, and the gradients of its scores, both in the type of the queries.

    As `weights.recomputed_weights`, transposed, and for blocks without one pair that is seen.
    """
    queries = refs["q"][...]
    seen, keep = rule.masks(refs, i, j)
    scores = _dot(refs["k"][...], queries, (1, 1))
    weights = jnp.where(seen, jnp.exp(scores - refs["log_total"][...]), 0.0)
    dweights = drop(_dot(refs["v"][...], refs["g"][...], (1, 1)), keep, rule.rate)
    dscores = weights * (dweights - refs["inner"][...])
    return drop(weights, keep, rule.rate).astype(queries.dtype), dscores.astype(queries.dtype)


def _dot(one: Array, other: Array, axes: tuple[int, int]) -> Array:
    """The product over these axes, summed in float32."""
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(one, other, dimensions, preferred_element_type=jnp.float32)
