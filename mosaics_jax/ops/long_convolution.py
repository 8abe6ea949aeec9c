"""Causal convolution with filters as long as the sequence, each channel by itself.

    y_t = sum_{s <= t} h_{t - s} u_s

What state spaces (Gu et al. 2022), H3 (Fu et al. 2023) and Hyena (Poli et al. 2023) mix positions by.
"""

import enum

import chex
import jax.numpy as jnp
from jax import lax

from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array


class ConvolutionForm(enum.Enum):
    """How the convolution is computed. AUTO: FFT."""

    AUTO = "auto"
    NAIVE = "naive"  # tap by tap
    FFT = "fft"  # a product of spectra


def long_convolution(inputs_BTC: Array, filters_SC: Array, form: ConvolutionForm = ConvolutionForm.AUTO) -> Array:
    """Answers (B, T, C) in the type of the inputs, from sums in at least float32.

    filters_SC: h_0 (this position) first; any number of taps. Before the first position the inputs are 0. The FFT form
    is causal up to rounding: an answer's error is about the type's epsilon times the norms of the whole filter and of
    the whole input, later positions included.
    """
    chex.assert_rank([inputs_BTC, filters_SC], [3, 2])
    chex.assert_equal_shape_suffix([inputs_BTC, filters_SC], 1)
    dtype = accumulation_dtype(inputs_BTC)
    inputs, filters = inputs_BTC.astype(dtype), filters_SC[: inputs_BTC.shape[1]].astype(dtype)
    run = _naive if form is ConvolutionForm.NAIVE else _by_fft
    return run(inputs, filters).astype(inputs_BTC.dtype)


def _naive(inputs_BTC: Array, filters_SC: Array) -> Array:
    def tap(carry: tuple[Array, Array], filter_C: Array) -> tuple[tuple[Array, Array], None]:
        delayed_BTC, total_BTC = carry
        later_BTC = jnp.pad(delayed_BTC, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        return (later_BTC, total_BTC + filter_C * delayed_BTC), None

    (_, total_BTC), _ = lax.scan(tap, (inputs_BTC, jnp.zeros_like(inputs_BTC)), filters_SC)
    return total_BTC


def _by_fft(inputs_BTC: Array, filters_SC: Array) -> Array:
    time, taps = inputs_BTC.shape[1], filters_SC.shape[0]
    size = quick_size(time + taps - 1)  # holds the whole result: nothing wraps around onto the first positions
    spectrum_CF = jnp.fft.rfft(filters_SC.T, size)
    spectrum_BCF = jnp.fft.rfft(jnp.swapaxes(inputs_BTC, 1, 2), size)
    return jnp.swapaxes(jnp.fft.irfft(spectrum_BCF * spectrum_CF, size)[..., :time], 1, 2)


def quick_size(least: int) -> int:
    """The smallest m 2^a that is at least ``least``, with a > 0 and m = 1, 3, 5, 9 or 15: FFTs are quick at it."""
    return min(m << max(1, (-(-least // m) - 1).bit_length()) for m in (1, 3, 5, 9, 15))
