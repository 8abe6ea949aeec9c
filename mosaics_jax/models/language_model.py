"""The base of all networks on tokens: an embedding, a stack of blocks, and a head after layer normalization."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.errors import UserError
from mosaics_jax.nn.config import ModelConfig
from mosaics_jax.nn.layers import layer_norm, normal
from mosaics_jax.nn.memory import Memory, Span
from mosaics_jax.ops import head_cross_entropy
from mosaics_jax.ops.products import KEEP_PRODUCTS
from mosaics_jax.shapes import Array, Params
from mosaics_jax.sharding import constrain

# The value of ``remat`` -> the policy that selects what is saved; None saves nothing.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "full": None,
    "dots": KEEP_PRODUCTS,
}


class LanguageModel(nn.Module):
    """Tokens (B, T) int32 to logits (B, T - skip_tokens, V) in at least float32. T is limited by `max_positions` only.

    A subclass defines the block, the initial standard deviations, and whether there are learned positions.
    """

    config: ModelConfig

    def block(self, layer: int | None) -> Any:
        """The block of index ``layer``; with `scan_layers`, ``layer`` is None and one module stands for all blocks.

        A block maps (x_BTC, train) to x_BTC. A block that can decode also has ``extend`` and ``empty``, which work on
        the states of `nn.memory`.
        """
        raise NotImplementedError

    @property
    def embedding_std(self) -> float:
        """The initial standard deviation of the embedding."""
        raise NotImplementedError

    @property
    def head_std(self) -> float:
        """The initial standard deviation of an output matrix that is not the embedding."""
        raise NotImplementedError

    @property
    def logit_scale(self) -> float:
        """The factor of the logits."""
        return 1.0

    @property
    def embed_dropout(self) -> float:
        """The dropout rate of embeddings."""
        return 0.0

    @property
    def max_positions(self) -> int | None:
        """The number of learned positions, which limits T; None if there are none."""
        return None

    @property
    def can_decode(self) -> bool:
        """Whether `extend` is supported, which continues a sequence chunk by chunk."""
        return True

    def setup(self) -> None:
        c = self.config
        vocabulary = (c.vocab_size, c.n_embd)
        self.embedding_VC = self.param("embedding", normal(self.embedding_std, "vocab", "embed"), vocabulary)
        if self.max_positions is not None:
            init = normal(self.embedding_std, "position", "embed")
            self.positions_TC = self.param("positions", init, (self.max_positions, c.n_embd))
        self.blocks = self.block(None) if c.scan_layers else [self.block(layer) for layer in range(c.n_layer)]
        self.ln_out = layer_norm(c.bias, c.computing_dtype)
        if not c.weight_tying:
            self.head_VC = self.param("head", normal(self.head_std, "vocab", "embed"), vocabulary)
        self.dropout = nn.Dropout(self.embed_dropout)

    def _embed(self, tokens_BT: Array, start_B: Array | None, train: bool) -> Array:
        tokens_BT = constrain(tokens_BT, "batch", "time")
        # jnp.asarray: parameters may be numpy arrays, which traced tokens cannot index. Constraint: each device gathers
        # its rows of the embedding along C, or XLA would gather the looked-up rows of the whole batch.
        table_VC = jnp.asarray(self.embedding_VC, self.config.dtype)
        table_VC = constrain(table_VC, "activation_vocab", "activation_embed")
        x_BTC = table_VC[tokens_BT]
        if self.max_positions is not None:
            index = jnp.arange(tokens_BT.shape[1])
            index = index if start_B is None else start_B[:, None] + index
            x_BTC += jnp.asarray(self.positions_TC, self.config.dtype)[index]
        x_BTC = self.dropout(x_BTC, deterministic=not train)
        return constrain(x_BTC, "batch", "time", "activation_embed")

    def hidden(self, tokens_BT: Array, train: bool = False) -> Array:
        """The inputs of the head: the outputs of the last block after layer normalization, (B, T - skip_tokens, C)."""
        if tokens_BT.ndim != 2:
            raise ValueError(f"tokens have shape {tokens_BT.shape}: (batch, time) is needed")
        if self.max_positions is not None and tokens_BT.shape[1] > self.max_positions:
            raise ValueError(f"{tokens_BT.shape[1]} positions, but only {self.max_positions} are learned")
        x_BTC = self._embed(tokens_BT, None, train)
        if self.config.scan_layers:
            x_BTC = self._scan_blocks(x_BTC, train)
        else:
            for block in self.blocks:
                x_BTC = self._recomputed(block, x_BTC, train) if self.config.remat != "none" else block(x_BTC, train)
        return self.ln_out(x_BTC[:, self.config.skip_tokens :])

    def _scan_blocks(self, x_BTC: Array, train: bool) -> Array:
        """One module for all blocks, whose parameters are stacked."""
        apply = self._recomputed if self.config.remat != "none" else type(self.blocks).__call__
        scan = nn.scan(
            lambda block, x_BTC, _: (apply(block, x_BTC, train), None),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.config.n_layer,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(self.blocks, x_BTC, None)[0]

    @nn.nowrap
    def _recomputed(self, block: Any, x_BTC: Array, train: bool) -> Array:
        """A block under rematerialization: the backward pass recomputes what the policy of ``remat`` does not save."""
        c = self.config
        remat = nn.remat(
            lambda block, x_BTC: block(x_BTC, train),
            policy=REMAT_POLICIES[c.remat],
            prevent_cse=not c.scan_layers,
        )
        return remat(block, x_BTC)

    def head_matrix(self) -> Array:
        """The output matrix (V, C), which maps hidden states to logits: the embedding if weights are tied."""
        return self.embedding_VC if self.config.weight_tying else self.head_VC

    def _logits(self, hidden_BTC: Array) -> Array:
        wide = jnp.promote_types(hidden_BTC.dtype, jnp.float32)
        head_VC = self.head_matrix().astype(hidden_BTC.dtype)
        return self.logit_scale * jnp.einsum("btc,vc->btv", hidden_BTC, head_VC, preferred_element_type=wide)

    def __call__(self, tokens_BT: Array, train: bool = False) -> Array:
        """The logits of each next token. ``train`` turns dropout on, and needs ``rngs={"dropout": key}``."""
        return self._logits(self.hidden(tokens_BT, train))

    def loss(
        self, tokens_BT: Array, targets_BT: Array, train: bool = False, z_loss: float = 0.0
    ) -> tuple[Array, Array]:
        """The mean cross-entropy in nats over targets other than -1, and the number of such targets.

        The array of all logits is never stored. z_loss: weight of log(Z)^2, see `ops.head_cross_entropy`.
        """
        targets_BT = targets_BT[:, self.config.skip_tokens :]
        return head_cross_entropy(
            self.hidden(tokens_BT, train), self.head_matrix(), targets_BT, self.logit_scale, z_loss
        )

    def empty_memory(self, batch: int, capacity: int) -> Memory:
        """The state at the beginning of a sequence, for `extend`, with room for ``capacity`` positions per row.

        Raises UserError if the network cannot decode.
        """
        self._check_decoding()
        blocks = tuple(block.empty(batch, capacity) for block in self.blocks)
        return Memory(blocks=blocks, length_B=jnp.zeros(batch, jnp.int32))

    def extend(self, tokens_BT: Array, memory: Memory, valid_B: Array | None = None) -> tuple[Array, Memory]:
        """Continues every row by a chunk of T tokens: their logits (B, T, V), and the memory after the chunk.

        valid_B: the number of tokens of the chunk in each row; the rest is padding on the right, whose logits have no
        meaning (default: all T). The capacity of the memory must be at least the length of each row plus T. The logits
        equal those of the whole sequence computed at once.
        """
        hidden_BTC, memory = self._extend(tokens_BT, memory, valid_B)
        return self._logits(hidden_BTC), memory

    def extend_last(self, tokens_BT: Array, memory: Memory, valid_B: Array | None = None) -> tuple[Array, Memory]:
        """`extend` with the logits of the last valid token of each row only: (B, V).

        The logits of a row without valid tokens have no meaning.
        """
        hidden_BTC, after = self._extend(tokens_BT, memory, valid_B)
        last_B = jnp.maximum(after.length_B - memory.length_B - 1, 0)
        hidden_BTC = jnp.take_along_axis(hidden_BTC, last_B[:, None, None], axis=1)
        return self._logits(hidden_BTC)[:, 0], after

    def _extend(self, tokens_BT: Array, memory: Memory, valid_B: Array | None) -> tuple[Array, Memory]:
        self._check_decoding()
        if valid_B is None:
            valid_B = jnp.full(tokens_BT.shape[0], tokens_BT.shape[1], jnp.int32)
        span = Span(memory.length_B, valid_B)
        x_BTC = self._embed(tokens_BT, memory.length_B, train=False)
        states = []
        for block, state in zip(self.blocks, memory.blocks, strict=True):
            x_BTC, state = block.extend(x_BTC, state, span)
            states.append(state)
        return self.ln_out(x_BTC), Memory(tuple(states), memory.length_B + valid_B)

    def _check_decoding(self) -> None:
        if not self.can_decode:
            raise UserError(
                f"a {type(self).__name__} cannot continue a text: it computes whole sequences only; "
                "MemoryMosaic and GPT2 can decode"
            )
        if self.config.scan_layers:
            raise ValueError("decoding runs unscanned layers: set scan_layers=False and convert with unstack_layers")


def unstack_layers(params: Params) -> Params:
    """Parameters of a model with `scan_layers` to those without: ``blocks`` to ``blocks_0``, ``blocks_1``, ..."""
    rest = {name: value for name, value in params.items() if name != "blocks"}
    depth = len(jax.tree.leaves(params["blocks"])[0])
    return rest | {f"blocks_{i}": jax.tree.map(lambda a, i=i: a[i], params["blocks"]) for i in range(depth)}


def stack_layers(params: Params) -> Params:
    """The inverse of `unstack_layers`."""
    names = sorted((name for name in params if name.startswith("blocks_")), key=lambda name: int(name[7:]))
    rest = {name: value for name, value in params.items() if name not in names}
    return rest | {"blocks": jax.tree.map(lambda *layers: jnp.stack(layers), *(params[name] for name in names))}
