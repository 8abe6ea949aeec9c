"""`Reach`: which key-value pairs a query sees. Every form of retrieval takes one.

Query t sees pair i if

    t - delay - window < i <= t - delay        and both positions are in one document.

`Reach(delay=1)` is the strict causality of a contextual memory, where the value of pair i depends on the input at i + 1
(v1 eq. 7). `Reach(delay=0)` is causal attention. The memories of "Memory Mosaics at scale" (v2 eq. 10) are
`Reach(delay=1, window=h - 1)` (short-term) and `Reach(delay=m)` (long-term). The answer to a query that sees no pair is
0, with gradient 0.

Every reach equals causal or sliding-window attention on rolled queries: the query of position t moves to row t - delay,
where it sees the pairs up to its own row (`Reach.aligned`). Fused attention kernels can therefore compute every reach,
and one compilation serves all values of a traced delay.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mosaics_jax.shapes import Array

Count = int | Array  # a Python integer, known at compile time, or a traced int32 scalar


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Reach:
    """Which pairs a query sees. ``delay`` and ``window`` are Python integers or traced int32 scalars.

    With Python integers, blocks of pairs that no query sees are skipped; with traced scalars, one compilation serves
    all values.

    delay: the distance in positions between a query and the newest pair that it sees.
    window: the largest number of pairs that a query sees, counted back from the newest. None: no limit.
    documents_BT: int32, the document of each query. A document is a range of consecutive positions, and a query sees
        only pairs of its own document. None: the whole sequence is one document.
    pair_documents_BN: int32, the document of each pair. None: pairs have the documents of the queries.
    """

    delay: Count = 1
    window: Count | None = None
    documents_BT: Array | None = None
    pair_documents_BN: Array | None = None

    def __post_init__(self) -> None:
        for name in ("delay", "window"):
            if isinstance(getattr(self, name), np.integer):
                object.__setattr__(self, name, int(getattr(self, name)))
        if isinstance(self.delay, int) and self.delay < 0:
            raise ValueError(f"delay={self.delay} must not be negative: a query would see pairs of its future")
        if isinstance(self.window, int) and self.window < 0:
            raise ValueError(f"window={self.window} must not be negative")

    @property
    def pair_documents(self) -> Array | None:
        """(B, N): the document of each pair. None if there is one document."""
        return self.documents_BT if self.pair_documents_BN is None else self.pair_documents_BN

    @property
    def is_static(self) -> bool:
        """Whether delay and window are known at compile time."""
        return isinstance(self.delay, int) and (self.window is None or isinstance(self.window, int))

    def sees(self, query: Any, pair: Any) -> Any:
        """Whether the query at position ``query`` sees the pair of position ``pair``, without regard to documents.

        The two may be integers or arrays that broadcast against each other.
        """
        age = query - pair
        seen = age >= self.delay
        return seen if self.window is None else seen & (age < self.delay + self.window)

    def mask(self, query_T: Array, pair_N: Array) -> Array:
        """(1 or B, T, N) of bool: which pairs each query sees, from the positions of queries and pairs."""
        seen_1TN = self.sees(query_T[:, None], pair_N)[None]
        if self.documents_BT is None or self.pair_documents is None:
            return seen_1TN
        return seen_1TN & (self.documents_BT[:, :, None] == self.pair_documents[:, None])

    def sees_any(self, time: int) -> Array:
        """(1 or B, T) of bool: whether each query sees a pair, if positions 0 .. ``time`` - 1 have one pair each."""
        position_T = jnp.arange(time)
        newest_T = position_T - self.delay
        has_pair_1T = (newest_T >= 0)[None]
        if self.window is not None:
            has_pair_1T &= jnp.asarray(self.window) > 0
        if self.documents_BT is None:
            return has_pair_1T
        # Documents are contiguous: if the newest pair is in another document, all earlier pairs are too.
        return has_pair_1T & (jnp.roll(self.documents_BT, self.delay, axis=1) == self.documents_BT)

    def aligned(self, *arrays_BT: Array) -> tuple["Reach", tuple[Array, ...], Callable[[Array], Array]]:
        """The same retrieval as attention, with delay 0: (its reach, the rolled arrays of queries, ``restore``).

        arrays_BT: arrays (B, T, ...) of one entry per query. ``restore`` rolls answers (B, T, H, D) back to the
        positions of their queries, and sets the answers of queries that see no pair to 0.

        Attention kernels need every row to see at least one pair. A row whose query sees none therefore keeps its own
        document, where it sees its own pair; ``restore`` discards the answer.
        """
        if isinstance(self.delay, int) and self.delay == 0:
            return self, arrays_BT, lambda answers_BTHD: answers_BTHD
        has_pair_BT = self.sees_any(arrays_BT[0].shape[1])
        documents_BT = None
        if self.documents_BT is not None:
            # Row t - delay holds query t and its document, unless query t sees no pair.
            rolled_BT = jnp.roll(jnp.where(has_pair_BT, self.documents_BT, -1), -self.delay, axis=1)
            documents_BT = jnp.where(rolled_BT == -1, self.documents_BT, rolled_BT)
        reach = Reach(0, self.window, documents_BT, self.pair_documents)

        def restore(answers_BTHD: Array) -> Array:
            answers_BTHD = jnp.roll(answers_BTHD, self.delay, axis=1)
            return jnp.where(has_pair_BT[..., None, None], answers_BTHD, 0)

        return reach, tuple(jnp.roll(a, -self.delay, axis=1) for a in arrays_BT), restore

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Python integers are part of the tree's structure, arrays are its leaves."""
        values = tuple(getattr(self, field.name) for field in dataclasses.fields(self))
        static = tuple(value if isinstance(value, int) else None for value in values)
        return tuple(None if isinstance(value, int) else value for value in values), static

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, ...], leaves: tuple[Any, ...]) -> "Reach":
        """The inverse of `tree_flatten`."""
        reach = object.__new__(cls)  # without checks: JAX puts objects of any type in place of the leaves
        for field, value, leaf in zip(dataclasses.fields(cls), static, leaves, strict=True):
            object.__setattr__(reach, field.name, leaf if value is None else value)
        return reach


STRICT = Reach(delay=1)  # contextual memory: value i depends on the input at i + 1
CAUSAL = Reach(delay=0)  # causal attention
