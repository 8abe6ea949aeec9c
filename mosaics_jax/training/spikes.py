"""Skipping of steps whose gradient is not finite, or far larger than the gradients before it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mosaics_jax.shapes import Array, Params

WINDOW = 128  # the median is taken over so many latest norms
MIN_NORMS = 16  # with fewer norms there is no median, and only a norm that is not finite is skipped
MAX_SKIPPED_IN_A_ROW = WINDOW  # more end the run: the median has followed norms that are finite by then


class SpikeState(NamedTuple):
    """inner: the state of the wrapped optimizer. norms: (WINDOW,) float32, a ring buffer of the latest finite norms.

    finite, skipped: () int32, how many norms were finite, and how many steps were skipped.
    """

    inner: Any
    norms: Array
    finite: Array
    skipped: Array


def skip_spikes(inner: optax.GradientTransformation, factor: float) -> optax.GradientTransformation:
    """Wraps ``inner`` so that a step is skipped if its gradient's norm exceeds ``factor`` times the running median.

    A norm that is not finite is skipped too. A skipped step leaves the parameters and the state of ``inner`` as they
    were, bit for bit. Its norm, if finite, still enters the median, so that gradients which have grown permanently are
    skipped for half a window, not for ever.
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
        accept = finite & ((known < MIN_NORMS) | (norm <= factor * median))

        updates, new = inner.update(grads, state.inner, params)
        # x + -0.0 equals x bit for bit, also for x = -0.0.
        updates = jax.tree.map(lambda update: jnp.where(accept, update, -jnp.zeros_like(update)), updates)
        return updates, SpikeState(
            inner=jax.tree.map(lambda after, before: jnp.where(accept, after, before), new, state.inner),
            norms=jnp.where(finite, state.norms.at[state.finite % WINDOW].set(norm), state.norms),
            finite=state.finite + finite,
            skipped=state.skipped + ~accept,
        )

    return optax.GradientTransformation(init, update)
