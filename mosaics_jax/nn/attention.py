"""Causal self-attention of the GPT-2 baseline (Radford et al. 2019), optionally with rotary positions."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.nn.config import GPT2Config
from mosaics_jax.nn.layers import Projection, constant, merge_heads, normal, split_heads
from mosaics_jax.nn.memory import AttentionState, Span, write_slots
from mosaics_jax.nn.rotary import rotate
from mosaics_jax.ops import CAUSAL, causal_retrieval, stored_retrieval
from mosaics_jax.ops.products import product
from mosaics_jax.shapes import Array


class CausalSelfAttention(nn.Module):
    """Multi-head attention with scores q.k / sqrt(D). (B, T, C) to the same shape.

    Parameters: ``qkv_kernel`` (C, 3, C) ~ N(0, std), which gives queries, keys and values in one product; with
    ``bias``, ``qkv_bias`` (3 C,) = 0; ``proj``, the output projection ~ N(0, output_std). With ``rotary``, queries
    and keys are rotated by their positions (`rotate`), and the state of decoding holds rotated keys.
    """

    config: GPT2Config
    std: float
    output_std: float

    def setup(self) -> None:
        c = self.config
        self.qkv_kernel_C3C = self.param(
            "qkv_kernel", normal(self.std, "embed", None, "heads"), (c.n_embd, 3, c.n_embd)
        )
        if c.bias:
            self.qkv_bias = self.param("qkv_bias", constant(0.0, "heads"), (3 * c.n_embd,))
        axes = ("heads", "embed")
        self.proj = Projection(c.n_embd, self.output_std, axes, bias=c.bias, dtype=c.computing_dtype)
        self.dropout = nn.Dropout(c.dropout, name="Dropout_0")

    def __call__(self, x_BTC: Array, train: bool = False) -> Array:
        """The answers to a whole sequence."""
        rate = self.config.dropout if train else 0.0
        answers_BTHD = causal_retrieval(
            *self._queries_keys_values(x_BTC, None),
            CAUSAL,
            dropout_rate=rate,
            dropout_seed=jax.random.bits(self.make_rng("dropout")) if rate > 0 else None,
            form=self.config.retrieval,
        )
        return self.dropout(self.proj(merge_heads(answers_BTHD)), deterministic=not train)

    def extend(self, x_BTC: Array, state: AttentionState, span: Span) -> tuple[Array, AttentionState]:
        """The answers to a chunk that continues a sequence, and the state after the chunk."""
        queries_BTHD, keys_BTHD, values_BTHD = self._queries_keys_values(x_BTC, span.length_B)
        state = AttentionState(
            keys_BHND=write_slots(state.keys_BHND, keys_BTHD, span.length_B),
            values_BHND=write_slots(state.values_BHND, values_BTHD, span.length_B),
        )
        answers_BTHD = stored_retrieval(queries_BTHD, state.keys_BHND, state.values_BHND, span.length_B, CAUSAL)
        return self.dropout(self.proj(merge_heads(answers_BTHD)), deterministic=True), state

    def _queries_keys_values(self, x_BTC: Array, start_B: Array | None) -> tuple[Array, Array, Array]:
        """Queries, keys and values, (B, T, H, D) each. start_B: the position of each row's first entry (default: 0)."""
        c = self.config
        x_BTC, kernel_C3C = x_BTC.astype(c.computing_dtype), self.qkv_kernel_C3C.astype(c.computing_dtype)
        qkv_3BTC = product(jnp.einsum("btc,cne->nbte", x_BTC, kernel_C3C))
        if c.bias:
            qkv_3BTC += self.qkv_bias.astype(c.computing_dtype).reshape(3, 1, 1, c.n_embd)
        queries_BTHD, keys_BTHD, values_BTHD = (split_heads(part_BTC, c.n_head) for part_BTC in qkv_3BTC)
        if c.rotary:
            queries_BTHD, keys_BTHD = rotate(queries_BTHD, start_B), rotate(keys_BTHD, start_B)
        return queries_BTHD * c.head_width**-0.5, keys_BTHD, values_BTHD

    @nn.nowrap
    def empty(self, batch: int, capacity: int) -> AttentionState:
        """The state at the beginning of a sequence, with room for ``capacity`` positions."""
        c = self.config
        stored_BHND = jnp.zeros((batch, c.n_head, capacity, c.head_width), c.dtype)
        return AttentionState(keys_BHND=stored_BHND, values_BHND=stored_BHND)
