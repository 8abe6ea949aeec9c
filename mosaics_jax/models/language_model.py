"""What both language models are: embedding, a stack of blocks, a normalised head."""

from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.nn.block import Block
from mosaics_jax.nn.layers import layer_norm, normal
from mosaics_jax.nn.memory import Memory, Span
from mosaics_jax.nn.sharded import head_cross_entropy
from mosaics_jax.ops.products import KEEP_PRODUCTS
from mosaics_jax.shapes import Array, Params
from mosaics_jax.sharding import constrain

REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "full": None,
    "dots": KEEP_PRODUCTS,
}


class StackConfig(Protocol):
    """The fields that `LanguageModel` reads from the config of a model family."""

    vocab_size: int
    n_layer: int
    n_embd: int
    bias: bool
    weight_tying: bool
    skip_tokens: int
    dtype: str
    remat: str
    scan_layers: bool


class LanguageModel(nn.Module):
    """Tokens (B, T) int32 to logits (B, T - skip_tokens, V), at least float32; any T that the positions allow.

    A subclass says what a block is made of, how parameters begin and whether there are positions.
    """

    config: Any

    def block_fields(self) -> dict[str, Any]:
        """The fields of `Block` that make one block of this model."""
        raise NotImplementedError

    @property
    def embedding_std(self) -> float:
        raise NotImplementedError

    @property
    def head_std(self) -> float:
        raise NotImplementedError

    @property
    def logit_scale(self) -> float:
        return 1.0

    @property
    def embed_dropout(self) -> float:
        return 0.0

    @property
    def max_positions(self) -> int | None:
        """Longest sequence, where positions are learned; None without a limit."""
        return None

    def setup(self) -> None:
        c = self.config
        vocabulary = (c.vocab_size, c.n_embd)
        self.embedding = self.param("embedding", normal(self.embedding_std, "vocab", "embed"), vocabulary)
        if self.max_positions is not None:
            init = normal(self.embedding_std, "position", "embed")
            self.positions = self.param("positions", init, (self.max_positions, c.n_embd))
        block: Any = Block
        if c.remat != "none":
            # Argument 4 is `train`; 0 is the module itself.
            block = nn.remat(Block, policy=REMAT_POLICIES[c.remat], static_argnums=(4,), prevent_cse=not c.scan_layers)
        if c.scan_layers:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
                length=c.n_layer,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            self.blocks = scanned(**self.block_fields())
        else:
            self.blocks = [block(**self.block_fields()) for _ in range(c.n_layer)]
        self.ln_out = layer_norm(c.bias, jnp.dtype(c.dtype))
        if not c.weight_tying:
            self.head = self.param("head", normal(self.head_std, "vocab", "embed"), vocabulary)
        self.dropout = nn.Dropout(self.embed_dropout)

    def _embed(self, tokens_BT: Array, start_B: Array | None, train: bool) -> Array:
        # As jax arrays: parameters may be numpy's, and those cannot be indexed with traced tokens.
        tokens_BT = constrain(tokens_BT, "batch", "time")
        # Rows of the table whole: looked up in halves, they would be put together for the whole batch on each device.
        table_VC = jnp.asarray(self.embedding, self.config.dtype)
        table_VC = constrain(table_VC, "activation_vocab", "activation_embed")
        x_BTC = table_VC[tokens_BT]
        if self.max_positions is not None:
            index = jnp.arange(tokens_BT.shape[1])
            index = index if start_B is None else start_B[:, None] + index
            x_BTC += jnp.asarray(self.positions, self.config.dtype)[index]
        x_BTC = self.dropout(x_BTC, deterministic=not train)
        return constrain(x_BTC, "batch", "time", "activation_embed")

    def hidden(self, tokens_BT: Array, train: bool = False) -> Array:
        """The normalised outputs of the stack that the head reads: (B, T - skip_tokens, C)."""
        if tokens_BT.ndim != 2:
            raise ValueError(f"tokens have shape {tokens_BT.shape}: (batch, time) is needed")
        if self.max_positions is not None and tokens_BT.shape[1] > self.max_positions:
            raise ValueError(f"{tokens_BT.shape[1]} positions, but only {self.max_positions} are learned")
        x_BTC = self._embed(tokens_BT, None, train)
        if self.config.scan_layers:
            x_BTC, _ = self.blocks(x_BTC, None, None, train)
        else:
            for block in self.blocks:
                x_BTC, _ = block(x_BTC, None, None, train)
        return self.ln_out(x_BTC[:, self.config.skip_tokens :])

    def _head(self) -> Array:
        return self.embedding if self.config.weight_tying else self.head

    def _logits(self, hidden_BTC: Array) -> Array:
        wide = jnp.promote_types(hidden_BTC.dtype, jnp.float32)
        head_VC = self._head().astype(hidden_BTC.dtype)
        return self.logit_scale * jnp.einsum("btc,vc->btv", hidden_BTC, head_VC, preferred_element_type=wide)

    def __call__(self, tokens_BT: Array, train: bool = False) -> Array:
        """Logits of each next token. ``train`` turns dropout on, which needs ``rngs={"dropout": key}``."""
        return self._logits(self.hidden(tokens_BT, train))

    def loss(
        self, tokens_BT: Array, targets_BT: Array, train: bool = False, z_loss: float = 0.0
    ) -> tuple[Array, Array]:
        """Mean cross-entropy in nats over targets other than -1, and their number; logits are never held whole.

        ``z_loss``: weight of the squared logarithm of the softmax's sum, see `ops.head_cross_entropy`.
        """
        targets_BT = targets_BT[:, self.config.skip_tokens :]
        return head_cross_entropy(self.hidden(tokens_BT, train), self._head(), targets_BT, self.logit_scale, z_loss)

    def empty_memory(self, batch: int, capacity: int) -> Memory:
        """An empty memory for `extend`, with room for ``capacity`` positions a row."""
        self._refuse_scanned()
        blocks = tuple(block.empty(batch, self.config.n_embd, capacity) for block in self.blocks)
        return Memory(blocks=blocks, length_B=jnp.zeros(batch, jnp.int32))

    def extend(self, tokens_BT: Array, memory: Memory, valid_B: Array | None = None) -> tuple[Array, Memory]:
        """Feeds one more chunk to every row: logits (B, T, V), and the memory after it.

        valid_B: how many of the chunk's tokens are real, the rest being padding on the right (default: all). Logits of
        padding mean nothing. The memory's capacity must hold length + T positions. Equals the parallel form at every
        position.
        """
        hidden_BTC, memory = self._extend(tokens_BT, memory, valid_B)
        return self._logits(hidden_BTC), memory

    def extend_last(self, tokens_BT: Array, memory: Memory, valid_B: Array | None = None) -> tuple[Array, Memory]:
        """As `extend`, but logits of each row's last real token alone: (B, V); of a row without, they mean nothing."""
        hidden_BTC, after = self._extend(tokens_BT, memory, valid_B)
        last_B = jnp.maximum(after.length_B - memory.length_B - 1, 0)
        hidden_BTC = jnp.take_along_axis(hidden_BTC, last_B[:, None, None], axis=1)
        return self._logits(hidden_BTC)[:, 0], after

    def _extend(self, tokens_BT: Array, memory: Memory, valid_B: Array | None) -> tuple[Array, Memory]:
        self._refuse_scanned()
        if valid_B is None:
            valid_B = jnp.full(tokens_BT.shape[0], tokens_BT.shape[1], jnp.int32)
        span = Span(memory.length_B, valid_B)
        x_BTC = self._embed(tokens_BT, memory.length_B, train=False)
        states = []
        for block, state in zip(self.blocks, memory.blocks, strict=True):
            x_BTC, state = block(x_BTC, state, span, False)
            states.append(state)
        return self.ln_out(x_BTC), Memory(tuple(states), memory.length_B + valid_B)

    def _refuse_scanned(self) -> None:
        if self.config.scan_layers:
            raise ValueError("decoding runs unscanned layers: set scan_layers=False and convert with unstack_layers")


def unstack_layers(params: Params) -> Params:
    """Parameters of a scanned model to those of the model unscanned: ``blocks`` to ``blocks_0``, ``blocks_1``..."""
    rest = {name: value for name, value in params.items() if name != "blocks"}
    depth = len(jax.tree.leaves(params["blocks"])[0])
    return rest | {f"blocks_{i}": jax.tree.map(lambda a, i=i: a[i], params["blocks"]) for i in range(depth)}


def stack_layers(params: Params) -> Params:
    """The inverse of `unstack_layers`."""
    names = sorted((name for name in params if name.startswith("blocks_")), key=lambda name: int(name[7:]))
    rest = {name: value for name, value in params.items() if name not in names}
    return rest | {"blocks": jax.tree.map(lambda *layers: jnp.stack(layers), *(params[name] for name in names))}
