"""Schedule, clipping, decay mask, and AdamW against its definition."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mosaics_jax.training.optimizer import OptimizerConfig, clip_by_norm, decay_mask, make_optimizer, schedule
from mosaics_jax.training.state import TrainState, make_step


def test_schedule(x64):
    rate = schedule(OptimizerConfig(learning_rate=5e-3, min_learning_rate=1e-4, warmup_steps=2000), steps=80_000)
    expected = {
        0: 0.0,
        1: 5e-3 / 2000,
        1000: 2.5e-3,
        2000: 5e-3,
        41_000: (5e-3 + 1e-4) / 2,
        21_500: 1e-4 + 4.9e-3 * 0.5 * (1 + math.cos(math.pi / 4)),
        80_000: 1e-4,
        90_000: 1e-4,
    }
    for count, value in expected.items():
        assert float(rate(jnp.int32(count))) == pytest.approx(value, rel=1e-12)


def test_schedule_without_warmup_starts_at_the_peak():
    assert float(schedule(OptimizerConfig(warmup_steps=0), steps=10)(jnp.int32(0))) == pytest.approx(5e-3)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_clip_has_the_recorded_form(x64, scale):
    grads = {"a": scale * jnp.arange(1.0, 4.0), "b": scale * jnp.array([[2.0], [-1.0]])}
    clip = clip_by_norm(1.0)
    clipped, _ = clip.update(grads, clip.init(grads))
    norm = scale * math.sqrt(1 + 4 + 9 + 4 + 1)
    factor = min(1.0, 1.0 / (norm + 1e-6))
    jax.tree.map(lambda new, old: np.testing.assert_allclose(new, factor * old, rtol=1e-14), clipped, grads)


def test_decay_mask_counts_the_dimensions_of_the_tensor_itself():
    def boxed(*names):
        return nn.LogicallyPartitioned(jax.ShapeDtypeStruct((2,) * len(names), jnp.float32), names=names)

    params = {
        "wte": boxed("vocab", "embed"),
        "wpe": boxed("position", "embed"),
        "head_scalars": boxed("head"),
        "layers": {
            "norm": boxed("layers", "norm"),
            "bandwidth": boxed("layers", "head"),
            "kernel": boxed("layers", "embed", "heads"),
            "slots": boxed("seeds", "layers", "banks", "head", "slots", "head_dim"),
            "bias_of_seeds": boxed("seeds", "layers", "mlp"),
        },
        "plain": {"matrix": jnp.zeros((2, 2)), "vector": jnp.zeros(2), "scalar": jnp.zeros(())},
    }
    assert decay_mask(params) == {
        "wte": True,
        "wpe": True,
        "head_scalars": False,
        "layers": {"norm": False, "bandwidth": False, "kernel": True, "slots": True, "bias_of_seeds": False},
        "plain": {"matrix": True, "vector": False, "scalar": False},
    }


def test_adamw_follows_its_definition(x64):
    """Against Loshchilov & Hutter's update, written out with numpy."""
    config = OptimizerConfig(learning_rate=1e-2, min_learning_rate=1e-2, warmup_steps=4, clip_norm=0.0)
    rng = np.random.default_rng(0)
    expected = {"matrix": rng.normal(size=(3, 2)), "vector": rng.normal(size=3)}
    params = jax.tree.map(jnp.asarray, expected)
    optimizer = make_optimizer(config, 10, decay_mask(params))
    state = optimizer.init(params)
    mean = jax.tree.map(np.zeros_like, expected)
    square = jax.tree.map(np.zeros_like, expected)
    for count in range(6):
        grads = {name: rng.normal(size=value.shape) for name, value in expected.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, grads), state, params)
        params = optax.apply_updates(params, updates)
        rate = 1e-2 * min(1.0, count / 4)
        for name, grad in grads.items():
            mean[name] = 0.9 * mean[name] + 0.1 * grad
            square[name] = 0.95 * square[name] + 0.05 * grad**2
            root = np.sqrt(square[name] / (1 - 0.95 ** (count + 1))) + 1e-8
            decay = 0.1 if name == "matrix" else 0.0
            expected[name] = expected[name] * (1 - rate * decay)
            expected[name] = expected[name] - rate * mean[name] / (1 - 0.9 ** (count + 1)) / root
        jax.tree.map(lambda new, old: np.testing.assert_allclose(new, old, rtol=1e-12), params, expected)


@pytest.mark.parametrize("accumulate", [2, 8])
def test_accumulation_equals_the_full_batch(accumulate):
    def loss(params, batch, key):
        error = jnp.tanh(batch["x"] @ params["w"]) - batch["y"]
        return (error**2).mean(), {"worst": jnp.abs(error).mean()}

    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)}
    batch = {"x": rng.normal(size=(16, 5)).astype(np.float32), "y": rng.normal(size=(16, 3)).astype(np.float32)}
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, clip_norm=0.1)
    optimizer = make_optimizer(config, 5, decay_mask(params))
    key = jax.random.key_data(jax.random.key(0))
    state = TrainState(step=jnp.int32(0), params=params, opt_state=optimizer.init(params), key=key)
    whole_state, whole = jax.jit(make_step(loss, optimizer, schedule(config, 5)))(state, batch)
    parts_state, parts = jax.jit(make_step(loss, optimizer, schedule(config, 5), accumulate))(state, batch)
    assert whole.keys() == parts.keys() == {"loss", "grad_norm", "learning_rate", "worst"}
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-6)
    np.testing.assert_allclose(parts_state.opt_state[1].mu["w"], whole_state.opt_state[1].mu["w"], atol=1e-7)


@pytest.mark.parametrize(
    ("field", "value"),
    [("learning_rate", -1.0), ("beta1", 1.0), ("epsilon", 0.0), ("accumulate", 0), ("warmup_steps", -1)],
)
def test_impossible_settings_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        OptimizerConfig(**{field: value})


def test_linear_decay(x64):
    config = OptimizerConfig(learning_rate=1e-2, min_learning_rate=5e-6, warmup_steps=0, decay="linear")
    rate = schedule(config, steps=500)
    for count in (0, 1, 250, 499, 500):
        assert float(rate(jnp.int32(count))) == pytest.approx(1e-2 + (5e-6 - 1e-2) * count / 500, rel=1e-12)


def test_adam_without_bias_correction_is_the_plain_recursion(x64):
    config = OptimizerConfig(
        learning_rate=1e-2, min_learning_rate=5e-6, warmup_steps=0, decay="linear", weight_decay=0.0, beta2=0.999,
        clip_norm=0.0, bias_correction=False,
    )  # fmt: skip
    optimizer = make_optimizer(config, 20, {"w": False})
    params = {"w": jnp.zeros(3)}
    state = optimizer.init(params)
    mean, square, expected = np.zeros(3), np.zeros(3), np.zeros(3)
    random = np.random.default_rng(0)
    for count in range(20):
        gradient = random.normal(size=3)
        updates, state = optimizer.update({"w": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        epsilon = 1e-8 * np.sqrt(1 - 0.999 ** (count + 1))  # as documented: smaller than the plain 1e-8 at first
        expected -= (1e-2 + (5e-6 - 1e-2) * count / 20) * mean / (np.sqrt(square) + epsilon)
        np.testing.assert_allclose(params["w"], expected, rtol=1e-9)


def test_decay_is_one_of_two():
    with pytest.raises(ValueError, match="cosine, linear"):
        OptimizerConfig(decay="square")
