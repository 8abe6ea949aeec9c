"""Contextual memory (v1 eq. 4-7): predicts the near future from the recent past, from pairs stored in this sequence."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.nn.extractors import KeyExtractor, ValueExtractor
from mosaics_jax.nn.layers import Projection, merge_heads
from mosaics_jax.nn.memory import ContextualState, Span, last_valid, write_slots
from mosaics_jax.ops import RetrievalForm, causal_retrieval, stored_retrieval
from mosaics_jax.shapes import Array, Dtype


class ContextualMemory(nn.Module):
    """One contextual memory a head: key extractor, value extractor, strictly causal retrieval, W_z. Keeps (B, T, C).

    The key serves as query too. weight_dropout acts on retrieval weights (``ic_dropout`` in the papers' code),
    output_dropout after W_z (``hd_dropout``).
    """

    heads: int
    log_bound: float
    std: float
    output_std: float
    eps: float = 0.0
    key_taps: int = 1
    value_convolution: bool = False
    bias: bool = False
    weight_dropout: float = 0.0
    output_dropout: float = 0.0
    retrieval: RetrievalForm = RetrievalForm.AUTO
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        common = {"heads": self.heads, "std": self.std, "eps": self.eps, "bias": self.bias, "dtype": self.dtype}
        self.key = KeyExtractor(power=1, log_bound=self.log_bound, taps=self.key_taps, **common)
        self.value = ValueExtractor(convolution=self.value_convolution, **common)

    @nn.compact
    def __call__(
        self, x_BTC: Array, state: ContextualState | None = None, span: Span | None = None, train: bool = False
    ) -> tuple[Array, ContextualState | None]:
        """The whole sequence when ``state`` is None; else a chunk that goes on from it, and the state after it."""
        now_BTHD, next_BTHD, gain_H = self.value(x_BTC)
        if state is None or span is None:
            keys_BTHD, _ = self.key(x_BTC)
            ahead_BTHD = jnp.pad(next_BTHD[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
            values_BTHD = self.value.value(now_BTHD + ahead_BTHD, gain_H)
            rate = self.weight_dropout if train else 0.0
            seed = jax.random.bits(self.make_rng("dropout")) if rate > 0 else None
            answers_BTHD = causal_retrieval(
                keys_BTHD, keys_BTHD, values_BTHD, dropout_rate=rate, dropout_seed=seed, form=self.retrieval
            )
        else:
            keys_BTHD, key_state = self.key(x_BTC, state.key, span)
            assert key_state is not None
            waiting_BTHD = jnp.concatenate([state.pending_value_BHD[:, None], now_BTHD[:, :-1]], axis=1)
            values_BTHD = self.value.value(waiting_BTHD + next_BTHD, gain_H)
            stored_BTHD = jnp.concatenate([state.pending_key_BHD[:, None], keys_BTHD[:, :-1]], axis=1)
            state = ContextualState(
                key=key_state,
                pending_key_BHD=last_valid(state.pending_key_BHD, keys_BTHD, span.valid_B),
                pending_value_BHD=last_valid(state.pending_value_BHD, now_BTHD, span.valid_B),
                keys_BHND=write_slots(state.keys_BHND, stored_BTHD, span.length_B),
                values_BHND=write_slots(state.values_BHND, values_BTHD, span.length_B),
            )
            answers_BTHD = stored_retrieval(keys_BTHD, state.keys_BHND, state.values_BHND, span.length_B, first=1)
        y_BTC = Projection(
            x_BTC.shape[-1], self.output_std, ("heads", "embed"), bias=self.bias, dtype=self.dtype, name="W_z"
        )(merge_heads(answers_BTHD))
        return nn.Dropout(self.output_dropout, deterministic=not train)(y_BTC), state

    def empty(self, batch: int, width: int, capacity: int) -> ContextualState:
        """An empty memory with room for ``capacity`` positions."""
        single, store = (batch, self.heads, width // self.heads), (batch, self.heads, capacity, width // self.heads)
        return ContextualState(
            key=self.key.empty(batch, width),
            pending_key_BHD=jnp.zeros(single, self.dtype),
            pending_value_BHD=jnp.zeros(single, jnp.promote_types(self.dtype, jnp.float32)),
            keys_BHND=jnp.zeros(store, self.dtype),
            values_BHND=jnp.zeros(store, self.dtype),
        )
