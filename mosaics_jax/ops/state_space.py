"""Diagonal state space: one linear system per channel, whose poles are conjugate pairs (Gu et al. 2022, "S4D").

    x'(t) = A x(t) + u(t),    y(t) = 2 Re(C x(t)) + D u(t)

A is diagonal, and one pole of each pair is stored. The paper's input matrix B is 1 here, since its scale can be part of
C. Over positions of length step (zero-order hold, section 2) this becomes

    x_t = exp(step A) x_{t-1} + (exp(step A) - 1) / A u_t

which computes position by position what the convolution with the kernel of section 3.2 computes all at once.

Shapes here: R rows of positions, J columns of positions.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax.numpy as jnp
from jax import lax

from mosaics_jax.ops.long_convolution import long_convolution
from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array

# Log decays are clipped to +-this: with a pole of 0 the discretisation divides by 0, with an infinite one it gives NaN.
LARGEST_LOG_DECAY = 30.0


class DiagonalSystem(NamedTuple):
    """A state space of P conjugate pairs of poles for each of C channels, all fields real.

    A = -exp(log_decay) + i frequency, in radians per unit of time, C = output_real + i output_imaginary and D = skip.
    """

    log_step_C: Array  # logarithm of the time between two positions
    log_decay_CP: Array
    frequency_CP: Array
    output_real_CP: Array
    output_imaginary_CP: Array
    skip_C: Array


def diagonal_state_space(
    inputs_BTC: Array, system: DiagonalSystem, state_BCP: Array | None = None
) -> tuple[Array, Array]:
    """Answers y_BTC in the dtype of the inputs, and the complex state x after the last position.

    ``state_BCP`` is the state before the first position (default: zeros), so that running position by position equals
    running the whole sequence at once. Computed in at least float32 and complex64: as a convolution with the system's
    response to an impulse, or, for a sequence of one position, as one step of the recurrence.
    """
    compute = _by_position if inputs_BTC.shape[1] == 1 else _by_convolution
    return _run(compute, inputs_BTC, system, state_BCP)


def diagonal_state_space_naive(
    inputs_BTC: Array, system: DiagonalSystem, state_BCP: Array | None = None
) -> tuple[Array, Array]:
    """`diagonal_state_space` computed position by position."""
    return _run(_by_position, inputs_BTC, system, state_BCP)


def _run(
    compute: Callable[..., tuple[Array, Array]], inputs_BTC: Array, system: DiagonalSystem, state_BCP: Array | None
) -> tuple[Array, Array]:
    """Checks the arguments, runs ``compute`` in the accumulation dtype, and casts the answers back."""
    chex.assert_rank(inputs_BTC, 3)
    chex.assert_equal_shape_suffix([inputs_BTC, system.log_step_C], 1)
    dtype = accumulation_dtype(inputs_BTC)
    system = DiagonalSystem(*(a.astype(dtype) for a in system))
    answers_BTC, state_BCP = compute(inputs_BTC.astype(dtype), system, state_BCP)
    return answers_BTC.astype(inputs_BTC.dtype), state_BCP


def _discretise(system: DiagonalSystem) -> tuple[Array, Array, Array]:
    """The logarithms of the poles over one position, the weights of the input and those of the output: complex (C, P).

    Poles exp(step A), input weights (exp(step A) - 1) / A, output weights C.
    """
    decay_CP = jnp.exp(jnp.clip(system.log_decay_CP, -LARGEST_LOG_DECAY, LARGEST_LOG_DECAY))
    pole_CP = lax.complex(-decay_CP, system.frequency_CP)
    log_pole_CP = jnp.exp(system.log_step_C)[:, None] * pole_CP
    output_CP = lax.complex(system.output_real_CP, system.output_imaginary_CP)
    return log_pole_CP, jnp.expm1(log_pole_CP) / pole_CP, output_CP


def _powers(log_pole_CP: Array, exponents_R: Array) -> Array:
    """Powers of the poles, (C, R, P), all at most 1 in absolute value.

    They are taken from the logarithm, so that rounding errors do not accumulate from power to power.
    """
    return jnp.exp(log_pole_CP[:, None] * exponents_R[:, None])


def _twice_real(a_CRP: Array, b_CJP: Array) -> Array:
    """2 Re(sum_p a_rp b_jp), (C, R, J), as one product of real matrices."""
    a = jnp.concatenate([a_CRP.real, -a_CRP.imag], -1)
    b = jnp.concatenate([b_CJP.real, b_CJP.imag], -1)
    return 2 * jnp.einsum("crp,cjp->crj", a, b, precision=lax.Precision.HIGHEST)


def diagonal_kernel(system: DiagonalSystem, time: int) -> Array:
    """The kernel (T, C): answers of a system at rest to the impulse u_0 = 1.

    Positions are arranged in rows of J columns, t = r J + j. The power t of a pole is then the product of a power r J
    and a power j: a product of matrices makes T P powers from about 2 sqrt(T) P.
    """
    log_pole_CP, input_CP, output_CP = _discretise(system)
    rows = math.isqrt(time - 1) + 1
    columns = -(-time // rows)
    coarse_CRP = _powers(log_pole_CP, columns * jnp.arange(rows)) * (input_CP * output_CP)[:, None]
    fine_CJP = _powers(log_pole_CP, jnp.arange(columns))
    kernel_CT = _twice_real(coarse_CRP, fine_CJP).reshape(-1, rows * columns)[:, :time]
    return kernel_CT.T.at[0].add(system.skip_C)


def _by_convolution(inputs_BTC: Array, system: DiagonalSystem, state_BCP: Array | None) -> tuple[Array, Array]:
    time = inputs_BTC.shape[1]
    log_pole_CP, input_CP, output_CP = _discretise(system)
    answers_BTC = long_convolution(inputs_BTC, diagonal_kernel(system, time))
    since_CTP = _powers(log_pole_CP, jnp.arange(time)[::-1])
    real_BCP, imaginary_BCP = (
        jnp.einsum("btc,ctp->bcp", inputs_BTC, part, precision=lax.Precision.HIGHEST)
        for part in (since_CTP.real, since_CTP.imag)
    )
    after_BCP = input_CP * lax.complex(real_BCP, imaginary_BCP)
    if state_BCP is not None:
        after_BCP += jnp.exp(time * log_pole_CP) * state_BCP
        before_CTP = _powers(log_pole_CP, 1 + jnp.arange(time))
        answers_BTC += jnp.einsum("cbt->btc", _twice_real(jnp.swapaxes(output_CP * state_BCP, 0, 1), before_CTP))
    return answers_BTC, after_BCP


def _by_position(inputs_BTC: Array, system: DiagonalSystem, state_BCP: Array | None) -> tuple[Array, Array]:
    log_pole_CP, input_CP, output_CP = _discretise(system)
    if state_BCP is None:
        state_BCP = jnp.zeros((inputs_BTC.shape[0], *log_pole_CP.shape), log_pole_CP.dtype)

    def step(state_BCP: Array, input_BC: Array) -> tuple[Array, Array]:
        state_BCP = jnp.exp(log_pole_CP) * state_BCP + input_CP * input_BC[..., None]
        return state_BCP, 2 * jnp.sum(output_CP * state_BCP, -1).real + system.skip_C * input_BC

    after_BCP, answers_TBC = lax.scan(step, state_BCP, jnp.swapaxes(inputs_BTC, 0, 1))
    return jnp.swapaxes(answers_TBC, 0, 1), after_BCP
