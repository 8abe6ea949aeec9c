"""The shape scheme of the package: the name of an array ends in one letter per axis.

``keys_BTHD`` has the shape (batch, time, heads, head width). A digit is an axis of that size: ``scale_H1`` is (H, 1).

    B  batch: sequences, or rows of a batch that is decoded
    T  time: positions of a sequence, or of a chunk of it
    N  key-value pairs that queries are compared with; in decoding, the capacity of a contextual memory
    C  channels: the width of the model (``n_embd``), or of the signal that a layer maps
    H  heads (``n_head``): memories, or attention heads, that work in parallel
    D  width of a head, C / H
    M  slots of a persistent memory, per head and bank (``pmem_size``)
    K  banks of persistent memory (``pmem_count``)
    F  hidden width of a feed-forward layer
    V  tokens of the vocabulary (``vocab_size``)
    L  blocks (``n_layer``)
    S  taps of a convolution over time
    P  conjugate pairs of poles of a diagonal state space

Letters that one file alone needs are declared in its docstring, in a line "Shapes here: ...".
`tests/test_shapes.py` checks the names of array parameters.

Positions count from 0. Bandwidths are in units of 1 / squared key distance, decay rates of 1 / position.
"""

from typing import Any

import jax

Array = jax.Array
Dtype = Any
Params = Any  # a nested dict of arrays, as Linen makes it

IGNORED = -1  # the target of a position that carries no loss
