"""Cross-entropy of a language model's head, with and without the B x T x V array of logits."""

import functools

import chex
import jax
import jax.numpy as jnp
from jax import lax

from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import IGNORED, Array

BLOCK = 512  # positions whose logits exist at one time
Axes = tuple[str, ...]


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Loss of each position in nats, from whole logits: logits (..., V), int targets (...); 0 where target is -1."""
    logits = logits.astype(accumulation_dtype(logits))
    chex.assert_shape(targets, logits.shape[:-1])
    chosen = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(targets == IGNORED, 0.0, jax.nn.logsumexp(logits, axis=-1) - chosen)


def head_cross_entropy(
    hidden_BTC: Array, head_VC: Array, targets_BT: Array, scale: float = 1.0, z_loss: float = 0.0
) -> tuple[Array, Array]:
    """Mean loss in nats over targets other than -1, and their number; logits are ``scale * hidden @ head.T``.

    The loss of a position is -log p(target) + z_loss * log(Z)^2, Z being the sum of the exponentials of its logits: a
    small ``z_loss`` keeps the logits from drifting away together (PaLM, Chowdhery et al. 2022, section 5; there 1e-4).

    The logits are made for 512 positions at a time and never kept. The gradient is made in the same pass, where it
    costs two products of the block's size and no second pass over the logits. Products in the type of ``hidden``, sums
    in at least float32. No valid target gives loss 0 and gradient 0.
    """
    chex.assert_rank([hidden_BTC, head_VC, targets_BT], [3, 2, 2])
    chex.assert_shape(targets_BT, hidden_BTC.shape[:2])
    count = jnp.sum(targets_BT != IGNORED)
    hidden_NC = hidden_BTC.reshape(-1, hidden_BTC.shape[-1])
    total = total_cross_entropy(scale, z_loss, (), hidden_NC, head_VC, targets_BT.reshape(-1))
    return total / jnp.maximum(count, 1), count


def _blocks(hidden: Array, targets: Array) -> tuple[Array, Array]:
    size = min(BLOCK, len(hidden))
    padding = -len(hidden) % size
    hidden = jnp.pad(hidden, ((0, padding), (0, 0)))
    targets = jnp.pad(targets, (0, padding), constant_values=IGNORED)
    return hidden.reshape(-1, size, hidden.shape[-1]), targets.reshape(-1, size)


def _block_losses(
    scale: float, z_loss: float, axes: Axes, hidden: Array, head: Array, targets: Array
) -> tuple[Array, Array, Array, Array]:
    """The loss, the logits, the logarithms of their sums, and the number of each target in this part of the head."""
    logits = scale * jnp.einsum("nc,vc->nv", hidden, head, preferred_element_type=accumulation_dtype(hidden))
    log_total = jax.nn.logsumexp(logits, axis=-1)
    if not axes:
        chosen = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[:, None], axis=-1)[:, 0]
        losses = log_total + z_loss * jnp.square(log_total) - chosen
        return jnp.sum(jnp.where(targets == IGNORED, 0.0, losses)), logits, log_total, targets
    top = lax.pmax(log_total, axes)
    log_total = top + jnp.log(lax.psum(jnp.exp(log_total - top), axes))
    here = targets - lax.axis_index(axes) * len(head)
    chosen = jnp.take_along_axis(logits, jnp.clip(here, 0, len(head) - 1)[:, None], axis=-1)[:, 0]
    chosen = jnp.where((here >= 0) & (here < len(head)), chosen, 0.0)
    share = (log_total + z_loss * jnp.square(log_total)) / lax.axis_size(axes)  # so that the parts' losses add up
    return jnp.sum(jnp.where(targets == IGNORED, 0.0, share - chosen)), logits, log_total, here


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def total_cross_entropy(scale: float, z_loss: float, axes: Axes, hidden: Array, head: Array, targets: Array) -> Array:
    """Summed loss of hidden (N, C) and targets (N,), as in `head_cross_entropy`.

    Under `jax.shard_map` each device may hold a part of V, split over the mesh ``axes``, and all of them the same
    positions: losses and gradients are then shares, to be summed over those devices.
    """
    head = head.astype(hidden.dtype)

    def block(total: Array, xs: tuple[Array, Array]) -> tuple[Array, None]:
        return total + _block_losses(scale, z_loss, axes, xs[0], head, xs[1])[0], None

    zero = jnp.zeros((), accumulation_dtype(hidden))
    return lax.scan(block, zero, _blocks(hidden, targets))[0]


def _total_forward(
    scale: float, z_loss: float, axes: Axes, hidden: Array, head: Array, targets: Array
) -> tuple[Array, tuple[Array, Array]]:
    dtype = accumulation_dtype(hidden)
    table = head.astype(hidden.dtype)

    def block(carry: tuple[Array, Array], xs: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        total, dhead = carry
        x, y = xs
        loss, logits, log_total, here = _block_losses(scale, z_loss, axes, x, table, y)
        valid = (y != IGNORED)[:, None]
        hit = jnp.arange(len(table)) == here[:, None]
        log_total = log_total[:, None]
        share = jnp.exp(logits - log_total) * (1.0 + 2.0 * z_loss * log_total)
        dlogits = (scale * jnp.where(valid, share - hit, 0.0)).astype(x.dtype)
        dx = jnp.einsum("nv,vc->nc", dlogits, table)
        dhead += jnp.einsum("nv,nc->vc", dlogits, x, preferred_element_type=dtype)
        return (total + loss, dhead), dx

    start = (jnp.zeros((), dtype), jnp.zeros(head.shape, dtype))
    (total, dhead), dx = lax.scan(block, start, _blocks(hidden, targets))
    return total, (dx.reshape(-1, hidden.shape[-1])[: len(hidden)], dhead.astype(head.dtype))


def _total_backward(
    scale: float, z_loss: float, axes: Axes, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array, None]:
    dhidden, dhead = saved
    return (gradient * dhidden).astype(dhidden.dtype), (gradient * dhead).astype(dhead.dtype), None


total_cross_entropy.defvjp(_total_forward, _total_backward)
