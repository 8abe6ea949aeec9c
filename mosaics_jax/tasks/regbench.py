"""RegBench: next-symbol prediction on problems of random automata, scored on held-out automata (v1 section 6.3)."""

import dataclasses
from typing import Any

import jax

from mosaics_jax.data.automata import VOCAB_SIZE, AutomataConfig
from mosaics_jax.data.regbench import (
    VERSION,
    BatchConfig,
    RegBench,
    RegBenchConfig,
    evaluation_batches,
    training_batches,
)
from mosaics_jax.evaluation.regbench import Scores, baselines, model_scorer
from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.tasks.next_token import init_function, next_token_loss
from mosaics_jax.tasks.splits import SplitTask, check_positions, steps_per_epoch
from mosaics_jax.training.runs import init_length


@dataclasses.dataclass(frozen=True)
class RegBenchTaskConfig:
    """Which automata there are, how many, and how their problems are batched."""

    problems: RegBenchConfig
    automata: AutomataConfig
    batch: BatchConfig

    @property
    def num_train(self) -> int:
        """Training automata, with one problem each."""
        return self.problems.num_train

    @property
    def batch_size(self) -> int:
        """Problems in a batch."""
        return self.batch.batch_size

    @property
    def vocab_size(self) -> int:
        """18 symbols, the separator and padding."""
        return VOCAB_SIZE

    def as_dict(self) -> dict[str, Any]:
        """All fields in one flat dict, with the version of the data."""
        return {
            "version": VERSION,
            **dataclasses.asdict(self.problems),
            **dataclasses.asdict(self.automata),
            **dataclasses.asdict(self.batch),
        }


def make_task(
    model_name: str,
    model: LanguageModel,
    data: RegBench,
    config: RegBenchTaskConfig,
    *,
    seed: int,
    row_multiple: int | None = None,
) -> SplitTask:
    """Next-symbol prediction on the training automata; accuracy and TVD on the validation and test automata.

    Batches are padded to a multiple of ``row_multiple`` rows (default: the batch size), so that they divide among
    devices and micro-batches. Raises UserError if the model learns fewer positions than the longest padded problem has.
    """
    splits = (data.train, data.validation, data.test)
    longest = max(split.lengths.max() for split in splits)
    pad = config.batch.pad_multiple
    check_positions(model_name, model, -(-longest // pad) * pad)
    batching: dict[str, Any] = {
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "row_multiple": row_multiple,
    }
    score = model_scorer(model)
    validation, test = (evaluation_batches(split, config.batch, **batching) for split in splits[1:])
    return SplitTask(
        name=f"regbench/{model_name}",
        init=init_function(model, init_length(model)),
        loss=next_token_loss(model),
        train_data=training_batches(data.train, config.batch, seed, **batching),
        config={"model": {"name": model_name, **dataclasses.asdict(model.config)}, "data": config.as_dict()},
        tokens_per_step=int(data.train.lengths.sum()) // steps_per_epoch(config),
        evaluate=lambda params: score(params, validation),
        test=lambda params: score(params, test),
    )


def baseline_scores(data: RegBench, config: RegBenchTaskConfig) -> dict[str, Scores]:
    """Scores of n-gram models and other baselines on the whole test split, which every process computes by itself."""
    return baselines(evaluation_batches(data.test, config.batch))
