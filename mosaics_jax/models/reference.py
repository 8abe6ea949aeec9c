"""The Memory Mosaic on one page: v1 section 5, figure 6, in plain jax.numpy, every line beside its equation.

`apply` computes the logits of `MemoryMosaic`, without sharding, blocks of weights, decoding and dropout. It takes the
same config and parameters, and agrees with it to 1e-9 in float64 (tests/models/test_reference.py). To try an idea,
copy this file and change it.

Equations are those of Zhang et al., ICLR 2025, arXiv 2405.06394. Names end in shapes: B batch, T time, C width of the
model, H heads, D = C / H, M slots of a persistent memory, K its banks, V vocabulary. Learned scalars are stored divided
by 10. The two codes of the authors, `Library` and `nanoMosaics`, differ in a few constants (`nn.config.Recipe`).
"""

from typing import Any

import jax
import jax.numpy as jnp

from mosaics_jax.nn.config import MosaicConfig
from mosaics_jax.shapes import Array, Params


def apply(config: MosaicConfig, params: Params, tokens_BT: Array) -> Array:
    """Tokens (B, T) to the logits (B, T, V) of each next token, with ``params`` of an unscanned `MemoryMosaic`."""
    check(config)
    x_BTC = params["embedding"][tokens_BT]  # no position encoding
    for layer in range(config.n_layer):
        block = params[f"blocks_{layer}"]
        x_BTC += contextual_memory(config, block["contextual"], layer_norm(x_BTC, block["ln1"]))
        x_BTC += persistent_memory(config, block["persistent"], layer_norm(x_BTC, block["ln2"]))
    x_BTC = layer_norm(x_BTC, params["ln_out"])
    return config.recipe.logit_scale(config) * x_BTC @ params["embedding"].T  # the head is the embedding


def contextual_memory(config: MosaicConfig, p: Params, x_BTC: Array) -> Array:
    """Predicts the near future from the recent past (eq. 4-7). One memory per head, empty at each sequence's start."""
    keys_BTHD = scale(config, p["key"]) * direction(config, p["key"], x_BTC)  # eq. 6; also the queries
    values_BTHD = peeking_values(config, p["value"], x_BTC)
    time = x_BTC.shape[1]
    scores_BHTT = jnp.einsum("bthd,bshd->bhts", keys_BTHD, keys_BTHD)  # no 1 / sqrt(D): the scale is the keys'
    earlier_TT = jnp.tri(time, k=-1, dtype=bool)  # query t sees pairs s < t: value t depends on x_{t+1}
    answers_BTHD = jnp.einsum("bhts,bshd->bthd", masked_softmax(scores_BHTT, earlier_TT), values_BTHD)  # eq. 7
    return merge_heads(answers_BTHD) @ p["W_z"]["kernel"]


def persistent_memory(config: MosaicConfig, p: Params, x_BTC: Array) -> Array:
    """Answers from pairs that are parameters (section 5). P_k and P_v: (K, H, M, D); every query sees all pairs."""
    queries_BTHD = scale(config, p["key"], squared=True) * direction(config, p["key"], x_BTC)
    scores_KBHTM = jnp.einsum("bthd,khmd->kbhtm", queries_BTHD, p["P_k"])
    answers_KBTHD = jnp.einsum("kbhtm,khmd->kbthd", jax.nn.softmax(scores_KBHTM, axis=-1), p["P_v"])
    gain_H1 = jnp.exp(10 * p["gain"])[:, None]
    return merge_heads(gain_H1 * jnp.mean(answers_KBTHD, axis=0)) @ p["W_z"]["kernel"]


def direction(config: MosaicConfig, p: Params, x_BTC: Array) -> Array:
    """unit(kbar_t): the leaky average of W_phi x, one rate per head, brought to norm 1 (eq. 6)."""
    raw_BTHD = split_heads(x_BTC @ p["W_phi"]["kernel"], config.n_head)  # ktilde
    time, rate_H = x_BTC.shape[1], 10 * jnp.abs(p["decay"])
    age_TT = jnp.arange(time)[:, None] - jnp.arange(time)  # t - s
    decay_HTT = jnp.where(age_TT >= 0, jnp.exp(-rate_H[:, None, None] * jnp.maximum(age_TT, 0)), 0)
    average_BTHD = jnp.einsum("hts,bshd->bthd", decay_HTT, raw_BTHD)  # without the factor 1 - exp(-rate), which cancels
    return unit(average_BTHD, config.recipe.eps)


def scale(config: MosaicConfig, p: Params, squared: bool = False) -> Array:
    """a = exp(10 bandwidth) per head, (H, 1), so that the kernel has beta = a^2; ``squared``: a^2. Bounded."""
    log_scale_H = 10 * p["bandwidth"] * (2 if squared else 1)
    bound = config.recipe.log_squared_scale_bound if squared else config.recipe.log_scale_bound
    return jnp.exp(jnp.where(log_scale_H <= bound, log_scale_H, bound))[:, None]


def peeking_values(config: MosaicConfig, p: Params, x_BTC: Array) -> Array:
    """v_t = g unit(c vtilde_t + (1 - c) vtilde_{t+1}): a value depends on the next input (eq. 5, 6)."""
    now_BTHD = split_heads(x_BTC @ p["W_psi"]["kernel"], config.n_head)  # vtilde
    next_BTHD = jnp.pad(now_BTHD[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))  # 0 beyond the end
    c_H1, gain_H1 = p["peek"][:, None], jnp.exp(10 * p["gain"])[:, None]
    return gain_H1 * unit(c_H1 * now_BTHD + (1 - c_H1) * next_BTHD, config.recipe.eps)


def masked_softmax(scores_BHTT: Array, mask_TT: Array) -> Array:
    """Softmax over the pairs where ``mask_TT`` is true: the weights of kernel regression (eq. 3). Empty rows are 0."""
    scores_BHTT = jnp.where(mask_TT, scores_BHTT, -1e30)
    weights_BHTT = jnp.where(mask_TT, jnp.exp(scores_BHTT - jnp.max(scores_BHTT, axis=-1, keepdims=True)), 0)
    total_BHT1 = jnp.sum(weights_BHTT, axis=-1, keepdims=True)
    return weights_BHTT / jnp.where(total_BHT1 > 0, total_BHT1, 1)


def unit(x: Array, eps: float) -> Array:
    """x / (|x| + eps) along the last axis; 0, with gradient 0, where x is zero."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    norm = jnp.sqrt(jnp.where(square > 0, square, 1))
    return jnp.where(square > 0, x / (norm + eps), 0)


def layer_norm(x: Array, p: Params) -> Array:
    """Layer normalization, with a learned scale."""
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    return p["scale"] * centered / jnp.sqrt(jnp.mean(centered**2, axis=-1, keepdims=True) + 1e-5)


def split_heads(x_BTC: Array, heads: int) -> Array:
    """(B, T, C) to (B, T, H, D)."""
    return x_BTC.reshape(*x_BTC.shape[:2], heads, -1)


def merge_heads(x_BTHD: Array) -> Array:
    """(B, T, H, D) to (B, T, C)."""
    return x_BTHD.reshape(*x_BTHD.shape[:2], -1)


def check(config: MosaicConfig) -> None:
    """Raises ValueError if the config sets one of the options that this page leaves out."""
    supported = ("vocab_size", "n_layer", "n_head", "n_embd", "pmem_size", "pmem_count", "variant")
    # These change how the logits are computed, or dropout in training.
    ignored = ("ic_dropout", "hd_dropout", "embed_dropout", "dtype", "remat", "retrieval")
    default: Any = MosaicConfig()
    for name in vars(config):
        if name not in supported + ignored and getattr(config, name) != getattr(default, name):
            raise ValueError(f"{name}={getattr(config, name)}: models.reference computes the published network only")
