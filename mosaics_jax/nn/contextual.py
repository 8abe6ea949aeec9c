"""Contextual memory (v1 eq. 4-7): predicts the near future from the recent past, from pairs stored in this sequence."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.nn.extractors import KeyExtractor, ValueExtractor
from mosaics_jax.nn.layers import Projection, merge_heads
from mosaics_jax.nn.memory import ContextualState, Span, last_valid, write_slots
from mosaics_jax.nn.sharded import causal_retrieval, following
from mosaics_jax.ops import RetrievalForm, stored_retrieval
from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array, Dtype


class ContextualMemory(nn.Module):
    """One contextual memory a head: key extractor, value extractor, strictly causal retrieval, W_z. Keeps (B, T, C).

    The key serves as query too. weight_dropout acts on retrieval weights (``ic_dropout`` in the papers' code),
    output_dropout after W_z (``hd_dropout``).

    Ablations. ``leaky_average`` and ``normalized_keys``: `KeyExtractor`; keys that are not normalised are compared by
    the Gaussian kernel (`gaussian_pair`). ``asymmetric``: queries from an extractor of their own. Without ``peek`` a
    value does not know x_{t+1}, and yet query t finds i < t alone: its own pair, whose key is the query, would outweigh
    all others, and the ablation would change two things.
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
    leaky_average: str = "learned"
    normalized_keys: bool = True
    asymmetric: bool = False
    peek: bool = True

    def setup(self) -> None:
        common = {"heads": self.heads, "std": self.std, "eps": self.eps, "bias": self.bias, "dtype": self.dtype}
        keys = {
            "power": 1,
            "log_bound": self.log_bound,
            "taps": self.key_taps,
            "leaky_average": self.leaky_average,
            "normalized": self.normalized_keys,
            **common,
        }
        self.key = KeyExtractor(**keys)
        if self.asymmetric:
            self.query = KeyExtractor(**keys)
        self.value = ValueExtractor(convolution=self.value_convolution, ahead=self.peek, **common)

    @nn.compact
    def __call__(
        self, x_BTC: Array, state: ContextualState | None = None, span: Span | None = None, train: bool = False
    ) -> tuple[Array, ContextualState | None]:
        """The whole sequence when ``state`` is None; else a chunk that goes on from it, and the state after it."""
        now_BTHD, next_BTHD, gain_H = self.value(x_BTC)
        keys_BTHD, key_state = self.key(x_BTC, None if state is None else state.key, span)
        queries_BTHD, query_state = keys_BTHD, None
        if self.asymmetric:
            queries_BTHD, query_state = self.query(x_BTC, None if state is None else state.query, span)
        if not self.normalized_keys:
            queries_BTHD, keys_BTHD = gaussian_pair(queries_BTHD, keys_BTHD)
        if state is None or span is None:
            values_BTHD = self._values(now_BTHD + following(next_BTHD), gain_H)
            rate = self.weight_dropout if train else 0.0
            seed = jax.random.bits(self.make_rng("dropout")) if rate > 0 else None
            answers_BTHD = causal_retrieval(
                queries_BTHD, keys_BTHD, values_BTHD, dropout_rate=rate, dropout_seed=seed, form=self.retrieval
            )
        else:
            assert key_state is not None
            waiting_BTHD = jnp.concatenate([state.pending_value_BHD[:, None], now_BTHD[:, :-1]], axis=1)
            values_BTHD = self._values(waiting_BTHD + next_BTHD, gain_H)
            stored_BTHD = jnp.concatenate([state.pending_key_BHD[:, None], keys_BTHD[:, :-1]], axis=1)
            state = ContextualState(
                key=key_state,
                pending_key_BHD=last_valid(state.pending_key_BHD, keys_BTHD, span.valid_B),
                pending_value_BHD=last_valid(state.pending_value_BHD, now_BTHD, span.valid_B),
                keys_BHND=write_slots(state.keys_BHND, stored_BTHD, span.length_B),
                values_BHND=write_slots(state.values_BHND, values_BTHD, span.length_B),
                query=query_state,
            )
            answers_BTHD = stored_retrieval(queries_BTHD, state.keys_BHND, state.values_BHND, span.length_B, first=1)
        answers_BTHD = answers_BTHD[..., : now_BTHD.shape[-1]]
        y_BTC = Projection(
            x_BTC.shape[-1], self.output_std, ("heads", "embed"), bias=self.bias, dtype=self.dtype, name="W_z"
        )(merge_heads(answers_BTHD))
        return nn.Dropout(self.output_dropout, deterministic=not train)(y_BTC), state

    def _values(self, sum_BTHD: Array, gain_H: Array) -> Array:
        values_BTHD = self.value.value(sum_BTHD, gain_H)
        # As many channels as `gaussian_pair` gives keys: retrieval takes pairs of one width.
        return values_BTHD if self.normalized_keys else jnp.pad(values_BTHD, ((0, 0), (0, 0), (0, 0), (0, 1)))

    def empty(self, batch: int, width: int, capacity: int) -> ContextualState:
        """An empty memory with room for ``capacity`` positions."""
        head_width = width // self.heads
        pair_width = head_width if self.normalized_keys else head_width + 1
        store = (batch, self.heads, capacity, pair_width)
        return ContextualState(
            key=self.key.empty(batch, width),
            pending_key_BHD=jnp.zeros((batch, self.heads, pair_width), self.dtype),
            pending_value_BHD=jnp.zeros((batch, self.heads, head_width), jnp.promote_types(self.dtype, jnp.float32)),
            keys_BHND=jnp.zeros(store, self.dtype),
            values_BHND=jnp.zeros(store, self.dtype),
            query=self.query.empty(batch, width) if self.asymmetric else None,
        )


def gaussian_pair(queries_BTHD: Array, keys_BTHD: Array) -> tuple[Array, Array]:
    """Both with one more channel, so that retrieval by their dot product is regression with exp(-|q - k|^2 / 2).

    The channels are 1 and -|k|^2 / 2; the query's own norm is common to its scores and cancels. For keys of norm a the
    kernel is that of beta = a^2 in v1 eq. 3; here it is v1 eq. 2, for keys of any norm.
    """
    half_square = 0.5 * jnp.sum(jnp.square(keys_BTHD.astype(accumulation_dtype(keys_BTHD))), axis=-1, keepdims=True)
    ones = jnp.ones((*queries_BTHD.shape[:-1], 1), queries_BTHD.dtype)
    return (
        jnp.concatenate([queries_BTHD, ones], axis=-1),
        jnp.concatenate([keys_BTHD, -half_square.astype(keys_BTHD.dtype)], axis=-1),
    )
