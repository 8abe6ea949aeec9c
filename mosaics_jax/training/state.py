"""The state of a run and the compiled step that advances it."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mosaics_jax.shapes import Array, Params
from mosaics_jax.training.mesh import path_name, shardings_of
from mosaics_jax.training.optimizer import OptimizerConfig, decay_mask, make_optimizer, schedule
from mosaics_jax.training.spikes import SpikeState


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained, and on what. The loop assumes nothing else about an experiment.

    name: of the experiment and model, e.g. ``babistories/mosaic``; a work directory belongs to one name.
    init(key) -> parameters, boxed with their logical axis names (or plain arrays, then replicated).
    loss(params, batch, key) -> (scalar loss, dict of scalar metrics). The mean over the batch; with gradient
      accumulation the micro-batches weigh the same. ``key`` is new at every step.
    train_data: a Grain dataset of batches, endless: trees of numpy arrays, rows first, this process's rows only.
    evaluate(params) -> metrics; sample(params) -> text. Called between steps, under the mesh.
    config: JSON-able; all that must agree for a run to go on from a checkpoint.
    tokens_per_step: for throughput, over all processes; unit: what is counted.
    """

    name: str
    init: Callable[[Array], Params]
    loss: Callable[[Params, Any, Array], tuple[Array, dict[str, Array]]]
    train_data: Iterable[Any]
    config: dict[str, Any]
    tokens_per_step: int
    unit: str = "tokens"
    evaluate: Callable[[Params], dict[str, float]] | None = None
    sample: Callable[[Params], str] | None = None


@flax.struct.dataclass
class TrainState:
    """All that a step changes or reads: ``step`` () int32 counts the updates made; ``key`` is raw key data."""

    step: Array
    params: Params
    opt_state: Any
    key: Array


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A task on a mesh: ``abstract`` (shapes, types, shardings of the state), ``init()``, ``step(state, batch)``."""

    abstract: TrainState
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]


def make_trainer(task: Task, config: OptimizerConfig, steps: int, seed: int, mesh: Mesh) -> Trainer:
    """Call it, and the functions it returns, under ``jax.set_mesh(mesh)``."""

    def keys() -> Array:
        # Made where they are used, under tracing: a mesh of chips that are not here can compile, but compute nothing.
        return jax.random.split(jax.random.key(seed))

    optimizer = make_optimizer(config, steps, decay_mask(jax.eval_shape(lambda: task.init(keys()[0]))))

    def boxed_state() -> TrainState:
        init_key, step_key = keys()
        params = task.init(init_key)
        key = jax.random.key_data(step_key)
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params), key=key)

    boxed = jax.eval_shape(boxed_state)
    shardings = shardings_of(boxed, mesh)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nn.meta.map_axis_meta(lambda box: box.unbox(apply_constraint=False), boxed),  # type: ignore[call-arg]
        shardings,
    )
    init = jax.jit(lambda: nn.meta.unbox(boxed_state()), out_shardings=shardings)
    step = jax.jit(
        make_step(task.loss, optimizer, schedule(config, steps), config.accumulate),
        in_shardings=(shardings, None),
        out_shardings=(shardings, None),
        donate_argnums=0,
    )
    return Trainer(abstract=abstract, init=init, step=step)


def make_step(
    loss: Callable[[Params, Any, Array], tuple[Array, dict[str, Array]]],
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    accumulate: int = 1,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]:
    """The update ``step(state, batch) -> (state, metrics)``.

    Metrics: loss, grad_norm (before clipping), learning_rate, and the task's own, which may replace these. Where spikes
    are skipped also ``skipped``, steps so far, and ``spike``, 1 if this is one of them and 0 if not.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)

    def accumulated(params: Params, batch: Any, key: Array) -> tuple[tuple[Array, dict[str, Array]], Params]:
        """Means of loss, metrics and gradient over micro-batches, of which one is in memory at a time."""

        # Micro-batch i takes rows i, i + accumulate, ...: each device splits the rows it holds, nothing moves.
        def split(leaf: Array) -> Array:
            return leaf.reshape(leaf.shape[0] // accumulate, accumulate, *leaf.shape[1:]).swapaxes(0, 1)

        def add(total: Any, micro_batch: tuple[Array, Any]) -> tuple[Any, None]:
            index, rows = micro_batch
            return jax.tree.map(jnp.add, total, gradient(params, rows, jax.random.fold_in(key, index))), None

        micro_batches = (jnp.arange(accumulate), jax.tree.map(split, batch))
        shape = jax.eval_shape(gradient, params, jax.tree.map(lambda leaf: leaf[0], micro_batches[1]), key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
        total, _ = jax.lax.scan(add, zeros, micro_batches)
        return jax.tree.map(lambda leaf: leaf / accumulate, total)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        # The key of a step depends on its number alone, so that a resumed run draws what the uninterrupted one would.
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        mean_gradient = gradient if accumulate == 1 else accumulated
        (value, metrics), grads = mean_gradient(state.params, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updates_made = state.step
        if isinstance(state.opt_state, SpikeState):
            updates_made = state.step - state.opt_state.skipped
            metrics = {"skipped": opt_state.skipped, "spike": opt_state.skipped - state.opt_state.skipped} | metrics
        metrics = {
            "loss": value,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": learning_rate(updates_made),
        } | metrics
        params = optax.apply_updates(state.params, updates)
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state, key=state.key), metrics

    return step


@jax.jit
def all_finite(tree: Any) -> Array:
    """() bool: no NaN or infinity anywhere."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def count_parameters(params: Params) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def parameter_table(params: Params) -> str:
    """A line for each parameter (array or sharded shape): name, shape, type, count, how it is split; then the total."""
    rows = [("parameter", "shape", "type", "count", "split over")]
    for path, leaf in jax.tree.leaves_with_path(params):
        shape = " x ".join(map(str, leaf.shape)) or "scalar"
        size = leaf.sharding.mesh.shape
        axes = ", ".join(axis if axis and size[axis] > 1 else "-" for axis in leaf.sharding.spec)
        rows.append((path_name(path), shape, str(leaf.dtype), f"{leaf.size:,}", axes))
    rows.append(("total", "", "", f"{count_parameters(params):,}", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {dtype:<{widths[2]}}  {count:>{widths[3]}}  {axes}".rstrip()
        for name, shape, dtype, count, axes in rows
    )
