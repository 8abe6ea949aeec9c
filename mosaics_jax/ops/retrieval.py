"""Retrieval from memories whose keys have one norm: softmax over dot products (v1 eq. 3, 7).

A memory that fills up along the sequence (`causal_retrieval`), and the same one step or chunk at a time
(`stored_retrieval`). Scores carry no 1/sqrt(D): the scale, if any, belongs to the query. Dropped weights are not
renormalised; kept ones are divided by 1 - rate.
"""

import enum
import functools

import chex
import jax
import jax.numpy as jnp
from jax import lax

from mosaics_jax.errors import UserError
from mosaics_jax.ops import blockwise
from mosaics_jax.ops.blockwise import (
    NEVER,
    Sums,
    add_pairs,
    blockwise_retrieval,
    normalized,
    sums_of_pairs,
)
from mosaics_jax.ops.dropout_mask import check_seed, keep_mask, row_numbers
from mosaics_jax.ops.kernel_regression import masked_softmax
from mosaics_jax.ops.library_retrieval import cudnn_can, cudnn_retrieval, splash_retrieval
from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.ops.pallas_retrieval import pallas_retrieval
from mosaics_jax.ops.platform import per_device, platform
from mosaics_jax.ops.products import product
from mosaics_jax.shapes import Array


class RetrievalForm(enum.Enum):
    """How retrieval along the sequence is computed.

    AUTO: NAIVE within one block; beyond, the fused kernel that the device has and the task allows, else BLOCKWISE.
    """

    AUTO = "auto"
    NAIVE = "naive"  # a T x T array of weights
    BLOCKWISE = "blockwise"  # memory linear in T, forward and backward, like all that follow
    CUDNN = "cudnn"  # GPU, 16 bits, no dropout of weights
    SPLASH = "splash"  # TPU, no dropout of weights
    PALLAS = "pallas"  # TPU


NEEDS = {RetrievalForm.CUDNN: "gpu", RetrievalForm.SPLASH: "tpu", RetrievalForm.PALLAS: "tpu"}
LIBRARY = {RetrievalForm.CUDNN: cudnn_retrieval, RetrievalForm.SPLASH: splash_retrieval}
AXES = ("batch", None, "activation_heads", None)  # of arrays (B, T, H, D), to `per_device`


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
    seed = check_seed(dropout_rate, dropout_seed)
    if form is RetrievalForm.AUTO:
        form = quickest_form(queries_BTHD, dropout_rate)
    if NEEDS.get(form, platform()) != platform():
        raise UserError(f"retrieval={form.value} is a kernel for {NEEDS[form]}, and this is {platform()}: choose auto")
    if form in LIBRARY:
        if dropout_rate > 0:
            raise UserError(f"retrieval={form.value} cannot drop weights: choose auto, or set their dropout to 0")
        retrieve = functools.partial(LIBRARY[form], strict=strict)
        return per_device(retrieve, queries_BTHD, keys_BTHD, values_BTHD, names=[AXES] * 3)
    queries, keys, values = (jnp.swapaxes(a, 1, 2) for a in (queries_BTHD, keys_BTHD, values_BTHD))
    if form is RetrievalForm.NAIVE:
        answers = _naive(queries, keys, values, seed, int(strict), dropout_rate)
    elif form is RetrievalForm.PALLAS:
        answers = _pallas(queries, keys, values, seed, int(strict), dropout_rate)
    else:
        answers = blockwise_retrieval(int(strict), dropout_rate, queries, keys, values, seed)
    return jnp.swapaxes(answers, 1, 2)


def quickest_form(queries_BTHD: Array | jax.ShapeDtypeStruct, dropout_rate: float) -> RetrievalForm:
    """What AUTO stands for."""
    if queries_BTHD.shape[1] <= blockwise.BLOCK:
        return RetrievalForm.NAIVE
    if platform() == "tpu":
        return RetrievalForm.PALLAS if dropout_rate > 0 else RetrievalForm.SPLASH
    if platform() == "gpu" and dropout_rate == 0 and cudnn_can(queries_BTHD):
        return RetrievalForm.CUDNN
    return RetrievalForm.BLOCKWISE


def stored_retrieval(
    queries_BTHD: Array, keys_BHND: Array, values_BHND: Array, length_B: Array, first: int = 0
) -> Array:
    """Answers query t of a chunk from the stored slots ``first`` .. ``length + t``.

    length_B: int32, positions that were already fed before this chunk. Slots past the last written one are never read.
    Returns (B, T, H, D) in the type of the values; a row without a slot is 0. The time of a chunk goes with the slots
    in use; that of a single position with the capacity, which it reads without a loop.
    """
    if queries_BTHD.shape[1] == 1:
        return _stored_one(queries_BTHD, keys_BHND, values_BHND, length_B, first)
    return _stored_blockwise(queries_BTHD, keys_BHND, values_BHND, length_B, first)


def _stored_one(queries_BTHD: Array, keys_BHND: Array, values_BHND: Array, length_B: Array, first: int) -> Array:
    # Products of a matrix and a vector, without the time axis: with it XLA transposes the keys on CPU.
    dtype = accumulation_dtype(queries_BTHD)
    scores_BHN = jnp.einsum("bhd,bhnd->bhn", queries_BTHD[:, 0], keys_BHND, preferred_element_type=dtype)
    slot = jnp.arange(keys_BHND.shape[2])
    mask_BN = (slot >= first) & (slot <= length_B[:, None])
    weights_BHN = masked_softmax(scores_BHN, mask_BN[:, None]).astype(values_BHND.dtype)
    return jnp.einsum("bhn,bhnd->bhd", weights_BHN, values_BHND)[:, None]


def _stored_blockwise(queries_BTHD: Array, keys_BHND: Array, values_BHND: Array, length_B: Array, first: int) -> Array:
    batch, time, heads, width = queries_BTHD.shape
    capacity = keys_BHND.shape[2]
    block = min(blockwise.BLOCK, capacity)
    dtype = accumulation_dtype(queries_BTHD)
    last_BT = length_B[:, None] + jnp.arange(time)

    def add_block(j: Array, sums: Sums) -> Sums:
        # The last block is moved back to end with the store; what it then has in common with its neighbour is masked.
        start = jnp.minimum(j * block, capacity - block)
        keys, values = (lax.dynamic_slice_in_dim(store, start, block, axis=2) for store in (keys_BHND, values_BHND))
        slot = start + jnp.arange(block)
        mask_BTN = (slot >= jnp.maximum(j * block, first)) & (slot <= last_BT[..., None])
        scores = jnp.einsum("bthd,bhnd->bhtn", queries_BTHD, keys, preferred_element_type=dtype)
        return add_pairs(sums, sums_of_pairs(jnp.where(mask_BTN[:, None], scores, NEVER), values))

    blocks = jnp.minimum((jnp.max(last_BT) + block) // block, -(-capacity // block))
    rows = (batch, heads, time)
    nothing = jnp.full(rows, NEVER, dtype), jnp.zeros(rows, dtype), jnp.zeros((*rows, width), dtype)
    answer, _ = normalized(lax.fori_loop(0, blocks, add_block, nothing))
    return jnp.swapaxes(answer, 1, 2).astype(values_BHND.dtype)


def _pallas(queries: Array, keys: Array, values: Array, seed: Array, offset: int, rate: float) -> Array:
    def retrieve(queries: Array, keys: Array, values: Array, numbers: Array, seed: Array) -> Array:
        folded = (a.reshape(-1, *a.shape[2:]) for a in (queries, keys, values))
        answers = pallas_retrieval(offset, rate, *folded, seed, numbers.reshape(-1, numbers.shape[-1]))
        return answers.reshape(values.shape)

    rows = ("batch", "activation_heads", None)
    arrays = queries, keys, values, row_numbers(*queries.shape[:3]), seed
    return per_device(retrieve, *arrays, names=(*[(*rows, None)] * 3, rows, ()))


def _naive(queries: Array, keys: Array, values: Array, seed: Array, offset: int, rate: float) -> Array:
    batch, heads, time, _ = queries.shape
    scores = jnp.einsum("bhtd,bhnd->bhtn", queries, keys, preferred_element_type=accumulation_dtype(queries))
    mask = jnp.arange(time) <= jnp.arange(time)[:, None] - offset
    weights = masked_softmax(scores, mask)
    if rate > 0:
        keep = keep_mask(seed, row_numbers(batch, heads, time)[..., None], jnp.arange(time), rate)
        weights = jnp.where(keep, weights / (1.0 - rate), 0.0)
    return product(jnp.einsum("bhtn,bhnd->bhtd", weights.astype(values.dtype), values))
