"""Projections, normalisation and the split into heads: the parts of all units. Parameters have logical axis names.

Shapes here: I input features, O output features.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mosaics_jax.ops.products import product
from mosaics_jax.shapes import Array, Dtype

EPSILON = 1e-5  # added to variances


def normal(std: float, *axes: str | None) -> Any:
    """An initialiser: N(0, std), with one logical axis name per dimension."""
    return nn.with_logical_partitioning(nn.initializers.normal(std), axes)


def constant(value: Any, *axes: str) -> Any:
    """An initialiser: ``value``, broadcast to the shape of the parameter, with one logical axis name per dimension."""

    def init(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
        del key
        return jnp.broadcast_to(jnp.asarray(value, dtype), shape)

    return nn.with_logical_partitioning(init, axes)


@jax.custom_vjp
def project(x: Array, kernel_IO: Array) -> Array:
    """``x @ kernel_IO``: (..., I) to (..., O), with a gradient of the kernel that is fast on CPU.

    The gradient of the kernel sums x times dy over all positions. On CPU, XLA transposes one of the two arrays, always
    dy if the product is written as usual. Here the narrower one is transposed, which makes a step of the GPT-2 baseline
    a fifth faster.
    """
    return _multiply(x, kernel_IO)


def _multiply(x: Array, kernel_IO: Array) -> Array:
    return jnp.einsum("...i,io->...o", x, kernel_IO)


def _project_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel_IO = saved
    rows = tuple(range(x.ndim - 1))  # not merged into one axis: a mesh may shard several of them
    if x.shape[-1] <= dy.shape[-1]:
        dkernel_IO = lax.dot_general(x, dy, ((rows, rows), ((), ())))
    else:
        dkernel_IO = lax.dot_general(dy, x, ((rows, rows), ((), ()))).T
    return jnp.einsum("...o,io->...i", dy, kernel_IO), dkernel_IO


project.defvjp(lambda x, kernel_IO: (product(_multiply(x, kernel_IO)), (x, kernel_IO)), _project_backward)


class Projection(nn.Module):
    """``x @ kernel + bias``: (..., I) to (..., O), where O = ``features``. Computes in ``dtype``.

    Parameters: ``kernel`` (I, O) ~ N(0, std) and optionally ``bias`` (O,) = 0. axes: the logical axes of the kernel.
    """

    features: int
    std: float
    axes: tuple[str, str] = ("embed", "heads")
    bias: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel_IO = self.param("kernel", normal(self.std, *self.axes), (x.shape[-1], self.features))
        y = project(x.astype(self.dtype), kernel_IO.astype(self.dtype))
        if self.bias:
            y += self.param("bias", constant(0.0, self.axes[1]), (self.features,)).astype(self.dtype)
        return y


def layer_norm(bias: bool, dtype: Dtype) -> nn.LayerNorm:
    """Layer normalisation with a scale and optionally a bias; biased variance, eps 1e-5, float32 or more inside."""
    return nn.LayerNorm(
        epsilon=EPSILON,
        use_bias=bias,
        use_fast_variance=False,
        dtype=dtype,
        scale_init=constant(1.0, "norm"),
        bias_init=constant(0.0, "norm"),
    )


def split_heads(x: Array, heads: int) -> Array:
    """(..., C) to (..., H, D): head h has the channels h D .. (h + 1) D - 1."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: Array) -> Array:
    """(..., H, D) to (..., C): the inverse of `split_heads`."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def head_scalars(values_H: Array) -> Array:
    """(H,) to (H, 1): one scalar per head, which broadcasts against (..., H, D)."""
    return values_H[:, None]
