"""Three moons: copies of one network, trained at once to predict the next point of a signal (v1 section 4)."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mosaics_jax.data.moons import MoonsConfig, windows
from mosaics_jax.evaluation.device_means import mean_over_devices
from mosaics_jax.evaluation.moon_results import TrainedCopies
from mosaics_jax.models.moons import MoonMosaic, MoonMosaicConfig
from mosaics_jax.settings import setting
from mosaics_jax.shapes import Array, Params
from mosaics_jax.training.loop import TrainResult
from mosaics_jax.training.metrics import read_metrics
from mosaics_jax.training.state import Task

CLIP = 0.5  # errors beyond +-CLIP count as CLIP in the loss
FINAL_STEPS = 20  # a final loss is the mean over so many steps
# The published optimizer. The published matrices hold each of our numbers twice, so their gradients are half of ours.
# Adam is invariant to that but for epsilon: 2e-8 here corresponds to the published 1e-8.
MOON_OPTIMIZER: dict[str, Any] = {
    "learning_rate": 1e-2,
    "min_learning_rate": 5e-6,
    "warmup_steps": 0,
    "decay": "linear",
    "weight_decay": 0.0,
    "beta2": 0.999,
    "epsilon": 2e-8,
    "bias_correction": False,
    "clip_norm": 0.0,
}
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}


@dataclasses.dataclass(frozen=True)
class CopiesConfig:
    """How many networks of one kind are trained at once."""

    seeds: int = setting(1, "networks of each kind, trained at once")

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds} must be at least 1")


def network_name(heads: int) -> str:
    """``one_head``, ``three_heads``: how runs and results call a network."""
    return f"{NUMBERS.get(heads, heads)}_head{'s' * (heads > 1)}"


def make_task(model_name: str, model: MoonMosaic, data: MoonsConfig, config: CopiesConfig, *, seed: int) -> Task:
    """``config.seeds`` copies of ``model``, trained on the same batches, each from initial parameters of its own.

    The loss of a copy is that of the published run: the mean over all numbers of the squared error, clipped at CLIP.
    The sum over copies is minimised, so that each copy is trained as if it were alone; their mean is reported, and each
    under ``loss_0``, ``loss_1``, ... Every parameter has a leading axis of copies. Copy i depends on ``seed`` and i
    alone, not on the number of copies.
    """
    moons = model.config.moons

    def init(key: Array) -> Params:
        blank_BTC = jnp.zeros((1, 2, 2 * moons))
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(config.seeds))
        params = jax.vmap(lambda key: model.init(key, blank_BTC)["params"])(keys)
        return nn.meta.add_axis(params, 0, {nn.PARTITION_NAME: "seeds"})

    def loss_of_one(params: Params, x_BTC: Array) -> Array:
        predicted_BTC: Any = model.apply({"params": params}, x_BTC[:, :-1])
        return jnp.mean(jnp.square(jnp.clip(predicted_BTC - x_BTC[:, 1:], -CLIP, CLIP)))

    def loss(params: Params, x_BTC: Array, key: Array) -> tuple[Array, dict[str, Array]]:
        del key  # there is no dropout
        losses = mean_over_devices(jax.vmap(loss_of_one, in_axes=(0, None)))(params, x_BTC)
        return jnp.sum(losses), {"loss": jnp.mean(losses)} | {f"loss_{i}": losses[i] for i in range(config.seeds)}

    return Task(
        name=f"three_moons/{model_name}",
        init=init,
        loss=loss,
        train_data=windows(data, seed, jax.process_index(), jax.process_count()),
        config={
            "model": {"name": model_name, **dataclasses.asdict(model.config)},
            "data": dataclasses.asdict(data),
            "seeds": config.seeds,
        },
        tokens_per_step=data.batch_size * data.context_length * config.seeds,
        unit="points",
    )


def trained_copies(name: str, config: MoonMosaicConfig, result: TrainResult, run: Path) -> TrainedCopies:
    """The copies in ``result`` one by one, with their final losses from the metrics in the run's directory."""
    stacked = jax.device_get(result.params)
    copies = len(jax.tree.leaves(stacked)[0])
    last = [record for record in read_metrics(run) if record["kind"] == "train"][-FINAL_STEPS:]
    return TrainedCopies(
        name=name,
        config=config,
        params=[jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(copies)],
        final_losses=[float(np.mean([record[f"loss_{i}"] for record in last])) for i in range(copies)],
        seconds=result.seconds,
    )
