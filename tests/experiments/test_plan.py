"""Plans for chips that are not here: steps compiled for them, and errors in one line."""

import importlib.util
import json

import pytest

from tests.experiments.entries import refused, run

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (pip install 'jax[tpu]')"
)
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="jax-cuda13-plugin is not installed"
)
SIZES = ("--n_layer=2", "--n_head=2", "--n_embd=128", "--pmem_size=64", "--vocab_size=512", "--scan_layers")
TINY = (*SIZES, "--context_length=128", "--batch_size=8", "--dtype=bfloat16")


@pytest.mark.parametrize(
    ("topology", "peak"),
    [
        pytest.param("v5e:2x2", "197 TFLOP/s", marks=needs_libtpu),
        pytest.param("v5p:2x2x1", "459 TFLOP/s", marks=needs_libtpu),
        pytest.param("h100:2x2", "989 TFLOP/s", marks=needs_cuda),
    ],
)
def test_a_plan(tmp_path, topology, peak):
    path = tmp_path / "plan.json"
    done = run("plan", *TINY, f"--topology={topology}", "--mesh=data:2,fsdp:2", f"--json={path}")
    assert done.returncode == 0, done.stderr
    for part in ("memory a chip: ", "model FLOPs a step: ", "all-gather ", "estimated step: ", peak):
        assert part in done.stdout
    plan = json.loads(path.read_text())
    # Six matrices of 128 x 128 a block with the slots' two of 64 x 128, the head, and the pairs of retrieval.
    weights = 2 * (5 * 128**2 + 2 * 64 * 128) + 512 * 128
    assert plan["model_flops"] == 6 * 8 * 128 * (weights + 2 * 2 * 128 * 128 // 2)
    assert plan["model_flops"] < 4 * plan["executed_flops_per_device"] < 2 * plan["model_flops"]
    # float32, a half on each device; two moments of Adam.
    assert 2 * weights <= plan["memory"]["parameters"] < 2.1 * weights
    assert plan["memory"]["optimizer"] == pytest.approx(2 * plan["memory"]["parameters"], rel=1e-3)
    assert plan["collectives"]["all-gather"]["count"] > 2 and plan["hbm_bytes"] > 0


@needs_libtpu
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v5e:3x5"], "--topology=v5e:3x5: there is no such slice"),
        (["--mesh=data:3"], "mesh='data:3' does not fit 4 devices: the sizes must multiply to 4"),
        (["--mesh=data:2,sequence:2", "--context_length=127"], "context_length=127 does not divide by mesh sequence:2"),
    ],
)
def test_plans_that_cannot_be(flags, message):
    assert message in refused("plan", *TINY, *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v5e"], "--topology=v5e: write CHIP:SHAPE, with a chip of v5e, v5p, v6e, h100"),
        (["--model=mosaic,gpt2"], "a plan is of one model"),
    ],
)
def test_plans_that_are_badly_asked_for(flags, message):
    assert message in refused("plan", *TINY, *flags)


@pytest.mark.parametrize(
    ("topology", "width"),
    [pytest.param("v5e:2x2", 4096, marks=needs_libtpu), pytest.param("h100:4", 32768, marks=needs_cuda)],
)
def test_a_step_that_does_not_fit(topology, width):
    big = ("--n_layer=1", f"--n_embd={width}", "--n_head=2", "--pmem_size=8", "--vocab_size=262144", "--batch_size=4")
    line = refused("plan", *big, "--context_length=8", "--attn_only", f"--topology={topology}")
    assert "a step needs" in line and "split them over more chips" in line
