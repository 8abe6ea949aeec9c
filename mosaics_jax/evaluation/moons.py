"""How well a moon network goes on from a context of any length (v1 section 4, figures 3 to 5)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mosaics_jax.evaluation.device_means import mean_over_devices
from mosaics_jax.evaluation.disentanglement import Disentanglement, measure
from mosaics_jax.models.moons import MoonMosaicConfig, moduli, real_form
from mosaics_jax.ops.blockwise import NEVER, Sums, add_pairs
from mosaics_jax.ops.linear_keys import ahead, divide, past_sums
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
    return lax.map(lambda x_TC: _continue(params, config, x_TC, np.array(contexts), steps, complete), x_BTC)


def _continue(
    params: Params, config: MoonMosaicConfig, x_TC: Array, context_R: np.ndarray, steps: int, complete: bool
) -> Array:
    w_phi, w_psi, w_z = (real_form(params[name]) for name in ("W_phi", "W_psi", "W_z"))
    w_phi_HDC, w_psi_HDC = (w.reshape(config.heads, -1, w.shape[1]) for w in (w_phi, w_psi))
    heads, rows, channels = config.heads, len(context_R), x_TC.shape[1]

    def to_keys(points_CN: Array) -> Array:
        return jnp.einsum("hdc,cn->hdn", w_phi_HDC, points_CN)

    keys_HTD = jnp.swapaxes(to_keys(x_TC.T), 1, 2)
    next_HTC = jnp.broadcast_to(ahead(x_TC[None])[0], (heads, *x_TC.shape))

    def output(queries_HDR: Array, made_keys_JHDR: Array, made_JCR: Array, count: Array) -> Array:
        """The network's output where each row asks its true pairs and the first ``count`` of its own."""
        queries_HDR = config.sharpness * queries_HDR
        past = past_sums(jnp.swapaxes(queries_HDR, 1, 2), keys_HTD, next_HTC, context_R - 1)

        def add_made(j: Array, sums: Sums) -> Sums:
            # Each row has a pair of its own here. The sum is written out: XLA's own is slow over a leading axis.
            scores_HR = functools.reduce(jnp.add, jnp.unstack(queries_HDR * made_keys_JHDR[j], axis=1))
            points_HRC = jnp.broadcast_to(made_JCR[j].T, (heads, rows, channels))
            return add_pairs(sums, (scores_HR, jnp.ones_like(scores_HR), points_HRC))

        _, total_HR, sums_HRC = lax.fori_loop(0, count, add_made, past)
        # The mean of next points, and then W_psi, which is linear: the answer of the head.
        answers_HDR = jnp.einsum("hrc,hdc->hdr", divide(sums_HRC, total_HR[..., None]), w_psi_HDC)
        return w_z @ answers_HDR.reshape(-1, rows)

    made_keys_JHDR = jnp.zeros((steps, heads, w_phi_HDC.shape[1], rows), x_TC.dtype)
    made_JCR = jnp.zeros((steps, channels, rows), x_TC.dtype)
    last_HDR = to_keys(x_TC[context_R - 1].T)
    first_CR = output(last_HDR, made_keys_JHDR, made_JCR, jnp.array(0))

    def step(carry: tuple[Array, Array, Array, Array], j: Array) -> tuple[tuple[Array, Array, Array, Array], Array]:
        last_HDR, point_CR, made_keys_JHDR, made_JCR = carry
        made_keys_JHDR = made_keys_JHDR.at[j].set(last_HDR)
        made_JCR = made_JCR.at[j].set(point_CR * complete)
        key_HDR = to_keys(point_CR)
        point_CR = output(key_HDR, made_keys_JHDR, made_JCR, j + 1)
        return (key_HDR, point_CR, made_keys_JHDR, made_JCR), point_CR

    _, rest_JCR = lax.scan(step, (last_HDR, first_CR, made_keys_JHDR, made_JCR), jnp.arange(steps))
    return jnp.transpose(jnp.concatenate([first_CR[None], rest_JCR]), (2, 0, 1))


@functools.partial(jax.jit, static_argnames=("config", "contexts", "complete", "shift"))
def _errors(
    params: Params, config: MoonMosaicConfig, x_BTC: Array, contexts: tuple[int, ...], complete: bool, shift: int
) -> Array:
    """Absolute errors of the STEPS points after each context, (R,): means over points, channels and windows."""
    places = np.array(contexts)[:, None] + np.arange(STEPS)

    def of_windows(params: Params, x_BTC: Array) -> Array:
        def of_one(x_TC: Array) -> Array:
            made = _continue(params, config, x_TC, np.array(contexts), STEPS - 1 + shift, complete)[:, shift:]
            return jnp.mean(jnp.abs(made - x_TC[places]), axis=(1, 2))

        return jnp.mean(lax.map(of_one, x_BTC), axis=0)

    return mean_over_devices(of_windows)(params, x_BTC)


def error_curve(
    params: Params, config: MoonMosaicConfig, x_BTC: np.ndarray, authors_metric: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Context lengths n = 1, 2, ... T - 25, and the mean absolute error of the 25 points generated after each.

    Point j is compared with the true x_{n+j}; the first is the prediction from true points alone. ``authors_metric``
    gives what the published script plots instead: it never completes generated values, and compares the true x_{n+j}
    with the prediction of x_{n+j+1}. The windows are split among the devices of the mesh, if one is set
    and they divide.
    """
    contexts = tuple(range(1, x_BTC.shape[1] - STEPS + 1))
    errors = _errors(params, config, jnp.asarray(x_BTC), contexts, not authors_metric, int(authors_metric))
    return np.array(contexts), np.asarray(errors)


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
