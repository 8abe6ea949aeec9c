"""Steps that are skipped, because their gradient is not finite or far larger than those before it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mosaics_jax.shapes import Array, Params

WINDOW = 128  # latest norms, whose median is taken
LEAST = 16  # norms from which there is a median; before, only a norm that is not finite is skipped
LONGEST = WINDOW  # skipped steps in a row that end a run: by then the median would have followed finite norms


class SpikeState(NamedTuple):
    """``inner``: of the optimizer; norms () float32 (WINDOW,), a ring; counts () int32 of finite norms and of skips."""

    inner: Any
    norms: Array
    finite: Array
    skipped: Array


def skip_spikes(inner: optax.GradientTransformation, factor: float) -> optax.GradientTransformation:
    """``inner``, but for steps whose gradient's norm is not finite, or above ``factor`` times its running median.

    Such a step leaves the parameters and the state of ``inner`` as they were, bit for bit. Its norm, if it is finite,
    counts for the median all the same: gradients that grow for good are skipped for half a window, not for ever.
    """

    def init(params: Params) -> SpikeState:
        zero = jnp.zeros((), jnp.int32)
        return SpikeState(inner.init(params), jnp.zeros(WINDOW, jnp.float32), zero, zero)

    def update(grads: Params, state: SpikeState, params: Params = None) -> tuple[Params, SpikeState]:
        norm = optax.tree.norm(grads).astype(jnp.float32)
        known = jnp.minimum(state.finite, WINDOW)
        in_order = jnp.sort(jnp.where(jnp.arange(WINDOW) < known, state.norms, jnp.inf))
        median = in_order[jnp.maximum(known - 1, 0) // 2]
        finite = jnp.isfinite(norm)
        take = finite & ((known < LEAST) | (norm <= factor * median))

        updates, new = inner.update(grads, state.inner, params)
        # x + -0.0 is x for every x, -0.0 included.
        updates = jax.tree.map(lambda update: jnp.where(take, update, -jnp.zeros_like(update)), updates)
        return updates, SpikeState(
            inner=jax.tree.map(lambda after, before: jnp.where(take, after, before), new, state.inner),
            norms=jnp.where(finite, state.norms.at[state.finite % WINDOW].set(norm), state.norms),
            finite=state.finite + finite,
            skipped=state.skipped + ~take,
        )

    return optax.GradientTransformation(init, update)
