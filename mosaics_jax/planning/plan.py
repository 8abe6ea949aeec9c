"""The memory, FLOPs and traffic of a training step on chips that are not attached: compiled ahead of time, not run."""

import dataclasses
import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.errors import UserError
from mosaics_jax.planning.compiled import Program, Traffic
from mosaics_jax.planning.topology import GIB, Chip, slice_devices
from mosaics_jax.shapes import Params
from mosaics_jax.training.mesh import batch_sharding, check_rows, make_mesh
from mosaics_jax.training.optimizer import OptimizerConfig, decay_mask
from mosaics_jax.training.state import Task, count_parameters, make_trainer


@dataclasses.dataclass(frozen=True)
class Plan:
    """The costs of one step. Bytes and executed FLOPs are per device; a device is a chip.

    devices: how many; mesh: axis sizes above 1. parameters: how many numbers; tokens: of a batch. memory: bytes of
    "parameters", "optimizer", "batch", "temporaries", "program". hbm: bytes of a chip. model_flops: of the whole step
    over all devices (`model_flops`). executed_flops: of the matrix products in the compiled program, including
    recomputation and masked scores, divided evenly.
    """

    devices: int
    mesh: dict[str, int]
    parameters: int
    tokens: int
    memory: dict[str, float]
    hbm: float
    model_flops: float
    executed_flops: float
    traffic: Traffic
    chip: Chip

    def seconds(self, utilisation: float) -> dict[str, float]:
        """Shortest time for products (at ``utilisation`` of the peak FLOPs), for main memory and for the links."""
        sent = sum(total for _, total in self.traffic.collectives.values())
        return {
            "products": self.executed_flops / (utilisation * self.chip.flops),
            "memory": self.traffic.hbm / self.chip.hbm_rate,
            "links": sent / self.chip.link_rate,
        }


class TooLarge(UserError):
    """The step does not fit into the chips' memory.

    needed, hbm: bytes of the step, and of a chip. state: bytes of parameters and optimizer on a device.
    """

    def __init__(self, needed: float, hbm: float, state: float) -> None:
        super().__init__(f"a step needs {needed / GIB:.1f} GiB on each chip, which has {hbm / GIB:.2f} GiB")
        self.needed, self.hbm, self.state = needed, hbm, state


def make_plan(
    task: Task, optimizer: OptimizerConfig, mesh_text: str, topology: str, batch: Any, untied: bool, attended: int
) -> Plan:
    """Compiles the step that `train` would run. Raises UserError; TooLarge if the step does not fit.

    batch: tree of shapes of a whole batch. untied, attended: as in `model_flops`.
    """
    chip, devices = slice_devices(topology)
    mesh = make_mesh(mesh_text, devices)
    for leaf in jax.tree.leaves(batch):
        check_rows(leaf.shape[0], mesh, optimizer.accumulate)
    with jax.set_mesh(mesh):
        # The number of steps and the seed are constants in the program and do not change its costs.
        trainer = make_trainer(task, optimizer, steps=1000, seed=0, mesh=mesh)
        split = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=batch_sharding(mesh)), batch
        )
        traced = trainer.step.trace(trainer.abstract, split)  # type: ignore[attr-defined]
        parameters, moments = (_local_bytes(tree) for tree in (trainer.abstract.params, trainer.abstract.opt_state))
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            raise _too_large(error, parameters + moments, chip) from None
    analysis = compiled.memory_analysis()
    memory = {
        "parameters": parameters,
        "optimizer": moments,
        "batch": analysis.argument_size_in_bytes - parameters - moments,
        "temporaries": analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "program": analysis.generated_code_size_in_bytes,
    }
    if sum(memory.values()) > chip.hbm:  # compilers for GPUs do not check it
        raise TooLarge(sum(memory.values()), chip.hbm, parameters + moments)
    boxed = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    return Plan(
        devices=mesh.size,
        mesh={name: size for name, size in mesh.shape.items() if size > 1},
        parameters=count_parameters(trainer.abstract.params),
        tokens=task.tokens_per_step,
        memory=memory,
        hbm=chip.hbm,
        model_flops=model_flops(boxed, task.tokens_per_step, untied, attended),
        executed_flops=product_flops(traced.jaxpr.jaxpr) / mesh.size,
        traffic=Program(compiled.as_text()).traffic(mesh.size),
        chip=chip,
    )


def model_flops(boxed: Params, tokens: int, untied: bool, attended: int) -> float:
    """FLOPs that a step of the model needs: 6 for each token and weight, and 12 for each token and attended number.

    Forward, each weight of a matrix product (a slot of persistent memory included) takes one multiplication and one
    addition a token; backward takes twice that. Tables that are only looked up do not count: positions, and an
    embedding that is not also the head (``untied``). attended: pairs that a query retrieves from on average, times
    channels, summed over blocks; L C T / 2 if causal. Each is used twice: in a score, and in the weighted sum.
    """
    weights = 0
    for (path, leaf), counts in zip(
        jax.tree.leaves_with_path(boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)),
        jax.tree.leaves(decay_mask(boxed)),
        strict=True,
    ):
        looked_up = {"positions", "embedding"} if untied else {"positions"}
        if counts and path[0].key not in looked_up:
            weights += leaf.value.size if isinstance(leaf, nn.Partitioned) else leaf.size
    return 6.0 * tokens * (weights + 2 * attended)


def product_flops(jaxpr: Any) -> float:
    """FLOPs of the matrix products in a traced program, over all devices; the body of a scan counts at every step."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        inner = [getattr(p, "jaxpr", p) for p in parameters.values() if hasattr(getattr(p, "jaxpr", p), "eqns")]
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
        elif name == "scan":
            total += parameters["length"] * product_flops(inner[0])
        elif name == "shard_map":
            devices = parameters["mesh"].size  # each runs the body on its shard
            total += devices * product_flops(inner[0])
        elif name == "pallas_call":
            total += math.prod(parameters["grid_mapping"].grid) * product_flops(inner[0])
        elif name == "cond":
            total += max(product_flops(branch.jaxpr) for branch in parameters["branches"])
        else:
            total += sum(map(product_flops, inner))
    return total


def _local_bytes(tree: Any) -> float:
    """Bytes of a tree of sharded shapes on one device."""
    shapes = ((leaf.dtype, leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))
    return float(sum(jnp.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in shapes))


def _too_large(error: Exception, state: float, chip: Chip) -> Exception:
    """TooLarge if the compiler reports that memory is exhausted; otherwise ``error``."""
    units = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
    needs, has = r"(?:Used |temporaries \()([\d.]+)([KMGT])", r"(?: of |available HBM \()([\d.]+)([KMGT])"
    matches = [re.search(pattern, str(error)) for pattern in (needs, has)]
    if "RESOURCE_EXHAUSTED" not in str(error) or not all(matches):
        return error
    needed, hbm = (float(match.group(1)) * units[match.group(2)] for match in matches if match)
    return TooLarge(needed, hbm, state)
