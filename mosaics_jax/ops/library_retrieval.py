"""Retrieval by the attention kernels of libraries: cuDNN on GPU, splash attention on TPU. Neither drops weights.

They compute causal attention, whose queries see the pairs up to their own row, with a sliding window by choice. Every
`Reach` becomes that by rolling the queries (`Reach.aligned`).
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
    """Whether cuDNN's fused attention takes these arrays, 16 bits and heads up to 128 wide by steps of 8, and reach."""
    width = queries_BTHD.shape[-1]
    arrays = queries_BTHD.dtype in (jnp.bfloat16, jnp.float16) and width <= 128 and width % 8 == 0
    return arrays and reach.documents_BT is None and _has_static_window(reach)


def splash_serves(reach: Reach) -> bool:
    """Whether splash attention takes this reach: its window must be known when compiling."""
    return _has_static_window(reach)


def _has_static_window(reach: Reach) -> bool:
    return reach.window is None or (isinstance(reach.window, int) and reach.window > 0)


def cudnn_retrieval(queries_BTHD: Array, keys_BTHD: Array, values_BTHD: Array, reach: Reach) -> Array:
    """Answers (B, T, H, D) on GPU. Raises UserError where cuDNN cannot give them."""
    if not cudnn_serves(queries_BTHD, reach):
        raise UserError(
            "retrieval=cudnn takes bfloat16 or float16, heads up to 128 wide, a multiple of 8, one document, and a "
            f"window known when compiling; here: {queries_BTHD.dtype}, {queries_BTHD.shape[-1]} wide; choose auto"
        )
    aligned, (queries_BTHD,), back = reach.aligned(queries_BTHD)
    # cuDNN's window does not count the row itself.
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
    return back(answers_BTHD)


def splash_retrieval(queries_BTHD: Array, keys_BTHD: Array, values_BTHD: Array, reach: Reach) -> Array:
    """Answers (B, T, H, D) on TPU. Raises UserError where splash attention cannot give them."""
    if not splash_serves(reach):
        raise UserError("retrieval=splash needs a window that is known when compiling, and positive: choose auto")
    aligned, (queries_BTHD,), back = reach.aligned(queries_BTHD)
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
    # Pairs that are added come after all queries but those that are added too.
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
    return back(jnp.swapaxes(jax.vmap(kernel)(*arrays), 1, 2)[:, :time])
