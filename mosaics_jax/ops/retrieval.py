"""Retrieval from memories whose keys have one norm: softmax over dot products (v1 eq. 3, 7).

`causal_retrieval` answers all queries of a sequence, `stored_retrieval` those of the next position or chunk. A `Reach`
says which pairs a query sees. Scores are plain dot products: a factor such as 1/sqrt(D) belongs into the query.

Shapes here: G heads of all sequences.
"""

import enum
from collections.abc import Callable
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
    """How `causal_retrieval` is computed.

    AUTO selects NAIVE for sequences of at most one block. For longer ones, it selects a fused kernel if the device has
    one that supports the task, else BLOCKWISE.
    """

    AUTO = "auto"
    NAIVE = "naive"  # computes the T x T array of weights; all other forms need memory linear in T
    BLOCKWISE = "blockwise"  # plain JAX
    CUDNN = "cudnn"  # a library's kernel for GPU: 16-bit types, no dropout
    SPLASH = "splash"  # a library's kernel for TPU: no dropout
    PALLAS = "pallas"  # a kernel of this package for TPU


class Problem(NamedTuple):
    """The arguments of every form of retrieval, except for the dropout rate.

    rows_BTH: the numbers of the queries in the dropout hash (`row_numbers`). position_T: the positions of queries and
    pairs in the sequence, which on a shard of time do not start at 0. seed: uint32 scalar, of the dropout hash.
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
    """Answers each query from the pairs of its sequence that ``reach`` lets it see, by default all earlier ones.

    Returns (B, T, H, D) in the type of the values; scores and sums are in at least float32. A query that sees no pair,
    such as the first one if the delay is 1, is answered by 0 with gradient 0. dropout_seed: uint32 scalar, needed if
    dropout_rate > 0. With one seed, all forms drop the same weights, on any mesh. Raises UserError if the device or the
    task does not allow ``form``.

    If the mesh shards time, each device gathers the keys and values of its sequences and answers its own queries
    blockwise. Without a window, every shard then takes as long as the last one, whose queries may see all pairs.
    """
    chex.assert_rank(queries_BTHD, 4)
    chex.assert_equal_shape([queries_BTHD, keys_BTHD, values_BTHD])
    if reach.pair_documents_BN is not None:
        raise ValueError("pair_documents_BN is for stored pairs: in a sequence, documents_BT are those of pairs too")
    batch, time, heads, _ = queries_BTHD.shape
    seed = check_seed(dropout_rate, dropout_seed)
    form = RetrievalForm(form)
    if form is RetrievalForm.AUTO:
        form = quickest_form(queries_BTHD, dropout_rate, reach)
    if KERNEL_PLATFORM.get(form, platform()) != platform():
        needed = KERNEL_PLATFORM[form]
        raise UserError(f"retrieval={form.value} is a kernel for {needed}, and this is {platform()}: choose auto")
    if form in LIBRARY_FORMS and dropout_rate > 0:
        raise UserError(f"retrieval={form.value} cannot drop weights: choose auto, or set their dropout to 0")
    rows_BTH = jnp.swapaxes(row_numbers(batch, heads, time), 1, 2)
    problem = Problem(queries_BTHD, keys_BTHD, values_BTHD, rows_BTH, jnp.arange(time), seed, reach)
    axes = time_axes(queries_BTHD)
    if not axes and form in (RetrievalForm.NAIVE, RetrievalForm.BLOCKWISE):
        return _FORMS[form](problem, dropout_rate)  # XLA shards these well by itself
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
    """The form that AUTO selects."""
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
        return _rolled(_blockwise, problem, rate)  # with a traced delay, every block would have to compute all pairs
    return blockwise_retrieval(rate, *problem[:3], problem.reach, problem.seed, problem.rows_BTH)


def _rolled(form: Callable[[Problem, float], Array], problem: Problem, rate: float) -> Array:
    """The same answers from rolled queries, whose delay is 0."""
    reach, (queries_BTHD, rows_BTH), restore = problem.reach.aligned(problem.queries_BTHD, problem.rows_BTH)
    return restore(form(problem._replace(queries_BTHD=queries_BTHD, rows_BTH=rows_BTH, reach=reach), rate))


def _on_time_shard(problem: Problem, rate: float, axes: tuple[str, ...]) -> Array:
    """The answers to the queries of one shard of time, from the pairs of whole sequences, which the device gathers."""

    def gather(x_BTHD: Array) -> Array:
        return lax.all_gather(x_BTHD, axes, axis=1, tiled=True)

    reach = problem.reach
    # `blockwise_retrieval` numbers queries from 0: the position of the shard's first query is taken from the delay.
    documents_BN = None if reach.documents_BT is None else gather(reach.documents_BT)
    reach = Reach(reach.delay - problem.position_T[0], reach.window, reach.documents_BT, documents_BN)
    keys_BNHD, values_BNHD = gather(problem.keys_BTHD), gather(problem.values_BTHD)
    return blockwise_retrieval(
        rate, problem.queries_BTHD, keys_BNHD, values_BNHD, reach, problem.seed, problem.rows_BTH
    )


def _pallas(problem: Problem, rate: float) -> Array:
    if isinstance(problem.reach.window, int) and not isinstance(problem.reach.delay, int):
        # The blocks that a window touches are known at compile time if the delay is: rolled queries have delay 0.
        return _rolled(_pallas, problem, rate)
    batch, _, heads, _ = problem.queries_BTHD.shape

    def fold(x_BTHD: Array) -> Array:
        x_BHTD = jnp.swapaxes(x_BTHD, 1, 2)
        return x_BHTD.reshape(batch * heads, *x_BHTD.shape[2:])

    q_GTD, k_GTD, v_GTD, rows_GT = map(fold, problem[:4])
    # Every head of a sequence has its documents.
    reach = jax.tree.map(lambda leaf: jnp.repeat(leaf, heads, axis=0) if leaf.ndim else leaf, problem.reach)
    answers_GTD = pallas_retrieval(rate, q_GTD, k_GTD, v_GTD, reach, problem.seed, rows_GT)
    return jnp.swapaxes(answers_GTD.reshape(batch, heads, *answers_GTD.shape[1:]), 1, 2)


def _cudnn(problem: Problem, rate: float) -> Array:
    del rate
    return cudnn_retrieval(*problem[:3], problem.reach)


def _splash(problem: Problem, rate: float) -> Array:
    del rate
    return splash_retrieval(*problem[:3], problem.reach)


KERNEL_PLATFORM = {RetrievalForm.CUDNN: "gpu", RetrievalForm.SPLASH: "tpu", RetrievalForm.PALLAS: "tpu"}
LIBRARY_FORMS = (RetrievalForm.CUDNN, RetrievalForm.SPLASH)
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
    """Answers the queries of a chunk of T positions from stored pairs.

    length_B: int32, the position of the first query of each row. Pair i is in slot ``first_slot`` + i, and N is the
    number of slots. Slots of pairs that no query sees do not affect the result. If ``reach`` has documents, its
    ``pair_documents_BN`` are the documents of the slots. Returns (B, T, H, D) in the type of the values; a query that
    sees no pair is answered by 0.

    A chunk takes time proportional to the number of slots that are seen. A single position takes time proportional to
    N, because it reads all slots at once, without a loop.
    """
    if (reach.documents_BT is None) != (reach.pair_documents_BN is None):
        raise ValueError("documents_BT, of the queries, and pair_documents_BN, of the slots, go together")
    if queries_BTHD.shape[1] == 1:
        return _stored_one(queries_BTHD, keys_BHND, values_BHND, length_B, reach, first_slot)
    return _stored_blockwise(queries_BTHD, keys_BHND, values_BHND, length_B, reach, first_slot)


def _slots_seen(
    reach: Reach, position_BT: Array, slot_N: Array, first_slot: int, pair_documents_BN: Array | None
) -> Array:
    """(B, T, N) of bool: which of the slots ``slot_N``, with these documents, the queries at ``position_BT`` see."""
    seen_BTN = reach.sees(position_BT[..., None], slot_N - first_slot) & (slot_N >= first_slot)
    if reach.documents_BT is not None and pair_documents_BN is not None:
        seen_BTN &= reach.documents_BT[..., None] == pair_documents_BN[:, None]
    return seen_BTN


def _stored_one(
    queries_BTHD: Array, keys_BHND: Array, values_BHND: Array, length_B: Array, reach: Reach, first_slot: int
) -> Array:
    # The products have no time axis: with one, XLA transposes the keys on CPU.
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
    newest_BT = position_BT - reach.delay + first_slot  # the slot of the newest pair that each query sees

    def add_block(j: Array, sums: Sums) -> Sums:
        # The last block is moved back to end with the slots; the slots that it shares with the block before are masked.
        start = jnp.minimum(j * block, capacity - block)
        k_BHND, v_BHND = (lax.dynamic_slice_in_dim(a, start, block, axis=2) for a in (keys_BHND, values_BHND))
        documents_BN = reach.pair_documents
        if documents_BN is not None:
            documents_BN = lax.dynamic_slice_in_dim(documents_BN, start, block, axis=1)
        slot_N = start + jnp.arange(block)
        mask_BTN = _slots_seen(reach, position_BT, slot_N, first_slot, documents_BN) & (slot_N >= j * block)
        scores_BHTN = jnp.einsum("bthd,bhnd->bhtn", queries_BTHD, k_BHND, preferred_element_type=dtype)
        return add_sums(sums, sums_over_pairs(jnp.where(mask_BTN[:, None], scores_BHTN, UNSEEN), v_BHND))

    end = jnp.minimum((jnp.max(newest_BT) + block) // block, -(-capacity // block))
    oldest = jnp.zeros((), jnp.int32) if reach.window is None else jnp.min(newest_BT) - reach.window + 1
    rows = (batch, heads, time)
    zero = Sums(jnp.full(rows, UNSEEN, dtype), jnp.zeros(rows, dtype), jnp.zeros((*rows, width), dtype))
    answers_BHTD, _ = answers_of(lax.fori_loop(jnp.maximum(oldest, 0) // block, end, add_block, zero))
    return jnp.swapaxes(answers_BHTD, 1, 2).astype(values_BHND.dtype)
