"""Persistent memory (v1 section 5): pairs that are parameters and outlive every sequence."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.nn.extractors import SCALAR_UNIT, KeyExtractor
from mosaics_jax.nn.layers import Projection, constant, head_scalars, merge_heads, normal
from mosaics_jax.nn.memory import KeyState, Span
from mosaics_jax.ops import RetrievalForm, slot_retrieval
from mosaics_jax.shapes import Array, Dtype


class PersistentMemory(nn.Module):
    """``banks`` memories of ``slots`` learned pairs a head, queried with a^2 khat; W_z. Keeps (B, T, C).

    The learned keys carry no scale, hence the square. Parameters P_k, P_v (K, H, M, D) ~ N(0, 1/sqrt(D)), not
    normalised; gain: one scalar a head, g = exp(10 gain) applied to the answer. ``leaky_average`` and
    ``normalized_keys``, ablations, are those of the `KeyExtractor` that makes queries.
    """

    heads: int
    slots: int
    log_bound: float
    std: float
    output_std: float
    banks: int = 1
    eps: float = 0.0
    key_taps: int = 1
    bias: bool = False
    weight_dropout: float = 0.0
    output_dropout: float = 0.0
    dtype: Dtype = jnp.float32
    leaky_average: str = "learned"
    normalized_keys: bool = True
    retrieval: RetrievalForm = RetrievalForm.AUTO

    def setup(self) -> None:
        self.key = KeyExtractor(
            heads=self.heads,
            power=2,
            log_bound=self.log_bound,
            std=self.std,
            eps=self.eps,
            taps=self.key_taps,
            bias=self.bias,
            dtype=self.dtype,
            leaky_average=self.leaky_average,
            normalized=self.normalized_keys,
        )

    @nn.compact
    def __call__(
        self, x_BTC: Array, state: KeyState | None = None, span: Span | None = None, train: bool = False
    ) -> tuple[Array, KeyState | None]:
        """The whole sequence when ``state`` is None; else a chunk that goes on from it, and the state after it."""
        width = x_BTC.shape[-1] // self.heads
        queries_BTHD, state = self.key(x_BTC, state, span)
        shape = (self.banks, self.heads, self.slots, width)
        init = normal(width**-0.5, "banks", "heads", "slots", "head_dim")
        keys_KHMD = self.param("P_k", init, shape).astype(self.dtype)
        values_KHMD = self.param("P_v", init, shape).astype(self.dtype)
        rate = self.weight_dropout if train else 0.0
        seed = jax.random.bits(self.make_rng("dropout")) if rate > 0 else None
        answers_BTHD = slot_retrieval(
            queries_BTHD, keys_KHMD, values_KHMD, dropout_rate=rate, dropout_seed=seed, form=self.retrieval
        )
        gain_H = self.param("gain", constant(-0.5 / SCALAR_UNIT, "head"), (self.heads,))
        answers_BTHD = (head_scalars(jnp.exp(SCALAR_UNIT * gain_H)) * answers_BTHD).astype(self.dtype)
        y_BTC = Projection(
            x_BTC.shape[-1], self.output_std, ("heads", "embed"), bias=self.bias, dtype=self.dtype, name="W_z"
        )(merge_heads(answers_BTHD))
        return nn.Dropout(self.output_dropout, deterministic=not train)(y_BTC), state

    def empty(self, batch: int, width: int, capacity: int) -> KeyState:
        """The state at the beginning of a sequence: that of the key extractor, which does not grow."""
        del capacity
        return self.key.empty(batch, width)
