"""All sequence models of the comparison are causal, have finite gradients, and learn to copy."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mosaics_jax.models import MODELS, canonical_name, stack_layers
from mosaics_jax.models.zoo.base import ZooConfig
from mosaics_jax.nn.rotary import rotate

TIME = 11
EXACT = 2e-5
SYMBOLS, COPIED = 8, 5
SMALL = {"vocab_size": TIME + 1, "n_layer": 2, "n_head": 2, "n_embd": 32}
# Fields of single models, and how they train on the copy task if not by default. With a short convolution, all linear
# memories learn to copy earlier; some learn it only so.
FIELDS: dict[str, dict[str, Any]] = {
    "mosaic": {"pmem_size": 8},
    "hyena": {"filter_length": 16, "filter_waves": 8, "filter_sine": 1.0},
}
LINEAR = {"fields": {"n_embd": 64, "short_convolution": 4}, "rate": 5e-3}
TRAINING: dict[str, dict[str, Any]] = {
    "mosaic": {"rate": 5e-3, "rows": 128, "steps": 500},
    "transformer": {"rows": 64, "steps": 1000},
    "lstm": {"rate": 5e-3, "rows": 128},
    **dict.fromkeys(("linear_transformer", "gla", "deltanet"), LINEAR),
    "retnet": LINEAR | {"steps": 600},
}
ZOO = [name for name, (config_class, _) in MODELS.items() if issubclass(config_class, ZooConfig)]

every_model = pytest.mark.parametrize("name", ["transformer" if name == "gpt2" else name for name in MODELS])


def build(name, **fields):
    config_class, model_class = MODELS[canonical_name(name)]
    return model_class(config_class(**SMALL | FIELDS.get(name, {}) | fields))


def init(model):
    tokens = jax.ShapeDtypeStruct((1, TIME), jnp.int32)
    return nn.meta.unbox(model.lazy_init(jax.random.key(0), tokens)["params"])


def perturbed(params, spread=0.3):
    """Parameters that differ from their initial values, most of them far from 0."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + spread * random.uniform(-1, 1, p.shape).astype(np.float32), params)


def check_causality(model):
    """Checks that outputs depend on all earlier tokens and no later one, and gradients likewise.

    model: with untied weights and TIME + 1 tokens.
    """
    params = perturbed(init(model))
    # Row 0 has token t at position t: rows of the embedding stand for positions. Row t + 1 has another token at t.
    rows = np.repeat(np.arange(TIME, dtype=np.int32)[None], TIME + 1, axis=0)
    rows[np.arange(TIME) + 1, np.arange(TIME)] = TIME

    @jax.jit
    def run(params, position):
        def loss(params):
            logits = model.apply({"params": params}, rows)
            return -jax.nn.log_softmax(logits[0, position])[0], logits

        return jax.grad(loss, has_aux=True)(params)

    for position in (0, 1, TIME - 1):
        gradients, logits = run(params, position)
        assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))
        touched = np.max(np.abs(gradients["embedding"][:TIME]), axis=-1)
        assert np.max(touched[position + 1 :], initial=0) < 1e-6 * np.max(touched)
        assert np.all(touched[: position + 1] > 1e-4 * np.max(touched))
    assert logits.shape == (TIME + 1, TIME, TIME + 1)
    change = np.max(np.abs(logits[1:] - logits[0]), axis=-1)
    assert np.max(change[np.tril(np.ones((TIME, TIME), bool), -1)]) < EXACT
    assert np.min(np.diag(change)) > 10 * EXACT
    assert np.min(change[:, -1]) > 10 * EXACT


@every_model
def test_causality_and_finite_gradients(name):
    check_causality(build(name, n_layer=1, weight_tying=False))


def test_short_convolution_is_causal():
    check_causality(build("linear_transformer", n_layer=1, weight_tying=False, short_convolution=3))


def kernels_of_convolutions(name, taps):
    model = build(name, short_convolution=taps)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, TIME), jnp.int32))["params"]
    paths = jax.tree_util.tree_leaves_with_path(nn.meta.unbox(shapes))
    return {leaf.shape[0] for path, leaf in paths if "convolution" in jax.tree_util.keystr(path) and leaf.ndim == 2}


@pytest.mark.parametrize("name", ZOO)
def test_short_convolution_has_its_taps(name):
    assert kernels_of_convolutions(name, 3) == {3}
    assert kernels_of_convolutions(name, 0) == set()


def copies(key, rows):
    """Inputs and targets: distinct random symbols, a separator, and the symbols again, which alone are targets."""
    symbols = jnp.argsort(jax.random.uniform(key, (rows, SYMBOLS)))[:, :COPIED]
    separator = jnp.full((rows, 1), SYMBOLS)
    sequence = jnp.concatenate([symbols, separator, symbols], axis=1)
    return sequence[:, :-1], sequence[:, 1:].at[:, :COPIED].set(-1)


def learn_to_copy(model, steps=400, rate=1e-2, rows=32):
    """The accuracy on new sequences after ``steps`` steps of Adam, and the training losses."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(state, key):
        params, moments = state
        inputs, targets = copies(key, rows)

        def loss(params):
            return model.apply({"params": params}, inputs, targets, method="loss")[0]

        value, gradients = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradients, moments)
        return (optax.apply_updates(params, updates), moments), value

    @jax.jit
    def train(params):
        keys = jax.random.split(jax.random.key(1), steps)
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        inputs, targets = copies(jax.random.key(2), 256)
        right = jnp.argmax(model.apply({"params": params}, inputs), -1) == targets
        return jnp.mean(right[:, COPIED:]), losses

    return train(init(model))


@every_model
def test_learns_to_copy(name):
    training = dict(TRAINING.get(name, {}))
    accuracy, losses = learn_to_copy(build(name, **training.pop("fields", {})), **training)
    assert accuracy == 1.0, f"losses {losses[::50]}"


@every_model
def test_skipped_tokens_give_no_logits(name):
    model = build(name, skip_tokens=4)
    shapes = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((3, TIME), jnp.int32))[0]
    assert shapes.shape == (3, TIME - 4, TIME + 1)


def test_scanned_layers_compute_the_same():
    tokens = np.random.default_rng(0).integers(0, TIME, (2, TIME)).astype(np.int32)
    model, scanned = (build("linear_transformer", scan_layers=scan) for scan in (False, True))
    params = perturbed(init(model))
    ours = jax.jit(scanned.apply)({"params": stack_layers(params)}, tokens)
    np.testing.assert_allclose(ours, jax.jit(model.apply)({"params": params}, tokens), atol=1e-5)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_embd": 30, "n_head": 4}, "n_embd=30 is not divisible by n_head=4"),
        ({"vocab_size": 0}, "vocab_size=0 must be at least 1"),
        ({"short_convolution": -1}, "short_convolution=-1 must not be negative"),
        ({"skip_tokens": -1}, "skip_tokens=-1 must not be negative"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"dtype": "float16"}, "dtype='float16' is not one of float32, bfloat16, float64"),
    ],
)
def test_bad_configs_are_errors(name, fields, message):
    with pytest.raises(ValueError, match=message):
        MODELS[canonical_name(name)][0](**fields)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("transformer", {"rotary": True, "n_embd": 6, "n_head": 2}, "n_embd=6 / n_head=2 must be even"),
        ("retnet", {"n_embd": 6, "n_head": 2}, "n_embd=6 / n_head=2 must be even"),
        ("gla", {"n_embd": 6, "n_head": 2}, "n_embd=6 is not divisible by 2 n_head=4"),
        ("linear_transformer", {"context_length": 0}, "context_length=0 must be at least 1"),
    ],
)
def test_bad_fields_of_one_model_are_errors(name, fields, message):
    with pytest.raises(ValueError, match=message):
        MODELS[canonical_name(name)][0](**fields)


def test_rotary_scores_depend_on_the_distance_only():
    query, key = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def score(t, s):
        return float(jnp.sum(rotate(query, jnp.array([t])) * rotate(key, jnp.array([s]))))

    assert score(0, 0) == pytest.approx(float(np.sum(query * key)), abs=1e-5)
    assert score(107, 104) == pytest.approx(score(3, 0), abs=1e-4)
    assert abs(score(3, 0) - score(0, 3)) > 1e-2


def test_rotary_positions_do_not_limit_the_length():
    model = build("transformer", rotary=True, context_length=4)
    shapes = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, TIME), jnp.int32))
    assert shapes[0].shape == (1, TIME, TIME + 1)
    assert "positions" not in shapes[1]["params"]
