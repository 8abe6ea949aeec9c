"""A block of the network: one unit that mixes positions, and one that transforms each (v1 figure 6)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mosaics_jax.nn.layers import layer_norm
from mosaics_jax.nn.memory import Span
from mosaics_jax.shapes import Array, Dtype
from mosaics_jax.sharding import constrain

BlockState = tuple[Any, Any]


class Block(nn.Module):
    """x += first(LN(x)); x += second(LN(x)).  (B, T, C) to the same.

    ``first`` and ``second`` make units with the call (x, state, span, train) -> (y, state); names of the units in the
    parameter tree are ``first_name`` and ``second_name``. Without ``second`` the block is its first half. pre_ln=False
    normalises the stream itself: x = LN(x); x += unit(x).
    """

    first: Callable[..., nn.Module]
    second: Callable[..., nn.Module] | None
    first_name: str
    second_name: str
    pre_ln: bool = True
    bias: bool = False
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        setattr(self, self.first_name, self.first())
        self.ln1 = layer_norm(self.bias, self.dtype)
        if self.second is not None:
            setattr(self, self.second_name, self.second())
            self.ln2 = layer_norm(self.bias, self.dtype)

    def _halves(self) -> list[tuple[nn.LayerNorm, Any]]:
        halves = [(self.ln1, getattr(self, self.first_name))]
        return halves if self.second is None else [*halves, (self.ln2, getattr(self, self.second_name))]

    def __call__(
        self, x_BTC: Array, states: BlockState | None = None, span: Span | None = None, train: bool = False
    ) -> tuple[Array, BlockState | None]:
        """The whole sequence when ``states`` is None; else a chunk that goes on from them, and the states after it."""
        after: list[Any] = []
        for (norm, unit), state in zip(self._halves(), states or (None, None), strict=False):
            normed_BTC = norm(x_BTC)
            y_BTC, state = unit(normed_BTC, state, span, train)
            x_BTC = constrain((x_BTC if self.pre_ln else normed_BTC) + y_BTC, "batch", "time", "activation_embed")
            after.append(state)
        return x_BTC, None if states is None else (after[0], after[1] if len(after) > 1 else None)

    def empty(self, batch: int, width: int, capacity: int) -> BlockState:
        """Empty states of both units, with room for ``capacity`` positions."""
        states = [unit.empty(batch, width, capacity) for _, unit in self._halves()]
        return states[0], states[1] if len(states) > 1 else None
