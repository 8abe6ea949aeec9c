"""Where an op will run: the kind of device it is compiled for, and the part of each array that one device has."""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
from jax.sharding import AxisType, PartitionSpec

from mosaics_jax.shapes import Array


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``: of the mesh in force, whose chips need not be here, or of JAX's default devices."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def one_cpu_device() -> bool:
    """Whether nothing is split among devices, and loops over what a core's cache holds are worth their while."""
    mesh = jax.sharding.get_abstract_mesh()
    return platform() == "cpu" and (mesh.empty or mesh.size == 1)


def mesh_axes(name: str | None, size: int) -> tuple[str, ...]:
    """Axes of the mesh in force that the logical axis rules split ``name`` over; none if they do not divide size."""
    mesh = jax.sharding.get_abstract_mesh()
    (entry,) = nn.logical_to_mesh_axes((name,)) or (None,)
    axes = (entry,) if isinstance(entry, str) else entry or ()
    axes = tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)
    return () if size % math.prod(mesh.shape[axis] for axis in axes) else axes


def parted() -> bool:
    """Whether the code at hand is for arrays of a whole mesh: not for one device, nor already for its part."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and AxisType.Manual not in mesh.axis_types


def per_device(function: Callable[..., Array], *arrays: Array, names: Sequence[Sequence[str | None]]) -> Array:
    """``function(*arrays)``, each device with its own part: for kernels and loops that XLA cannot split.

    ``names``: the logical axes of each array, which are split as `mesh_axes` says; the result is split as the first
    array is.
    """
    if not parted():
        return function(*arrays)
    specs = tuple(
        PartitionSpec(*(mesh_axes(name, size) for name, size in zip(axes, array.shape, strict=True)))
        for array, axes in zip(arrays, names, strict=True)
    )
    return jax.shard_map(function, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)
