"""The device mesh: how it is asked for, and how batches and parameters are put on it."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mosaics_jax.errors import UserError
from mosaics_jax.shapes import Params
from mosaics_jax.sharding import BATCH_AXES, MESH_AXES, RULES


def parse_mesh(text: str, devices: int) -> dict[str, int]:
    """Axis sizes from ``data:2,fsdp:-1``; -1, once at most, takes the devices that are left. Unnamed axes have size 1.

    Raises UserError unless the sizes multiply to ``devices``.
    """
    sizes = dict.fromkeys(MESH_AXES, 1)
    given: list[str] = []
    for part in text.split(","):
        name, _, number = part.strip().partition(":")
        if name not in MESH_AXES:
            raise UserError(f"mesh={text!r}: {name!r} is not one of {', '.join(MESH_AXES)}; write e.g. data:2,fsdp:4")
        if name in given:
            raise UserError(f"mesh={text!r}: {name} is given twice")
        try:
            sizes[name] = int(number)
        except ValueError:
            raise UserError(f"mesh={text!r}: {part.strip()!r} is not NAME:SIZE; write e.g. data:2,fsdp:4") from None
        if sizes[name] < 1 and sizes[name] != -1:
            raise UserError(f"mesh={text!r}: the size of {name} must be at least 1, or -1 for all that is left")
        given.append(name)
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise UserError(f"mesh={text!r}: only one axis may be -1, not {' and '.join(open_axes)}")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if open_axes and devices % fixed == 0:
        sizes[open_axes[0]] = devices // fixed
    if math.prod(sizes.values()) != devices:
        raise UserError(
            f"mesh={text!r} does not fit {devices} device{'s' * (devices != 1)}: the sizes must multiply to {devices}"
        )
    return sizes


def make_mesh(text: str, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh that ``text`` describes (see ``parse_mesh``) over ``devices`` (default: all), with all of MESH_AXES.

    Devices of several TPU slices are laid out so that ``data`` alone goes from slice to slice, over the slower network.
    Raises UserError if the sizes fit neither devices, slices nor processes.
    """
    devices = jax.devices() if devices is None else devices
    sizes = parse_mesh(text, len(devices))
    axis_types = (AxisType.Auto,) * len(sizes)
    slices = len({slice_of(device) for device in devices})
    if slices == 1:
        mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=axis_types, devices=devices)
    elif sizes["data"] % slices:
        raise UserError(f"mesh={text!r}: data must be a multiple of the {slices} slices, which it alone is split over")
    else:
        within = sizes | {"data": sizes["data"] // slices}
        across = dict.fromkeys(sizes, 1) | {"data": slices}
        grid = mesh_utils.create_hybrid_device_mesh(
            tuple(within.values()), tuple(across.values()), devices, allow_split_physical_axes=True
        )
        mesh = Mesh(grid, tuple(sizes), axis_types=axis_types)
    processes = len({device.process_index for device in devices})
    if batch_shards(mesh) % processes:
        raise UserError(
            f"mesh={text!r}: data x fsdp must be a multiple of the {processes} processes, "
            "each of which reads its own part of the batch"
        )
    return mesh


def slice_of(device: Any) -> int:
    """The TPU slice that a device belongs to; 0 where there are none."""
    return getattr(device, "slice_index", None) or 0


def batch_shards(mesh: Mesh) -> int:
    """Parts that a batch is split into."""
    return math.prod(mesh.shape[name] for name in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split along their first axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def put_batch(batch: Any, mesh: Mesh, micro_batches: int = 1) -> Any:
    """Puts this process's part of a batch on its devices: numpy arrays (rows, ...) to global arrays (all rows, ...).

    Without a mesh (an empty one), arrays go to the default device. Raises UserError if the rows do not divide among the
    devices and ``micro_batches``.
    """
    if mesh.empty:
        return jax.tree.map(jax.numpy.asarray, batch)
    sharding = batch_sharding(mesh)
    for leaf in jax.tree.leaves(batch):
        check_rows(leaf.shape[0] * jax.process_count(), mesh, micro_batches)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)


def check_rows(rows: int, mesh: Mesh, micro_batches: int = 1) -> None:
    """Raises UserError unless the rows of a whole batch divide among the devices and ``micro_batches``."""
    parts = batch_shards(mesh) * micro_batches
    if rows % parts:
        raise UserError(
            f"a batch of {rows} does not divide into {parts} equal parts "
            f"(mesh data x fsdp = {batch_shards(mesh)}, accumulate = {micro_batches}): choose a multiple of {parts}"
        )


def shardings_of(boxed: Params, mesh: Mesh) -> Any:
    """The sharding of each leaf, by its logical axis names under RULES; leaves without names are replicated.

    ``boxed``: a tree of (shapes of) arrays as ``init`` gives it. Raises UserError if a mesh axis does not divide one of
    their dimensions.
    """
    known = {name for name, _ in RULES}
    for path, leaf in jax.tree.leaves_with_path(boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)):
        if not isinstance(leaf, nn.Partitioned):
            continue
        where = path_name(path)
        if len(leaf.names) != leaf.value.ndim:
            raise ValueError(f"{where}: axis names {leaf.names} do not fit shape {leaf.value.shape}")
        if unknown := [name for name in leaf.names if name is not None and name not in known]:
            raise ValueError(f"{where}: axis {unknown[0]!r} is not in mosaics_jax.sharding.RULES")
        axes = nn.logical_to_mesh_axes(leaf.names, RULES) or ()
        for size, name, axis in zip(leaf.value.shape, leaf.names, axes, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                raise UserError(f"mesh {axis}:{mesh.shape[axis]} does not divide the {name} axis of {where}, {size}")
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)


def path_name(path: Any) -> str:
    """A tree path as ``block_0/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
