"""Retrieval along a sequence and from stored pairs: every form against its definition, and dropout."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

from mosaics_jax.errors import UserError
from mosaics_jax.ops import STRICT, Reach, RetrievalForm, blockwise, causal_retrieval, stored_retrieval
from mosaics_jax.ops import retrieval as retrieval_module

FORMS = [RetrievalForm.NAIVE, RetrievalForm.BLOCKWISE]
RATE = 0.3


def regress(scores, mask, values):
    """Softmax over the pairs that each query sees; 0 without pairs."""
    kernel = jnp.where(mask, jnp.exp(scores), 0)
    total = kernel.sum(-1, keepdims=True)
    return jnp.einsum("bhtn,bhnd->bthd", kernel / jnp.where(total == 0, 1, total), values)


def causal_definition(queries, keys, values, strict):
    scores = jnp.einsum("bthd,bnhd->bhtn", queries, keys)
    mask = jnp.tril(jnp.ones(scores.shape[-2:], bool), -1 if strict else 0)
    return regress(scores, mask, jnp.moveaxis(values, 1, 2))


CAUSAL = [("float32", strict, time) for strict in (True, False) for time in (1, 2, 63, 130)]
CAUSAL += [("bfloat16", True, 63), ("bfloat16", True, 130)]


@pytest.mark.parametrize("dtype, strict, time", CAUSAL)
def test_causal(assert_same, normal, dtype, strict, time):
    args = [normal(2, time, 3, 4, seed=seed) for seed in range(3)]
    forms = [functools.partial(causal_retrieval, reach=Reach(int(strict)), form=form) for form in FORMS]
    assert_same(functools.partial(causal_definition, strict=strict), forms, args, dtype)


@pytest.mark.parametrize("cached", [1, 2**19])
def test_blocks_and_heads_in_loops(monkeypatch, assert_same, normal, cached):
    monkeypatch.setattr(blockwise, "BLOCK", 4)
    monkeypatch.setattr(blockwise, "CACHED_WEIGHTS", cached)
    args = [normal(2, 63, 3, 4, seed=seed) for seed in range(3)]
    common = {"dropout_rate": RATE, "dropout_seed": jnp.uint32(7)}
    naive, by_blocks = (functools.partial(causal_retrieval, form=form, **common) for form in FORMS)
    assert_same(naive, [by_blocks], args)


@pytest.fixture
def on_tpu(monkeypatch):
    """``with on_tpu[form]():`` runs a kernel for TPU on CPU, in an interpreter.

    Splash attention is mapped over the batch, which the interpreter of TPU programs does not support: it has an
    interpreter of its own.
    """
    monkeypatch.setattr(retrieval_module, "platform", lambda: "tpu")
    make = functools.partial(splash.make_splash_mha_single_device, interpret=True)
    monkeypatch.setattr(splash, "make_splash_mha_single_device", make)
    return {RetrievalForm.SPLASH: contextlib.nullcontext, RetrievalForm.PALLAS: pltpu.force_tpu_interpret_mode}


KERNELS = [("float32", True, 1), ("float32", True, 130), ("float32", False, 130), ("bfloat16", True, 130)]


@pytest.mark.parametrize("form", [RetrievalForm.SPLASH, RetrievalForm.PALLAS])
@pytest.mark.parametrize("dtype, strict, time", KERNELS)
def test_kernels(on_tpu, assert_same, normal, form, dtype, strict, time):
    args = [normal(2, time, 3, 4, seed=seed) for seed in range(3)]
    with on_tpu[form]():
        kernel = functools.partial(causal_retrieval, reach=Reach(int(strict)), form=form)
        assert_same(functools.partial(causal_definition, strict=strict), [kernel], args, dtype)


@pytest.mark.parametrize("time, strict", [(300, True), (130, False)])
def test_pallas_drops_the_same_weights(on_tpu, assert_same, normal, time, strict):
    args = [normal(2, time, 3, 4, seed=seed) for seed in range(3)]
    common = {"reach": Reach(int(strict)), "dropout_rate": RATE, "dropout_seed": jnp.uint32(7)}
    naive, pallas = (
        functools.partial(causal_retrieval, form=form, **common) for form in (RetrievalForm.NAIVE, RetrievalForm.PALLAS)
    )
    with on_tpu[RetrievalForm.PALLAS]():
        assert_same(naive, [pallas], args)


@pytest.mark.parametrize("strict", [True, False])
def test_cudnn_is_called_for_causal_attention(monkeypatch, assert_same, normal, strict):
    """There is no cuDNN on CPU: XLA's attention is called instead, with the arguments that are meant for cuDNN."""
    attend = jax.nn.dot_product_attention

    def without_cudnn(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        return attend(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", without_cudnn)
    monkeypatch.setattr(retrieval_module, "platform", lambda: "gpu")
    args = [normal(2, 130, 3, 8, seed=seed) for seed in range(3)]
    form = functools.partial(causal_retrieval, reach=Reach(int(strict)), form=RetrievalForm.CUDNN)
    assert_same(functools.partial(causal_definition, strict=strict), [form], args, "bfloat16")
    with pytest.raises(UserError, match="takes bfloat16"):
        form(*args)


@pytest.mark.parametrize(
    "platform, dtype, rate, time, form",
    [
        ("cpu", "float32", 0.1, 128, RetrievalForm.NAIVE),
        ("cpu", "float32", 0.1, 129, RetrievalForm.BLOCKWISE),
        ("gpu", "float32", 0.0, 512, RetrievalForm.BLOCKWISE),
        ("gpu", "bfloat16", 0.0, 512, RetrievalForm.CUDNN),
        ("gpu", "bfloat16", 0.1, 512, RetrievalForm.BLOCKWISE),
        ("tpu", "float32", 0.0, 512, RetrievalForm.SPLASH),
        ("tpu", "bfloat16", 0.1, 512, RetrievalForm.PALLAS),
    ],
)
def test_form_that_auto_selects(monkeypatch, platform, dtype, rate, time, form):
    monkeypatch.setattr(retrieval_module, "platform", lambda: platform)
    assert retrieval_module.quickest_form(jnp.zeros((1, time, 2, 64), dtype), rate, STRICT) is form


@pytest.mark.parametrize("reach", [STRICT, Reach(3, 40)])
@pytest.mark.parametrize("form", [RetrievalForm.SPLASH, RetrievalForm.PALLAS, RetrievalForm.CUDNN])
def test_kernels_are_lowered_for_their_device(monkeypatch, form, reach):
    """Without the device, compilation goes as far as calls of its kernels, forward and backward."""
    device, calls = ("cuda", "__cudnn$fmha") if form is RetrievalForm.CUDNN else ("tpu", "tpu_custom_call")
    monkeypatch.setattr(retrieval_module, "platform", lambda: retrieval_module.KERNEL_PLATFORM[form])
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda _: False)
    array = jax.ShapeDtypeStruct((2, 500, 4, 64), jnp.bfloat16)
    rate = RATE if form is RetrievalForm.PALLAS else 0.0

    def total(*arrays):
        answers = causal_retrieval(*arrays, reach, form=form, dropout_rate=rate, dropout_seed=jnp.uint32(7))
        return jnp.sum(answers.astype(jnp.float32))

    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
    text = step.trace(array, array, array).lower(lowering_platforms=(device,)).as_text()
    assert text.count(f"@{calls}") >= 2


def test_a_kernel_that_cannot_run_is_an_error(monkeypatch, normal):
    args = [normal(1, 4, 1, 8, seed=seed) for seed in range(3)]
    with pytest.raises(UserError, match="retrieval=splash is a kernel for tpu, and this is cpu: choose auto"):
        causal_retrieval(*args, form=RetrievalForm.SPLASH)
    monkeypatch.setattr(retrieval_module, "platform", lambda: "tpu")
    with pytest.raises(UserError, match="retrieval=splash cannot drop weights"):
        causal_retrieval(*args, form=RetrievalForm.SPLASH, dropout_rate=RATE, dropout_seed=jnp.uint32(7))


@pytest.mark.parametrize("form", FORMS)
def test_one_pair_gives_its_value_and_no_pair_gives_zero(normal, form):
    values = normal(1, 5, 1, 2)
    answers = causal_retrieval(normal(1, 5, 1, 2, seed=1), normal(1, 5, 1, 2, seed=2), values, form=form)
    assert np.all(answers[0, 0] == 0)
    np.testing.assert_allclose(answers[0, 1], values[0, 0], rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_large_scores_stay_finite(normal, form):
    args = [150 * normal(1, 130, 1, 2, seed=0), 150 * normal(1, 130, 1, 2, seed=1), normal(1, 130, 1, 2, seed=2)]
    out, pull = jax.vjp(lambda *a: causal_retrieval(*a, form=form), *args)
    assert np.all(np.isfinite(out)) and all(np.all(np.isfinite(g)) for g in pull(jnp.ones_like(out)))


@pytest.mark.parametrize("strict", [True, False])
def test_causal_dropout_is_the_same_in_every_form(assert_same, normal, strict):
    args = [normal(2, 130, 3, 4, seed=seed) for seed in range(3)]
    common = {"reach": Reach(int(strict)), "dropout_rate": RATE, "dropout_seed": jnp.uint32(7)}
    naive, by_blocks = (functools.partial(causal_retrieval, form=form, **common) for form in FORMS)
    assert_same(naive, [by_blocks], args)


def test_dropout_rate_and_rescaling(normal):
    """With the identity matrix as values, answers are the weights."""
    time = 64
    queries, keys = normal(3, time, 2, time), normal(3, time, 2, time, seed=1)
    values = np.broadcast_to(np.eye(time, dtype=np.float32)[:, None], (3, time, 2, time))
    retrieve = jax.jit(
        lambda seed, rate: causal_retrieval(0.1 * queries, keys, values, dropout_rate=rate, dropout_seed=seed),
        static_argnums=1,
    )
    plain = np.asarray(retrieve(jnp.uint32(0), 0.0))
    dropped = np.stack([retrieve(jnp.uint32(seed), RATE) for seed in range(20)])
    seen = plain > 0
    kept = dropped[:, seen] > 0
    np.testing.assert_allclose(
        dropped[:, seen][kept], np.broadcast_to(plain[seen], kept.shape)[kept] / (1 - RATE), rtol=1e-5
    )
    assert 1 - kept.mean() == pytest.approx(RATE, abs=0.003)
    # Dropped entries are uncorrelated: over pairs, queries, heads, rows of the batch and seeds.
    assert np.corrcoef(kept).std() < 0.25
    as_grid = dropped[0] > 0
    for axis in range(3):
        moved = np.roll(as_grid, 1, axis)[seen & np.roll(seen, 1, axis)]
        assert abs(np.corrcoef(moved, as_grid[seen & np.roll(seen, 1, axis)])[0, 1]) < 0.04
    np.testing.assert_allclose(
        dropped.mean(axis=0)[seen], plain[seen], atol=6 * np.sqrt(RATE / (1 - RATE) / 20) * plain.max()
    )


def test_dropout_without_a_seed_is_an_error(normal):
    x = normal(1, 3, 1, 2)
    with pytest.raises(ValueError, match="dropout_seed"):
        causal_retrieval(x, x, x, dropout_rate=0.1)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("time", [1, 3])
def test_stored_pairs(normal, monkeypatch, time, first):
    """Rows have different lengths, and slots that were never written have no effect."""
    monkeypatch.setattr(blockwise, "BLOCK", 4)
    capacity, length = 11, np.array([0, 2, 8])
    queries, keys, values = normal(3, time, 2, 4), normal(3, 2, capacity, 4, seed=1), normal(3, 2, capacity, 4, seed=2)
    slot, last = np.arange(capacity), length[:, None] + np.arange(time)
    mask = (slot >= first) & (slot <= last[..., None])
    expected = regress(jnp.einsum("bthd,bhnd->bhtn", queries, keys), mask[:, None], values)
    unwritten = slot > last[:, -1:]
    keys[np.broadcast_to(unwritten[:, None], keys.shape[:3])] = 1e4
    values[np.broadcast_to(unwritten[:, None], values.shape[:3])] = 1e4
    answers = stored_retrieval(queries, keys, values, length, Reach(first), first)
    np.testing.assert_allclose(answers, expected, rtol=1e-5, atol=1e-6)
    if first == 1:
        assert np.all(answers[0, 0] == 0)
