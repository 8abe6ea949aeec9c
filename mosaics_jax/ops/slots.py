"""Retrieval from a persistent memory: its pairs are parameters, the same for every query (v1 section 5)."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

from mosaics_jax.ops.dropout_mask import check_seed, keep_mask, row_numbers
from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.ops.pallas_retrieval import pallas_retrieval
from mosaics_jax.ops.platform import one_cpu_device, per_device, platform
from mosaics_jax.ops.products import product
from mosaics_jax.ops.retrieval import RetrievalForm
from mosaics_jax.shapes import Array


def slot_retrieval(
    queries_BTHD: Array,
    keys_KHMD: Array,
    values_KHMD: Array,
    *,
    dropout_rate: float = 0.0,
    dropout_seed: Array | None = None,
    form: RetrievalForm = RetrievalForm.AUTO,
) -> Array:
    """Answers every query from M fixed slots; the mean over K banks, each with its own softmax.

    Returns (B, T, H, D) in the type of the values. BLOCKWISE holds the weights of one block of queries at a time,
    forward and backward; PALLAS none outside of the chip. AUTO is PALLAS on TPU, else BLOCKWISE; so are the forms that
    know no slots, CUDNN and SPLASH.
    """
    chex.assert_equal_shape([keys_KHMD, values_KHMD])
    chex.assert_shape(keys_KHMD, (None, queries_BTHD.shape[2], None, queries_BTHD.shape[3]))
    seed = check_seed(dropout_rate, dropout_seed)
    batch, time, heads, _ = queries_BTHD.shape
    numbers_BTH = jnp.swapaxes(row_numbers(batch, heads, time), 1, 2)

    def on_device(queries: Array, keys_KHMD: Array, values_KHMD: Array, numbers: Array, seed: Array) -> Array:
        retrieve = functools.partial(_FORMS.get(form, _slots_quickest), dropout_rate)
        seeds = seed + jnp.arange(len(keys_KHMD), dtype=jnp.uint32)
        banks = zip(keys_KHMD, values_KHMD, seeds, strict=True)
        answers = [retrieve(queries, *bank, numbers) for bank in banks]
        return answers[0] if len(answers) == 1 else sum(answers[1:], answers[0]) / len(answers)

    # Queries do not meet. Left to itself, XLA would gather slots and sum their gradients once a block of queries.
    queries, slots = ("batch", "time", "activation_heads"), (None, "activation_heads", None, None)
    arrays = queries_BTHD, keys_KHMD, values_KHMD, numbers_BTH, seed
    return per_device(on_device, *arrays, names=((*queries, None), slots, slots, queries, ()))


def _slots_naive(
    rate: float, queries_BTHD: Array, keys_HMD: Array, values_HMD: Array, seed: Array, numbers_BTH: Array
) -> Array:
    scores = jnp.einsum(
        "bthd,hmd->bhtm", queries_BTHD, keys_HMD, preferred_element_type=accumulation_dtype(queries_BTHD)
    )
    weights = jax.nn.softmax(scores, axis=-1)
    if rate > 0:
        keep = keep_mask(seed, jnp.swapaxes(numbers_BTH, 1, 2)[..., None], jnp.arange(scores.shape[-1]), rate)
        weights = jnp.where(keep, weights / (1.0 - rate), 0.0)
    return product(jnp.einsum("bhtm,hmd->bthd", weights.astype(values_HMD.dtype), values_HMD))


def _slots_pallas(rate: float, queries: Array, keys: Array, values: Array, seed: Array, numbers: Array) -> Array:
    rows, heads = numbers.size // numbers.shape[-1], numbers.shape[-1]
    folded = jnp.moveaxis(queries, 2, 0).reshape(heads, rows, -1)
    numbers = jnp.moveaxis(numbers, 2, 0).reshape(heads, rows)
    answers = pallas_retrieval(None, rate, folded, keys, values, seed, numbers)
    return jnp.moveaxis(answers.reshape(heads, *queries.shape[:2], -1), 0, 2)


# Blocks are cut along T. Inside one, B and T are folded into one axis of queries: the slots are read once for all.


def _fold(x_BTHD: Array) -> Array:
    """(B, T, H, ...) to (blocks, H, B * block, ...), zero-padded."""
    batch, time, *rest = x_BTHD.shape
    block = max(1, min(time, slot_rows() // batch))
    blocks = -(-time // block)
    x = jnp.pad(x_BTHD, ((0, 0), (0, blocks * block - time)) + ((0, 0),) * len(rest))
    x = jnp.moveaxis(x.reshape(batch, blocks, block, *rest), (1, 3), (0, 1))
    return x.reshape(blocks, rest[0], batch * block, *rest[1:])


def _unfold(x: Array, batch: int, time: int) -> Array:
    blocks, heads, rows, *rest = x.shape
    x = jnp.moveaxis(x.reshape(blocks, heads, batch, rows // batch, *rest), (0, 1), (1, 3))
    return x.reshape(batch, -1, heads, *rest)[:, :time]


def slot_rows() -> int:
    """Queries of one block: on CPU their weights should stay in cache, elsewhere fill the device."""
    return 512 if platform() == "cpu" else 65536


def _over_heads(
    function: Callable[..., tuple[Array, ...]], arrays: tuple[Array, ...], axes: tuple[int, ...], out: tuple[int, ...]
) -> tuple[Array, ...]:
    """``function(*arrays)``; of one head at a time where that makes the blocks of a cache larger.

    arrays: queries (B, T, H, D) first. axes, out: the axis of heads in each array and in each result.
    """
    if not one_cpu_device() or arrays[0][..., 0].size <= slot_rows():
        return function(*arrays)

    def head(one: tuple[Array, ...]) -> tuple[Array, ...]:
        results = function(*(jnp.expand_dims(a, axis) for a, axis in zip(one, axes, strict=True)))
        return tuple(jnp.squeeze(a, axis) for a, axis in zip(results, out, strict=True))

    results = lax.map(head, tuple(jnp.moveaxis(a, axis, 0) for a, axis in zip(arrays, axes, strict=True)))
    return tuple(jnp.moveaxis(a, 0, axis) for a, axis in zip(results, out, strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _slots_blockwise(rate: float, queries: Array, keys: Array, values: Array, seed: Array, numbers: Array) -> Array:
    return _slots_forward(rate, queries, keys, values, seed, numbers)[0]


def _slot_keep(seed: Array, rows: Array, slots: int, rate: float) -> Array:
    return keep_mask(seed, rows[..., None], jnp.arange(slots), rate)


def _slots_forward(
    rate: float, queries: Array, keys: Array, values: Array, seed: Array, numbers: Array
) -> tuple[Array, tuple[Array, ...]]:
    def of_heads(queries: Array, keys: Array, values: Array, numbers: Array) -> tuple[Array, Array]:
        return _answers(rate, queries, keys, values, seed, numbers)

    results = _over_heads(of_heads, (queries, keys, values, numbers), (2, 0, 0, 2), (2, 1))
    answers, log_total = map(product, results)
    return answers, (queries, keys, values, seed, numbers, answers, log_total)


def _answers(
    rate: float, queries: Array, keys: Array, values: Array, seed: Array, numbers: Array
) -> tuple[Array, Array]:
    """The answers (B, T, H, D), and the logarithms of the summed weights (blocks, H, rows of a block)."""
    dtype = accumulation_dtype(queries)

    def block(_: None, xs: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        q, rows = xs
        scores = jnp.einsum("hqd,hmd->hqm", q, keys, preferred_element_type=dtype)
        top = jnp.max(scores, axis=-1)
        weights = jnp.exp(scores - top[..., None])
        total = jnp.sum(weights, axis=-1)
        if rate > 0:
            weights = jnp.where(_slot_keep(seed, rows, keys.shape[1], rate), weights / (1.0 - rate), 0.0)
        answer = jnp.einsum("hqm,hmd->hqd", weights.astype(values.dtype), values, preferred_element_type=dtype)
        return None, ((answer / total[..., None]).astype(values.dtype), top + jnp.log(total))

    _, (answers, log_total) = lax.scan(block, None, (_fold(queries), _fold(numbers)))
    return _unfold(answers, *queries.shape[:2]), log_total


def _slots_backward(rate: float, saved: tuple[Array, ...], gradient: Array) -> tuple[Any, ...]:
    queries, keys, values, seed, numbers, answers, log_total = saved
    inner = jnp.einsum("bthd,bthd->bth", gradient, answers, preferred_element_type=accumulation_dtype(queries))

    def of_heads(*arrays: Array) -> tuple[Array, Array, Array]:
        return _gradients(rate, seed, *arrays)

    arrays = queries, keys, values, gradient, numbers, log_total, inner
    return *_over_heads(of_heads, arrays, (2, 0, 0, 2, 2, 1, 2), (2, 0, 0)), None, None


def _gradients(
    rate: float, seed: Array, queries: Array, keys: Array, values: Array, gradient: Array, numbers: Array,
    log_total: Array, inner: Array,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Of queries, keys and values; ``inner``: of each answer with its gradient, (B, T, H)."""
    dtype = accumulation_dtype(queries)

    def block(carry: tuple[Array, Array], xs: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        dkeys, dvalues = carry
        q, g, rows, log_sum, subtract = xs
        scores = jnp.einsum("hqd,hmd->hqm", q, keys, preferred_element_type=dtype)
        weights = jnp.exp(scores - log_sum[..., None])
        dweights = jnp.einsum("hqd,hmd->hqm", g, values, preferred_element_type=dtype)
        dropped = weights
        if rate > 0:
            keep = _slot_keep(seed, rows, keys.shape[1], rate)
            dropped = jnp.where(keep, weights / (1.0 - rate), 0.0)
            dweights = jnp.where(keep, dweights / (1.0 - rate), 0.0)
        dscores = (weights * (dweights - subtract[..., None])).astype(q.dtype)
        # Slots last: the product then transposes queries, not weights.
        dvalues += jnp.matmul(jnp.swapaxes(g, 1, 2), dropped.astype(g.dtype), preferred_element_type=dtype)
        dkeys += jnp.matmul(jnp.swapaxes(q, 1, 2), dscores, preferred_element_type=dtype)
        return (dkeys, dvalues), jnp.einsum("hqm,hmd->hqd", dscores, keys)

    zero_HDM = jnp.zeros(jnp.swapaxes(keys, 1, 2).shape, dtype)
    xs = (_fold(queries), _fold(gradient), _fold(numbers), log_total, _fold(inner))
    (dkeys, dvalues), dqueries = lax.scan(block, (zero_HDM, zero_HDM), xs)
    dkeys, dvalues = (jnp.swapaxes(d, 1, 2).astype(keys.dtype) for d in (dkeys, dvalues))
    return _unfold(dqueries, *queries.shape[:2]), dkeys, dvalues


_slots_blockwise.defvjp(_slots_forward, _slots_backward)


def _slots_quickest(*args: Any) -> Array:
    return _slots_pallas(*args) if platform() == "tpu" else _slots_blockwise(*args)


_FORMS: dict[RetrievalForm, Callable[..., Array]] = {
    RetrievalForm.NAIVE: _slots_naive,
    RetrievalForm.BLOCKWISE: _slots_blockwise,
    RetrievalForm.PALLAS: _slots_pallas,
}
