"""AdamW as in the published runs: linear warm-up, a decaying learning rate, clipping, weight decay of matrices."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mosaics_jax.settings import check_choices, setting
from mosaics_jax.shapes import Array, Params
from mosaics_jax.training.spikes import skip_spikes

# Logical axes that stack equal parameters (scanned layers, copies of a network): not dimensions of the parameter.
STACKED_AXES = ("layers", "seeds")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule (v1 appendix; defaults: the published language-model recipe)."""

    learning_rate: float = setting(5e-3, "highest learning rate, reached at the end of warm-up")
    min_learning_rate: float = setting(1e-4, "learning rate at the last step")
    warmup_steps: int = setting(2000, "steps of linear warm-up from 0")
    decay: str = setting("cosine", "how the learning rate falls from highest to last", ("cosine", "linear"))
    weight_decay: float = setting(0.1, "decoupled weight decay, on tensors of two or more dimensions")
    beta1: float = setting(0.9, "decay of AdamW's mean of gradients")
    beta2: float = setting(0.95, "decay of AdamW's mean of squared gradients")
    epsilon: float = setting(1e-8, "AdamW's epsilon, added to the root of the second moment")
    bias_correction: bool = setting(True, "Adam's division of its means by 1 - beta^step, as published by its authors")
    clip_norm: float = setting(1.0, "largest global norm of the gradient (0: no clipping)")
    skip_spikes: float = setting(
        0.0, "skip a step if its gradient's norm is not finite, or above so many times its running median (0: never)"
    )
    accumulate: int = setting(1, "micro-batches that one step sums its gradient over (saves memory)")

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("learning_rate", "min_learning_rate", "warmup_steps", "weight_decay", "clip_norm", "skip_spikes"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative, and finite")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and below 1")
        if self.epsilon <= 0:
            raise ValueError(f"epsilon={self.epsilon} must be positive")
        if 0 < self.skip_spikes <= 1:
            raise ValueError(f"skip_spikes={self.skip_spikes} must be above 1, or 0 for none to be skipped")
        if self.accumulate < 1:
            raise ValueError(f"accumulate={self.accumulate} must be at least 1")


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of update 0, 1, ...: 0 at the first, highest at ``warmup_steps``, lowest at ``steps``.

    Without bias correction, the learning rate of update t = 1, 2, ... is multiplied by
    (1 - beta1^t) / sqrt(1 - beta2^t), which cancels the correction that optax's Adam applies. The cancellation is exact
    but for epsilon, which is scaled by sqrt(1 - beta2^t).
    """

    def learning_rate(count: Any) -> Array:
        count = jnp.asarray(count, jnp.result_type(float))  # float64 in float64 runs, whatever the counter's type
        warmup = config.learning_rate * count / max(config.warmup_steps, 1)
        progress = jnp.clip((count - config.warmup_steps) / max(steps - config.warmup_steps, 1), 0.0, 1.0)
        share = 0.5 * (1 + jnp.cos(jnp.pi * progress)) if config.decay == "cosine" else 1 - progress
        decayed = config.min_learning_rate + share * (config.learning_rate - config.min_learning_rate)
        rate = jnp.where(count < config.warmup_steps, warmup, decayed)
        if config.bias_correction:
            return rate
        return rate * (1 - config.beta1 ** (count + 1)) / jnp.sqrt(1 - config.beta2 ** (count + 1))

    return learning_rate


def clip_by_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales the gradient by min(1, max_norm / (norm + 1e-6)), as PyTorch does.

    The golden trajectories of the authors' code were recorded with this form. `optax.clip_by_global_norm` has no 1e-6,
    which is visible at the 1e-9 to which the trajectories are compared.
    """

    def update(grads: Params, state: optax.EmptyState, params: Params = None) -> tuple[Params, optax.EmptyState]:
        del params
        scale = jnp.minimum(1.0, max_norm / (optax.tree.norm(grads) + 1e-6))
        return jax.tree.map(lambda grad: grad * scale.astype(grad.dtype), grads), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def decay_mask(boxed_params: Params) -> Any:
    """Which parameters decay: those with two or more dimensions, not counting STACKED_AXES. A tree of bools.

    ``boxed_params``: the parameters (arrays or shapes) as ``init`` gives them, with their logical axis names. If a
    parameter has no names, all its dimensions count.
    """

    def decays(leaf: Any) -> bool:
        if isinstance(leaf, nn.Partitioned):
            return sum(name not in STACKED_AXES for name in leaf.names) >= 2
        return leaf.ndim >= 2

    return jax.tree.map(decays, boxed_params, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))


def make_optimizer(config: OptimizerConfig, steps: int, mask: Any) -> optax.GradientTransformation:
    """Clipping, then AdamW; the parameters that ``mask`` (`decay_mask`) marks decay by lr * weight_decay.

    With ``skip_spikes`` the optimizer's state is a `SpikeState`, and a skipped step does not advance the schedule.
    """
    optimizer = optax.chain(
        clip_by_norm(config.clip_norm) if config.clip_norm > 0 else optax.identity(),
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask),
        optax.scale_by_learning_rate(schedule(config, steps)),
    )
    return skip_spikes(optimizer, config.skip_spikes) if config.skip_spikes else optimizer
