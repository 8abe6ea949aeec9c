"""Retrieval with attention kernels of libraries: cuDNN on GPU, splash attention on TPU. Neither supports dropout.

The kernels compute causal attention, optionally with a sliding window. `Reach.aligned` rolls the queries so that every
`Reach` has this form.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from mosaics_jax.errors import UserError
from mosaics_jax.ops.pallas_retrieval import BLOCKS, LANES
from mosaics_jax.ops.products import PRODUCT
from mosaics_jax.ops.reach import Reach
from mosaics_jax.shapes import Array


def cudnn_serves(queries_BTHD: Array | jax.ShapeDtypeStruct, reach: Reach) -> bool:
    """Whether cuDNN supports this task: 16-bit types, D a multiple of 8 up to 128, one document, a static window."""
    width = queries_BTHD.shape[-1]
    arrays = queries_BTHD.dtype in (jnp.bfloat16, jnp.float16) and width <= 128 and width % 8 == 0
    return arrays and reach.documents_BT is None and _has_static_window(reach)


def splash_serves(reach: Reach) -> bool:
    """Whether splash attention supports this reach: its window must be known at compile time."""
    return _has_static_window(reach)


def _has_static_window(reach: Reach) -> bool:
    return reach.window is None or (isinstance(reach.window, int) and reach.window > 0)


def cudnn_retrieval(queries_BTHD: Array, keys_BTHD: Array, values_BTHD: Array, reach: Reach) -> Array:
    """The answers (B, T, H, D) on GPU. Raises UserError if cuDNN does not support the task."""
    if not cudnn_serves(queries_BTHD, reach):
        raise UserError(
            "retrieval=cudnn takes bfloat16 or float16, heads whose width is a multiple of 8 up to 128, one document "
            f"and a static window; here: {queries_BTHD.dtype}, width {queries_BTHD.shape[-1]}; choose auto"
        )
    aligned, (queries_BTHD,), restore = reach.aligned(queries_BTHD)
    # local_window_size does not count the query's own position.
    window = None if aligned.window is None else (int(aligned.window) - 1, 0)
    answers_BTHD = jax.nn.dot_product_attention(
        queries_BTHD,
        keys_BTHD,
        values_BTHD,
        scale=1.0,
        is_causal=True,
        local_window_size=window,
        implementation="cudnn",
    )
    return restore(answers_BTHD)


def splash_retrieval(queries_BTHD: Array, keys_BTHD: Array, values_BTHD: Array, reach: Reach) -> Array:
    """The answers (B, T, H, D) on TPU. Raises UserError if splash attention does not support the task."""
    if not splash_serves(reach):
        raise UserError("retrieval=splash needs a positive window that is known at compile time: choose auto")
    aligned, (queries_BTHD,), restore = reach.aligned(queries_BTHD)
    time, heads = queries_BTHD.shape[1:3]
    padded = -(-time // LANES) * LANES
    block = next(size for size in BLOCKS if padded % size == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    blocks: dict[str, Any] = {f"block_{name}": block for name in names}
    shape = (padded, padded)
    mask: Any = splash_mask.CausalMask(shape)
    if aligned.window is not None:
        mask = splash_mask.LocalMask(shape, (int(aligned.window) - 1, 0), offset=0)
    kernel = splash.make_splash_mha_single_device(
        splash_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**blocks),
        residual_checkpoint_name=PRODUCT,
    )
    # Padding stands after the last pair: no query sees it, except for the queries of the padding.
    arrays: list[Any] = [
        jnp.swapaxes(jnp.pad(a, ((0, 0), (0, padded - time), (0, 0), (0, 0))), 1, 2)
        for a in (queries_BTHD, keys_BTHD, values_BTHD)
    ]
    if aligned.documents_BT is not None and aligned.pair_documents is not None:
        documents = (
            jnp.pad(a, ((0, 0), (0, padded - time)), constant_values=-1)
            for a in (aligned.documents_BT, aligned.pair_documents)
        )
        arrays.append(splash.SegmentIds(*documents))
    return restore(jnp.swapaxes(jax.vmap(kernel)(*arrays), 1, 2)[:, :time])
