"""All networks by name: those that flags, checkpoints and results speak of."""

from typing import Any

from mosaics_jax.models.gpt2 import GPT2, GPT2Config
from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.models.mosaic import MemoryMosaic, MosaicConfig
from mosaics_jax.models.zoo.deltanet import DeltaNet, DeltaNetConfig
from mosaics_jax.models.zoo.gla import GLA, GLAConfig
from mosaics_jax.models.zoo.h3 import H3, H3Config
from mosaics_jax.models.zoo.hyena import Hyena, HyenaConfig
from mosaics_jax.models.zoo.linear_transformer import LinearTransformer, LinearTransformerConfig
from mosaics_jax.models.zoo.lstm import LSTM, LSTMConfig
from mosaics_jax.models.zoo.mamba import Mamba, MambaConfig
from mosaics_jax.models.zoo.retnet import RetNet, RetNetConfig
from mosaics_jax.models.zoo.rwkv import RWKV, RWKVConfig
from mosaics_jax.models.zoo.s4d import S4D, S4DConfig

# Name -> (config dataclass, Linen module). All take tokens (B, T) and give logits (B, T, V).
MODELS: dict[str, tuple[Any, type[LanguageModel]]] = {
    "mosaic": (MosaicConfig, MemoryMosaic),
    "gpt2": (GPT2Config, GPT2),
    "linear_transformer": (LinearTransformerConfig, LinearTransformer),
    "retnet": (RetNetConfig, RetNet),
    "gla": (GLAConfig, GLA),
    "deltanet": (DeltaNetConfig, DeltaNet),
    "s4d": (S4DConfig, S4D),
    "h3": (H3Config, H3),
    "hyena": (HyenaConfig, Hyena),
    "rwkv": (RWKVConfig, RWKV),
    "mamba": (MambaConfig, Mamba),
    "lstm": (LSTMConfig, LSTM),
}
ALIASES = {"transformer": "gpt2"}  # how RegBench and MQAR call the baseline
NAMES = ("mosaic", "gpt2 (or transformer)", *list(MODELS)[2:])  # for messages and help


def canonical_name(name: str) -> str:
    """The name in MODELS of a model that may be called by an alias. Raises ValueError for an unknown name."""
    name = ALIASES.get(name, name)
    if name not in MODELS:
        raise ValueError(f"model={name}: the models are {', '.join(NAMES)}")
    return name


def build_model(name: str, fields: dict[str, Any]) -> LanguageModel:
    """The model of a config: its name, and the fields of its config dataclass. Raises ValueError if one is bad."""
    config_class, model_class = MODELS[canonical_name(name)]
    return model_class(config_class(**fields))
