"""Fixtures that compare forms of an op: their outputs and the gradients of every argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# Relative to the largest magnitude, or to 0.1 if that is smaller (gradients that vanish). bfloat16 has 8 bits.
TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2}


@pytest.fixture
def assert_same():
    """``assert_same(definition, forms, args, dtype, cast)``: every form of an op equals its definition.

    Forms get the arguments in ``dtype``, the definition the same numbers in float32. ``cast`` says which arguments are
    cast (default: all). Everything is compiled as one program.
    """

    def check(definition, forms, args, dtype="float32", cast=None):
        cast = [True] * len(args) if cast is None else cast
        given = [jnp.asarray(a, dtype if c else None) for a, c in zip(args, cast, strict=True)]
        wide = [a.astype(jnp.float32) if c else a for a, c in zip(given, cast, strict=True)]

        def with_gradients(f, args):
            out, pull = jax.vjp(f, *args)
            weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
            return out, *pull(weights.astype(out.dtype))

        @jax.jit
        def run(given, wide):
            return with_gradients(definition, wide), [with_gradients(form, given) for form in forms]

        expected, results = run(given, wide)
        for result in results:
            for ours, theirs in zip(result, expected, strict=True):
                assert ours.shape == theirs.shape
                assert np.all(np.isfinite(ours.astype(jnp.float32)))
                scale = float(jnp.max(jnp.abs(theirs), initial=0.0))
                error = float(jnp.max(jnp.abs(ours.astype(jnp.float32) - theirs), initial=0.0))
                assert error <= TOLERANCE[dtype] * max(scale, 0.1)

    return check


@pytest.fixture
def normal():
    """``normal(*shape, seed)``: float32 samples of N(0, 1)."""

    def sample(*shape, seed=0):
        return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

    return sample
