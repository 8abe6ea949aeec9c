"""Flags of language models, which `babistories` trains and `plan` compiles for chips that are not here."""

import dataclasses
from typing import Any

from experiments import entry
from experiments.entry.model_flags import (
    MODEL_CONFIGS,
    check_typed_flags,
    config_fields,
    define_flags,
    model_config_class,
)
from mosaics_jax.data.corpus import CorpusConfig
from mosaics_jax.models.registry import NAMES, canonical_name
from mosaics_jax.settings import setting
from mosaics_jax.tasks.language import TextConfig
from mosaics_jax.training.loop import LoopConfig
from mosaics_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Which models are trained, and what is shown of them."""

    model: str = setting("mosaic", f"what to train, comma separated: {', '.join(NAMES)}")
    cache_dir: str = setting("", "where tokens of raw text are kept (empty: WORKDIR/cache)")
    samples: int = setting(3, "stories that a sample continues")

    def __post_init__(self) -> None:
        models = {canonical_name(name) for name in self.model_names}
        if not models or len(models) < len(self.model_names):
            raise ValueError(f"model={self.model}: name each model once, e.g. mosaic,gpt2")
        if self.samples < 0:
            raise ValueError(f"samples={self.samples} must be at least 0")

    @property
    def model_names(self) -> list[str]:
        """The models, called as the user calls them."""
        return [name.strip() for name in self.model.split(",") if name.strip()]


SHARED = (RunConfig, CorpusConfig, TextConfig, OptimizerConfig, LoopConfig)


def define_language_flags() -> None:
    """Defines the flags of a run, of its text, of every model, of optimizer and loop."""
    classes = (RunConfig, CorpusConfig, TextConfig, *MODEL_CONFIGS, OptimizerConfig, LoopConfig)
    define_flags(classes, {})


def run_from_flags() -> RunConfig:
    """The models to train. Raises UserError on a bad value, or if a typed flag belongs to other models only."""
    run = entry.from_flags(RunConfig)
    check_typed_flags(run.model_names, config_fields(*SHARED))
    return run


def model_config_from_flags(model_name: str, vocab_size: int) -> Any:
    """The config of a model for ``vocab_size`` tokens. Raises UserError on a bad value."""
    return entry.from_flags(model_config_class(model_name), vocab_size=vocab_size)
