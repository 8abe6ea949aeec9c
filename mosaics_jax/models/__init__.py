"""Whole networks."""

from typing import Any

from mosaics_jax.models.gpt2 import GPT2, GPT2Config
from mosaics_jax.models.language_model import LanguageModel, stack_layers, unstack_layers
from mosaics_jax.models.mosaic import MemoryMosaic, MosaicConfig

# Language models by the name that flags and checkpoints use.
LANGUAGE_MODELS: dict[str, tuple[Any, type[LanguageModel]]] = {
    "mosaic": (MosaicConfig, MemoryMosaic),
    "gpt2": (GPT2Config, GPT2),
}


def build_language_model(name: str, fields: dict[str, Any]) -> LanguageModel:
    """The model that a checkpoint's config describes: its name, and the fields of its config dataclass."""
    config_class, model_class = LANGUAGE_MODELS[name]
    return model_class(config_class(**fields))


__all__ = [
    "GPT2",
    "LANGUAGE_MODELS",
    "GPT2Config",
    "LanguageModel",
    "MemoryMosaic",
    "MosaicConfig",
    "build_language_model",
    "stack_layers",
    "unstack_layers",
]
