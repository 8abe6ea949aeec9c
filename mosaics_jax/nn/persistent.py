"""Persistent memory (v1 section 5): its key-value pairs are parameters, the same for all sequences."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.nn.config import MosaicConfig
from mosaics_jax.nn.contextual import output_projection
from mosaics_jax.nn.extractors import SCALAR_UNIT, KeyExtractor
from mosaics_jax.nn.layers import constant, head_scalars, merge_heads, normal
from mosaics_jax.nn.memory import KeyState, Span
from mosaics_jax.ops import slot_retrieval
from mosaics_jax.shapes import Array


class PersistentMemory(nn.Module):
    """K = ``pmem_count`` banks of M = ``pmem_size`` learned pairs per head, and W_z. (B, T, C) to the same shape.

    Queries are a^2 unit(kbar_t), as of a `KeyExtractor`: the learned keys have no scale, so that queries have its
    square. The answer is the mean over banks, times g = exp(10 gain). Parameters: P_k, P_v (K, H, M, D) ~
    N(0, 1/sqrt(D)), which are not normalized; gain, one scalar per head. The ablations ``leaky_average`` and
    ``normalized_keys`` act on the queries.
    """

    config: MosaicConfig

    def setup(self) -> None:
        c = self.config
        self.key = KeyExtractor(c, squared_scale=True)
        shape = (c.pmem_count, c.n_head, c.pmem_size, c.head_width)
        init = normal(c.head_width**-0.5, "banks", "heads", "slots", "head_dim")
        self.keys_KHMD = self.param("P_k", init, shape)
        self.values_KHMD = self.param("P_v", init, shape)
        self.gain_H = self.param("gain", constant(-0.5 / SCALAR_UNIT, "head"), (c.n_head,))
        self.W_z = output_projection(c)
        self.dropout = nn.Dropout(c.hd_dropout, name="Dropout_0")

    def __call__(self, x_BTC: Array, train: bool = False) -> Array:
        """The answers to a whole sequence."""
        return self._answer(self.key(x_BTC), train)

    def extend(self, x_BTC: Array, state: KeyState, span: Span) -> tuple[Array, KeyState]:
        """The answers to a chunk that continues a sequence, and the state of the key extractor after the chunk."""
        queries_BTHD, state = self.key.extend(x_BTC, state, span)
        return self._answer(queries_BTHD, train=False), state

    def _answer(self, queries_BTHD: Array, train: bool) -> Array:
        c = self.config
        rate = c.ic_dropout if train else 0.0
        answers_BTHD = slot_retrieval(
            queries_BTHD,
            self.keys_KHMD.astype(c.computing_dtype),
            self.values_KHMD.astype(c.computing_dtype),
            dropout_rate=rate,
            dropout_seed=jax.random.bits(self.make_rng("dropout")) if rate > 0 else None,
            form=c.retrieval,
        )
        gain_H = jnp.exp(SCALAR_UNIT * self.gain_H)
        answers_BTHD = (head_scalars(gain_H) * answers_BTHD).astype(c.computing_dtype)
        return self.dropout(self.W_z(merge_heads(answers_BTHD)), deterministic=not train)

    @nn.nowrap
    def empty(self, batch: int, capacity: int) -> KeyState:
        """The state at the beginning of a sequence; its size does not depend on ``capacity``."""
        del capacity
        return KeyExtractor(self.config, parent=None).empty(batch)
