"""A two-layer network: a unit of the GPT-2 baseline, and an ablation that replaces persistent memory (v1 section 5)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.nn.layers import Projection
from mosaics_jax.nn.memory import Span
from mosaics_jax.shapes import Array, Dtype


class FeedForward(nn.Module):
    """Projection to ``hidden`` = F channels, GELU, projection back, dropout. (B, T, C) to the same shape.

    std, output_std: initial standard deviations of the two kernels. tanh_gelu: use the tanh approximation of GELU.
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
        """The outputs of a whole sequence; positions do not depend on each other."""
        width = x_BTC.shape[-1]
        common = {"bias": self.bias, "dtype": self.dtype}
        h_BTF = Projection(self.hidden, self.std, ("embed", "mlp"), name="up", **common)(x_BTC)
        h_BTF = jax.nn.gelu(h_BTF, approximate=self.tanh_gelu)
        y_BTC = Projection(width, self.output_std, ("mlp", "embed"), name="down", **common)(h_BTF)
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC)

    def extend(self, x_BTC: Array, state: None, span: Span) -> tuple[Array, None]:
        """The outputs of a chunk. There is no state."""
        del span
        return self(x_BTC), state

    @nn.nowrap
    def empty(self, batch: int, capacity: int) -> None:
        """No state."""
