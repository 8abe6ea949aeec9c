"""Retrieval from memories whose keys have one norm: softmax over dot products (v1 eq. 3, 7).

`causal_retrieval` answers from a memory that fills up along the sequence, `stored_retrieval` does the same one step or
chunk at a time. Which pairs a query sees is said by a `Reach`. Scores carry no 1/sqrt(D): the scale, if any, belongs to
the query.

Shapes here: G heads of all sequences.
"""

import enum
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from mosaics_jax.errors import UserError
from mosaics_jax.ops import blockwise
from mosaics_jax.ops.blockwise import blockwise_retrieval
from mosaics_jax.ops.dropout_mask import check_seed, keep_mask, row_numbers
from mosaics_jax.ops.kernel_regression import unit_key_regression
from mosaics_jax.ops.library_retrieval import cudnn_retrieval, cudnn_serves, splash_retrieval, splash_serves
from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.ops.pallas_retrieval import pallas_retrieval
from mosaics_jax.ops.platform import platform
from mosaics_jax.ops.products import product
from mosaics_jax.ops.reach import STRICT, Reach
from mosaics_jax.ops.weights import UNSEEN, Sums, add_sums, answers_of, masked_softmax, sums_over_pairs
from mosaics_jax.shapes import Array
from mosaics_jax.sharding import map_shards, time_axes


class RetrievalForm(enum.Enum):
    """How retrieval along the sequence is computed.

    AUTO: NAIVE within one block; beyond, the fused kernel that the device has and that serves the task, else BLOCKWISE.
    """

    AUTO = "auto"
    NAIVE = "naive"  # a T x T array of weights
    BLOCKWISE = "blockwise"  # memory linear in T, forward and backward, like all that follow
    CUDNN = "cudnn"  # GPU, 16 bits, no dropout of weights
    SPLASH = "splash"  # TPU, no dropout of weights
    PALLAS = "pallas"  # TPU


class Problem(NamedTuple):
    """What every form of retrieval gets, besides the rate of dropout.

    rows_BTH: the queries' numbers in the dropout hash. position_T: the positions of queries and pairs in the sequence,
    which do not begin at 0 on a shard of time.
    """

    queries_BTHD: Array
    keys_BTHD: Array
    values_BTHD: Array
    rows_BTH: Array
    position_T: Array
    seed: Array
    reach: Reach


def causal_retrieval(
    queries_BTHD: Array,
    keys_BTHD: Array,
    values_BTHD: Array,
    reach: Reach = STRICT,
    *,
    dropout_rate: float = 0.0,
    dropout_seed: Array | None = None,
    form: RetrievalForm | str = RetrievalForm.AUTO,
) -> Array:
    """Answers each query from the pairs of the sequence that ``reach`` lets it see, by default all earlier ones.

    Returns (B, T, H, D) in the type of the values; scores and sums are kept in at least float32. A query that sees no
    pair, such as the first under a delay, answers 0 with gradient 0. dropout_seed: uint32 scalar, needed if
    dropout_rate > 0. All forms drop the same weights under the same seed, on any mesh.

    Where a mesh splits time, each device gathers the keys and values of its sequences and answers its own queries,
    blockwise. All shards then take the time of the last, whose queries may see every pair.
    """
    chex.assert_rank(queries_BTHD, 4)
    chex.assert_equal_shape([queries_BTHD, keys_BTHD, values_BTHD])
    batch, time, heads, _ = queries_BTHD.shape
    seed = check_seed(dropout_rate, dropout_seed)
    form = RetrievalForm(form)
    if form is RetrievalForm.AUTO:
        form = quickest_form(queries_BTHD, dropout_rate, reach)
    if NEEDS.get(form, platform()) != platform():
        raise UserError(f"retrieval={form.value} is a kernel for {NEEDS[form]}, and this is {platform()}: choose auto")
    if form in LIBRARY and dropout_rate > 0:
        raise UserError(f"retrieval={form.value} cannot drop weights: choose auto, or set their dropout to 0")
    rows_BTH = jnp.swapaxes(row_numbers(batch, heads, time), 1, 2)
    problem = Problem(queries_BTHD, keys_BTHD, values_BTHD, rows_BTH, jnp.arange(time), seed, reach)
    axes = time_axes(queries_BTHD)
    if not axes and form in (RetrievalForm.NAIVE, RetrievalForm.BLOCKWISE):
        return _FORMS[form](problem, dropout_rate)  # XLA shards these by itself
    leaves, structure = jax.tree.flatten(problem)

    def on_shard(*leaves: Array) -> Array:
        shard: Problem = jax.tree.unflatten(structure, leaves)
        return _on_time_shard(shard, dropout_rate, axes) if axes else _FORMS[form](shard, dropout_rate)

    time_name = "time" if axes else None
    activation = ("batch", time_name, "activation_heads", None)
    of_reach = (("batch", time_name)[: jnp.ndim(leaf)] for leaf in jax.tree.leaves(reach))
    names = (*[activation] * 3, activation[:3], (time_name,), (), *of_reach)
    return map_shards(on_shard, *leaves, names=names)


def quickest_form(queries_BTHD: Array | jax.ShapeDtypeStruct, dropout_rate: float, reach: Reach) -> RetrievalForm:
    """What AUTO stands for."""
    if queries_BTHD.shape[1] <= blockwise.BLOCK:
        return RetrievalForm.NAIVE
    if platform() == "tpu":
        return RetrievalForm.SPLASH if dropout_rate == 0 and splash_serves(reach) else RetrievalForm.PALLAS
    if platform() == "gpu" and dropout_rate == 0 and cudnn_serves(queries_BTHD, reach):
        return RetrievalForm.CUDNN
    return RetrievalForm.BLOCKWISE


def _naive(problem: Problem, rate: float) -> Array:
    q_BHTD, k_BHTD, v_BHTD, rows_BHT = (jnp.swapaxes(a, 1, 2) for a in problem[:4])
    mask_B1TT = problem.reach.mask(problem.position_T, problem.position_T)[:, None]
    keep = keep_mask(problem.seed, rows_BHT[..., None], problem.position_T, rate) if rate > 0 else None
    answers_BHTD = unit_key_regression(q_BHTD, k_BHTD, v_BHTD, mask=mask_B1TT, keep=keep, rate=rate)
    return jnp.swapaxes(product(answers_BHTD), 1, 2)


def _blockwise(problem: Problem, rate: float) -> Array:
    if not isinstance(problem.reach.delay, int):
        # All pairs would have to be computed, and masked. Rolled queries see the pairs up to their own row.
        reach, (queries_BTHD, rows_BTH), back = problem.reach.aligned(problem.queries_BTHD, problem.rows_BTH)
        return back(_blockwise(problem._replace(queries_BTHD=queries_BTHD, rows_BTH=rows_BTH, reach=reach), rate))
    return blockwise_retrieval(rate, *problem[:3], problem.reach, problem.seed, problem.rows_BTH)


def _on_time_shard(problem: Problem, rate: float, axes: tuple[str, ...]) -> Array:
    """The answers to a device's own queries, from all pairs of their sequences, which the device gathers."""

    def gather(x_BTHD: Array) -> Array:
        return lax.all_gather(x_BTHD, axes, axis=1, tiled=True)

    reach = problem.reach
    # The first query of the shard is numbered 0 below, and stands at position_T[0]: the delay shrinks by as much.
    documents_BN = None if reach.documents_BT is None else gather(reach.documents_BT)
    reach = Reach(reach.delay - problem.position_T[0], reach.window, reach.documents_BT, documents_BN)
    keys_BNHD, values_BNHD = gather(problem.keys_BTHD), gather(problem.values_BTHD)
    return blockwise_retrieval(
        rate, problem.queries_BTHD, keys_BNHD, values_BNHD, reach, problem.seed, problem.rows_BTH
    )


def _pallas(problem: Problem, rate: float) -> Array:
    batch, _, heads, _ = problem.queries_BTHD.shape

    def fold(x_BTHD: Array) -> Array:
        x_BHTD = jnp.swapaxes(x_BTHD, 1, 2)
        return x_BHTD.reshape(batch * heads, *x_BHTD.shape[2:])

    q_GTD, k_GTD, v_GTD, rows_GT = map(fold, problem[:4])
    # The documents of a sequence are those of each of its heads.
    reach = jax.tree.map(lambda leaf: jnp.repeat(leaf, heads, axis=0) if leaf.ndim else leaf, problem.reach)
    answers_GTD = pallas_retrieval(rate, q_GTD, k_GTD, v_GTD, reach, problem.seed, rows_GT)
    return jnp.swapaxes(answers_GTD.reshape(batch, heads, *answers_GTD.shape[1:]), 1, 2)


def _cudnn(problem: Problem, rate: float) -> Array:
    del rate
    return cudnn_retrieval(*problem[:3], problem.reach)


def _splash(problem: Problem, rate: float) -> Array:
    del rate
    return splash_retrieval(*problem[:3], problem.reach)


NEEDS = {RetrievalForm.CUDNN: "gpu", RetrievalForm.SPLASH: "tpu", RetrievalForm.PALLAS: "tpu"}
LIBRARY = (RetrievalForm.CUDNN, RetrievalForm.SPLASH)
_FORMS = {
    RetrievalForm.NAIVE: _naive,
    RetrievalForm.BLOCKWISE: _blockwise,
    RetrievalForm.PALLAS: _pallas,
    RetrievalForm.CUDNN: _cudnn,
    RetrievalForm.SPLASH: _splash,
}


def stored_retrieval(
    queries_BTHD: Array,
    keys_BHND: Array,
    values_BHND: Array,
    length_B: Array,
    reach: Reach = STRICT,
    first_slot: int = 0,
) -> Array:
    """Answers the queries of a chunk, which stand at positions length, length + 1, ..., from stored pairs.

    Slot ``first_slot`` + i holds pair i. length_B: int32, positions that each row fed before this chunk. Slots past the
    last written one are never read. If ``reach`` has documents, ``pair_documents_BN`` are those of the slots. Returns
    (B, T, H, D) in the type of the values; a row without a pair is 0. The time of a chunk grows with the slots in use,
    that of a single position with the capacity, which it reads without a loop.
    """
    if queries_BTHD.shape[1] == 1:
        return _stored_one(queries_BTHD, keys_BHND, values_BHND, length_B, reach, first_slot)
    return _stored_blockwise(queries_BTHD, keys_BHND, values_BHND, length_B, reach, first_slot)


def _slots_seen(
    reach: Reach, position_BT: Array, slot_N: Array, first_slot: int, pair_documents_BN: Array | None
) -> Array:
    """(B, T, N) of bool: which slots the queries at these positions see."""
    seen_BTN = reach.sees(position_BT[..., None], slot_N - first_slot) & (slot_N >= first_slot)
    if reach.documents_BT is not None and pair_documents_BN is not None:
        seen_BTN &= reach.documents_BT[..., None] == pair_documents_BN[:, None]
    return seen_BTN


def _stored_one(
    queries_BTHD: Array, keys_BHND: Array, values_BHND: Array, length_B: Array, reach: Reach, first_slot: int
) -> Array:
    # Products of a matrix and a vector, without the time axis: with it XLA transposes the keys on CPU.
    dtype = accumulation_dtype(queries_BTHD)
    scores_BHN = jnp.einsum("bhd,bhnd->bhn", queries_BTHD[:, 0], keys_BHND, preferred_element_type=dtype)
    slot_N = jnp.arange(keys_BHND.shape[2])
    mask_B1N = _slots_seen(reach, length_B[:, None], slot_N, first_slot, reach.pair_documents)
    weights_BHN = masked_softmax(scores_BHN, mask_B1N).astype(values_BHND.dtype)
    return jnp.einsum("bhn,bhnd->bhd", weights_BHN, values_BHND)[:, None]


def _stored_blockwise(
    queries_BTHD: Array, keys_BHND: Array, values_BHND: Array, length_B: Array, reach: Reach, first_slot: int
) -> Array:
    batch, time, heads, width = queries_BTHD.shape
    capacity = keys_BHND.shape[2]
    block = min(blockwise.BLOCK, capacity)
    dtype = accumulation_dtype(queries_BTHD)
    position_BT = length_B[:, None] + jnp.arange(time)
    newest_BT = position_BT - reach.delay + first_slot  # slots

    def add_block(j: Array, sums: Sums) -> Sums:
        # The last block is moved back to end with the store; what it then has in common with its neighbour is masked.
        start = jnp.minimum(j * block, capacity - block)
        k_BHND, v_BHND = (lax.dynamic_slice_in_dim(a, start, block, axis=2) for a in (keys_BHND, values_BHND))
        documents = reach.pair_documents
        if documents is not None:
            documents = lax.dynamic_slice_in_dim(documents, start, block, axis=1)
        slot_N = start + jnp.arange(block)
        mask_BTN = _slots_seen(reach, position_BT, slot_N, first_slot, documents) & (slot_N >= j * block)
        scores_BHTN = jnp.einsum("bthd,bhnd->bhtn", queries_BTHD, k_BHND, preferred_element_type=dtype)
        return add_sums(sums, sums_over_pairs(jnp.where(mask_BTN[:, None], scores_BHTN, UNSEEN), v_BHND))

    end = jnp.minimum((jnp.max(newest_BT) + block) // block, -(-capacity // block))
    oldest = jnp.zeros((), jnp.int32) if reach.window is None else jnp.min(newest_BT) - reach.window + 1
    rows = (batch, heads, time)
    nothing = Sums(jnp.full(rows, UNSEEN, dtype), jnp.zeros(rows, dtype), jnp.zeros((*rows, width), dtype))
    answers_BHTD, _ = answers_of(lax.fori_loop(jnp.maximum(oldest, 0) // block, end, add_block, nothing))
    return jnp.swapaxes(answers_BHTD, 1, 2).astype(values_BHND.dtype)
