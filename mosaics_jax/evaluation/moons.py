"""How well a moon network goes on from a context of any length (v1 section 4, figures 3 to 5)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mosaics_jax.evaluation.disentanglement import Disentanglement, measure
from mosaics_jax.models.moons import MoonMosaicConfig, moduli, real_form
from mosaics_jax.ops.linear_memory import NEVER, divide, fold, in_chunks, join_sums, past_sums, unfold
from mosaics_jax.shapes import Array, Params

STEPS = 25  # generated points that an error is the mean of


@functools.partial(jax.jit, static_argnames=("config", "contexts", "steps", "complete"))
def continuations(
    params: Params, config: MoonMosaicConfig, x_BTC: Array, contexts: tuple[int, ...], steps: int, complete: bool = True
) -> Array:
    """Predictions after each context: entry (b, r, j) is of point contexts[r] + j, given x[b, :contexts[r]] and, for
    j > 0, the predictions before it. Returns (B, R, steps + 1, C).

    Generation stores what it has seen: at each step the last value is completed by the point that has become known,
    and one query is answered, in time O(stored pairs). All contexts of a window advance together and share its true
    pairs. ``complete=False`` never completes the value of the last point of the context nor of those after it, which
    are answered with as zero: a fault of the published script, kept to reproduce its figure.
    """
    if min(contexts) < 1 or max(contexts) > x_BTC.shape[1]:
        raise ValueError(f"contexts from {min(contexts)} to {max(contexts)} in windows of {x_BTC.shape[1]} points")
    return in_chunks(lambda x: _continue(params, config, x, np.array(contexts), steps, complete), x_BTC)


def _continue(
    params: Params, config: MoonMosaicConfig, x_BTC: Array, context_R: np.ndarray, steps: int, complete: bool
) -> Array:
    heads = config.heads
    w_phi, w_psi, w_z = (real_form(params[name]) for name in ("W_phi", "W_psi", "W_z"))
    w_phi_HDC, w_psi_HDC = (w.reshape(heads, -1, w.shape[1]) for w in (w_phi, w_psi))
    batch, _, channels = x_BTC.shape
    keys_GTD = fold(jnp.einsum("btc,hdc->bhtd", x_BTC, w_phi_HDC))
    next_GTC = jnp.repeat(jnp.pad(x_BTC[:, 1:], ((0, 0), (0, 1), (0, 0))), heads, axis=0)

    def to_keys(point_BRC: Array) -> Array:
        return fold(jnp.einsum("brc,hdc->bhrd", point_BRC, w_phi_HDC))

    def output(queries_GRD: Array, generated: tuple[Array, Array], count: Array) -> Array:
        """The network's output where each row asks its true pairs and ``count`` generated ones."""
        queries_GRD = config.sharpness * queries_GRD
        past = join_sums(*past_sums(queries_GRD, keys_GTD, next_GTC, context_R - 1))
        keys_GRJD, points_GRJC = generated
        scores = jnp.einsum("grd,grjd->grj", queries_GRD, keys_GRJD)
        scores = jnp.where(jnp.arange(steps) < count, scores, NEVER)
        top = jnp.max(scores, axis=-1, initial=NEVER)
        weights = jnp.exp(scores - top[..., None])
        made = top, jnp.sum(weights, axis=-1), jnp.einsum("grj,grjc->grc", weights, points_GRJC)
        _, total, sums = join_sums(past, made)
        # The mean of next points, and then W_psi, which is linear: the answer of the head.
        answers = jnp.einsum("bhrc,hdc->brhd", unfold(divide(sums, total[..., None]), heads), w_psi_HDC)
        return jnp.einsum("brd,cd->brc", answers.reshape(batch, len(context_R), -1), w_z)

    shape = (batch * heads, len(context_R), steps)
    store = jnp.zeros((*shape, w_phi_HDC.shape[1])), jnp.zeros((*shape, channels))
    last_GRD = to_keys(x_BTC[:, context_R - 1])
    first_BRC = output(last_GRD, store, jnp.array(0))

    def step(carry: tuple[Array, Array, tuple[Array, Array]], j: Array) -> tuple[Any, Array]:
        last_GRD, point_BRC, (keys, points) = carry
        known = jnp.repeat(point_BRC, heads, axis=0) * complete
        store = keys.at[:, :, j].set(last_GRD), points.at[:, :, j].set(known)
        key_GRD = to_keys(point_BRC)
        point_BRC = output(key_GRD, store, j + 1)
        return (key_GRD, point_BRC, store), point_BRC

    _, rest = lax.scan(step, (last_GRD, first_BRC, store), jnp.arange(steps))
    return jnp.concatenate([first_BRC[:, :, None], jnp.moveaxis(rest, 0, 2)], axis=2)


@functools.partial(jax.jit, static_argnames=("config", "contexts", "complete", "shift"))
def _summed_errors(
    params: Params, config: MoonMosaicConfig, x_BTC: Array, contexts: tuple[int, ...], complete: bool, shift: int
) -> Array:
    """Absolute errors of STEPS points after each context, mean over channels, (R, STEPS), summed over windows."""
    places = np.array(contexts)[:, None] + np.arange(STEPS)

    def chunk(x_BTC: Array) -> Array:
        made = continuations(params, config, x_BTC, contexts, STEPS - 1 + shift, complete)[:, :, shift:]
        return jnp.mean(jnp.abs(made - x_BTC[:, places]), axis=-1)

    return jnp.sum(in_chunks(chunk, x_BTC), axis=0)


def error_curve(
    params: Params, config: MoonMosaicConfig, x_BTC: np.ndarray, authors_metric: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Context lengths n = 1, 2, ... T - 25, and the mean absolute error of the 25 points generated after each.

    Point j is compared with the true x_{n+j}; the first is the prediction from true points alone. ``authors_metric``
    gives what the published script plots instead: it never completes generated values, and compares the true x_{n+j}
    with the prediction of x_{n+j+1}.
    """
    contexts = tuple(range(1, x_BTC.shape[1] - STEPS + 1))
    total = _summed_errors(params, config, jnp.asarray(x_BTC), contexts, not authors_metric, int(authors_metric))
    return np.array(contexts), np.asarray(total).mean(axis=1) / len(x_BTC)


def knee(contexts: np.ndarray, errors: np.ndarray) -> int | None:
    """The first context at which the error passes below the middle between its level at 10 and its floor, and stays.

    The floor is the least error. None if it ends above the middle, or there are no contexts beyond 10.
    """
    if contexts[-1] <= 10:
        return None
    middle = (errors[contexts == 10][0] + errors.min()) / 2
    above = np.flatnonzero(errors >= middle)
    if not len(above):
        return int(contexts[0])
    return int(contexts[above[-1] + 1]) if above[-1] + 1 < len(contexts) else None


def modulus_matrices(params: Params) -> dict[str, np.ndarray]:
    """|W_phi|, |W_psi|, |W_z|, each (moons, moons); rows of the first two and columns of the last belong to heads."""
    return {name: np.asarray(moduli(jnp.asarray(params[name]))) for name in ("W_phi", "W_psi", "W_z")}


def head_disentanglement(params: Params, config: MoonMosaicConfig) -> Disentanglement:
    """The measure of `disentanglement.measure` with heads as units and moons as sources."""
    matrices = modulus_matrices(params)
    maps = (matrices["W_phi"], matrices["W_psi"], matrices["W_z"].T)
    return measure([m.reshape(config.heads, -1, config.moons) for m in maps])


def attention(params: Params, config: MoonMosaicConfig, x_TC: np.ndarray) -> np.ndarray:
    """The weights of each head over the past, (H, T, T): row t sums to 1, row 0 to 0."""
    w_phi = real_form(jnp.asarray(params["W_phi"])).reshape(config.heads, -1, x_TC.shape[1])
    keys = jnp.einsum("tc,hdc->htd", jnp.asarray(x_TC), w_phi)
    scores = config.sharpness * jnp.einsum("htd,hsd->hts", keys, keys)
    past = np.tri(len(x_TC), k=-1, dtype=bool)
    return np.where(past, jax.nn.softmax(jnp.where(past, scores, NEVER), axis=-1), 0.0)
