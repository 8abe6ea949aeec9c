"""How arrays are sharded over a mesh of devices: one table from logical axes to mesh axes, and its use inside models.

``with jax.set_mesh(mesh)`` is all that it takes to run this library on a mesh whose axes have the names in MESH_AXES
(`training.mesh.make_mesh` makes one; generation runs on such a mesh of one device). No second context is needed: the
table below belongs to the library. Parameters carry the same logical names (`nn.with_logical_partitioning`).

XLA shards most operations by itself. `map_shards` is for those that it would gather instead: kernels, and loops over
blocks or positions.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from mosaics_jax.shapes import Array

MESH_AXES = ("data", "fsdp", "tensor", "sequence")
BATCH_AXES = ("data", "fsdp")

# Logical axis -> mesh axes. ``data`` splits the batch, ``fsdp`` also the parameters, ``tensor`` heads and hidden
# widths, ``sequence`` the time axis of activations. The order is the precedence: a mesh axis is used once in a tensor.
RULES: tuple[tuple[str, Any], ...] = (
    ("batch", BATCH_AXES),
    ("time", "sequence"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", "fsdp"),
    ("activation_heads", "tensor"),
    ("activation_vocab", "tensor"),
    ("activation_embed", None),
    ("head", None),
    ("head_dim", None),
    ("slots", "fsdp"),
    ("banks", None),
    ("norm", None),
    ("taps", None),
    ("position", None),
    ("layers", None),
    ("seeds", None),
)
HEADS = ("batch", "time", "activation_heads", None)  # the logical axes of an activation (B, T, H, D)

Names = Sequence[str | None]


def is_sharded() -> bool:
    """Whether a mesh of several devices is set and this is outside `jax.shard_map`, in which a device has its shard."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and AxisType.Manual not in mesh.axis_types


def mesh_axes(name: str | None, size: int) -> tuple[str, ...]:
    """The axes of the mesh in force that split the logical axis ``name``; none if they do not divide ``size``."""
    mesh = jax.sharding.get_abstract_mesh()
    entry = dict(RULES)[name] if name is not None else None
    axes = (entry,) if isinstance(entry, str) else entry or ()
    axes = tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)
    return () if size % math.prod(mesh.shape[axis] for axis in axes) else axes


def partition_spec(shape: Sequence[int], names: Names) -> PartitionSpec:
    """How an array of this shape is sharded if its axes have these logical names."""
    return PartitionSpec(*(mesh_axes(name, size) for name, size in zip(names, shape, strict=True)))


def constrain(x: Array, *names: str | None) -> Array:
    """``x``, sharded by the logical names of its axes; ``x`` itself without a mesh."""
    return lax.with_sharding_constraint(x, partition_spec(x.shape, names)) if is_sharded() else x


def time_axes(x_BTHD: Array) -> tuple[str, ...]:
    """The mesh axes that split the time of an activation.

    Empty if the mesh does not divide its time or its batch, as with a prompt, or the sequence that ``init`` gets.
    """
    if not is_sharded():
        return ()
    splits_batch = mesh_axes("batch", x_BTHD.shape[0]) == mesh_axes("batch", 0)  # every axis divides 0
    return mesh_axes("time", x_BTHD.shape[1]) if splits_batch else ()


def map_shards(
    function: Callable[..., Any], *arrays: Array, names: Sequence[Names], out: PartitionSpec | None = None
) -> Any:
    """``function(*arrays)`` on each device's shards; ``function`` itself where there is nothing to shard.

    ``names``: the logical axes of each array. ``out``: how the result is sharded (default: like the first array).
    """
    if not is_sharded():
        return function(*arrays)
    specs = tuple(partition_spec(array.shape, axes) for array, axes in zip(arrays, names, strict=True))
    run = jax.shard_map(function, in_specs=specs, out_specs=specs[0] if out is None else out, check_vma=False)
    return run(*arrays)
