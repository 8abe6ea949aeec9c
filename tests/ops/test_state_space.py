"""The convolution with a system's kernel against the naive form; pieces of a sequence against the whole; extremes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.models.zoo.h3 import H3Mixer
from mosaics_jax.models.zoo.s4d import S4DMixer
from mosaics_jax.ops.long_convolution import long_convolution
from mosaics_jax.ops.state_space import (
    DiagonalSystem,
    diagonal_kernel,
    diagonal_state_space,
    diagonal_state_space_naive,
)

BATCH, WIDTH, PAIRS = 2, 3, 4


def arrays(time, dtype=np.float64):
    """Inputs, a system and the real and imaginary part of a state."""
    random = np.random.default_rng(time)

    def draw(*shape):
        return jnp.asarray(random.normal(size=shape), dtype)

    system = DiagonalSystem(
        log_step_C=-2 + draw(WIDTH),
        log_decay_CP=draw(WIDTH, PAIRS),
        frequency_CP=np.pi * jnp.arange(PAIRS) + draw(WIDTH, PAIRS),
        output_real_CP=draw(WIDTH, PAIRS),
        output_imaginary_CP=draw(WIDTH, PAIRS),
        skip_C=draw(WIDTH),
    )
    return draw(BATCH, time, WIDTH), system, draw(2, BATCH, WIDTH, PAIRS)


def compare(time, dtype, **tolerance):
    def results(run):
        def total(inputs, system, state):
            answers, state = run(inputs, system, jax.lax.complex(*state))
            return jnp.sum(jnp.sin(answers)) + jnp.sum(jnp.cos(state.real + 2 * state.imag)), (answers, state)

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*arrays(time, dtype))

    ours, naive = results(diagonal_state_space), results(diagonal_state_space_naive)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(naive), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, **tolerance)


@pytest.mark.parametrize("time", [2, 63, 130])
def test_equals_the_naive_form(x64, time):
    compare(time, jnp.float64, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("time", [2, 63])
def test_equals_the_naive_form_in_float32(time):
    compare(time, jnp.float32, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("time", [1, 2, 63])
def test_the_kernel_is_the_response_to_an_impulse(x64, time):
    _, system, _ = arrays(time)
    impulse = jnp.zeros((1, time, WIDTH)).at[:, 0].set(1.0)
    expected = diagonal_state_space_naive(impulse, system)[0][0]
    np.testing.assert_allclose(diagonal_kernel(system, time), expected, rtol=1e-9, atol=1e-11)


def test_pieces_equal_the_whole(x64):
    inputs, system, _ = arrays(66)
    run = jax.jit(diagonal_state_space)
    whole, last = run(inputs, system)
    state, pieces = jnp.zeros((BATCH, WIDTH, PAIRS), complex), []
    for start, stop in ((0, 1), (1, 33), (33, 65), (65, 66)):
        answers, state = run(inputs[:, start:stop], system, state)
        pieces.append(answers)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), whole, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(state, last, rtol=1e-10, atol=1e-12)


def test_the_naive_form_is_the_matrix_recurrence(x64):
    """With both poles of each pair, and the integral of exp(A t) over one position as a fine sum."""
    inputs, system, _ = arrays(9)
    answers = np.asarray(diagonal_state_space_naive(inputs, system)[0])
    for channel in range(WIDTH):
        half = -np.exp(system.log_decay_CP[channel]) + 1j * np.asarray(system.frequency_CP[channel])
        poles = np.concatenate([half, half.conj()])
        output = system.output_real_CP[channel] + 1j * np.asarray(system.output_imaginary_CP[channel])
        output = np.concatenate([output, output.conj()])
        step = np.exp(system.log_step_C[channel])
        middles = (np.arange(20000) + 0.5) * step / 20000
        weights = np.exp(poles[:, None] * middles).mean(-1) * step
        for row in range(BATCH):
            state = np.zeros(2 * PAIRS, complex)
            for position, value in enumerate(np.asarray(inputs[row, :, channel])):
                state = np.exp(step * poles) * state + weights * value
                expected = output @ state + system.skip_C[channel] * value
                assert abs(expected.imag) < 1e-12
                np.testing.assert_allclose(answers[row, position, channel], expected.real, rtol=1e-6, atol=1e-8)


def test_extreme_poles_are_finite():
    inputs, system, _ = arrays(63, np.float32)
    extremes = jnp.broadcast_to(jnp.array([-200.0, -20.0, 20.0, 200.0]), (WIDTH, PAIRS))
    system = system._replace(log_decay_CP=extremes, frequency_CP=jnp.zeros((WIDTH, PAIRS)))

    def total(inputs, system):
        answers, state = diagonal_state_space(inputs, system)
        return jnp.sum(answers) + jnp.sum(jnp.abs(state))

    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(inputs, system)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


def test_float32_kernel_is_accurate_over_many_positions(x64):
    """Powers are taken from the logarithm of a pole, so that their errors do not accumulate."""
    _, system, _ = arrays(1)
    system = system._replace(log_step_C=jnp.full(WIDTH, -7.0))
    run = jax.jit(diagonal_kernel, static_argnums=1)
    exact = run(system, 2000)
    rounded = run(DiagonalSystem(*(a.astype(jnp.float32) for a in system)), 2000)
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=1e-5 * np.max(np.abs(exact)))


def test_shift_state_space_is_a_convolution(x64):
    """H3's shift system, whose state is a queue of the last inputs, run with its matrix."""
    taps, time = 5, 12
    random = np.random.default_rng(0)
    inputs, output = random.normal(size=(BATCH, time, WIDTH)), random.normal(size=(taps, WIDTH))
    shift = np.eye(taps, k=-1)
    state = np.zeros((BATCH, WIDTH, taps))
    answers = long_convolution(jnp.asarray(inputs), jnp.asarray(output))
    for position in range(time):
        state = state @ shift.T
        state[..., 0] += inputs[:, position]
        expected = np.einsum("bcs,sc->bc", state, output)
        np.testing.assert_allclose(answers[:, position], expected, rtol=1e-10, atol=1e-12)


def run_whole(mixer, time):
    """Inputs, parameters in float64, and the answers of a mixer."""
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, time, WIDTH)))
    params = nn.meta.unbox(mixer.init(jax.random.key(0), inputs)["params"])
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
    return inputs, params, mixer.apply({"params": params}, inputs)


def stepper(params):
    """The state space of a mixer, one position at a time."""
    names = ("log_step", "log_decay", "frequency", "output_real", "output_imaginary", "skip")
    vectors = dict(zip(names, DiagonalSystem._fields, strict=True))
    system = DiagonalSystem(
        **{
            field: params[name].reshape(WIDTH, PAIRS) if field.endswith("P") else params[name]
            for name, field in vectors.items()
        }
    )
    state = jnp.zeros((BATCH, WIDTH, PAIRS), complex)

    @jax.jit
    def run(input_BC, state):
        answers, state = diagonal_state_space(input_BC[:, None], system, state)
        return answers[:, 0], state

    def step(input_BC):
        nonlocal state
        answer, state = run(input_BC, state)
        return answer

    return step


def test_s4d_step_by_step(x64):
    mixer = S4DMixer(PAIRS, output_std=0.5, dtype=jnp.float64)
    inputs, params, answers = run_whole(mixer, 7)
    step = stepper(params["state_space"])
    for position in range(7):
        mixed, gate = jnp.split(jax.nn.gelu(step(inputs[:, position])) @ params["output"]["kernel"], 2, -1)
        np.testing.assert_allclose(mixed * jax.nn.sigmoid(gate), answers[:, position], rtol=1e-9, atol=1e-12)


def test_h3_step_by_step(x64):
    mixer = H3Mixer(PAIRS, taps=3, std=0.5, output_std=0.5, dtype=jnp.float64)
    inputs, params, answers = run_whole(mixer, 7)
    step = stepper(params["diagonal"])
    queue = np.zeros((3, BATCH, WIDTH))
    for position in range(7):
        query, key, value = jnp.split(inputs[:, position] @ params["qkv"]["kernel"], 3, -1)
        queue = np.concatenate([key[None], queue[:-1]])
        shifted = jnp.einsum("sbc,sc->bc", queue, params["shift"]["output"]) + params["shift"]["skip"] * key
        answer = (query * step(shifted * value)) @ params["proj"]["kernel"]
        np.testing.assert_allclose(answer, answers[:, position], rtol=1e-9, atol=1e-12)
