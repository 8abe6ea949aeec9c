"""The loss of a language model's head, computed in blocks of logits, against the loss from all logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.ops import cross_entropy, head_cross_entropy

VOCAB = 37


def targets_of(batch, time):
    targets = np.random.default_rng(3).integers(0, VOCAB, (batch, time))
    targets[:, 2::5] = -1
    return targets.astype(np.int32)


def definition(hidden, head, targets, scale, z_loss=0.0):
    logits = scale * jnp.einsum("btc,vc->btv", hidden, head)
    log_z = jnp.log(jnp.exp(logits).sum(-1))
    chosen = jnp.take_along_axis(logits, jnp.where(targets < 0, 0, targets)[..., None], axis=-1)[..., 0]
    return jnp.where(targets < 0, 0, log_z - chosen + z_loss * log_z**2).sum() / (targets >= 0).sum()


# 2 x 301 positions need more than one block of logits.
@pytest.mark.parametrize("dtype, time", [("float32", t) for t in (1, 2, 63, 130, 301)] + [("bfloat16", 301)])
def test_mean_loss(assert_same, normal, dtype, time):
    targets = targets_of(2, time)

    def through_logits(hidden, head):
        losses = cross_entropy(0.5 * jnp.einsum("btc,vc->btv", hidden, head), targets)
        return losses.sum() / (targets >= 0).sum()

    forms = [lambda hidden, head: head_cross_entropy(hidden, head, targets, 0.5)[0]]
    if dtype == "float32":
        forms.append(through_logits)
    args = (normal(2, time, 8), normal(VOCAB, 8, seed=1))
    assert_same(functools.partial(definition, targets=targets, scale=0.5), forms, args, dtype)


def test_z_loss(assert_same, normal):
    targets = targets_of(2, 301)

    def form(hidden, head):
        return head_cross_entropy(hidden, head, targets, 0.5, 0.1)[0]

    args = (normal(2, 301, 8), normal(VOCAB, 8, seed=1))
    assert_same(functools.partial(definition, targets=targets, scale=0.5, z_loss=0.1), [form], args, "float32")


def test_count_and_types(normal):
    hidden, head = jnp.asarray(normal(2, 9, 8), jnp.bfloat16), normal(VOCAB, 8, seed=1)
    targets = targets_of(2, 9)

    def mean(hidden, head):
        return head_cross_entropy(hidden, head, targets)

    (loss, count), grads = jax.value_and_grad(mean, argnums=(0, 1), has_aux=True)(hidden, head)
    assert loss.dtype == jnp.float32 and int(count) == (targets >= 0).sum()
    assert (grads[0].dtype, grads[1].dtype) == (jnp.bfloat16, jnp.float32)


def test_ignored_positions_have_neither_loss_nor_gradient(normal):
    hidden, head, targets = normal(2, 9, 8), normal(VOCAB, 8, seed=1), targets_of(2, 9)
    changed = np.where((targets < 0)[..., None], 5.0, hidden)
    losses = cross_entropy(jnp.asarray(hidden @ head.T), targets)
    assert np.all(losses[targets < 0] == 0)

    @jax.jit
    def run(hidden):
        return jax.value_and_grad(lambda h: head_cross_entropy(h, head, targets)[0])(hidden)

    loss, gradient = run(hidden)
    assert np.all(gradient[targets < 0] == 0)
    assert float(run(changed)[0]) == pytest.approx(float(loss), rel=1e-6)


def test_no_valid_target_gives_zero(normal):
    targets = np.full((2, 9), -1, np.int32)

    def mean(hidden, head):
        return head_cross_entropy(hidden, head, targets)

    (loss, count), grads = jax.value_and_grad(mean, argnums=(0, 1), has_aux=True)(normal(2, 9, 8), normal(VOCAB, 8))
    assert loss == 0 and count == 0 and all(np.all(g == 0) for g in grads)


def test_large_logits_stay_finite(normal):
    hidden, head, targets = 1e3 * normal(2, 9, 8), 1e3 * normal(VOCAB, 8, seed=1), targets_of(2, 9)
    loss, grads = jax.value_and_grad(lambda *a: head_cross_entropy(*a, targets)[0], argnums=(0, 1))(hidden, head)
    assert np.isfinite(loss) and all(np.all(np.isfinite(g)) for g in grads)
