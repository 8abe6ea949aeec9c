"""The GPT-2-like Memory Mosaic (Zhang et al., ICLR 2025, arXiv 2405.06394, figure 6)."""

from typing import Any

import flax.linen as nn

from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.nn.config import MosaicConfig
from mosaics_jax.nn.contextual import ContextualMemory
from mosaics_jax.nn.feed_forward import FeedForward
from mosaics_jax.nn.layers import layer_norm
from mosaics_jax.nn.memory import BlockState, Span
from mosaics_jax.nn.persistent import PersistentMemory
from mosaics_jax.shapes import Array
from mosaics_jax.sharding import constrain


class MosaicBlock(nn.Module):
    """x += contextual(LN(x)); x += persistent(LN(x)).  (B, T, C) to the same shape.

    Options of the config. ``attn_only=True``: no second unit. ``feed_forward=True``: the second unit is a two-layer
    network. ``pre_ln=False``: the residual stream itself is normalized, x = LN(x); x += unit(x).

    layer: the index of the block, from 0; None if one module stands for all blocks (`scan_layers`).
    """

    config: MosaicConfig
    layer: int | None = None

    def setup(self) -> None:
        c = self.config
        self.ln1 = layer_norm(c.bias, c.computing_dtype)
        self.contextual = ContextualMemory(c)
        if c.attn_only:
            return
        self.ln2 = layer_norm(c.bias, c.computing_dtype)
        if c.feed_forward:
            std, output_std = c.recipe.projection_std(c), c.recipe.output_std(c)
            self.persistent: Any = FeedForward(
                4 * c.n_embd,
                std,
                output_std,
                bias=c.bias,
                dropout=c.hd_dropout,
                dtype=c.computing_dtype,
                name="feed_forward",
            )
        else:
            self.persistent = PersistentMemory(c)

    def __call__(self, x_BTC: Array, train: bool = False) -> Array:
        """The outputs of a whole sequence."""
        c = self.config
        if c.pre_ln:
            x_BTC = stream(x_BTC + self.contextual(self.ln1(x_BTC), train))
            return x_BTC if c.attn_only else stream(x_BTC + self.persistent(self.ln2(x_BTC), train))
        x_BTC = self.ln1(x_BTC)
        x_BTC = stream(x_BTC + self.contextual(x_BTC, train))
        if c.attn_only:
            return x_BTC
        x_BTC = self.ln2(x_BTC)
        return stream(x_BTC + self.persistent(x_BTC, train))

    def extend(self, x_BTC: Array, states: BlockState, span: Span) -> tuple[Array, BlockState]:
        """The outputs of a chunk that continues a sequence, and the states of both units after the chunk."""
        c = self.config
        normed_BTC = self.ln1(x_BTC)
        y_BTC, contextual = self.contextual.extend(normed_BTC, states[0], span)
        x_BTC = (x_BTC if c.pre_ln else normed_BTC) + y_BTC
        if c.attn_only:
            return x_BTC, (contextual, None)
        normed_BTC = self.ln2(x_BTC)
        y_BTC, persistent = self.persistent.extend(normed_BTC, states[1], span)
        return (x_BTC if c.pre_ln else normed_BTC) + y_BTC, (contextual, persistent)

    def empty(self, batch: int, capacity: int) -> BlockState:
        """The states of both units at the beginning of a sequence, with room for ``capacity`` positions."""
        second = None if self.config.attn_only else self.persistent.empty(batch, capacity)
        return self.contextual.empty(batch, capacity), second


def stream(x_BTC: Array) -> Array:
    """The residual stream between units; a mesh shards it over batch and time."""
    return constrain(x_BTC, "batch", "time", "activation_embed")


class MemoryMosaic(LanguageModel):
    """Blocks of contextual and persistent memories. There is no position encoding, hence no limit on T.

    ``MemoryMosaic(config).apply({"params": params}, tokens_BT)`` returns logits; the `library` variant scales them by
    1/sqrt(C). `models.reference` is the same network on one page.
    """

    config: MosaicConfig

    def block(self, layer: int | None) -> nn.Module:
        """A block of one contextual and one persistent memory per head."""
        return MosaicBlock(self.config, layer)

    @property
    def embedding_std(self) -> float:
        """The initial standard deviation of the embedding."""
        return self.config.recipe.embedding_std(self.config)

    @property
    def head_std(self) -> float:
        """The initial standard deviation of an output matrix that is not the embedding."""
        return self.config.recipe.head_std(self.config)

    @property
    def logit_scale(self) -> float:
        """The factor of the logits."""
        return self.config.recipe.logit_scale(self.config)

    @property
    def embed_dropout(self) -> float:
        """The dropout rate of embeddings."""
        return self.config.embed_dropout
