"""Pure functions on arrays, without parameters. Each fast form stands beside a naive one that is easy to verify."""

from mosaics_jax.ops.averages import LeakyForm, leaky_average, next_position
from mosaics_jax.ops.kernel_regression import gaussian_pair, gaussian_regression, unit_key_regression
from mosaics_jax.ops.linear_keys import linear_memory
from mosaics_jax.ops.losses import cross_entropy, head_cross_entropy
from mosaics_jax.ops.normalize import unit
from mosaics_jax.ops.reach import CAUSAL, STRICT, Reach
from mosaics_jax.ops.retrieval import RetrievalForm, causal_retrieval, stored_retrieval
from mosaics_jax.ops.slots import slot_retrieval

__all__ = [
    "CAUSAL",
    "STRICT",
    "LeakyForm",
    "Reach",
    "RetrievalForm",
    "causal_retrieval",
    "cross_entropy",
    "gaussian_pair",
    "gaussian_regression",
    "head_cross_entropy",
    "leaky_average",
    "linear_memory",
    "next_position",
    "slot_retrieval",
    "stored_retrieval",
    "unit",
    "unit_key_regression",
]
