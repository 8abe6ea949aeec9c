"""Language models against arrays of the authors' code: outputs, losses, all gradients, ten training steps."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mosaics_jax.nn import extractors
from mosaics_jax.ops import LeakyForm, averages, blockwise, cross_entropy, leaky_average
from mosaics_jax.training.optimizer import OptimizerConfig, decay_mask, make_optimizer, schedule

EXACT = 1e-9

MOSAICS = [
    "lib_base",
    "lib_pmem2",
    "lib_postln",
    "lib_attnonly",
    "lib_clamp",
    "lib_untied_skip5",
    "lib_bias",
    "lib_convfe",
    "nano_mosaic",
    "nano_mosaic_pmem2_bias",
    "nano_mosaic_clamp",
]
TRANSFORMERS = ["nano_gpt", "nano_gpt_bias", "lib_gpt"]
TRAJECTORIES = ["lib_base", "nano_mosaic", "nano_gpt", "nano_gpt_bias", "lib_gpt"]


def check_gradients(recording, gradients, relative_error):
    ours, theirs = recording.named(gradients), recording.part("grad_f64/")
    tied = {name for name in ours if name not in theirs}
    assert tied <= {"head.weight", "lm_head.weight"}
    for name, gradient in theirs.items():
        assert relative_error(ours[name], gradient) < EXACT, name


@pytest.mark.parametrize("name", MOSAICS + TRANSFORMERS)
def test_float64(x64, recorded, relative_error, name):
    recording = recorded(name)
    arrays, skip = recording.arrays, recording.config.skip_tokens
    model, params = recording.model("float64")

    logits_of = recording.logits(model)
    logits = logits_of(params, arrays["idx"])
    assert relative_error(logits, arrays["logits_f64"]) < EXACT
    assert relative_error(logits[:, -1:], arrays["logits_last_f64"]) < EXACT
    losses = cross_entropy(logits, jnp.asarray(arrays["tgt_ignore"][:, skip:]))
    assert (
        relative_error(losses.sum()[None] / np.sum(arrays["tgt_ignore"][:, skip:] >= 0), arrays["loss_ignore_f64"])
        < EXACT
    )
    # Later tokens do not change earlier outputs: with padding, the short sequence needs no compilation of its own.
    short = arrays["idx_short"].shape[1]
    logits = logits_of(params, np.pad(arrays["idx_short"], ((0, 0), (0, arrays["idx"].shape[1] - short))))
    assert relative_error(logits[:, : short - skip], arrays["logits_short_f64"]) < EXACT
    losses = cross_entropy(logits[:, : short - skip], jnp.asarray(arrays["tgt_short"][:, skip:]))
    assert relative_error(losses.mean()[None], arrays["loss_short_f64"]) < EXACT

    gradient = recording.gradient(model)
    loss, gradients = gradient(params, arrays["idx"], arrays["tgt"])
    assert relative_error(loss[None], arrays["loss_f64"]) < EXACT
    check_gradients(recording, gradients, relative_error)
    loss, _ = gradient(params, arrays["idx"], arrays["tgt_ignore"])
    assert relative_error(loss[None], arrays["loss_ignore_f64"]) < EXACT


NAIVE = ({"retrieval": "naive", "remat": "dots"}, LeakyForm.NAIVE)
BLOCKWISE = ({"retrieval": "blockwise", "remat": "full"}, LeakyForm.CHUNKED)
SCANNED = ({"scan_layers": True, "remat": "dots"}, LeakyForm.SCAN)


@pytest.mark.parametrize(
    "name, form",
    [
        ("lib_base", NAIVE),
        ("lib_base", BLOCKWISE),
        ("lib_base", SCANNED),
        ("nano_mosaic_pmem2_bias", BLOCKWISE),
        ("nano_gpt_bias", BLOCKWISE),
        ("nano_gpt_bias", SCANNED),
    ],
)
def test_float64_in_other_forms(x64, monkeypatch, recorded, relative_error, name, form):
    fields, leaky_form = form
    # The 48 positions are several blocks or chunks, of which the last is padded.
    monkeypatch.setattr(blockwise, "BLOCK", 20)
    monkeypatch.setattr(averages, "CHUNK", 20)
    monkeypatch.setattr(blockwise, "block_size_for_slots", lambda: 60)
    monkeypatch.setattr(extractors, "leaky_average", functools.partial(leaky_average, form=leaky_form))
    recording = recorded(name)
    model, params = recording.model("float64", **fields)
    loss, gradients = recording.gradient(model)(params, recording.arrays["idx"], recording.arrays["tgt"])
    assert relative_error(loss[None], recording.arrays["loss_f64"]) < EXACT
    check_gradients(recording, gradients, relative_error)


def reorder_channels(model, params, order):
    """The same network with the C channels of its stream in another order: only the rounding changes."""
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]

    def reorder(box, array):
        axes = [axis for axis, name in enumerate(box.names) if name in ("embed", "norm")]
        return functools.reduce(lambda a, axis: jnp.take(a, order, axis), axes, array)

    return jax.tree.map(reorder, boxed, params, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))


@pytest.mark.parametrize("name", MOSAICS + TRANSFORMERS)
def test_float32(recorded, name):
    """The float32 error is that of the authors' float32 code, up to the order of summation.

    The manifest records the authors' error for each network. If a vector that is normalised happens to be short, the
    error depends on the order in which channels are summed: with other orders, it is a third to fifteen times as large,
    in both codes. The test therefore compares the median over several orders, and allows 8 times the recorded error; 2
    times for transformers, which normalise no short vectors.
    """
    recording = recorded(name)
    arrays = recording.arrays
    theirs, skip = recording.part("grad_f64/"), recording.config.skip_tokens
    model, params = recording.model("float32")

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def gradient(params):
        logits = model.apply({"params": params}, arrays["idx"])
        return cross_entropy(logits, jnp.asarray(arrays["tgt"][:, skip:])).mean(), logits

    logit_errors, gradient_errors = [], []
    for seed in range(8):
        channels = np.arange(recording.config.n_embd)
        order = np.random.default_rng(seed).permutation(channels) if seed else channels
        (_, logits), gradients = gradient(reorder_channels(model, params, order))
        ours = recording.named(reorder_channels(model, gradients, np.argsort(order)))
        logit_errors.append(np.max(np.abs(logits - arrays["logits_f64"])))
        gradient_errors.append(max(np.max(np.abs(ours[n] - g)) / np.max(np.abs(g)) for n, g in theirs.items()))
    allowed = 2 if name in TRANSFORMERS else 8
    logit_error, gradient_error = np.median(logit_errors), np.median(gradient_errors)
    assert logit_error < allowed * recording.settings["f32_vs_f64_logits_maxabs"]
    assert gradient_error < allowed * recording.settings["f32_vs_f64_grad_relmax"]


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_ten_training_steps(x64, recorded, name):
    """Losses, gradient norms and final parameters agree to 1e-9, or to the effect of rounding.

    The loss of mosaics is steep where short vectors are normalised, and Adam divides by small gradients. A rounding
    error of the first step therefore grows about tenfold per step, in any code: to 1e-8 in lib_base and 1e-2 in
    nano_mosaic at the tenth. The test measures this growth by runs whose initial parameters differ by 1e-15, relative.
    """
    recording, trajectory = recorded(name), recorded(f"{name}_train10")
    theirs = trajectory.arrays
    model, params = recording.model("float64")
    gradient = recording.gradient(model)
    config = OptimizerConfig(learning_rate=1e-2, min_learning_rate=1e-2, warmup_steps=4)
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    mask = decay_mask(boxed)
    marks = recording.named(jax.tree.map(lambda decays, leaf: np.full(leaf.shape, decays), mask, params))
    decayed = {name for name, mark in marks.items() if np.all(mark)}
    assert decayed - {"head.weight", "lm_head.weight"} == set(trajectory.settings["decay"])
    np.testing.assert_allclose(schedule(config, 10)(jnp.arange(10)), theirs["lrs"], rtol=1e-12)
    optimizer = make_optimizer(config, 10, mask)

    @jax.jit
    def update(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, optax.tree.norm(gradients)

    def train(params):
        """Losses and gradient norms before each step, and the final parameters by name."""
        state, losses, norms = optimizer.init(params), [], []
        for _ in range(10):
            loss, gradients = gradient(params, recording.arrays["idx"], recording.arrays["tgt"])
            params, state, norm = update(params, state, gradients)
            losses.append(float(loss))
            norms.append(float(norm))
        return np.array(losses), np.array(norms), recording.named(params)

    def nearby(seed):
        random = np.random.default_rng(seed)
        return train(jax.tree.map(lambda a: a * (1 + 1e-15 * random.standard_normal(a.shape)), params))

    def check(ours, others, recorded, scale):
        spread = np.max([np.abs(other - ours) for other in others], axis=0)
        assert np.all(np.abs(ours - recorded) <= np.maximum(EXACT, 10 * spread / scale) * scale)

    losses, norms, final = train(params)
    others = [nearby(seed) for seed in range(1 if name in TRANSFORMERS else 3)]
    # In the first steps rounding errors have not grown yet.
    assert np.max(np.abs(losses[:4] / theirs["losses_f64"][:4] - 1)) < EXACT
    check(losses, [other[0] for other in others], theirs["losses_f64"], theirs["losses_f64"])
    check(norms, [other[1] for other in others], theirs["grad_norms_f64"], theirs["grad_norms_f64"])
    for key, last in trajectory.part("final_f64/").items():
        # Of each parameter, the largest difference is compared.
        scale = np.max(np.abs(last))
        spread = max(np.max(np.abs(other[2][key] - final[key])) for other in others) / scale
        assert np.max(np.abs(final[key] - last)) / scale < max(EXACT, 10 * spread), key
