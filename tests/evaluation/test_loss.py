"""The loss over a whole text, against its definition; and the figure of loss curves."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from mosaics_jax.data.windows import evaluation_windows
from mosaics_jax.evaluation.figures import draw_loss_curves
from mosaics_jax.evaluation.loss import loss_evaluator
from mosaics_jax.models import MemoryMosaic, MosaicConfig
from mosaics_jax.training.mesh import make_mesh


def test_the_loss_is_the_mean_over_all_tokens():
    model = MemoryMosaic(MosaicConfig(vocab_size=23, n_layer=1, n_head=2, n_embd=16, pmem_size=8))
    tokens = np.random.default_rng(0).integers(0, 23, 100).astype(np.uint16)
    params = nn.meta.unbox(model.init(jax.random.key(0), tokens[None, :5].astype(np.int32)))["params"]
    context = 7
    evaluate = loss_evaluator(model)
    with jax.set_mesh(make_mesh("data:-1")):
        metrics = evaluate(params, evaluation_windows(tokens, context, batch_size=4))
    without_mesh = evaluate(params, evaluation_windows(tokens, context, batch_size=4))
    assert without_mesh["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
    total = 0.0
    for start in range(0, 99, context):  # window by window, the last one short
        window = tokens[start : start + context + 1].astype(np.int32)
        logits = np.asarray(model.apply({"params": params}, window[None, :-1]), np.float64)[0]
        log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        total -= log_probability[np.arange(len(window) - 1), window[1:]].sum()
    assert metrics["loss"] == pytest.approx(total / 99, rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(np.exp(total / 99), rel=1e-5)


def test_loss_curves_are_drawn_for_short_and_long_runs(tmp_path):
    def records(steps):
        train = [{"step": s, "kind": "train", "loss": 6 / s**0.1} for s in range(1, steps + 1)]
        return [*train, {"step": steps, "kind": "eval", "loss": 3.0}, {"step": steps, "kind": "sample", "text": "x"}]

    draw_loss_curves({"mosaic": records(1), "gpt2": records(300)}, "title", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
