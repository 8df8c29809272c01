"""Bytes that pass a chip's memory, counted from a program's text, against what was written into the text."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from apl_jax.compilation.traffic import memory_traffic

# A loop whose turn reads a weight through a copy onto the chip, gathers 4 rows of a table, and writes one result; what
# lies on the chip (memory space 1) and what stays inside fusions is free. Before the loop the table is converted once.
HLO = """
HloModule jit_f

%fused_gather (param_0: f32[1000,8], param_1: s32[4]) -> f32[4,8] {
  %param_0 = f32[1000,8]{1,0:T(8,128)} parameter(0)
  %view = f32[1000,8]{1,0:T(8,128)} bitcast(%param_0)
  %param_1 = s32[4]{0:T(128)S(1)} parameter(1)
  %rows = f32[4,8]{1,0:T(8,128)} gather(%view, %param_1), slice_sizes={1,8}
  ROOT %twice = f32[4,8]{1,0:T(8,128)} add(%rows, %rows)
}

%body (arg: (f32[1000,8], f32[16,8], s32[4])) -> (f32[1000,8], f32[16,8], s32[4]) {
  %arg = (f32[1000,8]{1,0:T(8,128)}, f32[16,8]{1,0:T(8,128)}, s32[4]{0:T(128)S(1)}) parameter(0)
  %table = f32[1000,8]{1,0:T(8,128)} get-tuple-element(%arg), index=0
  %weight = f32[16,8]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %chosen = s32[4]{0:T(128)S(1)} get-tuple-element(%arg), index=2
  %start = ((f32[16,8]{1,0:T(8,128)}), f32[2,8]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%weight)
  %part = f32[2,8]{1,0:T(8,128)S(1)} slice-done(%start)
  %rows = f32[4,8]{1,0:T(8,128)S(1)} fusion(%table, %chosen), kind=kLoop, calls=%fused_gather, metadata={op_name="f(x)"}
  %result = f32[16,8]{1,0:T(8,128)} custom-call(%rows, %part), custom_call_target="g"
  ROOT %all = (f32[1000,8], f32[16,8], s32[4]) tuple(%table, %result, %chosen)
}

%condition (arg.1: (f32[1000,8], f32[16,8], s32[4])) -> pred[] {
  %arg.1 = (f32[1000,8]{1,0:T(8,128)}, f32[16,8]{1,0:T(8,128)}, s32[4]{0:T(128)S(1)}) parameter(0)
  ROOT %more = pred[]{:T(512)S(1)} constant(true)
}

ENTRY %main (x: bf16[1000,8], y: (f32[1000,8], f32[16,8], s32[4])) -> (f32[1000,8], f32[16,8], s32[4]) {
  %x = bf16[1000,8]{1,0:T(8,128)} parameter(0)
  %y = (f32[1000,8]{1,0:T(8,128)}, f32[16,8]{1,0:T(8,128)}, s32[4]{0:T(128)S(1)}) parameter(1)
  %once = f32[1000,8]{1,0:T(8,128)} convert(%x)
  ROOT %loop = (f32[1000,8], f32[16,8], s32[4]) while(%y), condition=%condition, body=%body
}
"""


def test_one_turn_of_a_loop() -> None:
    part, rows, result = 4 * 2 * 8, 4 * 4 * 8, 4 * 16 * 8
    assert memory_traffic(HLO) == part + rows + result


def test_a_program_without_a_loop() -> None:
    straight = HLO.replace("while(%y), condition=%condition, body=%body", "custom-call(%once)")
    without_result = "\n".join(line for line in straight.splitlines() if "ROOT %loop" not in line)
    assert memory_traffic(without_result.partition("ENTRY")[2].join(["ENTRY", ""])) == (2 + 4) * 1000 * 8
    assert memory_traffic("") == 0


def test_where_there_are_no_memory_spaces_everything_between_fusions_counts() -> None:
    x = jnp.zeros((256, 256))
    text = jax.jit(lambda a: jnp.tanh(a) * 2 + 1).lower(x).compile().as_text()
    assert memory_traffic(text) == 2 * x.nbytes
