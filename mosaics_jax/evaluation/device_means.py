"""Means over the rows of a batch that each device computes from its own rows."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from mosaics_jax.shapes import Params
from mosaics_jax.sharding import BATCH_AXES


def mean_over_devices(function: Callable[[Params, Any], Any]) -> Callable[[Params, Any], Any]:
    """``function(params, batch)``, a tree of means over the rows of a batch, with the rows sharded over the devices.

    It is for functions that loop over rows: XLA does not shard such a loop by itself. The mesh is the one that is set;
    without a mesh, or if the rows do not divide among its devices, every device computes the function of all rows.
    """

    def on_device(params: Params, batch: Any) -> Any:
        return jax.lax.pmean(function(params, batch), BATCH_AXES)

    def mean(params: Params, batch: Any) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or len(jax.tree.leaves(batch)[0]) % math.prod(mesh.shape[name] for name in BATCH_AXES):
            return function(params, batch)
        replicated, by_rows = PartitionSpec(), PartitionSpec(BATCH_AXES)
        sharded = jax.shard_map(on_device, in_specs=(replicated, by_rows), out_specs=replicated, check_vma=False)
        return sharded(params, batch)

    return mean
