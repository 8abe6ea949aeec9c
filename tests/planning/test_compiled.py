"""Reading compiled programs: loops count as often as they run."""

import jax
import jax.numpy as jnp
import pytest

from mosaics_jax.planning.compiled import Program, size_of
from mosaics_jax.planning.plan import product_flops

PROGRAM = """HloModule step, is_scheduled=true

%cond (p: (s32[], f32[8,16])) -> pred[] {
  %three = s32[]{:T(128)} constant(3)
  %p = (s32[], f32[8,16]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %three), direction=LT
}

%start (q: f32[8,16]) -> f32[8,16] {
  %q = f32[8,16]{1,0} parameter(0)
  ROOT %again = f32[8,16]{1,0} all-gather(%q), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'a'}, dimensions={0}
}

%all-reduce-scatter.1 (r: f32[8,16]) -> f32[4,16] {
  %r = f32[8,16]{1,0} parameter(0)
  %sum = f32[8,16]{1,0} all-reduce(%r), channel_id=8, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %part = f32[4,16]{1,0} slice(%sum), slice={[0:4], [0:16]}
}

%body (p.1: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p.1 = (s32[], f32[8,16]) parameter(0)
  %x = f32[8,16]{1,0} get-tuple-element(%p.1), index=1
  %gathered = f32[8,16]{1,0:T(8,128)S(1)} all-gather(%x), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'a'}
  %y = f32[8,16]{1,0} fusion(%x), kind=kCustom, calls=%start
  %z = f32[4,16]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  %j = s32[] get-tuple-element(%p.1), index=0
  ROOT %next = (s32[], f32[8,16]) tuple(%j, %y)
}

ENTRY %main (a: f32[8,16]) -> f32[8,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %init = (s32[], f32[8,16]) tuple(%zero, %a)
  %loop = (s32[], f32[8,16]) while(%init), condition=%cond, body=%body
  %b = f32[8,16]{1,0} get-tuple-element(%loop), index=1
  ROOT %out = f32[8,16]{1,0} all-reduce(%b), channel_id=9, replica_groups=[2,4]<=[8], to_apply=%add
}
"""
SIZE = 8 * 16 * 4


def test_collectives_are_counted_once_a_channel_and_as_often_as_they_run():
    traffic = Program(PROGRAM).traffic(8)
    assert traffic.collectives == {
        "all-gather": (3, 3 * SIZE / 2),
        "reduce-scatter": (3, 3 * SIZE / 2),
        "all-reduce": (1, 2 * SIZE * 3 / 4),
    }
    assert traffic.uncounted_loops == 0


def test_main_memory_is_what_operations_outside_fusions_read_and_write():
    # In the loop: all-gather reads x, and writes to on-chip memory; x and y, y and half of it. Then the last one.
    assert Program(PROGRAM).traffic(8).hbm == 3 * (SIZE + 2 * SIZE + 1.5 * SIZE) + 2 * SIZE


def test_a_loop_of_unknown_length():
    text = PROGRAM.replace("compare(%i, %three), direction=LT", "is-finite(%i)")
    assert Program(text).uncounted_loops == 1


@pytest.mark.parametrize(("shape", "size"), [("bf16[2,3]{1,0}", 12), ("(s32[], pred[8])", 12), ("f8e4m3fn[4]", 4)])
def test_sizes(shape, size):
    assert size_of(shape) == size


def test_product_flops_of_a_real_program():
    def step(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=5)[0].sum()

    x, w = jnp.zeros((4, 8)), jnp.zeros((8, 8))
    forward = 2 * 4 * 8 * 8 * 5
    assert product_flops(jax.make_jaxpr(step)(x, w).jaxpr) == forward
    assert product_flops(jax.make_jaxpr(jax.grad(step, argnums=(0, 1)))(x, w).jaxpr) == 3 * forward
    compiled = Program(jax.jit(step).lower(x, w).compile().as_text())
    assert max(compiled.runs.values()) >= 5
