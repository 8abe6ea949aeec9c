"""Key and value extractors (v1 eq. 5, 6): what turns inputs into the pairs that memories store."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mosaics_jax.nn.layers import Projection, constant, head_scalars, normal, split_heads
from mosaics_jax.nn.memory import KeyState, Span, last_valid
from mosaics_jax.nn.sharded import leaky_average
from mosaics_jax.ops import unit
from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.ops.products import product
from mosaics_jax.shapes import Array, Dtype

# Learned scalars are stored divided by this, so that one learning rate suits them and the matrices (authors' code).
SCALAR_UNIT = 10.0
LEAKY_AVERAGES = ("learned", "fixed", "off")


class KeyExtractor(nn.Module):
    """k_t = a unit(kbar_t), where kbar is the leaky average of W_phi x (v1 eq. 6). Returns (B, T, H, D).

    a = exp(min(power * 10 * bandwidth, log_bound)) per head: power 1 gives the scale of a key, so that the kernel has
    beta = a^2; power 2 that of a query to keys without a scale of their own. Rate of decay 10 |decay|, per position.
    With ``taps`` > 1 W_phi is a causal convolution over that many positions, the newest last.

    Ablations. ``leaky_average``: rates that are "learned", "fixed" where learning begins, or "off", kbar_t = W_phi x_t.
    Without ``normalized``, k_t = a kbar_t / sqrt(D): about the norm that W_phi x begins with, in place of its own.
    """

    heads: int
    power: int
    log_bound: float
    std: float
    eps: float = 0.0
    taps: int = 1
    bias: bool = False
    dtype: Dtype = jnp.float32
    leaky_average: str = "learned"
    normalized: bool = True

    @nn.compact
    def __call__(
        self, x_BTC: Array, state: KeyState | None = None, span: Span | None = None
    ) -> tuple[Array, KeyState | None]:
        """The keys, and the state after the chunk's last valid position (None if no state is given)."""
        width = x_BTC.shape[-1]
        padded = _with_past(x_BTC, self.taps - 1, None if state is None else state.inputs_BSC)
        if self.taps == 1:
            raw_BTC = Projection(width, self.std, bias=self.bias, dtype=self.dtype, name="W_phi")(x_BTC)
        else:
            raw_BTC = TimeConvolution(width, self.std, self.taps, self.bias, self.dtype, name="W_phi")(padded)
        raw_BTHD, rate_H = split_heads(raw_BTC, self.heads), self._rate()
        if self.leaky_average == "off":
            sum_BTHD = raw_BTHD.astype(accumulation_dtype(raw_BTHD))
        else:
            sum_BTHD = leaky_average(raw_BTHD, rate_H, None if state is None else state.sum_BHD)
        bandwidth_H = self.param("bandwidth", constant(1 / SCALAR_UNIT, "head"), (self.heads,))
        log_scale_H = self.power * SCALAR_UNIT * bandwidth_H.astype(sum_BTHD.dtype)
        # jnp.minimum would halve the gradient at the bound itself; the authors' clamp passes it whole.
        log_scale_H = jnp.where(log_scale_H <= self.log_bound, log_scale_H, self.log_bound)
        if self.normalized:
            keys_BTHD = unit(sum_BTHD, self.eps)
        else:
            # The factor that makes an average of the sum, which a norm cancels, counts here.
            keys_BTHD = head_scalars(-jnp.expm1(-rate_H)) * sum_BTHD / sum_BTHD.shape[-1] ** 0.5
        keys_BTHD = head_scalars(jnp.exp(log_scale_H)) * keys_BTHD
        if state is None or span is None:
            return keys_BTHD.astype(self.dtype), None
        state = KeyState(
            sum_BHD=last_valid(state.sum_BHD, sum_BTHD, span.valid_B),
            inputs_BSC=_window_at(padded, self.taps - 1, span.valid_B),
        )
        return keys_BTHD.astype(self.dtype), state

    def _rate(self) -> Array:
        """Rates of decay, per position; without a leaky average nothing is kept, as at an infinite rate."""
        if self.leaky_average == "off":
            return jnp.full(self.heads, jnp.inf)
        decay_H = jnp.linspace(0.5, 5.0, self.heads) / SCALAR_UNIT
        if self.leaky_average == "learned":
            decay_H = self.param("decay", constant(decay_H, "head"), (self.heads,))
        return SCALAR_UNIT * jnp.abs(decay_H)

    @nn.nowrap
    def empty(self, batch: int, width: int) -> KeyState:
        """The state at the beginning of a sequence."""
        sums = jnp.zeros((batch, self.heads, width // self.heads), jnp.promote_types(self.dtype, jnp.float32))
        return KeyState(sum_BHD=sums, inputs_BSC=jnp.zeros((batch, self.taps - 1, width), self.dtype))


class ValueExtractor(nn.Module):
    """v_t = g unit(c W_psi x_t + (1 - c) W_psi x_{t+1}): a value peeks one position ahead (v1 eq. 5, 6).

    g = exp(10 gain) and c = ``peek`` are one scalar a head; c is not confined to [0, 1]. With ``convolution`` the
    mixture is a full convolution of width 2, W_0 x_t + W_1 x_{t+1}. Without ``ahead``, an ablation, it is W_psi x_t.

    A value is a sum of what its own position gives (`now`) and what the next one adds to it (`next`); `value` makes it
    from that sum. Beyond the end of the sequence, x is zero.
    """

    heads: int
    std: float
    eps: float = 0.0
    convolution: bool = False
    bias: bool = False
    dtype: Dtype = jnp.float32
    ahead: bool = True

    @nn.compact
    def __call__(self, x_BTC: Array) -> tuple[Array, Array, Array]:
        """(now_BTHD, next_BTHD, gain_H): parts of the values at t and at t - 1, and the scale g."""
        width = x_BTC.shape[-1]
        if self.convolution:
            now = TimeConvolution(width, self.std, 2, self.bias, self.dtype, name="W_psi")
            kernel_SCC, bias_C = now.parameters(width)
            x = x_BTC.astype(self.dtype)
            now_BTHD = split_heads(product(jnp.einsum("btc,ce->bte", x, kernel_SCC[0])) + bias_C, self.heads)
            next_BTHD = split_heads(product(jnp.einsum("btc,ce->bte", x, kernel_SCC[1])), self.heads)
        else:
            raw_BTC = Projection(width, self.std, bias=self.bias, dtype=self.dtype, name="W_psi")(x_BTC)
            raw_BTHD = split_heads(raw_BTC, self.heads)
            if self.ahead:
                uniform: Any = nn.with_logical_partitioning(nn.initializers.uniform(1.0), ("head",))
                peek_H1 = head_scalars(self.param("peek", uniform, (self.heads,)))
                now_BTHD, next_BTHD = peek_H1 * raw_BTHD, (1 - peek_H1) * raw_BTHD
            else:
                now_BTHD, next_BTHD = raw_BTHD, jnp.zeros_like(raw_BTHD)
        gain_H = self.param("gain", constant(-0.5 / SCALAR_UNIT, "head"), (self.heads,))
        wide = accumulation_dtype(x_BTC)
        return now_BTHD.astype(wide), next_BTHD.astype(wide), jnp.exp(SCALAR_UNIT * gain_H)

    def value(self, sum_BTHD: Array, gain_H: Array) -> Array:
        """v from the sum of both parts."""
        return (head_scalars(gain_H) * unit(sum_BTHD, self.eps)).astype(self.dtype)


class TimeConvolution(nn.Module):
    """Convolution over time, all channels to all channels: (B, S - 1 + T, C) to (B, T, features), newest tap last.

    Parameters ``kernel`` (S, C, features) ~ N(0, std / sqrt(S)) for S taps, and optionally ``bias``.
    """

    features: int
    std: float
    taps: int
    bias: bool
    dtype: Dtype

    @nn.compact
    def parameters(self, width: int) -> tuple[Array, Array]:
        """Kernel and bias (0 if there is none) in the computing type."""
        init = normal(self.std / self.taps**0.5, "taps", "embed", "heads")
        kernel_SCC = self.param("kernel", init, (self.taps, width, self.features)).astype(self.dtype)
        if not self.bias:
            return kernel_SCC, jnp.zeros((), self.dtype)
        return kernel_SCC, self.param("bias", constant(0.0, "heads"), (self.features,)).astype(self.dtype)

    def __call__(self, padded: Array) -> Array:
        kernel_SCC, bias_C = self.parameters(padded.shape[-1])
        time = padded.shape[1] - (self.taps - 1)
        x = padded.astype(self.dtype)
        taps = (jnp.einsum("btc,ce->bte", x[:, s : s + time], kernel_SCC[s]) for s in range(self.taps))
        return bias_C + product(sum(taps, jnp.zeros((), self.dtype)))


def _with_past(x_BTC: Array, past: int, inputs_BSC: Array | None) -> Array:
    """The chunk with ``past`` earlier positions in front: those remembered, or zeros."""
    if inputs_BSC is None:
        inputs_BSC = jnp.zeros((x_BTC.shape[0], past, x_BTC.shape[2]), x_BTC.dtype)
    return jnp.concatenate([inputs_BSC.astype(x_BTC.dtype), x_BTC], axis=1)


def _window_at(padded: Array, past: int, valid_B: Array) -> Array:
    """The last ``past`` inputs before position valid_B of the chunk, from ``padded`` (B, past + T, C)."""
    index = valid_B[:, None] + jnp.arange(past)
    return jnp.take_along_axis(padded, index[..., None], axis=1)
