"""Key and value extractors (v1 eq. 5, 6): they compute the pairs that memories store from their inputs."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mosaics_jax.nn.config import MosaicConfig
from mosaics_jax.nn.layers import Projection, constant, head_scalars, normal, split_heads
from mosaics_jax.nn.memory import KeyState, Span, last_valid
from mosaics_jax.ops import leaky_average, next_position, unit
from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.ops.products import product
from mosaics_jax.shapes import Array, Dtype

# Learned scalars are stored divided by this, so that one learning rate suits scalars and matrices (authors' code).
SCALAR_UNIT = 10.0


class KeyExtractor(nn.Module):
    """k_t = a unit(kbar_t), where kbar is the leaky average of W_phi x (v1 eq. 6). (B, T, C) to (B, T, H, D).

    The scale a = exp(10 bandwidth) is one number per head; the kernel of the memory has beta = a^2. With
    ``squared_scale`` the factor is a^2 instead of a, for queries to keys without a scale. The recipe bounds both. The
    rate of the leaky average is 10 |decay| per position. If ``key_taps`` > 1, W_phi is a causal convolution, whose last
    tap is the current position.

    Ablations. ``leaky_average``: rates are "learned", "fixed" at their initial values, or "off": kbar_t = W_phi x_t.
    ``normalized_keys=False``: k_t = a kbar_t / sqrt(D), where sqrt(D) is about the norm of W_phi x at initialization.
    """

    config: MosaicConfig
    squared_scale: bool = False

    def setup(self) -> None:
        c = self.config
        std, dtype = c.recipe.projection_std(c), c.computing_dtype
        if c.key_taps == 1:
            self.W_phi: Any = Projection(c.n_embd, std, bias=c.bias, dtype=dtype)
        else:
            self.W_phi = TimeConvolution(c.n_embd, std, c.key_taps, c.bias, dtype)
        self.bandwidth_H = self.param("bandwidth", constant(1 / SCALAR_UNIT, "head"), (c.n_head,))
        decay_H = jnp.linspace(0.5, 5.0, c.n_head) / SCALAR_UNIT
        if c.leaky_average == "learned":
            decay_H = self.param("decay", constant(decay_H, "head"), (c.n_head,))
        # Without a leaky average, keys do not depend on the past: the rate is infinite.
        self.rate_H = jnp.full(c.n_head, jnp.inf) if c.leaky_average == "off" else SCALAR_UNIT * jnp.abs(decay_H)

    def __call__(self, x_BTC: Array) -> Array:
        """The keys of a whole sequence."""
        padded = jnp.pad(x_BTC, ((0, 0), (self.config.key_taps - 1, 0), (0, 0)))
        return self._keys(self._sums(padded, None))

    def extend(self, x_BTC: Array, state: KeyState, span: Span) -> tuple[Array, KeyState]:
        """The keys of a chunk that continues a sequence, and the state after the last valid position of the chunk."""
        padded_BTC = jnp.concatenate([state.inputs_BSC.astype(x_BTC.dtype), x_BTC], axis=1)
        sums_BTHD = self._sums(padded_BTC, state.sum_BHD)
        index_BS = span.valid_B[:, None] + jnp.arange(self.config.key_taps - 1)
        after = KeyState(
            sum_BHD=last_valid(state.sum_BHD, sums_BTHD, span.valid_B),
            inputs_BSC=jnp.take_along_axis(padded_BTC, index_BS[..., None], axis=1),
        )
        return self._keys(sums_BTHD), after

    def _sums(self, padded_BTC: Array, state_BHD: Array | None) -> Array:
        """The leaky sums of W_phi x, (B, T, H, D).

        padded_BTC: the inputs at T positions, after those at the S - 1 positions before. state_BHD: the sum before.
        """
        raw_BTHD = split_heads(self.W_phi(padded_BTC), self.config.n_head)
        if self.config.leaky_average == "off":
            return raw_BTHD.astype(accumulation_dtype(raw_BTHD))
        return leaky_average(raw_BTHD, self.rate_H, state_BHD)

    def _keys(self, sums_BTHD: Array) -> Array:
        recipe = self.config.recipe
        log_scale_H = SCALAR_UNIT * self.bandwidth_H.astype(sums_BTHD.dtype)
        bound = recipe.log_scale_bound
        if self.squared_scale:
            log_scale_H, bound = 2 * log_scale_H, recipe.log_squared_scale_bound
        # At the bound itself, jnp.minimum would halve the gradient; the authors' clamp passes all of it.
        log_scale_H = jnp.where(log_scale_H <= bound, log_scale_H, bound)
        if self.config.normalized_keys:
            keys_BTHD = unit(sums_BTHD, recipe.eps)
        else:
            # 1 - exp(-rate) turns the leaky sum into an average. Normalization would cancel this factor.
            keys_BTHD = head_scalars(-jnp.expm1(-self.rate_H)) * sums_BTHD / sums_BTHD.shape[-1] ** 0.5
        return (head_scalars(jnp.exp(log_scale_H)) * keys_BTHD).astype(self.config.computing_dtype)

    @nn.nowrap
    def empty(self, batch: int) -> KeyState:
        """The state at the beginning of a sequence."""
        c = self.config
        sums_BHD = jnp.zeros((batch, c.n_head, c.head_width), jnp.promote_types(c.dtype, jnp.float32))
        return KeyState(sum_BHD=sums_BHD, inputs_BSC=jnp.zeros((batch, c.key_taps - 1, c.n_embd), c.dtype))


class ValueExtractor(nn.Module):
    """v_t = g unit(c W_psi x_t + (1 - c) W_psi x_{t+1}): a value depends on the next input (v1 eq. 5, 6).

    (B, T, C) to (B, T, H, D). The gain g = exp(10 gain) and the mixture c (parameter ``peek``) are one number per head;
    c may leave [0, 1]. ``value_convolution=True``: v_t = g unit(W_0 x_t + W_1 x_{t+1}). ``peek=False``, an ablation:
    v_t = g unit(W_psi x_t). Beyond the end of the sequence, x is zero.

    The argument of ``unit`` is a sum of two terms, one of x_t (``now``) and one of x_{t+1} (``next``).
    """

    config: MosaicConfig

    def setup(self) -> None:
        c = self.config
        std, dtype = c.recipe.projection_std(c), c.computing_dtype
        if c.value_convolution:
            self.W_psi: Any = TimeConvolution(c.n_embd, std, 2, c.bias, dtype)
        else:
            self.W_psi = Projection(c.n_embd, std, bias=c.bias, dtype=dtype)
        if c.peek and not c.value_convolution:
            uniform: Any = nn.with_logical_partitioning(nn.initializers.uniform(1.0), ("head",))
            self.mixture_H = self.param("peek", uniform, (c.n_head,))
        self.gain_H = self.param("gain", constant(-0.5 / SCALAR_UNIT, "head"), (c.n_head,))

    def __call__(self, x_BTC: Array) -> Array:
        """The values of a whole sequence."""
        now_BTHD, next_BTHD = self.parts(x_BTC)
        return self.value(now_BTHD + next_position(next_BTHD))

    def extend(self, x_BTC: Array, pending_BHD: Array, span: Span) -> tuple[Array, Array]:
        """The values that a chunk of T positions completes, (B, T, H, D), and the pending term after the chunk.

        The input of position t completes value t - 1. pending_BHD: the ``now`` term of the position before the chunk.
        """
        now_BTHD, next_BTHD = self.parts(x_BTC)
        pending_BTHD = jnp.concatenate([pending_BHD[:, None], now_BTHD[:, :-1]], axis=1)
        return self.value(pending_BTHD + next_BTHD), last_valid(pending_BHD, now_BTHD, span.valid_B)

    def parts(self, x_BTC: Array) -> tuple[Array, Array]:
        """The terms of each x_t: ``now`` in value t, ``next`` in value t - 1: (B, T, H, D) each, at least float32."""
        c = self.config
        if c.value_convolution:
            kernel_SCC, bias_C = self.W_psi.parameters(c.n_embd)
            x_BTC = x_BTC.astype(c.computing_dtype)
            now_BTC, next_BTC = (product(jnp.einsum("btc,ce->bte", x_BTC, kernel_SCC[s])) for s in range(2))
            now_BTHD, next_BTHD = split_heads(now_BTC + bias_C, c.n_head), split_heads(next_BTC, c.n_head)
        else:
            raw_BTHD = split_heads(self.W_psi(x_BTC), c.n_head)
            if c.peek:
                mixture_H1 = head_scalars(self.mixture_H)
                now_BTHD, next_BTHD = mixture_H1 * raw_BTHD, (1 - mixture_H1) * raw_BTHD
            else:
                now_BTHD, next_BTHD = raw_BTHD, jnp.zeros_like(raw_BTHD)
        wide = accumulation_dtype(x_BTC)
        return now_BTHD.astype(wide), next_BTHD.astype(wide)

    def value(self, sum_BTHD: Array) -> Array:
        """The values, from the sums of both terms."""
        gain_H = jnp.exp(SCALAR_UNIT * self.gain_H)
        return (head_scalars(gain_H) * unit(sum_BTHD, self.config.recipe.eps)).astype(self.config.computing_dtype)


class TimeConvolution(nn.Module):
    """Causal convolution over time, from all channels to all channels: (B, S - 1 + T, C) to (B, T, features).

    Parameters: ``kernel`` (S, C, features) ~ N(0, std / sqrt(S)), whose last tap is the current position, and
    optionally ``bias``.
    """

    features: int
    std: float
    taps: int
    bias: bool
    dtype: Dtype

    @nn.compact
    def parameters(self, width: int) -> tuple[Array, Array]:
        """Kernel and bias (0 if there is none) in ``dtype``."""
        init = normal(self.std / self.taps**0.5, "taps", "embed", "heads")
        kernel_SCC = self.param("kernel", init, (self.taps, width, self.features)).astype(self.dtype)
        if not self.bias:
            return kernel_SCC, jnp.zeros((), self.dtype)
        return kernel_SCC, self.param("bias", constant(0.0, "heads"), (self.features,)).astype(self.dtype)

    def __call__(self, padded_BTC: Array) -> Array:
        """The outputs at T positions. padded_BTC: their inputs, after those of the S - 1 positions before."""
        kernel_SCC, bias_C = self.parameters(padded_BTC.shape[-1])
        time = padded_BTC.shape[1] - (self.taps - 1)
        padded_BTC = padded_BTC.astype(self.dtype)
        taps = (jnp.einsum("btc,ce->bte", padded_BTC[:, s : s + time], kernel_SCC[s]) for s in range(self.taps))
        return bias_C + product(sum(taps, jnp.zeros((), self.dtype)))
