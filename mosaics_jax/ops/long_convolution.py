"""Causal convolution with filters as long as the sequence, one filter per channel.

    y_t = sum_{s <= t} h_{t - s} u_s

It mixes the positions in state spaces (Gu et al. 2022), H3 (Fu et al. 2023) and Hyena (Poli et al. 2023).

Shapes here: W frequencies.
"""

from collections.abc import Callable

import chex
import jax.numpy as jnp
from jax import lax

from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array


def long_convolution(inputs_BTC: Array, filters_SC: Array) -> Array:
    """Answers y_BTC in the dtype of the inputs, from sums in at least float32. Computed by FFT.

    filters_SC: h_0, for the position itself, comes first; the number of taps S is free. Inputs before the first
    position are 0. The FFT is causal up to rounding: the error of an answer is about the dtype's epsilon times the
    norms of the whole filter and of the whole input, later positions included.
    """
    return _run(_by_fft, inputs_BTC, filters_SC)


def long_convolution_naive(inputs_BTC: Array, filters_SC: Array) -> Array:
    """`long_convolution` computed tap by tap; causal without an error."""
    return _run(_by_tap, inputs_BTC, filters_SC)


def _run(compute: Callable[[Array, Array], Array], inputs_BTC: Array, filters_SC: Array) -> Array:
    """Checks the arguments, runs ``compute`` in the accumulation dtype, and casts the answers back."""
    chex.assert_rank([inputs_BTC, filters_SC], [3, 2])
    chex.assert_equal_shape_suffix([inputs_BTC, filters_SC], 1)
    dtype = accumulation_dtype(inputs_BTC)
    answers_BTC = compute(inputs_BTC.astype(dtype), filters_SC[: inputs_BTC.shape[1]].astype(dtype))
    return answers_BTC.astype(inputs_BTC.dtype)


def _by_tap(inputs_BTC: Array, filters_SC: Array) -> Array:
    def tap(carry: tuple[Array, Array], filter_C: Array) -> tuple[tuple[Array, Array], None]:
        delayed_BTC, total_BTC = carry
        next_BTC = jnp.pad(delayed_BTC, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        return (next_BTC, total_BTC + filter_C * delayed_BTC), None

    (_, total_BTC), _ = lax.scan(tap, (inputs_BTC, jnp.zeros_like(inputs_BTC)), filters_SC)
    return total_BTC


def _by_fft(inputs_BTC: Array, filters_SC: Array) -> Array:
    time, taps = inputs_BTC.shape[1], filters_SC.shape[0]
    size = fast_fft_size(time + taps - 1)  # large enough for the whole result: nothing wraps around to the beginning
    spectrum_CW = jnp.fft.rfft(filters_SC.T, size)
    spectrum_BCW = jnp.fft.rfft(jnp.swapaxes(inputs_BTC, 1, 2), size)
    return jnp.swapaxes(jnp.fft.irfft(spectrum_BCW * spectrum_CW, size)[..., :time], 1, 2)


def fast_fft_size(least: int) -> int:
    """The smallest size m 2^a >= ``least`` with a > 0 and m = 1, 3, 5, 9 or 15, for which FFTs are fast."""
    return min(m << max(1, (-(-least // m) - 1).bit_length()) for m in (1, 3, 5, 9, 15))
