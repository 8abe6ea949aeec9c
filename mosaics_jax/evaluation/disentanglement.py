"""Predictive disentanglement as a measured quantity (v1 section 4)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

THRESHOLD = 0.95


@dataclasses.dataclass(frozen=True)
class Disentanglement:
    """What each memory unit attends to. unit_sources: of each unit, the source with the largest share of all its maps,
    or -1 where its maps disagree; unit_shares: the least share of that source in its maps; disentangled: see `measure`.
    """

    unit_sources: tuple[int, ...]
    unit_shares: tuple[float, ...]
    disentangled: bool


def measure(maps: Sequence[np.ndarray], threshold: float = THRESHOLD) -> Disentanglement:
    """Whether training has split a prediction task into separate ones, a source of the signal for each memory unit.

    ``maps``: for each linear map of a network that leads into or out of its memory units, the modulus of its weight
    between every unit and every source, an array (units, rows of a unit, sources). For three moons: W_phi, W_psi and
    the transposed W_z, whose sources are moons; for another network whatever its inputs are made of. The *share* of a
    source in a map of a unit is the sum of its squared moduli over that of all sources. A network is disentangled when
    every unit puts at least ``threshold`` of every map on one source, the same in all its maps, and no two units share
    a source. A unit without any weight has no source.
    """
    power = np.stack([np.sum(np.square(m, dtype=np.float64), axis=1) for m in maps])  # (maps, units, sources)
    total = power.sum(axis=-1, keepdims=True)
    shares = np.divide(power, total, out=np.zeros_like(power), where=total > 0)
    chosen = shares.argmax(axis=-1)
    agree = (chosen == chosen[0]).all(axis=0) & (total > 0).all(axis=(0, 2))
    sources = np.where(agree, chosen[0], -1)
    least = np.where(agree, shares.max(axis=-1).min(axis=0), 0.0)
    disentangled = bool((least >= threshold).all() and len(set(sources.tolist())) == len(sources))
    return Disentanglement(tuple(sources.tolist()), tuple(least.tolist()), disentangled)
