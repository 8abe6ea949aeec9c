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

from mosaics_jax.runtime.tables import aligned
from mosaics_jax.shapes import Array, Params
from mosaics_jax.training.mesh import path_name, shardings_of
from mosaics_jax.training.optimizer import OptimizerConfig, decay_mask, make_optimizer, schedule
from mosaics_jax.training.spikes import SpikeState


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained, and on what data. The loop assumes nothing else about an experiment.

    name: EXPERIMENT/MODEL, e.g. ``babistories/mosaic``; a work directory belongs to one name.
    init(key) -> parameters, boxed with their logical axis names (or plain arrays, which are replicated).
    loss(params, batch, key) -> (scalar loss, dict of scalar metrics), means over the batch; with gradient accumulation
      all micro-batches have the same weight. ``key`` is new at every step.
    train_data: an endless Grain dataset of batches, trees of numpy arrays (rows, ...) with the rows of this process.
    config: JSON-able; all of the task that must agree for a run to resume from a checkpoint (`training.run_config`).
    tokens_per_step: tokens of a whole batch, for the throughput; unit: what they are called.
    evaluate(params) -> metrics; sample(params) -> text. Both are called between steps, under the mesh.
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
    """All that a step reads and changes, besides the batch.

    step: () int32, updates made so far. opt_state: the optimizer's. key: raw key data of the random key of all steps.
    """

    step: Array
    params: Params
    opt_state: Any
    key: Array


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A task on a mesh.

    abstract: shapes, types and shardings of the state. init(): the initial state. step(state, batch) -> (state,
    metrics), which donates ``state``.
    """

    abstract: TrainState
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]


def make_trainer(task: Task, config: OptimizerConfig, steps: int, seed: int, mesh: Mesh) -> Trainer:
    """The trainer of ``task`` for a run of ``steps`` steps.

    Call this function, and the functions of the result, under ``jax.set_mesh(mesh)``. Raises UserError if the mesh does
    not divide a parameter.
    """

    def keys() -> Array:
        # Called under tracing only: a mesh of chips that are not here (planning/) can compile but compute nothing.
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
        unboxed_shapes(boxed),
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

    Metrics: loss, grad_norm (before clipping), learning_rate, and those of the task, which may replace these. With an
    optimizer that skips spikes also ``skipped``, the number of steps skipped so far, and ``spike``, 1 if this step is
    skipped and 0 otherwise.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)

    def accumulated(params: Params, batch: Any, key: Array) -> tuple[tuple[Array, dict[str, Array]], Params]:
        """Means of loss, metrics and gradient over micro-batches, computed one after the other to save memory."""

        # Micro-batch i takes rows i, i + accumulate, ...: each device splits the rows that it holds, and none move.
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
        # The key of a step depends on its number alone, so that a resumed run draws the same as an uninterrupted one.
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


def unboxed_shapes(boxed: Any) -> Any:
    """The shapes in a tree as ``jax.eval_shape(init)`` gives it, without their logical axis names."""
    return nn.meta.map_axis_meta(lambda box: box.unbox(apply_constraint=False), boxed)  # type: ignore[call-arg]


@jax.jit
def all_finite(tree: Any) -> Array:
    """() bool: no leaf holds a NaN or an infinity."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def count_parameters(params: Params) -> int:
    """How many numbers a tree of arrays or shapes holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def parameter_table(params: Params) -> str:
    """A table of the parameters (sharded arrays or shapes): name, shape, type, count, mesh axes; then the total."""
    rows = [("parameter", "shape", "type", "count", "split over")]
    for path, leaf in jax.tree.leaves_with_path(params):
        shape = " x ".join(map(str, leaf.shape)) or "scalar"
        size = leaf.sharding.mesh.shape
        axes = ", ".join(axis if axis and size[axis] > 1 else "-" for axis in leaf.sharding.spec)
        rows.append((path_name(path), shape, str(leaf.dtype), f"{leaf.size:,}", axes))
    rows.append(("total", "", "", f"{count_parameters(params):,}", ""))
    return aligned(rows, left=(0, 1, 2, 4))
