"""Two-layer network: the GPT-2 baseline's, and an ablation of persistent memory (v1 section 5)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.nn.layers import Projection
from mosaics_jax.nn.memory import Span
from mosaics_jax.shapes import Array, Dtype


class FeedForward(nn.Module):
    """Projection to ``hidden``, GELU, projection back, dropout. (B, T, C) to the same.

    tanh_gelu: the tanh approximation of GELU, else the exact one.
    """

    hidden: int
    std: float
    output_std: float
    tanh_gelu: bool = True
    bias: bool = False
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: Array, train: bool = False) -> Array:
        """Each position by itself."""
        width = x_BTC.shape[-1]
        common = {"bias": self.bias, "dtype": self.dtype}
        h_BTF = Projection(self.hidden, self.std, ("embed", "mlp"), name="up", **common)(x_BTC)
        h_BTF = jax.nn.gelu(h_BTF, approximate=self.tanh_gelu)
        y_BTC = Projection(width, self.output_std, ("mlp", "embed"), name="down", **common)(h_BTF)
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC)

    def extend(self, x_BTC: Array, state: None, span: Span) -> tuple[Array, None]:
        """A chunk of a sequence. Positions do not depend on each other: there is no state."""
        del span
        return self(x_BTC), state

    @nn.nowrap
    def empty(self, batch: int, capacity: int) -> None:
        """No state."""
