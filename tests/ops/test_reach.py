"""`Reach` in every form of retrieval: answers and all gradients against the definition.

All combinations of delays, windows, documents and lengths are tested. The batch has one row per kind of documents.
"""

import contextlib
import functools
import itertools
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

from mosaics_jax.ops import Reach, RetrievalForm, blockwise, causal_retrieval, pallas_retrieval, stored_retrieval
from mosaics_jax.ops import retrieval as retrieval_module

TIMES = (1, 2, 63, 128, 193)
RATE = 0.3


def delays(time):
    return (0, 1, 5, time)


def windows(time):
    return (None, 1, 7, time)


def documents(time):
    """(3, T): one document; several documents of different lengths; one document per position."""
    several = np.searchsorted(np.array([1, 2, 9, 40, 41, 130]), np.arange(time), side="right")
    return np.stack([np.zeros(time), several, np.arange(time)]).astype(np.int32)


def definition(queries, keys, values, delay, window, documents_BT):
    """Softmax over all pairs, masked by the condition in the docstring of `mosaics_jax.ops.reach`."""
    time = queries.shape[1]
    query, pair = np.arange(time)[:, None], np.arange(time)
    seen = (pair <= query - delay) & (pair > query - delay - window)
    seen = seen[None] & (documents_BT[:, :, None] == documents_BT[:, None])
    scores = jnp.where(seen[:, None], jnp.einsum("bthd,bnhd->bhtn", queries, keys), -1e9)
    weights = jnp.where(seen[:, None], jnp.exp(scores - scores.max(-1, keepdims=True)), 0)
    total = weights.sum(-1, keepdims=True)
    return jnp.einsum("bhtn,bnhd->bthd", weights / jnp.where(total > 0, total, 1), values)


def with_gradients(function, *args):
    out, pull = jax.vjp(function, *args)
    return out, *pull(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape).astype(out.dtype))


@functools.cache
def expected_of(time):
    """(delay, window, several documents) -> the answers and all gradients of the definition."""
    args = arrays(time)
    run = jax.jit(
        lambda delay, window, documents_BT: with_gradients(
            functools.partial(definition, delay=delay, window=window, documents_BT=documents_BT), *args
        )
    )
    results = {}
    for delay, window in itertools.product(delays(time), windows(time)):
        wide = time + 1 if window is None else window
        for several in (False, True):
            documents_BT = documents(time) if several else np.zeros_like(documents(time))
            results[delay, window, several] = jax.device_get(run(delay, wide, documents_BT))
    return results


@functools.cache
def arrays(time, dtype="float32", width=4):
    return [jnp.asarray(np.random.default_rng(seed).standard_normal((3, time, 1, width)), dtype) for seed in range(3)]


def check(results, time, delay, window, several, rtol=1e-4, atol=2e-5):
    for ours, theirs in zip(results, expected_of(time)[delay, window, several], strict=True):
        assert np.all(np.isfinite(ours))
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol, err_msg=f"{delay=} {window=} {several=}")


def traced_results(time, form, windows_of=windows):
    """Results of a form with traced delays and windows: one compilation each with and without documents or window."""
    args = arrays(time)

    def run(several, no_window, delay, window):
        reach = Reach(delay, None if no_window else window, jnp.asarray(documents(time)) if several else None)
        return with_gradients(functools.partial(causal_retrieval, reach=reach, form=form), *args)

    run = jax.jit(run, static_argnums=(0, 1))
    for delay, window, several in itertools.product(delays(time), windows_of(time), (False, True)):
        yield (delay, window, several), run(several, window is None, delay, 0 if window is None else window)


@pytest.fixture
def on_tpu(monkeypatch):
    """Makes kernels for TPU run on CPU, in an interpreter."""
    monkeypatch.setattr(retrieval_module, "platform", lambda: "tpu")
    make = functools.partial(splash.make_splash_mha_single_device, interpret=True)
    monkeypatch.setattr(splash, "make_splash_mha_single_device", make)


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("form", [RetrievalForm.NAIVE, RetrievalForm.BLOCKWISE])
def test_traced_delays_and_windows(monkeypatch, time, form):
    monkeypatch.setattr(blockwise, "BLOCK", 32)
    for reach, results in traced_results(time, form):
        check(results, time, *reach)


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("several", [False, True])
def test_static_delays_and_windows(monkeypatch, time, several):
    """Delays and windows that are known at compile time: blocks without visible pairs are skipped.

    Blocks of 16 queries, several per group.
    """
    monkeypatch.setattr(blockwise, "BLOCK", 16)
    monkeypatch.setattr(blockwise, "GROUPS", 3)
    args = arrays(time)
    documents_BT = jnp.asarray(documents(time)) if several else None

    @jax.jit
    def run():
        return {
            (delay, str(window)): with_gradients(
                functools.partial(
                    causal_retrieval, reach=Reach(delay, window, documents_BT), form=RetrievalForm.BLOCKWISE
                ),
                *args,
            )
            for delay, window in itertools.product(delays(time), windows(time))
        }

    results = run()
    for delay, window in itertools.product(delays(time), windows(time)):
        check(results[delay, str(window)], time, delay, window, several)


@pytest.mark.parametrize("time", TIMES)
def test_pallas(on_tpu, time):
    with pltpu.force_tpu_interpret_mode():
        for reach, results in traced_results(time, RetrievalForm.PALLAS):
            check(results, time, *reach)


@pytest.mark.parametrize("time", TIMES)
def test_splash_attention(on_tpu, time):
    """Splash takes traced delays, and windows that are known at compile time."""
    args = arrays(time)

    def run(several, window, delay):
        reach = Reach(delay, window, jnp.asarray(documents(time)) if several else None)
        return with_gradients(functools.partial(causal_retrieval, reach=reach, form=RetrievalForm.SPLASH), *args)

    run = jax.jit(run, static_argnums=(0, 1))
    for delay, window, several in itertools.product(delays(time), windows(time), (False, True)):
        check(run(several, window, delay), time, delay, window, several)


@pytest.mark.parametrize("time", TIMES)
def test_cudnn(monkeypatch, time):
    """There is no cuDNN on CPU: XLA's attention is called instead, with the arguments that are meant for cuDNN."""
    attend = jax.nn.dot_product_attention

    def without_cudnn(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        return attend(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", without_cudnn)
    monkeypatch.setattr(retrieval_module, "platform", lambda: "gpu")
    args = arrays(time, "bfloat16", 8)
    wide = [a.astype(jnp.float32) for a in args]

    @functools.partial(jax.jit, static_argnums=0)
    def run(window, delay):
        form = functools.partial(causal_retrieval, reach=Reach(delay, window), form=RetrievalForm.CUDNN)
        within = time + 1 if window is None else window
        naive = functools.partial(definition, delay=delay, window=within, documents_BT=np.zeros((3, time)))
        return with_gradients(form, *args), with_gradients(naive, *wide)

    for delay, window in itertools.product(delays(time), windows(time)):
        for ours, theirs in zip(*run(window, delay), strict=True):
            assert np.all(np.isfinite(ours))
            np.testing.assert_allclose(ours, theirs, rtol=0.1, atol=0.1, err_msg=f"{delay=} {window=}")


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("chunk", [1, 7])
def test_stored_pairs(monkeypatch, time, chunk):
    """Answers to chunks from stored pairs equal those of the whole sequence. Slot 0 stays empty."""
    monkeypatch.setattr(blockwise, "BLOCK", 16)
    queries, keys, values = arrays(time)
    padding = ((0, 0), (1, 9), (0, 0), (0, 0))
    stored = [jnp.swapaxes(jnp.pad(a, padding, constant_values=7.0), 1, 2) for a in (keys, values)]
    of_slots = jnp.pad(jnp.asarray(documents(time)), ((0, 0), (1, 9)), constant_values=-1)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def answers(several, no_window, delay, window, start, queries, of_queries):
        window = None if no_window else window
        reach = Reach(delay, window, of_queries, of_slots) if several else Reach(delay, window)
        return stored_retrieval(queries, *stored, jnp.full(3, start), reach, first_slot=1)

    starts = sorted({0, time // 2 // chunk * chunk, (time - 1) // chunk * chunk})
    padded = jnp.pad(queries, ((0, 0), (0, chunk), (0, 0), (0, 0)))
    of_queries = jnp.pad(jnp.asarray(documents(time)), ((0, 0), (0, chunk)), constant_values=-1)
    for delay, window, several in itertools.product(delays(time), windows(time), (False, True)):
        expected = expected_of(time)[delay, window, several][0]
        for start in starts:
            part = slice(start, start + chunk)
            given = (delay, window or 0, start, padded[:, part], of_queries[:, part])
            result = answers(several, window is None, *given)[:, : time - start]
            np.testing.assert_allclose(result, expected[:, part], rtol=1e-4, atol=2e-5, err_msg=f"{delay=} {window=}")


@pytest.mark.parametrize("form", [RetrievalForm.BLOCKWISE, RetrievalForm.PALLAS])
def test_dropout_drops_the_same_weights_under_any_reach(monkeypatch, form):
    monkeypatch.setattr(blockwise, "BLOCK", 16)
    time = 193
    args, documents_BT = arrays(time), jnp.asarray(documents(time))
    common = {"dropout_rate": RATE, "dropout_seed": jnp.uint32(7)}

    def run(form, delay, window):
        return with_gradients(
            functools.partial(causal_retrieval, reach=Reach(delay, window, documents_BT), form=form, **common), *args
        )

    naive = jax.jit(functools.partial(run, RetrievalForm.NAIVE))
    fast = jax.jit(functools.partial(run, form))
    expected = [naive(delay, window) for delay, window in ((1, 9), (20, 500))]
    on = contextlib.nullcontext()
    if form is RetrievalForm.PALLAS:
        monkeypatch.setattr(retrieval_module, "platform", lambda: "tpu")
        on = pltpu.force_tpu_interpret_mode()
    with on:
        results = [fast(delay, window) for delay, window in ((1, 9), (20, 500))]
    for ours, theirs in zip(results, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


def test_one_compilation_serves_all_delays():
    args = arrays(63)
    traces = []

    @jax.jit
    def run(delay):
        traces.append(delay)
        return causal_retrieval(*args, Reach(delay), form=RetrievalForm.BLOCKWISE)

    for delay in (1, 2, 30, 64):
        run(delay)
    assert len(traces) == 1


def test_a_window_bounds_the_size_of_arrays():
    """With a window, no array is larger than the queries. Without one, the weights of a block are."""
    largest = {}
    for window in (None, 32):
        arrays = [jax.ShapeDtypeStruct((1, 4096, 1, 16), jnp.float32)] * 3
        run = jax.jit(functools.partial(causal_retrieval, reach=Reach(1, window), form=RetrievalForm.BLOCKWISE))
        shapes = re.findall(r"f32\[([\d,]+)\]", run.lower(*arrays).as_text(dialect="hlo"))
        largest[window] = max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)
    assert largest[None] >= 128 * 2048 and largest[32] == 4096 * 16


def test_a_negative_delay_is_an_error():
    with pytest.raises(ValueError, match="delay=-1 must not be negative"):
        Reach(-1)


def test_on_eight_devices():
    """With time sharded over 8 devices, in a process of its own."""
    script = pathlib.Path(__file__).with_name("on_eight_devices.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1] == "all equal"


@pytest.mark.parametrize("delay, window, touched", [(0, 1, 2), (1, 7, 3), (1, 200, 4), (150, 130, 3)])
def test_pallas_loops_over_the_blocks_that_a_window_touches(on_tpu, monkeypatch, delay, window, touched):
    """Of six blocks of 128. ``touched``: those that 128 + window - 1 positions can lie in, wherever they begin."""
    monkeypatch.setattr(pallas_retrieval, "BLOCKS", (128,))
    time = 700
    args, of_rows = arrays(time), documents(time)
    reach = Reach(delay, window, jnp.asarray(of_rows))
    with pltpu.force_tpu_interpret_mode():
        form = functools.partial(causal_retrieval, reach=reach, form=RetrievalForm.PALLAS)
        results = jax.jit(lambda: with_gradients(form, *args))()
    naive = functools.partial(definition, delay=delay, window=window, documents_BT=of_rows)
    for ours, theirs in zip(results, with_gradients(naive, *args), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)
    grid = pallas_retrieval._Grid(jnp.zeros((1, time, 4)), jnp.zeros((1, time, 4)), reach, 0.0, jnp.uint32(0))
    assert {kind: loop.count for kind, loop in grid.loops.items()} == {"query": touched, "pair": touched}


def test_documents_of_pairs_are_for_stored_pairs():
    queries, keys, values = arrays(2)
    with pytest.raises(ValueError, match="pair_documents_BN is for stored pairs"):
        causal_retrieval(queries, keys, values, Reach(1, None, jnp.zeros((3, 2)), jnp.zeros((3, 2))))
    stored = [jnp.swapaxes(a, 1, 2) for a in (keys, values)]
    with pytest.raises(ValueError, match="go together"):
        stored_retrieval(queries, *stored, jnp.zeros(3, jnp.int32), Reach(1, None, jnp.zeros((3, 2))))
