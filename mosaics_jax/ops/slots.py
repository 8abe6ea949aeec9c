"""Retrieval from a persistent memory: its pairs are parameters, and every query sees all of them (v1 section 5).

In the fast forms T counts the queries of all sequences, B T of them: a block of queries reads the slots once.
"""

import functools
from collections.abc import Callable

import chex
import jax.numpy as jnp

from mosaics_jax.ops.blockwise import blockwise_retrieval
from mosaics_jax.ops.dropout_mask import check_seed, keep_mask, row_numbers
from mosaics_jax.ops.kernel_regression import unit_key_regression
from mosaics_jax.ops.pallas_retrieval import pallas_retrieval
from mosaics_jax.ops.platform import platform
from mosaics_jax.ops.products import product
from mosaics_jax.ops.retrieval import RetrievalForm
from mosaics_jax.shapes import Array
from mosaics_jax.sharding import HEADS, map_shards

SLOTS = (None, "activation_heads", None, None)  # logical axes of keys and values


def slot_retrieval(
    queries_BTHD: Array,
    keys_KHMD: Array,
    values_KHMD: Array,
    *,
    dropout_rate: float = 0.0,
    dropout_seed: Array | None = None,
    form: RetrievalForm | str = RetrievalForm.AUTO,
) -> Array:
    """Answers every query from M fixed slots per head: the mean over K banks, each with a softmax of its own.

    Returns (B, T, H, D) in the type of the values. dropout_seed: uint32 scalar, needed if dropout_rate > 0. BLOCKWISE
    stores the weights of one block of queries at a time, forward and backward; PALLAS stores none in main memory. AUTO,
    CUDNN and SPLASH select PALLAS on TPU, else BLOCKWISE: the library kernels have no form for slots.
    """
    chex.assert_equal_shape([keys_KHMD, values_KHMD])
    chex.assert_shape(keys_KHMD, (None, queries_BTHD.shape[2], None, queries_BTHD.shape[3]))
    seed = check_seed(dropout_rate, dropout_seed)
    form = RetrievalForm(form)
    if form not in _FORMS:
        form = RetrievalForm.PALLAS if platform() == "tpu" else RetrievalForm.BLOCKWISE
    rows_BTH = jnp.swapaxes(row_numbers(*(queries_BTHD.shape[axis] for axis in (0, 2, 1))), 1, 2)

    def on_shard(queries_BTHD: Array, keys_KHMD: Array, values_KHMD: Array, rows_BTH: Array, seed: Array) -> Array:
        retrieve = functools.partial(_FORMS[form], dropout_rate)
        seeds_K = seed + jnp.arange(len(keys_KHMD), dtype=jnp.uint32)
        banks = zip(keys_KHMD, values_KHMD, seeds_K, strict=True)
        answers = [retrieve(queries_BTHD, *bank, rows_BTH) for bank in banks]
        return answers[0] if len(answers) == 1 else sum(answers[1:], answers[0]) / len(answers)

    # XLA alone would gather the slots, and sum their gradients over devices, once per block of queries.
    arrays = queries_BTHD, keys_KHMD, values_KHMD, rows_BTH, seed
    return map_shards(on_shard, *arrays, names=(HEADS, SLOTS, SLOTS, HEADS[:3], ()))


def _naive(rate: float, queries_BTHD: Array, keys_HMD: Array, values_HMD: Array, seed: Array, rows_BTH: Array) -> Array:
    queries_BHTD, rows_BHT = jnp.swapaxes(queries_BTHD, 1, 2), jnp.swapaxes(rows_BTH, 1, 2)
    keep = keep_mask(seed, rows_BHT[..., None], jnp.arange(keys_HMD.shape[1]), rate) if rate > 0 else None
    answers_BHTD = unit_key_regression(queries_BHTD, keys_HMD, values_HMD, keep=keep, rate=rate)
    return jnp.swapaxes(product(answers_BHTD), 1, 2)


def _blockwise(
    rate: float, queries_BTHD: Array, keys_HMD: Array, values_HMD: Array, seed: Array, rows_BTH: Array
) -> Array:
    return blockwise_retrieval(rate, queries_BTHD, keys_HMD, values_HMD, None, seed, rows_BTH)


def _pallas(
    rate: float, queries_BTHD: Array, keys_HMD: Array, values_HMD: Array, seed: Array, rows_BTH: Array
) -> Array:
    answers_HTD = pallas_retrieval(rate, _fold(queries_BTHD), keys_HMD, values_HMD, None, seed, _fold(rows_BTH))
    return _unfold(answers_HTD, len(queries_BTHD))


def _fold(x_BTHD: Array) -> Array:
    """(B, T, H, ...) to (H, B T, ...): the queries of all sequences on one axis."""
    x_HBTD = jnp.moveaxis(x_BTHD, 2, 0)
    return x_HBTD.reshape(len(x_HBTD), x_HBTD.shape[1] * x_HBTD.shape[2], *x_HBTD.shape[3:])


def _unfold(x_HTD: Array, batch: int) -> Array:
    """The inverse of `_fold`."""
    return jnp.moveaxis(x_HTD.reshape(len(x_HTD), batch, -1, *x_HTD.shape[2:]), 0, 2)


_FORMS: dict[RetrievalForm, Callable[..., Array]] = {
    RetrievalForm.NAIVE: _naive,
    RetrievalForm.BLOCKWISE: _blockwise,
    RetrievalForm.PALLAS: _pallas,
}
