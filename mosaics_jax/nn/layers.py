"""Projections and normalisation with logical axis names: the parts that every unit is made of."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mosaics_jax.ops.products import product
from mosaics_jax.shapes import Array, Dtype

EPSILON = 1e-5


def normal(std: float, *axes: str | None) -> Any:
    """An initialiser: N(0, std) with logical axis names, one a dimension."""
    return nn.with_logical_partitioning(nn.initializers.normal(std), axes)


def constant(value: Any, *axes: str) -> Any:
    """An initialiser: the given value, broadcast to the shape asked for, with logical axis names."""

    def init(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
        del key
        return jnp.broadcast_to(jnp.asarray(value, dtype), shape)

    return nn.with_logical_partitioning(init, axes)


@jax.custom_vjp
def project(x: Array, kernel: Array) -> Array:
    """``x @ kernel``: (..., I) and (I, O) to (..., O), whose kernel gradient transposes the narrower of its factors.

    That product sums over positions, the outer axis of both factors, and XLA's CPU product wants one of them
    transposed: it takes the gradient of the output, however wide, which cost the GPT-2 baseline a fifth of a step.
    """
    return _multiply(x, kernel)


def _multiply(x: Array, kernel: Array) -> Array:
    return jnp.einsum("...i,io->...o", x, kernel)


def _project_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))  # not merged: on a mesh more than one of them may be split
    if x.shape[-1] <= gradient.shape[-1]:
        dkernel = lax.dot_general(x, gradient, ((rows, rows), ((), ())))
    else:
        dkernel = lax.dot_general(gradient, x, ((rows, rows), ((), ()))).T
    return jnp.einsum("...o,io->...i", gradient, kernel), dkernel


project.defvjp(lambda x, kernel: (product(_multiply(x, kernel)), (x, kernel)), _project_backward)


class Projection(nn.Module):
    """``x @ kernel + bias`` along the last axis: (..., in) to (..., features).

    Parameters ``kernel`` (in, features) ~ N(0, std) and, if asked for, ``bias`` (features,) = 0; ``axes`` names both
    dimensions of the kernel. Computes in ``dtype``.
    """

    features: int
    std: float
    axes: tuple[str, str] = ("embed", "heads")
    bias: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", normal(self.std, *self.axes), (x.shape[-1], self.features))
        y = project(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.bias:
            y += self.param("bias", constant(0.0, self.axes[1]), (self.features,)).astype(self.dtype)
        return y


def layer_norm(bias: bool, dtype: Dtype) -> nn.LayerNorm:
    """Layer normalisation with a scale and, if asked for, a bias; biased variance, eps 1e-5; float32 or more inside."""
    return nn.LayerNorm(
        epsilon=EPSILON,
        use_bias=bias,
        use_fast_variance=False,
        dtype=dtype,
        scale_init=constant(1.0, "norm"),
        bias_init=constant(0.0, "norm"),
    )


def split_heads(x: Array, heads: int) -> Array:
    """(..., C) to (..., H, D): head h owns the channels h D .. (h + 1) D - 1."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: Array) -> Array:
    """(..., H, D) to (..., C)."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def head_scalars(values_H: Array) -> Array:
    """(H,) to (H, 1): one scalar a head, against (..., H, D)."""
    return values_H[:, None]
