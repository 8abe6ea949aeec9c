"""How arrays are split over a mesh of devices: one table from logical axes to mesh axes, and its use inside models.

``with jax.set_mesh(mesh)`` is all that it takes to run this library on a mesh whose axes have the names of MESH_AXES
(`training.mesh.make_mesh` makes one; so does generation, of one device). The table below belongs to the library: no
second context has to be entered. Linen's names on parameters (`nn.with_logical_partitioning`) are read by the same
table.
"""

import math
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


def mesh_axes(name: str | None, size: int) -> tuple[str, ...]:
    """The axes of the mesh in force that RULES split the axis ``name`` over; none if they do not divide ``size``."""
    mesh = jax.sharding.get_abstract_mesh()
    entry = dict(RULES)[name] if name is not None else None
    axes = (entry,) if isinstance(entry, str) else entry or ()
    axes = tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)
    return () if size % math.prod(mesh.shape[axis] for axis in axes) else axes


def is_sharded() -> bool:
    """Whether arrays here belong to a mesh of several devices, of which each does not yet work on its own shard."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and AxisType.Manual not in mesh.axis_types


def constrain(x: Array, *names: str | None) -> Array:
    """``x``, split over the mesh in force by the logical ``names`` of its axes; ``x`` itself without a mesh."""
    if not is_sharded():
        return x
    axes = (mesh_axes(name, size) for name, size in zip(names, x.shape, strict=True))
    return lax.with_sharding_constraint(x, PartitionSpec(*axes))
