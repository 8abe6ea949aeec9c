"""A task small enough to train in a second; run as a program, it trains in a process of its own, to be killed."""

import argparse
import dataclasses
import sys
import time

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np

from mosaics_jax.errors import UserError
from mosaics_jax.sharding import constrain
from mosaics_jax.training import Interrupted, LoopConfig, OptimizerConfig, Task, train

LOOP = LoopConfig(steps=40, eval_every=10, sample_every=20, checkpoint_every=5, log_every=10, keep_checkpoints=3)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, min_learning_rate=1e-3, warmup_steps=4)


class Net(nn.Module):
    """Two layers with dropout between them: x_BE (batch, embed) to logits_BV (batch, vocab)."""

    @nn.compact
    def __call__(self, x_BE, train=True):
        init = nn.initializers.normal(0.3)
        hidden_EF = self.param("hidden", nn.with_logical_partitioning(init, ("embed", "mlp")), (8, 16))
        bias_F = self.param("bias", nn.with_logical_partitioning(init, ("mlp",)), (16,))
        out_FV = self.param("out", nn.with_logical_partitioning(init, ("mlp", "vocab")), (16, 8))
        x_BF = jnp.tanh(constrain(x_BE, "batch", "activation_embed") @ hidden_EF + bias_F)
        return nn.Dropout(0.1, deterministic=not train)(x_BF) @ out_FV


def rows(start, stop):
    """Points of 8 numbers, labelled by the largest."""
    x = np.random.default_rng(7).normal(size=(512, 8)).astype(np.float32)[start:stop]
    return [{"x": point, "y": np.int32(point.argmax())} for point in x]


def cross_entropy(params, batch, key, train=True):
    logits_BV = Net().apply({"params": params}, batch["x"], train=train, rngs={"dropout": key})
    loss_B = -jnp.take_along_axis(nn.log_softmax(logits_BV), batch["y"][:, None], axis=-1)
    return loss_B.mean(), {"accuracy": (logits_BV.argmax(-1) == batch["y"]).mean()}


def make_task(batch=16, config=None, **changes):
    held_out = jax.tree.map(lambda *leaves: np.stack(leaves), *rows(480, 512))
    task = Task(
        name="tiny/net",
        init=lambda key: Net().init(key, jnp.zeros((1, 8)), train=False)["params"],
        loss=cross_entropy,
        train_data=grain.MapDataset.source(rows(0, 480)).seed(3).shuffle().repeat().batch(batch).to_iter_dataset(),
        config={"model": {"width": 16}, "betas": (0.5, 1.0), **(config or {})},
        tokens_per_step=batch,
        evaluate=lambda params: {"loss": cross_entropy(params, held_out, jax.random.key(0), train=False)[0]},
        sample=lambda params: f"sum {float(params['out'].sum()):.3f}",
    )
    return dataclasses.replace(task, **changes)


def slow_sample(params):
    time.sleep(0.05)
    return "a step"


def main():
    """Trains slowly, a line of output a step; exits as the entry points do: 2 on a user error, 75 on a signal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("--cache")
    arguments = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", arguments.cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    try:
        task = make_task(sample=slow_sample)
        train(arguments.workdir, dataclasses.replace(LOOP, sample_every=1), OPTIMIZER, task)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return Interrupted.EXIT_STATUS
    return 0


if __name__ == "__main__":
    sys.exit(main())
