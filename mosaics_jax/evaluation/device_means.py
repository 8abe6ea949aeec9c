"""Means over the rows of a batch that each device computes from its own rows."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from mosaics_jax.shapes import Array, Params
from mosaics_jax.sharding import is_sharded, map_shards, mesh_axes


def mean_over_devices(function: Callable[[Params, Any], Any]) -> Callable[[Params, Any], Any]:
    """``function(params, batch)``, a tree of means over the rows of a batch, with the rows sharded over the devices.

    It is for functions that loop over rows: XLA does not shard such a loop by itself. The mesh is the one that is set;
    without a mesh, or if the rows do not divide among its devices, every device computes the function of all rows.
    """

    def mean(params: Params, batch: Any) -> Any:
        leaves, structure = jax.tree.flatten((params, batch))
        rows = jax.tree.leaves(batch)[0].shape[0]
        axes = mesh_axes("batch", rows) if is_sharded() else ()
        if not axes:
            return function(params, batch)

        def on_shard(*leaves: Array) -> Any:
            return jax.lax.pmean(function(*jax.tree.unflatten(structure, leaves)), axes)

        of_params = [(None,) * leaf.ndim for leaf in jax.tree.leaves(params)]
        of_batch = [("batch", *(None,) * (leaf.ndim - 1)) for leaf in jax.tree.leaves(batch)]
        return map_shards(on_shard, *leaves, names=of_params + of_batch, out=PartitionSpec())

    return mean
