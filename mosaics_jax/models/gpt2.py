"""GPT-2 (Radford et al. 2019), the transformer that mosaics are compared with, as in nanoGPT."""

import math

import flax.linen as nn

from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.models.mosaic import stream
from mosaics_jax.nn.attention import CausalSelfAttention
from mosaics_jax.nn.config import GPT2Config
from mosaics_jax.nn.feed_forward import FeedForward
from mosaics_jax.nn.layers import layer_norm
from mosaics_jax.nn.memory import BlockState, Span
from mosaics_jax.shapes import Array

STD = 0.02  # initial standard deviation of all matrices but those that write to the residual stream


class TransformerBlock(nn.Module):
    """x += attention(LN(x)); x += feed_forward(LN(x)).  (B, T, C) to the same shape.

    layer: the index of the block, from 0; None if one module stands for all blocks (`scan_layers`).
    """

    config: GPT2Config
    layer: int | None = None

    def setup(self) -> None:
        c = self.config
        output_std = STD / math.sqrt(2 * c.n_layer)
        self.ln1 = layer_norm(c.bias, c.computing_dtype)
        self.attention = CausalSelfAttention(c, STD, output_std)
        self.ln2 = layer_norm(c.bias, c.computing_dtype)
        self.feed_forward = FeedForward(
            4 * c.n_embd,
            STD,
            output_std,
            tanh_gelu=c.gelu == "tanh",
            bias=c.bias,
            dropout=c.dropout,
            dtype=c.computing_dtype,
        )

    def __call__(self, x_BTC: Array, train: bool = False) -> Array:
        """The outputs of a whole sequence."""
        x_BTC = stream(x_BTC + self.attention(self.ln1(x_BTC), train))
        return stream(x_BTC + self.feed_forward(self.ln2(x_BTC), train))

    def extend(self, x_BTC: Array, states: BlockState, span: Span) -> tuple[Array, BlockState]:
        """The outputs of a chunk that continues a sequence, and the state of attention after the chunk."""
        y_BTC, attention = self.attention.extend(self.ln1(x_BTC), states[0], span)
        x_BTC += y_BTC
        return x_BTC + self.feed_forward(self.ln2(x_BTC)), (attention, None)

    def empty(self, batch: int, capacity: int) -> BlockState:
        """The state at the beginning of a sequence, with room for ``capacity`` positions."""
        return self.attention.empty(batch, capacity), None


class GPT2(LanguageModel):
    """Pre-normalized blocks of causal self-attention and feed-forward layers, with learned or rotary positions."""

    config: GPT2Config

    def block(self, layer: int | None) -> nn.Module:
        """A block of attention and a feed-forward layer of hidden width 4 C."""
        return TransformerBlock(self.config, layer)

    @property
    def embedding_std(self) -> float:
        """The initial standard deviation of the embedding and of the positions."""
        return STD

    @property
    def head_std(self) -> float:
        """The initial standard deviation of an output matrix that is not the embedding."""
        return STD

    @property
    def embed_dropout(self) -> float:
        """The dropout rate of embeddings: the same rate as everywhere."""
        return self.config.dropout

    @property
    def max_positions(self) -> int | None:
        """The number of learned positions; None if positions are rotary."""
        return None if self.config.rotary else self.config.context_length
