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


def per_device(function: Callable[..., Array], *arrays: Array, names: Sequence[Sequence[str | None]]) -> Array:
    """``function(*arrays)``, each device computing with its own part: for kernels, which XLA cannot split.

    ``names``: the logical axes of each array. Those that the rules in force give to mesh axes, and that these divide,
    are split; the result is split as the first array is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or AxisType.Manual in mesh.axis_types:  # the last: one device's part already
        return function(*arrays)

    def spec(array: Array, names: Sequence[str | None]) -> PartitionSpec:
        split: list[tuple[str, ...]] = []
        for size, name in zip(array.shape, names, strict=True):
            (axes,) = nn.logical_to_mesh_axes((name,)) or (None,)
            axes = (axes,) if isinstance(axes, str) else axes or ()
            split.append(axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else ())
        return PartitionSpec(*split)

    specs = tuple(spec(array, axes) for array, axes in zip(arrays, names, strict=True))
    return jax.shard_map(function, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)
