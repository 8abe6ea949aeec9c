"""Multi-query associative recall: loss and accuracy at the queries (Arora et al. 2024, arXiv 2312.04927)."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np

from mosaics_jax.data.mqar import MQARConfig, sequences, training_batches
from mosaics_jax.data.windows import Batch
from mosaics_jax.evaluation.mqar import evaluation_batches, query_loss, query_scorer
from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.settings import setting
from mosaics_jax.shapes import Array, Params
from mosaics_jax.tasks.next_token import init_function
from mosaics_jax.tasks.splits import SplitTask
from mosaics_jax.training.runs import init_length


@dataclasses.dataclass(frozen=True)
class SplitSizes:
    """How many sequences each split and each batch has."""

    num_train: int = setting(100_000, "sequences to train on")
    num_validation: int = setting(1000, "sequences held out for validation")
    num_test: int = setting(3000, "sequences held out for the test")
    data_seed: int = setting(0, "seed of the sequences")
    batch_size: int = setting(512, "sequences in a batch, over all devices")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name != "data_seed" and getattr(self, field.name) < 1:
                raise ValueError(f"{field.name}={getattr(self, field.name)} must be at least 1")


@dataclasses.dataclass(frozen=True)
class MQARTaskConfig:
    """Which sequences there are, and how many."""

    sequences: MQARConfig
    split: SplitSizes

    @property
    def num_train(self) -> int:
        """Training sequences."""
        return self.split.num_train

    @property
    def batch_size(self) -> int:
        """Sequences in a batch."""
        return self.split.batch_size

    @property
    def vocab_size(self) -> int:
        """Keys, values and token 0."""
        return self.sequences.vocab_size

    def as_dict(self) -> dict[str, Any]:
        """The fields of both configs, each under its name."""
        return {"mqar": dataclasses.asdict(self.sequences), "split": dataclasses.asdict(self.split)}


class MQARData(NamedTuple):
    """The sequences of each split: ``inputs`` and ``targets``, int32 (sequences, T)."""

    train: Batch
    validation: Batch
    test: Batch


def make_data(config: MQARTaskConfig) -> MQARData:
    """The sequences that the config describes.

    Held-out sequences have the first numbers, so that they do not depend on the number of training sequences.
    """
    split = config.split
    ends = np.cumsum([0, split.num_validation, split.num_test, split.num_train]).tolist()
    validation, test, train = (
        sequences(config.sequences, split.data_seed, stop - start, start) for start, stop in itertools.pairwise(ends)
    )
    return MQARData(train, validation, test)


def make_task(model_name: str, model: LanguageModel, data: MQARData, config: MQARTaskConfig, *, seed: int) -> SplitTask:
    """Recall of values: mean nats a query in training, accuracy at the queries of validation and test sequences.

    Raises UserError if the batch does not divide among the processes.
    """
    queries, batch_size = config.sequences.num_pairs, config.split.batch_size

    def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        return query_loss(model, params, batch, key, queries), {}

    score = query_scorer(model, queries)
    validation, test = (evaluation_batches(split, batch_size) for split in (data.validation, data.test))
    return SplitTask(
        name=f"mqar/{model_name}",
        init=init_function(model, init_length(model)),
        loss=loss,
        train_data=training_batches(data.train, batch_size, seed, jax.process_index(), jax.process_count()),
        config={"model": {"name": model_name, **dataclasses.asdict(model.config)}, "data": config.as_dict()},
        tokens_per_step=batch_size * config.sequences.context_length,
        evaluate=lambda params: score(params, validation),
        test=lambda params: score(params, test),
    )
