"""Sequence models as training tasks: what RegBench and MQAR share."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments import entry
from mosaics_jax.data.windows import Batch
from mosaics_jax.errors import UserError
from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.models.zoo import SEQUENCE_MODELS
from mosaics_jax.runtime.workdir import check_workdir
from mosaics_jax.settings import setting
from mosaics_jax.shapes import Array, Params
from mosaics_jax.training.loop import LoopConfig, TrainResult, train
from mosaics_jax.training.mesh import make_mesh
from mosaics_jax.training.optimizer import OptimizerConfig
from mosaics_jax.training.progress import say
from mosaics_jax.training.state import Task

Loss = Callable[[LanguageModel, Params, Batch, Array], Array]  # of a model on a batch, with a key for its dropout
BLANK_LENGTH = 64  # positions of the sequence that parameters are made with, if the model has so many


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What is trained, where, how long."""

    model: str = setting("mosaic", f"what to train: {', '.join(SEQUENCE_MODELS)}")
    workdir: str = setting("", "where everything is written; the same command goes on from there")
    epochs: int = setting(200, "passes over the training data")
    steps: int = setting(0, "updates to make (0: as many as --epochs takes)")
    warmup_share: float = setting(0.1, "share of the steps in which the learning rate rises from 0")
    final_share: float = setting(0.1, "learning rate at the last step, as a share of the highest")

    def __post_init__(self) -> None:
        if not self.workdir:
            raise ValueError("--workdir is needed: a directory for checkpoints, metrics and results")
        if self.model not in SEQUENCE_MODELS:
            raise ValueError(f"--model={self.model}: the models are {', '.join(SEQUENCE_MODELS)}")
        if self.epochs < 1 or self.steps < 0:
            raise ValueError(f"epochs={self.epochs} must be at least 1, and steps={self.steps} not negative")
        for name in ("warmup_share", "final_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and 1")


def define_flags(**defaults: Any) -> None:
    """Defines the flags of a run, of every model, of optimizer and loop. The sizes are those of v1 section 6.3."""
    defaults = {
        "n_layer": 2,
        "n_head": 8,
        "n_embd": 128,
        "pmem_size": 448,
        "context_length": 1024,
        "learning_rate": 5e-4,
        "beta2": 0.999,
        "eval_every": 200,
        **defaults,
    }
    entry.define_flags(RunConfig, **defaults)
    for config_class, _ in SEQUENCE_MODELS.values():
        entry.define_flags(config_class, skip=("vocab_size", "skip_tokens"), **defaults)
    entry.define_flags(OptimizerConfig, skip=("warmup_steps", "min_learning_rate"), **defaults)
    entry.define_flags(LoopConfig, skip=("sample_every",), **defaults)


@dataclasses.dataclass(frozen=True)
class Run:
    """One model on one set of data."""

    experiment: str
    name: str
    workdir: Path
    model: LanguageModel
    loop: LoopConfig
    optimizer: OptimizerConfig

    def check_length(self, longest: int) -> None:
        """Raises UserError if the model has no positions for sequences of ``longest``."""
        limit = self.model.max_positions
        if limit is not None and limit < longest:
            raise UserError(
                f"context_length={limit}: the {self.name} learns so many positions, and a padded sequence has "
                f"{longest}; set --context_length={longest}"
            )

    def train(
        self,
        loss: Loss,
        data: Iterable[Batch],
        data_config: dict[str, Any],
        tokens_per_step: int,
        evaluate: Callable[[Params], dict[str, float]],
    ) -> TrainResult:
        """Trains through the one loop, from where the work directory left off."""

        blank = jnp.zeros((1, min(BLANK_LENGTH, self.model.max_positions or BLANK_LENGTH)), jnp.int32)

        def init(key: Array) -> Params:
            return self.model.init(key, blank)["params"]

        def task_loss(params: Params, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
            return loss(self.model, params, batch, key), {}

        model_config = {"name": self.name, **dataclasses.asdict(self.model.config)}
        task = Task(
            name=f"{self.experiment}/{self.name}",
            init=init,
            loss=task_loss,
            train_data=data,
            config={"model": model_config, "data": data_config},
            tokens_per_step=tokens_per_step,
            evaluate=evaluate,
        )
        return train(self.workdir, self.loop, self.optimizer, task)

    def evaluate(self, evaluate: Callable[[Params], dict[str, float]], params: Params) -> dict[str, float]:
        """Calls ``evaluate`` as the loop does: on the mesh."""
        with jax.set_mesh(make_mesh(self.loop.mesh)):
            return evaluate(params)


def run_from_flags(experiment: str, vocab_size: int, steps_per_epoch: int) -> Run:
    """The run that the flags describe. Raises UserError on a bad value."""
    config = entry.from_flags(RunConfig)
    config_class, model_class = SEQUENCE_MODELS[config.model]
    fields = {name: {field.name for field in dataclasses.fields(kind)} for name, (kind, _) in SEQUENCE_MODELS.items()}
    others = set().union(*fields.values()) - fields[config.model]
    if unused := [f"--{name}" for name in sorted(others) if flags.FLAGS[name].present]:
        say(f"a {config.model} has no use for {', '.join(unused)}")
    steps = config.steps or config.epochs * steps_per_epoch
    # The learning rate is read first: the last one is a share of it.
    optimizer = entry.from_flags(
        OptimizerConfig, min_learning_rate=0.0, warmup_steps=round(config.warmup_share * steps)
    )
    return Run(
        experiment=experiment,
        name=config.model,
        workdir=check_workdir(config.workdir),
        model=model_class(entry.from_flags(config_class, vocab_size=vocab_size)),
        loop=entry.from_flags(LoopConfig, steps=steps),
        optimizer=dataclasses.replace(optimizer, min_learning_rate=config.final_share * optimizer.learning_rate),
    )


def next_token_loss(model: LanguageModel, params: Params, batch: Batch, key: Array) -> Array:
    """Mean nats over all targets that are not IGNORED."""
    mean, _ = model.apply(
        {"params": params}, batch["inputs"], batch["targets"], True, rngs={"dropout": key}, method="loss"
    )
    return mean


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Batches that hold all examples once."""
    return math.ceil(examples / batch_size)
