"""Causal retrieval by the attention kernels of libraries: cuDNN on GPU, splash attention on TPU. Neither drops weights.

They are causal, retrieval from pairs with peeking values strictly so: query t + 1 is asked in place t, where it sees
the pairs up to t, and its answer moves back.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from mosaics_jax.ops.pallas_retrieval import BLOCKS, LANES
from mosaics_jax.ops.products import PRODUCT
from mosaics_jax.shapes import Array


def cudnn_can(queries_BTHD: Array | jax.ShapeDtypeStruct) -> bool:
    """Whether cuDNN's fused attention takes arrays like these: 16 bits, heads up to 128 wide by steps of 8."""
    width = queries_BTHD.shape[-1]
    return queries_BTHD.dtype in (jnp.bfloat16, jnp.float16) and width <= 128 and width % 8 == 0


def cudnn_retrieval(queries_BTHD: Array, keys_BTHD: Array, values_BTHD: Array, strict: bool) -> Array:
    """Answers (B, T, H, D) on GPU. Raises ValueError where cuDNN cannot."""
    if not cudnn_can(queries_BTHD):
        raise ValueError(
            "cuDNN takes bfloat16 or float16 and heads up to 128 wide, a multiple of 8: "
            f"these are {queries_BTHD.dtype} and {queries_BTHD.shape[-1]} wide"
        )
    attend = functools.partial(jax.nn.dot_product_attention, scale=1.0, is_causal=True, implementation="cudnn")
    return _strictly(attend, strict)(queries_BTHD, keys_BTHD, values_BTHD)


def splash_retrieval(queries_BTHD: Array, keys_BTHD: Array, values_BTHD: Array, strict: bool) -> Array:
    """Answers (B, T, H, D) on TPU."""
    time, heads = queries_BTHD.shape[1:3]
    padded = -(-time // LANES) * LANES
    block = next(size for size in BLOCKS if padded % size == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    blocks: dict[str, Any] = {f"block_{name}": block for name in names}
    kernel = splash.make_splash_mha_single_device(
        splash_mask.MultiHeadMask([splash_mask.CausalMask((padded, padded))] * heads),
        block_sizes=splash.BlockSizes(**blocks),
        residual_checkpoint_name=PRODUCT,
    )

    def attend(*arrays_BTHD: Array) -> Array:
        # Pairs that are added come after all queries but those that are added too.
        arrays = (jnp.pad(a, ((0, 0), (0, padded - time), (0, 0), (0, 0))) for a in arrays_BTHD)
        answers = jax.vmap(kernel)(*(jnp.swapaxes(a, 1, 2) for a in arrays))
        return jnp.swapaxes(answers, 1, 2)[:, :time]

    return _strictly(attend, strict)(queries_BTHD, keys_BTHD, values_BTHD)


def _strictly(attend: Callable[..., Array], strict: bool) -> Callable[..., Array]:
    if not strict:
        return attend

    def attend_before(queries: Array, keys: Array, values: Array) -> Array:
        # In whole lengths, as kernels like them: the last place asks query 0 again, and its answer is dropped.
        answers = attend(jnp.roll(queries, -1, axis=1), keys, values)
        return jnp.roll(answers, 1, axis=1) * (lax.iota(answers.dtype, answers.shape[1]) > 0)[:, None, None]

    return attend_before
