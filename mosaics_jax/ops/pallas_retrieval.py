"""Retrieval as a Pallas kernel for TPU: weights, and their dropout, never leave the chip.

Unlike the attention kernels of libraries, this one supports queries without pairs, dropout by the hash of all other
forms, traced delays and windows, and pairs that all sequences share. The algorithm is that of `blockwise` (Dao et al.
2022, FlashAttention). Blocks of weights have pairs in rows and queries in columns, so that quantities with one
number per query (the largest score, the sum of weights, the number in the dropout hash) are rows of vector registers.

Shapes here: G independent problems of T queries and N pairs each.
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

BLOCKS = (512, 256, 128)  # sizes of blocks of queries and pairs: the largest that divides their padded number
LANES = BLOCKS[-1]
NO_WINDOW = 2**30  # larger than any sequence

Refs = Mapping[str, Any]  # the input blocks of a kernel by name, as Pallas references


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def pallas_retrieval(
    rate: float,
    queries_GTD: Array,
    keys_GND: Array,
    values_GND: Array,
    reach: Reach | None,
    seed: Array,
    rows_GT: Array,
) -> Array:
    """Answers (G, T, D) of queries from the N pairs that ``reach`` lets them see; from all pairs if it is None.

    Dropout acts on weights at ``rate`` under ``seed``, a uint32 scalar. rows_GT: the numbers of the queries in the
    dropout hash (`row_numbers`).
    """
    return _forward(rate, queries_GTD, keys_GND, values_GND, reach, seed, rows_GT)[0]


def _forward(
    rate: float,
    queries_GTD: Array,
    keys_GND: Array,
    values_GND: Array,
    reach: Reach | None,
    seed: Array,
    rows_GT: Array,
) -> tuple[Array, tuple[Any, ...]]:
    grid = _Grid(queries_GTD, keys_GND, reach, rate, seed)
    inputs = {"q": ("query", queries_GTD), "k": ("pair", keys_GND), "v": ("pair", values_GND), "rows": ("row", rows_GT)}
    size = grid.block["query"]
    results = grid(
        _forward_kernel,
        inputs,
        out=(("query", values_GND.dtype), ("row", jnp.float32)),
        scratch=((1, size), (1, size), (grid.width, size)),
    )
    answers_GTD, log_total_GT = map(product, results)
    return answers_GTD, (queries_GTD, keys_GND, values_GND, reach, seed, rows_GT, answers_GTD, log_total_GT)


def _backward(rate: float, saved: tuple[Any, ...], gradients_GTD: Array) -> tuple[Array | None, ...]:
    queries_GTD, keys_GND, values_GND, reach, seed, rows_GT, answers_GTD, log_total_GT = saved
    grid = _Grid(queries_GTD, keys_GND, reach, rate, seed)
    gradients_GTD = gradients_GTD.astype(queries_GTD.dtype)
    inner_GT = jnp.einsum("gtd,gtd->gt", gradients_GTD, answers_GTD, preferred_element_type=jnp.float32)
    inputs = {
        "q": ("query", queries_GTD),
        "g": ("query", gradients_GTD),
        "k": ("pair", keys_GND),
        "v": ("pair", values_GND),
        "rows": ("row", rows_GT),
        "log_total": ("row", log_total_GT),
        "inner": ("row", inner_GT),
    }
    query_block, pair_block = ((grid.block[kind], grid.width) for kind in ("query", "pair"))
    (dq_GTD,) = grid(_query_kernel, inputs, out=(("query", queries_GTD.dtype),), scratch=(query_block,))
    out = (("pair", keys_GND.dtype), ("pair", values_GND.dtype))
    dk_GND, dv_GND = grid(_pair_kernel, inputs, out=out, scratch=(pair_block, pair_block), pairs_outer=True)
    return dq_GTD, dk_GND, dv_GND, None, None, None


pallas_retrieval.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class _Masks:
    """The masks of blocks of weights: which pairs queries see, and which weights dropout keeps.

    The fields are known at compile time. sees_all: whether every query sees all pairs; if not, delay and window are in
    ``refs["reach"]``. pairs: the number of pairs without padding. blocks: how many blocks of queries and of pairs
    there are. rate: the share of weights that is dropped.
    """

    sees_all: bool
    has_documents: bool
    pairs: int
    blocks: tuple[int, int]
    rate: float

    def any_seen(self, refs: Refs, i: Array, j: Array) -> Array:
        """Whether a query of block i may see a pair of block j, without regard to documents."""
        queries, pairs = refs["q"].shape[0], refs["k"].shape[0]
        if self.sees_all:
            return j * pairs < self.pairs
        delay, window = refs["reach"][0], refs["reach"][1]
        newest_for_last_query = i * queries + queries - 1 - delay
        oldest_for_first_query = i * queries - delay - window + 1
        seen = (j * pairs <= newest_for_last_query) & (j * pairs + pairs - 1 >= oldest_for_first_query)
        # A windowed loop may run past the last block.
        return seen & (i < self.blocks[0]) & (j < self.blocks[1])

    def of_block(self, refs: Refs, i: Array, j: Array) -> tuple[Array, Array | None]:
        """For block i of queries and j of pairs: which pairs (rows) queries (columns) see, and which weights to keep.

        The second mask is None without dropout.
        """
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


@dataclasses.dataclass(frozen=True)
class _InnerLoop:
    """The blocks that an outer block is computed with: ``count`` of them, from the first one that its window touches.

    The first entry that outer block n needs is n ``stride`` + ``shift``; ``size`` is the size of an inner block.
    """

    count: int
    stride: int
    shift: int
    size: int

    def block(self, outer: Any, inner: Any) -> Any:
        """The number of the block at step ``inner``."""
        if not self.stride:
            return inner
        return lax.div(jnp.maximum(outer * self.stride + self.shift, 0), self.size) + inner


class _Grid:
    """Runs kernels on blocks of queries and pairs; the forward and backward kernels have the same blocks.

    An array is of one of four kinds: "query" (G, T, D), "row" (G, T), "pair" (G, N, D) or "column" (G, N).
    """

    def __init__(self, queries_GTD: Array, keys_GND: Array, reach: Reach | None, rate: float, seed: Array):
        self.count, self.time, self.width = queries_GTD.shape
        self.pairs = keys_GND.shape[1]
        sizes = {"query": -(-self.time // LANES) * LANES, "pair": -(-self.pairs // LANES) * LANES}
        self.size = sizes | {"row": sizes["query"], "column": sizes["pair"]}
        blocks = {kind: next(block for block in BLOCKS if size % block == 0) for kind, size in sizes.items()}
        self.block = blocks | {"row": blocks["query"], "column": blocks["pair"]}
        has_documents = reach is not None and reach.documents_BT is not None
        self.blocks = {kind: size // self.block[kind] for kind, size in self.size.items()}
        self.masks = _Masks(reach is None, has_documents, self.pairs, (self.blocks["query"], self.blocks["pair"]), rate)
        self.loops = {kind: _InnerLoop(self.blocks[kind], 0, 0, 1) for kind in sizes}
        if reach is not None and isinstance(reach.delay, int) and isinstance(reach.window, int):
            # A block of n entries and its window touch n + window - 1 entries of the other kind.
            sizes, shifts = self.block, {"pair": 1 - reach.delay - reach.window, "query": reach.delay}
            for inner, outer in (("pair", "query"), ("query", "pair")):
                touched = (sizes[outer] + reach.window + sizes[inner] - 3) // sizes[inner] + 1
                count = min(touched, self.blocks[inner])
                self.loops[inner] = _InnerLoop(count, sizes[outer], shifts[inner], sizes[inner])
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
        inputs: Mapping[str, tuple[str, Array]],
        out: tuple[tuple[str, Any], ...],
        scratch: tuple[tuple[int, int], ...],
        pairs_outer: bool = False,
    ) -> list[Array]:
        """Runs ``kernel(masks, loop, inputs, outputs, scratch)`` for all blocks; its outputs without padding.

        inputs: name -> (kind, array). out: (kind, type) of each output. scratch: shapes of float32 accumulators.
        pairs_outer: the outer loop is over blocks of pairs, the inner one over blocks of queries; default: reversed.
        """
        order = ("pair", "query") if pairs_outer else ("query", "pair")
        arrays = {**inputs, **self.documents}
        names = [*self.scalars, *arrays]

        def run(*refs: Any) -> None:
            input_refs, outputs = refs[: len(names)], refs[len(names) : len(names) + len(out)]
            inputs = dict(zip(names, input_refs, strict=True))
            kernel(self.masks, self.loops[order[1]], inputs, outputs, refs[len(names) + len(out) :])

        results = pl.pallas_call(
            run,
            grid=(self.count, self.blocks[order[0]], self.loops[order[1]].count),
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
        """The array, padded to whole blocks. No query sees the pairs of the padding."""
        padding = (0, self.size[kind] - array.shape[1])
        return jnp.pad(array, ((0, 0), padding) + ((0, 0),) * (array.ndim - 2)).reshape(self._shape(kind))

    def _spec(self, kind: str, order: tuple[str, str]) -> pl.BlockSpec:
        is_outer = order[0] == ("query" if kind in ("query", "row") else "pair")
        size, loop, last = self.block[kind], self.loops[order[1]], self.blocks[order[1]] - 1

        def block(outer: Any, inner: Any) -> Any:
            return outer if is_outer else jnp.minimum(loop.block(outer, inner), last)

        if kind == "row":
            return pl.BlockSpec((None, 1, size), lambda *ids: (ids[0], 0, block(*ids[1:])))
        width = 1 if kind == "column" else self.width
        return pl.BlockSpec((None, size, width), lambda *ids: (ids[0], block(*ids[1:]), 0))


def _forward_kernel(
    masks: _Masks, loop: _InnerLoop, refs: Refs, out: tuple[Any, ...], scratch: tuple[Any, ...]
) -> None:
    i, step = pl.program_id(1), pl.program_id(2)
    j = loop.block(i, step)
    (answers, log_total), (largest, total, weighted) = out, scratch

    @pl.when(step == 0)
    def _() -> None:
        largest[...] = jnp.full_like(largest, UNSEEN)
        total[...] = jnp.zeros_like(total)
        weighted[...] = jnp.zeros_like(weighted)

    @pl.when(masks.any_seen(refs, i, j))
    def _() -> None:
        seen, keep = masks.of_block(refs, i, j)
        values = refs["v"][...]
        scores = jnp.where(seen, _dot(refs["k"][...], refs["q"][...], (1, 1)), UNSEEN)
        largest_now = jnp.maximum(largest[...], jnp.max(scores, axis=0, keepdims=True))
        weights = jnp.where(seen, jnp.exp(scores - largest_now), 0.0)
        share = jnp.exp(largest[...] - largest_now)
        largest[...] = largest_now
        total[...] = share * total[...] + jnp.sum(weights, axis=0, keepdims=True)
        dropped = drop(weights, keep, masks.rate).astype(values.dtype)
        weighted[...] = share * weighted[...] + _dot(values, dropped, (0, 0))

    @pl.when(step == pl.num_programs(2) - 1)
    def _() -> None:
        sees_any = total[...] > 0
        divisor = jnp.where(sees_any, total[...], 1.0)
        answers[...] = (weighted[...] / divisor).T.astype(answers.dtype)
        # A query without pairs gets -UNSEEN, so that its recomputed weights are 0.
        log_total[...] = jnp.where(sees_any, largest[...] + jnp.log(divisor), -UNSEEN)


def _query_kernel(masks: _Masks, loop: _InnerLoop, refs: Refs, out: tuple[Any, ...], scratch: tuple[Any, ...]) -> None:
    i, step = pl.program_id(1), pl.program_id(2)
    j = loop.block(i, step)
    (dq,), (sum_dq,) = out, scratch

    @pl.when(step == 0)
    def _() -> None:
        sum_dq[...] = jnp.zeros_like(sum_dq)

    @pl.when(masks.any_seen(refs, i, j))
    def _() -> None:
        _, dscores = _recomputed_weights(masks, refs, i, j)
        sum_dq[...] += _dot(dscores, refs["k"][...], (0, 0))

    @pl.when(step == pl.num_programs(2) - 1)
    def _() -> None:
        dq[...] = sum_dq[...].astype(dq.dtype)


def _pair_kernel(masks: _Masks, loop: _InnerLoop, refs: Refs, out: tuple[Any, ...], scratch: tuple[Any, ...]) -> None:
    j, step = pl.program_id(1), pl.program_id(2)
    i = loop.block(j, step)
    (dk, dv), (sum_dk, sum_dv) = out, scratch

    @pl.when(step == 0)
    def _() -> None:
        sum_dk[...] = jnp.zeros_like(sum_dk)
        sum_dv[...] = jnp.zeros_like(sum_dv)

    @pl.when(masks.any_seen(refs, i, j))
    def _() -> None:
        weights, dscores = _recomputed_weights(masks, refs, i, j)
        sum_dk[...] += _dot(dscores, refs["q"][...], (1, 0))
        sum_dv[...] += _dot(weights, refs["g"][...], (1, 0))

    @pl.when(step == pl.num_programs(2) - 1)
    def _() -> None:
        dk[...] = sum_dk[...].astype(dk.dtype)
        dv[...] = sum_dv[...].astype(dv.dtype)


def _recomputed_weights(masks: _Masks, refs: Refs, i: Array, j: Array) -> tuple[Array, Array]:
    """The weights of a block after dropout, and the gradients of its scores, both in the type of the queries.

    The same as `weights.recomputed_weights`. It stands apart because a kernel has pairs in rows, and queries that see
    none of the pairs of a block.
    """
    queries = refs["q"][...]
    seen, keep = masks.of_block(refs, i, j)
    scores = _dot(refs["k"][...], queries, (1, 1))
    weights = jnp.where(seen, jnp.exp(scores - refs["log_total"][...]), 0.0)
    dweights = drop(_dot(refs["v"][...], refs["g"][...], (1, 1)), keep, masks.rate)
    dscores = weights * (dweights - refs["inner"][...])
    return drop(weights, keep, masks.rate).astype(queries.dtype), dscores.astype(queries.dtype)


def _dot(left: Array, right: Array, axes: tuple[int, int]) -> Array:
    """The product of two matrices, summed in float32 over ``axes[0]`` of the left and ``axes[1]`` of the right one."""
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)
