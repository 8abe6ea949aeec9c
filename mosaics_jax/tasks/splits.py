"""What tasks with three splits of data share: RegBench and MQAR."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from mosaics_jax.errors import UserError
from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.shapes import Params
from mosaics_jax.training.state import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitTask(Task):
    """A task that is evaluated on a validation split; ``test(params)`` gives the same scores of the test split."""

    test: Callable[[Params], dict[str, float]]


class SplitConfig(Protocol):
    """What training and the command line need of the config of a task with splits: a dataclass of config dataclasses.

    num_train: examples in the training split. batch_size: examples in a batch. vocab_size: V of a model for the task.
    as_dict(): all fields, JSON-able, as ``Task.config["data"]``.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def num_train(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def as_dict(self) -> dict[str, Any]: ...


def steps_per_epoch(config: SplitConfig) -> int:
    """Batches that hold all training examples once."""
    return math.ceil(config.num_train / config.batch_size)


def check_positions(model_name: str, model: LanguageModel, longest: int) -> None:
    """Raises UserError if the model learns fewer positions than ``longest``, the length of a padded sequence."""
    limit = model.max_positions
    if limit is not None and limit < longest:
        raise UserError(
            f"context_length={limit}: the {model_name} learns so many positions, and a padded sequence has {longest}; "
            f"set --context_length={longest}"
        )
