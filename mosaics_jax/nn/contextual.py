"""Contextual memory (v1 eq. 4-7): predicts the near future from pairs that it stored earlier in the same sequence."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.nn.config import MosaicConfig
from mosaics_jax.nn.extractors import KeyExtractor, ValueExtractor
from mosaics_jax.nn.layers import Projection, merge_heads
from mosaics_jax.nn.memory import ContextualState, Span, last_valid, write_slots
from mosaics_jax.ops import STRICT, causal_retrieval, gaussian_pair, stored_retrieval
from mosaics_jax.shapes import Array


class ContextualMemory(nn.Module):
    """One contextual memory per head: extractors, strictly causal retrieval, W_z. (B, T, C) to the same shape.

    The query of a position equals its key. ``ic_dropout`` acts on retrieval weights, ``hd_dropout`` after W_z.

    Ablations. ``normalized_keys=False``: keys and queries are compared by the Gaussian kernel (`gaussian_pair`).
    ``asymmetric=True``: queries have an extractor of their own. ``peek=False``: value t does not depend on x_{t+1}.
    Query t still sees only pairs i < t. Otherwise pair t, whose key equals the query, would dominate the answer, and
    the ablation would change two things at once.
    """

    config: MosaicConfig

    def setup(self) -> None:
        c = self.config
        self.key = KeyExtractor(c)
        if c.asymmetric:
            self.query = KeyExtractor(c)
        self.value = ValueExtractor(c)
        self.W_z = output_projection(c)
        self.dropout = nn.Dropout(c.hd_dropout, name="Dropout_0")

    def __call__(self, x_BTC: Array, train: bool = False) -> Array:
        """The answers to a whole sequence."""
        c = self.config
        keys_BTHD, values_BTHD = self.key(x_BTC), self.value(x_BTC)
        queries_BTHD = self.query(x_BTC) if c.asymmetric else keys_BTHD
        rate = c.ic_dropout if train else 0.0
        answers_BTHD = causal_retrieval(
            *self._comparable(queries_BTHD, keys_BTHD, values_BTHD),
            STRICT,
            dropout_rate=rate,
            dropout_seed=jax.random.bits(self.make_rng("dropout")) if rate > 0 else None,
            form=c.retrieval,
        )
        return self._output(answers_BTHD, train)

    def extend(self, x_BTC: Array, state: ContextualState, span: Span) -> tuple[Array, ContextualState]:
        """The answers to a chunk that continues a sequence, and the state after the chunk."""
        keys_BTHD, key_state = self.key.extend(x_BTC, state.key, span)
        values_BTHD, pending_value_BHD = self.value.extend(x_BTC, state.pending_value_BHD, span)
        queries_BTHD, query_state = keys_BTHD, state.query
        if query_state is not None:
            queries_BTHD, query_state = self.query.extend(x_BTC, query_state, span)
        queries_BTHD, keys_BTHD, values_BTHD = self._comparable(queries_BTHD, keys_BTHD, values_BTHD)
        # Position t completes the value of pair t - 1, which is then stored with its key.
        stored_BTHD = jnp.concatenate([state.pending_key_BHD[:, None], keys_BTHD[:, :-1]], axis=1)
        state = ContextualState(
            key=key_state,
            pending_key_BHD=last_valid(state.pending_key_BHD, keys_BTHD, span.valid_B),
            pending_value_BHD=pending_value_BHD,
            keys_BHND=write_slots(state.keys_BHND, stored_BTHD, span.length_B),
            values_BHND=write_slots(state.values_BHND, values_BTHD, span.length_B),
            query=query_state,
        )
        answers_BTHD = stored_retrieval(
            queries_BTHD, state.keys_BHND, state.values_BHND, span.length_B, STRICT, first_slot=1
        )
        return self._output(answers_BTHD, train=False), state

    def _comparable(self, queries_BTHD: Array, keys_BTHD: Array, values_BTHD: Array) -> tuple[Array, Array, Array]:
        """Queries and keys that retrieval may compare by dot products, and values, all of one width."""
        if self.config.normalized_keys:
            return queries_BTHD, keys_BTHD, values_BTHD
        return *gaussian_pair(queries_BTHD, keys_BTHD), jnp.pad(values_BTHD, ((0, 0), (0, 0), (0, 0), (0, 1)))

    def _output(self, answers_BTHD: Array, train: bool) -> Array:
        answers_BTHD = answers_BTHD[..., : self.config.head_width]
        return self.dropout(self.W_z(merge_heads(answers_BTHD)), deterministic=not train)

    @nn.nowrap
    def empty(self, batch: int, capacity: int) -> ContextualState:
        """The state at the beginning of a sequence, with room for ``capacity`` positions."""
        c = self.config
        width = c.head_width if c.normalized_keys else c.head_width + 1
        keys = KeyExtractor(c, parent=None)
        stored_BHND = jnp.zeros((batch, c.n_head, capacity, width), c.dtype)
        return ContextualState(
            key=keys.empty(batch),
            pending_key_BHD=jnp.zeros((batch, c.n_head, width), c.dtype),
            pending_value_BHD=jnp.zeros((batch, c.n_head, c.head_width), jnp.promote_types(c.dtype, jnp.float32)),
            keys_BHND=stored_BHND,
            values_BHND=stored_BHND,
            query=keys.empty(batch) if c.asymmetric else None,
        )


def output_projection(c: MosaicConfig) -> Any:
    """W_z: maps the concatenated answers of all heads to the width of the model."""
    return Projection(c.n_embd, c.recipe.output_std(c), ("heads", "embed"), bias=c.bias, dtype=c.computing_dtype)
