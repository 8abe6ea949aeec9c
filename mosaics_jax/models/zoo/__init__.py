"""The sequence models of the comparison on RegBench and MQAR (v1 figure 9), by name as in flags."""

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

# Name -> (config dataclass, Linen module): ``model_class(config_class(...)).apply({"params": params}, tokens_BT)``
# returns logits (B, T, V).
SEQUENCE_MODELS: dict[str, tuple[Any, type[LanguageModel]]] = {
    "mosaic": (MosaicConfig, MemoryMosaic),
    "transformer": (GPT2Config, GPT2),
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

__all__ = ["SEQUENCE_MODELS"]
