"""The legend of shapes: one scheme for the whole package.

A name that ends in an underscore and capital letters says its shape: ``keys_BTHD`` is (batch, time, heads, head width).

    B  batch
    T  time: positions of the sequence or chunk at hand
    N  capacity of a contextual memory, in stored pairs
    C  width of the model (``n_embd``)
    H  heads: memory units working in parallel
    D  width of a head, C / H
    M  slots of a persistent memory, per head and bank
    K  banks of persistent memory (``pmem_count``)
    F  hidden width of a feed-forward layer
    V  vocabulary
    L  blocks (``n_layer``)
    S  taps of a convolution over time
    P  conjugate pairs of a diagonal state space

Time counts from 0. Units of bandwidths and decays: per squared key distance, and per position.
"""

from typing import Any

import jax

Array = jax.Array
Dtype = Any
Params = Any  # a nested dict of arrays, as Linen makes it

IGNORED = -1  # a target that no loss counts
