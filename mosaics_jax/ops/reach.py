"""Which stored pairs a query sees: one object that every form of retrieval takes.

Query t sees pair i if

    t - delay - window < i <= t - delay        and both are in one document.

`Reach(delay=1)` is the strict causality of a contextual memory, whose values know the next input (v1 eq. 7);
`Reach(delay=0)` is attention. The memories of "Memory Mosaics at scale" (v2 eq. 10) are `Reach(delay=1, window=h - 1)`,
short-term, and `Reach(delay=m)`, long-term. A query without a pair answers 0, with gradient 0.

Any reach is plain causal or sliding-window attention of rolled queries: the query of position t is asked in row
t - delay, where it sees the pairs up to its own row (`Reach.aligned`). So the fused kernels of attention serve, and
one compilation serves every traced delay.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mosaics_jax.shapes import Array

Count = int | Array  # a Python integer, known when compiling, or a traced int32 scalar


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Reach:
    """Which pairs a query sees.

    delay: positions between a query and the newest pair that it sees. Python integers are known when compiling, and
    blocks that nobody sees are skipped; a traced int32 scalar serves all values with one compilation.
    window: how many pairs a query sees at most, the newest; None: all. An integer or a traced scalar as well.
    documents_BT: int32, the document of each position; the positions of a document follow each other. A query sees
        pairs of its own document alone. None: one document.
    pair_documents_BN: the documents of the pairs where they differ from those of the queries (default: the same).
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
        """(B, N): the document of each pair, or None."""
        return self.documents_BT if self.pair_documents_BN is None else self.pair_documents_BN

    @property
    def is_static(self) -> bool:
        """Whether delay and window are known when compiling."""
        return isinstance(self.delay, int) and (self.window is None or isinstance(self.window, int))

    def sees(self, query: Any, pair: Any) -> Any:
        """Whether the position ``query`` sees the position ``pair``, documents aside; both broadcast."""
        age = query - pair
        seen = age >= self.delay
        return seen if self.window is None else seen & (age < self.delay + self.window)

    def mask(self, query_T: Array, pair_N: Array) -> Array:
        """(1 or B, T, N) of bool: which pairs each query sees, from the positions of both."""
        seen_1TN = self.sees(query_T[:, None], pair_N)[None]
        if self.documents_BT is None or self.pair_documents is None:
            return seen_1TN
        return seen_1TN & (self.documents_BT[:, :, None] == self.pair_documents[:, None])

    def sees_any(self, time: int) -> Array:
        """(1 or B, T) of bool: whether the query of each position sees a pair, among pairs of the same positions."""
        position_T = jnp.arange(time)
        newest_T = position_T - self.delay
        any_1T = (newest_T >= 0)[None]
        if self.window is not None:
            any_1T &= jnp.asarray(self.window) > 0
        if self.documents_BT is None:
            return any_1T
        # Documents are contiguous: if the newest pair is of another one, so are all before it.
        return any_1T & (jnp.roll(self.documents_BT, self.delay, axis=1) == self.documents_BT)

    def aligned(self, *arrays_BT: Array) -> tuple["Reach", tuple[Array, ...], Callable[[Array], Array]]:
        """The same retrieval with delay 0: its reach, arrays (B, T, ...) of queries rolled to their rows, and the way
        back for answers (B, T, ...), which is 0 where a query sees no pair.

        Every row of the rolled problem sees a pair, itself at least, as kernels of attention need: a row whose query
        has none asks in its own document, and what it is answered is dropped.
        """
        if isinstance(self.delay, int) and self.delay == 0:
            return self, arrays_BT, lambda answers_BTHD: answers_BTHD
        any_BT = self.sees_any(arrays_BT[0].shape[1])
        documents_BT = None
        if self.documents_BT is not None:
            # Row t - delay holds query t. Rows whose query wrapped around, or sees no pair, keep their own document.
            rolled_BT = jnp.roll(jnp.where(any_BT, self.documents_BT, -1), -self.delay, axis=1)
            documents_BT = jnp.where(rolled_BT == -1, self.documents_BT, rolled_BT)
        reach = Reach(0, self.window, documents_BT, self.pair_documents)

        def back(answers_BTHD: Array) -> Array:
            answers_BTHD = jnp.roll(answers_BTHD, self.delay, axis=1)
            return jnp.where(any_BT[..., None, None], answers_BTHD, 0)

        return reach, tuple(jnp.roll(a, -self.delay, axis=1) for a in arrays_BT), back

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Integers known when compiling are part of the tree's structure, arrays are its leaves."""
        values = tuple(getattr(self, field.name) for field in dataclasses.fields(self))
        static = tuple(value if isinstance(value, int) else None for value in values)
        return tuple(None if isinstance(value, int) else value for value in values), static

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, ...], leaves: tuple[Any, ...]) -> "Reach":
        """The inverse of `tree_flatten`."""
        reach = object.__new__(cls)  # without the checks: leaves may be anything while JAX works on trees
        for field, value, leaf in zip(dataclasses.fields(cls), static, leaves, strict=True):
            object.__setattr__(reach, field.name, leaf if value is None else value)
        return reach


STRICT = Reach(delay=1)  # a contextual memory: v_i knows x_{i+1}
CAUSAL = Reach(delay=0)  # attention
