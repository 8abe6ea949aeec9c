"""Continuations and error curves of moon networks against recorded arrays, naive generation and their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.data.moons import HELD_OUT, MoonsConfig, evaluation_windows, parse
from mosaics_jax.evaluation.moons import attention, continuations, error_curve, head_disentanglement, knee
from mosaics_jax.models.moons import MoonMosaic, MoonMosaicConfig, complex_form, real_form
from tests.golden.conftest import HERE

ARRAYS = dict(np.load(HERE / "moons.npz"))
HEADS = {"1head": 1, "3heads": 3}
NAMES = {"W_phi": "k_lin", "W_psi": "v_lin", "W_z": "out_proj"}


def recorded(prefix):
    """Recorded parameters in our layout and the default float type."""
    wide = jnp.zeros(()).dtype
    return {ours: complex_form(jnp.asarray(ARRAYS[f"{prefix}/{theirs}"], wide)) for ours, theirs in NAMES.items()}


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("context", [60, 300])
@pytest.mark.parametrize("name", HEADS)
def test_continuations_are_the_recorded_ones(x64, name, context, complete):
    """Equal up to float32 rounding, which generation can magnify a thousandfold: the test measures by how much."""
    prefix = f"{name}/gen{context}"
    config, params = MoonMosaicConfig(heads=HEADS[name]), recorded(prefix)
    x = jnp.asarray(ARRAYS[f"{prefix}/x"], jnp.float64)
    theirs = ARRAYS[f"{prefix}/{'nocache' if complete else 'cached'}"][:, context - 1 :]

    def ours(x):
        return np.asarray(continuations(params, config, x, (context,), 25, complete))[:, 0]

    exact = ours(x)
    assert exact.shape == theirs.shape
    random = np.random.default_rng(0)
    rounded = [ours(x * (1 + 2.0**-24 * random.uniform(-1, 1, x.shape))) for _ in range(8)]
    spread = np.max([np.abs(one - exact).max(axis=(1, 2)) for one in rounded], axis=0)
    error = np.abs(exact - theirs).max(axis=(1, 2))
    assert (error <= 2e-6 + 30 * spread).all(), (error, spread)
    assert np.median(error) < 2e-5


def predict(params, heads, x):
    """The prediction after the points x (n, C), from the equations."""
    if len(x) == 1:
        return np.zeros(x.shape[1])
    phi, psi, z = (np.asarray(real_form(params[name])) for name in NAMES)
    keys = (x @ phi.T).reshape(len(x), heads, -1)
    values = (x[1:] @ psi.T).reshape(len(x) - 1, heads, -1)
    scores = 50 * np.einsum("hd,nhd->hn", keys[-1], keys[:-1])
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    answers = np.einsum("hn,nhd->hd", weights / weights.sum(axis=1, keepdims=True), values)
    return z @ answers.reshape(-1)


@pytest.mark.parametrize("name", HEADS)
def test_generation_equals_running_the_network_again(x64, name):
    config, params = MoonMosaicConfig(heads=HEADS[name]), recorded(f"{name}/trained")
    x = evaluation_windows(MoonsConfig(), parse("0.5,1,2"), 2, seed=0)[:, :130].astype(np.float64)
    contexts = (1, 2, 80, 81, 120)
    ours = np.asarray(continuations(params, config, jnp.asarray(x), contexts, 5))
    parallel = np.asarray(MoonMosaic(config).apply({"params": params}, jnp.asarray(x)))
    for row, context in enumerate(contexts):
        np.testing.assert_allclose(ours[:, row, 0], parallel[:, context - 1], atol=1e-12)
        for b in range(2):
            seen = x[b, :context]
            for step in range(6):
                predicted = predict(params, HEADS[name], seen)
                # Later steps magnify the rounding error of each step.
                np.testing.assert_allclose(ours[b, row, step], predicted, atol=1e-7)
                seen = np.concatenate([seen, predicted[None]])


@pytest.mark.parametrize("authors_metric", [False, True])
@pytest.mark.parametrize(("ours", "theirs"), [("0.5,1,2.5", "train"), (HELD_OUT, "val")])
@pytest.mark.parametrize("name", HEADS)
def test_error_curves_are_the_recorded_ones(name, ours, theirs, authors_metric):
    """Compared by means over 30 contexts, since the random starts differ. The two metrics differ by 0.1."""
    x = evaluation_windows(MoonsConfig(), parse(ours), 32, seed=0)
    contexts, errors = error_curve(recorded(f"{name}/trained"), MoonMosaicConfig(heads=HEADS[name]), x, authors_metric)
    np.testing.assert_array_equal(contexts, np.arange(1, 776))
    kind = "cached_official" if authors_metric else "nocache_aligned"
    expected = ARRAYS[f"{name}/trained/{theirs}_{kind}"]
    smooth = [np.convolve(curve, np.ones(30) / 30, "valid") for curve in (errors[:774], expected)]
    np.testing.assert_allclose(*smooth, atol=0.02)


def test_an_error_curve_is_the_mean_error_of_continuations(x64):
    config, params = MoonMosaicConfig(heads=3), recorded("3heads/trained")
    x = evaluation_windows(MoonsConfig(), parse(HELD_OUT), 3, seed=5)[:, :80].astype(np.float64)
    for authors_metric in (False, True):
        contexts, errors = error_curve(params, config, x, authors_metric)
        for context in (1, 30, 55):
            made = np.asarray(continuations(params, config, jnp.asarray(x), (context,), 25, not authors_metric))[:, 0]
            made = made[:, 1:] if authors_metric else made[:, :-1]
            expected = np.abs(made - x[:, context : context + 25]).mean()
            assert errors[contexts == context][0] == pytest.approx(expected, rel=1e-6)


def test_recorded_networks_are_disentangled_or_not():
    three = head_disentanglement(recorded("3heads/trained"), MoonMosaicConfig(heads=3))
    assert three.disentangled
    assert sorted(three.unit_sources) == [0, 1, 2]
    assert not head_disentanglement(recorded("1head/trained"), MoonMosaicConfig(heads=1)).disentangled


def test_knee_is_where_the_error_falls_and_stays():
    contexts = np.arange(1, 101)
    errors = np.where(contexts < 40, 1.0, 0.2)
    assert knee(contexts, errors) == 40
    errors[20] = 0.1  # below the middle, but only here
    assert knee(contexts, errors) == 40
    assert knee(contexts, np.linspace(0.1, 1.0, 100)) is None
    assert knee(contexts[:5], errors[:5]) is None


def test_attention_rows_are_weights_over_the_past():
    x = evaluation_windows(MoonsConfig(), parse(HELD_OUT), 1, seed=0)[0, :100]
    weights = np.asarray(attention(recorded("3heads/trained"), MoonMosaicConfig(heads=3), x))
    assert weights.shape == (3, 100, 100)
    np.testing.assert_allclose(weights[:, 1:].sum(-1), 1.0, rtol=1e-5)
    assert (weights * np.triu(np.ones((100, 100))) == 0).all()


def test_contexts_must_lie_in_the_window():
    config = MoonMosaicConfig()
    params = MoonMosaic(config).init(jax.random.key(0), jnp.zeros((1, 3, 6)))["params"]
    with pytest.raises(ValueError, match="windows of 10 points"):
        continuations(params, config, jnp.zeros((1, 10, 6)), (11,), 2)
