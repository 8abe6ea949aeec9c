"""How well a moon network continues a signal after a context of any length (v1 section 4, figures 3 to 5).

Shapes here: J generated points, R contexts.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mosaics_jax.evaluation.device_means import mean_over_devices
from mosaics_jax.evaluation.disentanglement import Disentanglement, measure_disentanglement
from mosaics_jax.models.moons import MoonMosaicConfig, moduli, real_form
from mosaics_jax.ops import next_position
from mosaics_jax.ops.linear_keys import divide_by_total, past_sums
from mosaics_jax.ops.weights import UNSEEN, Sums, add_sums
from mosaics_jax.shapes import Array, Params

STEPS = 25  # generated points that an error is averaged over


@functools.partial(jax.jit, static_argnames=("config", "contexts", "steps", "complete"))
def continuations(
    params: Params, config: MoonMosaicConfig, x_BTC: Array, contexts: tuple[int, ...], steps: int, complete: bool = True
) -> Array:
    """Predictions after each context, (B, R, steps + 1, C).

    Entry (b, r, j) predicts point contexts[r] + j from the true points x[b, :contexts[r]] and, for j > 0, from the
    predictions before j. The contexts are lengths between 1 and T; ValueError otherwise.

    Each step stores one pair per context, since the point that was just generated completes the value of the key before
    it, and answers one query in time O(stored pairs). All contexts of a window advance together and share the pairs of
    its true points. ``complete=False`` leaves the values of the last point of the context and of all generated points
    at 0: a fault of the published script, kept to reproduce its figure.
    """
    if min(contexts) < 1 or max(contexts) > x_BTC.shape[1]:
        raise ValueError(f"contexts from {min(contexts)} to {max(contexts)} in windows of {x_BTC.shape[1]} points")
    return lax.map(lambda x_TC: _continue(params, config, x_TC, np.array(contexts), steps, complete), x_BTC)


def _continue(
    params: Params, config: MoonMosaicConfig, x_TC: Array, context_R: np.ndarray, steps: int, complete: bool
) -> Array:
    w_phi, w_psi, w_z = (real_form(params[name]) for name in ("W_phi", "W_psi", "W_z"))
    w_phi_HDC, w_psi_HDC = (w.reshape(config.heads, -1, w.shape[1]) for w in (w_phi, w_psi))
    heads, rows, channels = config.heads, len(context_R), x_TC.shape[1]

    def to_keys(points_CR: Array) -> Array:
        return jnp.einsum("hdc,cr->hdr", w_phi_HDC, points_CR)

    keys_HTD = jnp.swapaxes(to_keys(x_TC.T), 1, 2)
    next_HTC = jnp.broadcast_to(next_position(x_TC[None])[0], (heads, *x_TC.shape))

    def output(queries_HDR: Array, generated_keys_JHDR: Array, generated_JCR: Array, count: Array) -> Array:
        """The network's output (C, R), from the true pairs of each context and its first ``count`` generated pairs."""
        queries_HDR = config.sharpness * queries_HDR
        past = past_sums(jnp.swapaxes(queries_HDR, 1, 2), keys_HTD, next_HTC, context_R - 1)

        def add_generated(j: Array, sums: Sums) -> Sums:
            # Each context has a pair of its own here. The sum is unrolled: XLA is slow at sums over a leading axis.
            scores_HR = functools.reduce(jnp.add, jnp.unstack(queries_HDR * generated_keys_JHDR[j], axis=1))
            points_HRC = jnp.broadcast_to(generated_JCR[j].T, (heads, rows, channels))
            return add_sums(sums, Sums(scores_HR, jnp.ones_like(scores_HR), points_HRC))

        _, total_HR, sums_HRC = lax.fori_loop(0, count, add_generated, past)
        # W_psi is linear: a head's average of values is W_psi times its average of next points.
        answers_HDR = jnp.einsum("hrc,hdc->hdr", divide_by_total(sums_HRC, total_HR[..., None]), w_psi_HDC)
        return w_z @ answers_HDR.reshape(-1, rows)

    generated_keys_JHDR = jnp.zeros((steps, heads, w_phi_HDC.shape[1], rows), x_TC.dtype)
    generated_JCR = jnp.zeros((steps, channels, rows), x_TC.dtype)
    last_HDR = to_keys(x_TC[context_R - 1].T)
    first_CR = output(last_HDR, generated_keys_JHDR, generated_JCR, jnp.array(0))

    def step(carry: tuple[Array, Array, Array, Array], j: Array) -> tuple[tuple[Array, Array, Array, Array], Array]:
        last_HDR, point_CR, generated_keys_JHDR, generated_JCR = carry
        generated_keys_JHDR = generated_keys_JHDR.at[j].set(last_HDR)
        generated_JCR = generated_JCR.at[j].set(point_CR * complete)
        key_HDR = to_keys(point_CR)
        point_CR = output(key_HDR, generated_keys_JHDR, generated_JCR, j + 1)
        return (key_HDR, point_CR, generated_keys_JHDR, generated_JCR), point_CR

    _, rest_JCR = lax.scan(step, (last_HDR, first_CR, generated_keys_JHDR, generated_JCR), jnp.arange(steps))
    return jnp.transpose(jnp.concatenate([first_CR[None], rest_JCR]), (2, 0, 1))


@functools.partial(jax.jit, static_argnames=("config", "contexts", "complete", "shift"))
def _errors(
    params: Params, config: MoonMosaicConfig, x_BTC: Array, contexts: tuple[int, ...], complete: bool, shift: int
) -> Array:
    """Absolute errors of the STEPS points after each context, (R,): means over points, channels and windows."""
    points_RJ = np.array(contexts)[:, None] + np.arange(STEPS)

    def mean_errors(params: Params, x_BTC: Array) -> Array:
        def errors_of_window(x_TC: Array) -> Array:
            predicted_RJC = _continue(params, config, x_TC, np.array(contexts), STEPS - 1 + shift, complete)[:, shift:]
            return jnp.mean(jnp.abs(predicted_RJC - x_TC[points_RJ]), axis=(1, 2))

        return jnp.mean(lax.map(errors_of_window, x_BTC), axis=0)

    return mean_over_devices(mean_errors)(params, x_BTC)


def error_curve(
    params: Params, config: MoonMosaicConfig, x_BTC: np.ndarray, authors_metric: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Context lengths n = 1, 2, ... T - 25, and the mean absolute error of the 25 points generated after each.

    Generated point j is compared with the true x_{n+j}; point 0 is predicted from true points only. ``authors_metric``
    computes what the published script plots instead: it leaves generated values at 0 (``complete=False`` of
    `continuations`) and compares the true x_{n+j} with the prediction of x_{n+j+1}. The windows are sharded over the
    devices of the mesh, if a mesh is set and the number of devices divides the number of windows.
    """
    contexts = tuple(range(1, x_BTC.shape[1] - STEPS + 1))
    errors = _errors(params, config, jnp.asarray(x_BTC), contexts, not authors_metric, int(authors_metric))
    return np.array(contexts), np.asarray(errors)


def knee(contexts_R: np.ndarray, errors_R: np.ndarray) -> int | None:
    """The first context from which on the error stays below the middle between its value at 10 points and its minimum.

    None if the last error is above the middle, or if no context is longer than 10 points.
    """
    if contexts_R[-1] <= 10:
        return None
    middle = (errors_R[contexts_R == 10][0] + errors_R.min()) / 2
    above = np.flatnonzero(errors_R >= middle)
    if not len(above):
        return int(contexts_R[0])
    return int(contexts_R[above[-1] + 1]) if above[-1] + 1 < len(contexts_R) else None


def modulus_matrices(params: Params) -> dict[str, np.ndarray]:
    """|W_phi|, |W_psi| and |W_z|, (moons, moons) each. Rows of the first two, columns of the last belong to heads."""
    return {name: np.asarray(moduli(jnp.asarray(params[name]))) for name in ("W_phi", "W_psi", "W_z")}


def head_disentanglement(params: Params, config: MoonMosaicConfig) -> Disentanglement:
    """`measure_disentanglement` with heads as units and moons as sources."""
    matrices = modulus_matrices(params)
    maps = (matrices["W_phi"], matrices["W_psi"], matrices["W_z"].T)
    return measure_disentanglement([m.reshape(config.heads, -1, config.moons) for m in maps])


def attention(params: Params, config: MoonMosaicConfig, x_TC: np.ndarray) -> np.ndarray:
    """The weights of each head over past positions, (H, T, T): row t sums to 1, except row 0, which is 0."""
    w_phi_HDC = real_form(jnp.asarray(params["W_phi"])).reshape(config.heads, -1, x_TC.shape[1])
    keys_HTD = jnp.einsum("tc,hdc->htd", jnp.asarray(x_TC), w_phi_HDC)
    scores_HTT = config.sharpness * jnp.einsum("htd,hsd->hts", keys_HTD, keys_HTD)
    past_TT = np.tri(len(x_TC), k=-1, dtype=bool)
    return np.where(past_TT, jax.nn.softmax(jnp.where(past_TT, scores_HTT, UNSEEN), axis=-1), 0.0)
