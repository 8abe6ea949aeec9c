"""Diagonal state space: a linear system a channel, whose poles are conjugate pairs (Gu et al. 2022, "S4D").

    x'(t) = A x(t) + u(t),    y(t) = 2 Re(C x(t)) + D u(t)

with diagonal A, of which one pole of each pair is kept; the input matrix B of the paper is 1, its scale being C's.
Over positions of length step (zero-order hold, section 2)

    x_t = exp(step A) x_{t-1} + (exp(step A) - 1) / A u_t

which is step by step what the convolution with the kernel of section 3.2 is all at once.
"""

import enum
import math
from typing import NamedTuple

import chex
import jax.numpy as jnp
from jax import lax

from mosaics_jax.ops.long_convolution import long_convolution
from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array

# Logarithms of decays are kept within +-this: a pole of 0 would be divided by, an infinite one times 0 is not a number.
LARGEST_LOG_DECAY = 30.0


class DiagonalSystem(NamedTuple):
    """A state space of P conjugate pairs for each of C channels, in real numbers.

    A = -exp(log_decay) + i frequency, in radians per unit of time, and C = output_real + i output_imaginary.
    """

    log_step_C: Array  # logarithm of the time from position to position
    log_decay_CP: Array
    frequency_CP: Array
    output_real_CP: Array
    output_imaginary_CP: Array
    skip_C: Array  # D


class StateSpaceForm(enum.Enum):
    """How the system is run. AUTO: NAIVE for a single position, else CONVOLUTION."""

    AUTO = "auto"
    NAIVE = "naive"  # position by position
    CONVOLUTION = "convolution"  # with the system's answer to an impulse


def diagonal_state_space(
    inputs_BTC: Array,
    system: DiagonalSystem,
    state_BCP: Array | None = None,
    form: StateSpaceForm = StateSpaceForm.AUTO,
) -> tuple[Array, Array]:
    """Answers y_BTC in the type of the inputs, and the complex state x after the last position.

    The state (default: zeros) goes on from earlier positions, so that step by step equals all at once. Computed in at
    least float32 and complex64.
    """
    chex.assert_rank(inputs_BTC, 3)
    chex.assert_equal_shape_suffix([inputs_BTC, system.log_step_C], 1)
    dtype = accumulation_dtype(inputs_BTC)
    system = DiagonalSystem(*(a.astype(dtype) for a in system))
    if form is StateSpaceForm.AUTO:
        form = StateSpaceForm.NAIVE if inputs_BTC.shape[1] == 1 else StateSpaceForm.CONVOLUTION
    run = _naive if form is StateSpaceForm.NAIVE else _by_convolution
    answers_BTC, state_BCP = run(inputs_BTC.astype(dtype), system, state_BCP)
    return answers_BTC.astype(inputs_BTC.dtype), state_BCP


def _discretise(system: DiagonalSystem) -> tuple[Array, Array, Array]:
    """Complex (C, P) each: the logarithm of the pole of one position, the input's weight and the output's."""
    decay = jnp.exp(jnp.clip(system.log_decay_CP, -LARGEST_LOG_DECAY, LARGEST_LOG_DECAY))
    pole = lax.complex(-decay, system.frequency_CP)
    log_pole = jnp.exp(system.log_step_C)[:, None] * pole
    return log_pole, jnp.expm1(log_pole) / pole, lax.complex(system.output_real_CP, system.output_imaginary_CP)


def _powers(log_pole_CP: Array, exponents_T: Array) -> Array:
    """(C, T, P). From the logarithm: no error piles up, and all are at most 1 in absolute value."""
    return jnp.exp(log_pole_CP[:, None] * exponents_T[:, None])


def _twice_real(a_CIP: Array, b_CJP: Array) -> Array:
    """2 Re(sum_p a_ip b_jp), (C, I, J), as one product of real matrices."""
    a = jnp.concatenate([a_CIP.real, -a_CIP.imag], -1)
    b = jnp.concatenate([b_CJP.real, b_CJP.imag], -1)
    return 2 * jnp.einsum("cip,cjp->cij", a, b, precision=lax.Precision.HIGHEST)


def diagonal_kernel(system: DiagonalSystem, time: int) -> Array:
    """The answers of a system at rest to the impulse u_0 = 1: (T, C).

    A power l = i J + j of a pole is the product of two: T P powers from about 2 sqrt(T) P, by a product of matrices.
    """
    log_pole_CP, input_CP, output_CP = _discretise(system)
    rows = math.isqrt(time - 1) + 1
    columns = -(-time // rows)
    coarse_CIP = _powers(log_pole_CP, columns * jnp.arange(rows)) * (input_CP * output_CP)[:, None]
    fine_CJP = _powers(log_pole_CP, jnp.arange(columns))
    kernel_CT = _twice_real(coarse_CIP, fine_CJP).reshape(-1, rows * columns)[:, :time]
    return kernel_CT.T.at[0].add(system.skip_C)


def _by_convolution(inputs_BTC: Array, system: DiagonalSystem, state_BCP: Array | None) -> tuple[Array, Array]:
    time = inputs_BTC.shape[1]
    log_pole_CP, input_CP, output_CP = _discretise(system)
    answers_BTC = long_convolution(inputs_BTC, diagonal_kernel(system, time))
    since_CTP = _powers(log_pole_CP, jnp.arange(time)[::-1])
    real, imaginary = (
        jnp.einsum("btc,ctp->bcp", inputs_BTC, part, precision=lax.Precision.HIGHEST)
        for part in (since_CTP.real, since_CTP.imag)
    )
    after_BCP = input_CP * lax.complex(real, imaginary)
    if state_BCP is not None:
        after_BCP += jnp.exp(time * log_pole_CP) * state_BCP
        before_CTP = _powers(log_pole_CP, 1 + jnp.arange(time))
        answers_BTC += jnp.einsum("cbt->btc", _twice_real(jnp.swapaxes(output_CP * state_BCP, 0, 1), before_CTP))
    return answers_BTC, after_BCP


def _naive(inputs_BTC: Array, system: DiagonalSystem, state_BCP: Array | None) -> tuple[Array, Array]:
    log_pole_CP, input_CP, output_CP = _discretise(system)
    if state_BCP is None:
        state_BCP = jnp.zeros((inputs_BTC.shape[0], *log_pole_CP.shape), log_pole_CP.dtype)

    def step(state_BCP: Array, input_BC: Array) -> tuple[Array, Array]:
        state_BCP = jnp.exp(log_pole_CP) * state_BCP + input_CP * input_BC[..., None]
        return state_BCP, 2 * jnp.sum(output_CP * state_BCP, -1).real + system.skip_C * input_BC

    after_BCP, answers_TBC = lax.scan(step, state_BCP, jnp.swapaxes(inputs_BTC, 0, 1))
    return jnp.swapaxes(answers_TBC, 0, 1), after_BCP
