"""All networks by name, as in flags, checkpoints and results."""

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

# Name -> (config dataclass, Linen module). All map tokens (B, T) to logits (B, T, V).
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
ALIASES = {"transformer": "gpt2"}  # the name of the baseline in RegBench and MQAR
NAMES = ("mosaic", "gpt2 (or transformer)", *list(MODELS)[2:])  # in messages and help texts


def canonical_name(name: str) -> str:
    """The name in MODELS of the model that ``name``, a name or an alias, stands for. Raises ValueError if unknown."""
    name = ALIASES.get(name, name)
    if name not in MODELS:
        raise ValueError(f"model={name}: the models are {', '.join(NAMES)}")
    return name


def build_model(name: str, fields: dict[str, Any]) -> LanguageModel:
    """The model ``name`` with these fields of its config dataclass. Raises ValueError if name or value is bad."""
    config_class, model_class = MODELS[canonical_name(name)]
    return model_class(config_class(**fields))
