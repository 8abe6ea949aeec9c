"""Ops along time on a mesh that splits the time axis: each device works on its own rows, heads and positions.

XLA would gather the whole sequence for a recurrence or for a loop over blocks of it. Here a device passes on what
others need: the leaky average its last state, contextual retrieval its keys and values, a value its first position to
the shard before. All else stays where it is. Dropped weights are those of one device, as every query keeps its number.

Convolutions over time (`key_taps` above 1) are left to XLA, which gathers their inputs: right, but not split.

Where time is whole, or rows or positions do not divide among the devices (a prompt, the batch of one that parameters
are made with), each function is the op of the same name. Which mesh axes split what is said by the logical axis rules
that are set (`training.mesh.RULES`).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from mosaics_jax import ops
from mosaics_jax.ops import RetrievalForm, blockwise
from mosaics_jax.ops.dropout_mask import check_seed, keep_mask
from mosaics_jax.ops.kernel_regression import masked_softmax
from mosaics_jax.ops.losses import total_cross_entropy
from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.ops.products import product
from mosaics_jax.shapes import IGNORED, Array
from mosaics_jax.sharding import is_sharded, mesh_axes

Axes = tuple[str, ...]
EVERYWHERE = PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Split:
    """Mesh axes that split rows, positions, and heads (or the vocabulary) of arrays; none where they are whole."""

    rows: Axes
    time: Axes
    heads: Axes
    sizes: dict[str, int]

    @property
    def spec(self) -> PartitionSpec:
        return PartitionSpec(self.rows, self.time, self.heads)

    def shards(self, axes: Axes) -> int:
        return math.prod(self.sizes[axis] for axis in axes)

    def map(self, function: Callable[..., Any], in_specs: tuple[PartitionSpec, ...]) -> Callable[..., Any]:
        """``function`` on each device's parts of its arguments; its result is split as ``spec`` says."""
        return jax.shard_map(function, in_specs=in_specs, out_specs=self.spec, check_vma=False)

    def numbers(self, batch: int, time: int, heads: int) -> Array:
        """(B, T, H) of a device's part of these sizes: the `row_numbers` of its queries in the whole."""
        row, position, head = (
            lax.axis_index(axes) * size + jnp.arange(size) if axes else jnp.arange(size)
            for axes, size in ((self.rows, batch), (self.time, time), (self.heads, heads))
        )
        all_heads, all_time = heads * self.shards(self.heads), time * self.shards(self.time)
        return (row[:, None, None] * all_heads + head) * all_time + position[:, None]


def split_of(rows: int, time: int, last: int, name: str = "activation_heads") -> Split | None:
    """How the mesh that is set splits arrays of these sizes; None if it has nothing to split.

    Sizes that do not divide stay whole. ``name``: logical axis of the last one.
    """
    axes = mesh_axes("batch", rows), mesh_axes("time", time), mesh_axes(name, last)
    return Split(*axes, dict(jax.sharding.get_abstract_mesh().shape)) if is_sharded() and any(axes) else None


def _time_split(x_BTHD: Array) -> Split | None:
    """The split of an array whose time axis is split, and whose rows are wherever they can be."""
    rows, time, heads, _ = x_BTHD.shape
    split = split_of(rows, time, heads)
    whole_rows = mesh_axes("batch", 0)  # 0 divides: the axes that rows are split over if they can be
    return split if split and split.time and split.rows == whole_rows else None


def leaky_average(x_BTHD: Array, rate_H: Array, state_BHD: Array | None = None) -> Array:
    """`ops.leaky_average`. Shards begin at zero; what the earlier ones leave is added: y_t + exp(-rate t) y_before."""
    split = _time_split(x_BTHD) if state_BHD is None else None
    if split is None:
        return ops.leaky_average(x_BTHD, rate_H, state_BHD)

    def on_device(x_BTHD: Array, rate_H: Array) -> Array:
        y_BTHD = ops.leaky_average(x_BTHD, rate_H)
        time, rate_H = x_BTHD.shape[1], rate_H.astype(y_BTHD.dtype)
        lasts_SBHD = lax.all_gather(y_BTHD[:, -1], split.time)
        age_S = lax.axis_index(split.time) - 1 - jnp.arange(len(lasts_SBHD))
        share_SH = jnp.where(age_S[:, None] >= 0, jnp.exp(-rate_H * time * jnp.maximum(age_S, 0)[:, None]), 0.0)
        before_BHD = jnp.sum(share_SH[:, None, :, None] * lasts_SBHD, axis=0)
        reach_TH = jnp.exp(-rate_H * (jnp.arange(time)[:, None] + 1))
        return y_BTHD + reach_TH[..., None] * before_BHD[:, None]

    return split.map(on_device, (split.spec, PartitionSpec(split.heads)))(x_BTHD, rate_H)


def following(x_BTHD: Array) -> Array:
    """x_{t+1} at position t; 0 at the last."""
    split = _time_split(x_BTHD)
    if split is None:
        return jnp.pad(x_BTHD[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
    (axis,) = split.time

    def on_device(x_BTHD: Array) -> Array:
        to_the_one_before = [(shard, shard - 1) for shard in range(1, split.sizes[axis])]
        return jnp.concatenate([x_BTHD[:, 1:], lax.ppermute(x_BTHD[:, :1], axis, to_the_one_before)], axis=1)

    return split.map(on_device, (split.spec,))(x_BTHD)


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
    """`ops.causal_retrieval`. A device gathers the keys and values of the sequence, and answers its own queries.

    The weights of one block of queries exist at a time, forward and backward. All shards take the time of the last,
    whose queries may find every pair.
    """
    split = _time_split(queries_BTHD)
    if split is None:
        options: dict[str, Any] = {"strict": strict, "dropout_rate": dropout_rate, "dropout_seed": dropout_seed}
        return ops.causal_retrieval(queries_BTHD, keys_BTHD, values_BTHD, form=form, **options)

    def on_device(q_BTHD: Array, k_BTHD: Array, v_BTHD: Array, seed: Array) -> Array:
        k_BNHD, v_BNHD = (lax.all_gather(a, split.time, axis=1, tiled=True) for a in (k_BTHD, v_BTHD))
        batch, time, heads, _ = q_BTHD.shape
        last_T = lax.axis_index(split.time) * time + jnp.arange(time) - int(strict)
        numbers_BTH = split.numbers(batch, time, heads)
        return product(_answers(q_BTHD, k_BNHD, v_BNHD, last_T, numbers_BTH, dropout_rate, seed))

    run = split.map(on_device, (split.spec, split.spec, split.spec, EVERYWHERE))
    return run(queries_BTHD, keys_BTHD, values_BTHD, check_seed(dropout_rate, dropout_seed))


def _answers(
    q_BTHD: Array, k_BNHD: Array, v_BNHD: Array, last_T: Array, numbers_BTH: Array, rate: float, seed: Array
) -> Array:
    """Answers of queries, each from the pairs up to its ``last``."""
    dtype, time = accumulation_dtype(q_BTHD), q_BTHD.shape[1]
    size = min(time, blockwise.BLOCK)
    pair = jnp.arange(k_BNHD.shape[1])
    # Gradients of pairs are sums over blocks: wide, although the products are not.
    wide_k, wide_v = k_BNHD.astype(dtype), v_BNHD.astype(dtype)

    @jax.checkpoint
    def block(xs: tuple[Array, Array, Array]) -> Array:
        q_BTHD, last_T, numbers_BTH = xs
        keys, values = wide_k.astype(k_BNHD.dtype), wide_v.astype(v_BNHD.dtype)
        scores = jnp.einsum("bthd,bnhd->bhtn", q_BTHD, keys, preferred_element_type=dtype)
        weights = masked_softmax(scores, pair <= last_T[:, None])
        if rate > 0:
            keep = keep_mask(seed, jnp.swapaxes(numbers_BTH, 1, 2)[..., None], pair, rate)
            weights = jnp.where(keep, weights / (1.0 - rate), 0.0)
        return jnp.einsum("bhtn,bnhd->bthd", weights.astype(values.dtype), values)

    def cut(a: Array, axis: int, fill: int = 0) -> Array:
        a = jnp.moveaxis(a, axis, 0)
        a = jnp.pad(a, ((0, -time % size),) + ((0, 0),) * (a.ndim - 1), constant_values=fill)
        return jnp.moveaxis(a.reshape(-1, size, *a.shape[1:]), 1, axis + 1)

    answers = lax.map(block, (cut(q_BTHD, 1), cut(last_T, 0, -1), cut(numbers_BTH, 1)))
    answers = jnp.moveaxis(answers, 0, 1)
    return answers.reshape(len(q_BTHD), -1, *answers.shape[3:])[:, :time]


def head_cross_entropy(
    hidden_BTC: Array, head_VC: Array, targets_BT: Array, scale: float = 1.0, z_loss: float = 0.0
) -> tuple[Array, Array]:
    """`ops.head_cross_entropy`, on any mesh: a device makes the logits of its positions and its part of V.

    Its loop is over blocks of positions, and XLA would have every device go through all of them.
    """
    rows, time, _ = hidden_BTC.shape
    split = split_of(rows, time, len(head_VC), "activation_vocab")
    if split is None:
        return ops.head_cross_entropy(hidden_BTC, head_VC, targets_BT, scale, z_loss)

    def on_device(hidden_BTC: Array, head_VC: Array, targets_BT: Array) -> Array:
        flat = hidden_BTC.reshape(-1, hidden_BTC.shape[-1])
        total = total_cross_entropy(scale, z_loss, split.heads, flat, head_VC, targets_BT.reshape(-1))
        return total.reshape(1, 1, 1)

    in_specs = PartitionSpec(split.rows, split.time), PartitionSpec(split.heads), PartitionSpec(split.rows, split.time)
    parts = split.map(on_device, in_specs)(hidden_BTC, head_VC, targets_BT)
    count = jnp.sum(targets_BT != IGNORED)
    return jnp.sum(parts) / jnp.maximum(count, 1), count
