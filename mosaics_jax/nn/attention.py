"""Causal self-attention of the GPT-2 baseline (Radford et al. 2019), with rotary positions by choice."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.nn.layers import Projection, constant, merge_heads, normal, split_heads
from mosaics_jax.nn.memory import AttentionState, Span, write_slots
from mosaics_jax.nn.rotary import rotate
from mosaics_jax.nn.sharded import causal_retrieval
from mosaics_jax.ops import RetrievalForm, stored_retrieval
from mosaics_jax.ops.products import product
from mosaics_jax.shapes import Array, Dtype


class CausalSelfAttention(nn.Module):
    """Multi-head attention with scores q.k / sqrt(D). (B, T, C) to the same.

    Parameter ``qkv_kernel`` (C, 3, C): queries, keys and values from one product. ``rotary``: queries and keys are
    turned by their positions (`rotate`); keys are stored as turned.
    """

    heads: int
    std: float
    output_std: float
    bias: bool = False
    dropout: float = 0.0
    rotary: bool = False
    retrieval: RetrievalForm = RetrievalForm.AUTO
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x_BTC: Array, state: AttentionState | None = None, span: Span | None = None, train: bool = False
    ) -> tuple[Array, AttentionState | None]:
        """The whole sequence when ``state`` is None; else a chunk that goes on from it, and the state after it."""
        width = x_BTC.shape[-1]
        kernel = self.param("qkv_kernel", normal(self.std, "embed", None, "heads"), (width, 3, width))
        qkv = product(jnp.einsum("btc,cne->nbte", x_BTC.astype(self.dtype), kernel.astype(self.dtype)))
        if self.bias:
            bias = self.param("qkv_bias", constant(0.0, "heads"), (3 * width,))
            qkv += bias.astype(self.dtype).reshape(3, 1, 1, width)
        queries, keys, values = (split_heads(part, self.heads) for part in qkv)
        if self.rotary:
            start_B = None if span is None else span.length_B
            queries, keys = rotate(queries, start_B), rotate(keys, start_B)
        queries *= (width // self.heads) ** -0.5
        if state is None or span is None:
            rate = self.dropout if train else 0.0
            seed = jax.random.bits(self.make_rng("dropout")) if rate > 0 else None
            answers = causal_retrieval(
                queries, keys, values, strict=False, dropout_rate=rate, dropout_seed=seed, form=self.retrieval
            )
        else:
            state = AttentionState(
                keys_BHND=write_slots(state.keys_BHND, keys, span.length_B),
                values_BHND=write_slots(state.values_BHND, values, span.length_B),
            )
            answers = stored_retrieval(queries, state.keys_BHND, state.values_BHND, span.length_B)
        y_BTC = Projection(width, self.output_std, ("heads", "embed"), bias=self.bias, dtype=self.dtype, name="proj")(
            merge_heads(answers)
        )
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC), state

    def empty(self, batch: int, width: int, capacity: int) -> AttentionState:
        """An empty memory with room for ``capacity`` positions."""
        store = jnp.zeros((batch, self.heads, capacity, width // self.heads), self.dtype)
        return AttentionState(keys_BHND=store, values_BHND=store)
