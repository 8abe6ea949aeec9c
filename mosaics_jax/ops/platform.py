"""Where an op will run: the kind of device it is compiled for, and the part of each array that one device has."""

from collections.abc import Callable, Sequence

import jax
from jax.sharding import PartitionSpec

from mosaics_jax.shapes import Array
from mosaics_jax.sharding import is_sharded, mesh_axes


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``: of the mesh in force, whose chips need not be here, or of JAX's default devices."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def one_cpu_device() -> bool:
    """Whether nothing is split among devices, and loops over what a core's cache holds are worth their while."""
    mesh = jax.sharding.get_abstract_mesh()
    return platform() == "cpu" and (mesh.empty or mesh.size == 1)


def per_device(function: Callable[..., Array], *arrays: Array, names: Sequence[Sequence[str | None]]) -> Array:
    """``function(*arrays)``, each device with its own part: for kernels and loops that XLA cannot split.

    ``names``: the logical axes of each array, which are split as `mesh_axes` says; the result is split as the first
    array is.
    """
    if not is_sharded():
        return function(*arrays)
    specs = tuple(
        PartitionSpec(*(mesh_axes(name, size) for name, size in zip(axes, array.shape, strict=True)))
        for array, axes in zip(arrays, names, strict=True)
    )
    return jax.shard_map(function, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)
