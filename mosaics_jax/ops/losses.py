"""Cross-entropy of a language model's head, with and without the B x T x V array of logits.

Shapes here: R positions of all sequences or of one block, I blocks.
"""

import functools

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import IGNORED, Array
from mosaics_jax.sharding import is_sharded, map_shards, mesh_axes

BLOCK = 512  # positions whose logits exist at a time
Axes = tuple[str, ...]  # of a mesh


def cross_entropy(logits: Array, targets: Array) -> Array:
    """The loss of each position in nats, from logits (..., V) and integer targets (...); 0 where the target is -1."""
    logits = logits.astype(accumulation_dtype(logits))
    chex.assert_shape(targets, logits.shape[:-1])
    chosen = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(targets == IGNORED, 0.0, jax.nn.logsumexp(logits, axis=-1) - chosen)


def head_cross_entropy(
    hidden_BTC: Array, head_VC: Array, targets_BT: Array, scale: float = 1.0, z_loss: float = 0.0
) -> tuple[Array, Array]:
    """The mean loss in nats over targets other than -1, and the number of such targets.

    The logits are ``scale * hidden_BTC @ head_VC.T``. The loss of a position is -log p(target) + z_loss * log(Z)^2,
    where Z is the sum of the exponentials of its logits: a small ``z_loss`` keeps log(Z) near 0 (PaLM, Chowdhery et al.
    2022, section 5, with 1e-4). If every target is -1, loss and gradient are 0.

    Logits are computed for BLOCK positions at a time and never stored. The gradient is computed in the same loop, which
    takes two more products per block and saves recomputing the logits. Products are in the type of ``hidden_BTC``, sums
    in at least float32.

    On a mesh, each device loops over its own positions and its shard of V. XLA, if it sharded the loop, would run every
    block on every device.
    """
    chex.assert_rank([hidden_BTC, head_VC, targets_BT], [3, 2, 2])
    chex.assert_shape(targets_BT, hidden_BTC.shape[:2])
    batch, time, _ = hidden_BTC.shape
    vocabulary_axes = mesh_axes("activation_vocab", len(head_VC)) if is_sharded() else ()

    def on_shard(hidden_BTC: Array, head_VC: Array, targets_BT: Array) -> Array:
        hidden_RC = hidden_BTC.reshape(-1, hidden_BTC.shape[-1])
        total = total_cross_entropy(scale, z_loss, vocabulary_axes, hidden_RC, head_VC, targets_BT.reshape(-1))
        return total.reshape(1, 1, 1)

    names = (("batch", "time", None), ("activation_vocab", None), ("batch", "time"))
    out = PartitionSpec(mesh_axes("batch", batch), mesh_axes("time", time), vocabulary_axes)
    totals = map_shards(on_shard, hidden_BTC, head_VC, targets_BT, names=names, out=out)
    count = jnp.sum(targets_BT != IGNORED)
    return jnp.sum(totals) / jnp.maximum(count, 1), count


def _blocks(hidden_RC: Array, targets_R: Array) -> tuple[Array, Array]:
    """Blocks of positions, (I, R, C) and (I, R). Positions that pad the last block carry no loss."""
    size = min(BLOCK, len(hidden_RC))
    padding = -len(hidden_RC) % size
    hidden_RC = jnp.pad(hidden_RC, ((0, padding), (0, 0)))
    targets_R = jnp.pad(targets_R, (0, padding), constant_values=IGNORED)
    return hidden_RC.reshape(-1, size, hidden_RC.shape[-1]), targets_R.reshape(-1, size)


def _block_losses(
    scale: float, z_loss: float, axes: Axes, hidden_RC: Array, head_VC: Array, targets_R: Array
) -> tuple[Array, Array, Array, Array]:
    """For one block: the summed loss, the logits (R, V), log(Z) (R,), and the row of ``head_VC`` of each target (R,).

    The row is outside of ``head_VC`` if another device has it.
    """
    dtype = accumulation_dtype(hidden_RC)
    logits_RV = scale * jnp.einsum("rc,vc->rv", hidden_RC, head_VC, preferred_element_type=dtype)
    log_total_R = jax.nn.logsumexp(logits_RV, axis=-1)
    if not axes:
        chosen_R = jnp.take_along_axis(logits_RV, jnp.maximum(targets_R, 0)[:, None], axis=-1)[:, 0]
        losses_R = log_total_R + z_loss * jnp.square(log_total_R) - chosen_R
        return jnp.sum(jnp.where(targets_R == IGNORED, 0.0, losses_R)), logits_RV, log_total_R, targets_R
    largest_R = lax.pmax(log_total_R, axes)
    log_total_R = largest_R + jnp.log(lax.psum(jnp.exp(log_total_R - largest_R), axes))
    row_R = targets_R - lax.axis_index(axes) * len(head_VC)
    chosen_R = jnp.take_along_axis(logits_RV, jnp.clip(row_R, 0, len(head_VC) - 1)[:, None], axis=-1)[:, 0]
    chosen_R = jnp.where((row_R >= 0) & (row_R < len(head_VC)), chosen_R, 0.0)
    # Every device of ``axes`` has this term. Each contributes an equal share, so that the sum over devices has it once.
    share_R = (log_total_R + z_loss * jnp.square(log_total_R)) / lax.axis_size(axes)
    return jnp.sum(jnp.where(targets_R == IGNORED, 0.0, share_R - chosen_R)), logits_RV, log_total_R, row_R


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def total_cross_entropy(
    scale: float, z_loss: float, axes: Axes, hidden_RC: Array, head_VC: Array, targets_R: Array
) -> Array:
    """The summed loss of all positions, as in `head_cross_entropy`.

    Inside `jax.shard_map`, V may be sharded over the mesh ``axes``, while all devices of these axes have the same
    positions. Each device then returns a share: losses and gradients must be summed over ``axes``.
    """
    head_VC = head_VC.astype(hidden_RC.dtype)

    def block(total: Array, xs: tuple[Array, Array]) -> tuple[Array, None]:
        return total + _block_losses(scale, z_loss, axes, xs[0], head_VC, xs[1])[0], None

    zero = jnp.zeros((), accumulation_dtype(hidden_RC))
    return lax.scan(block, zero, _blocks(hidden_RC, targets_R))[0]


def _total_forward(
    scale: float, z_loss: float, axes: Axes, hidden_RC: Array, head_VC: Array, targets_R: Array
) -> tuple[Array, tuple[Array, Array]]:
    dtype = accumulation_dtype(hidden_RC)
    table_VC = head_VC.astype(hidden_RC.dtype)

    def block(carry: tuple[Array, Array], xs: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        total, dhead_VC = carry
        x_RC, y_R = xs
        loss, logits_RV, log_total_R, row_R = _block_losses(scale, z_loss, axes, x_RC, table_VC, y_R)
        valid_R1 = (y_R != IGNORED)[:, None]
        is_target_RV = jnp.arange(len(table_VC)) == row_R[:, None]
        log_total_R1 = log_total_R[:, None]
        share_RV = jnp.exp(logits_RV - log_total_R1) * (1.0 + 2.0 * z_loss * log_total_R1)
        dlogits_RV = (scale * jnp.where(valid_R1, share_RV - is_target_RV, 0.0)).astype(x_RC.dtype)
        dx_RC = jnp.einsum("rv,vc->rc", dlogits_RV, table_VC)
        dhead_VC += jnp.einsum("rv,rc->vc", dlogits_RV, x_RC, preferred_element_type=dtype)
        return (total + loss, dhead_VC), dx_RC

    start = (jnp.zeros((), dtype), jnp.zeros(head_VC.shape, dtype))
    (total, dhead_VC), dx_IRC = lax.scan(block, start, _blocks(hidden_RC, targets_R))
    dhidden_RC = dx_IRC.reshape(-1, hidden_RC.shape[-1])[: len(hidden_RC)]
    return total, (dhidden_RC, dhead_VC.astype(head_VC.dtype))


def _total_backward(
    scale: float, z_loss: float, axes: Axes, saved: tuple[Array, Array], dtotal: Array
) -> tuple[Array, Array, None]:
    dhidden_RC, dhead_VC = saved
    return (dtotal * dhidden_RC).astype(dhidden_RC.dtype), (dtotal * dhead_VC).astype(dhead_VC.dtype), None


total_cross_entropy.defvjp(_total_forward, _total_backward)
