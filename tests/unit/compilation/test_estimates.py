"""What is read off a compiled program: communication from HLO text, memory and arithmetic from the compiler."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from apl_jax.compilation.chips import CHIPS, chip_of
from apl_jax.compilation.estimates import Collective, Estimate, collectives_of, estimate, weak_scaling
from apl_jax.data.files import DataError

# Instructions as XLA prints them, shortened: a sum of two arrays, of two types, an asynchronous gather, no call at all.
HLO = """
  %a = (f32[64,8]{1,0:T(8,128)}, f32[8]{0}) all-reduce(%x, %y), channel_id=1, to_apply=%add
  %b = (bf16[4,16]{1,0:T(4,128)(2,1)S(1)}, f32[3]{0}) all-reduce(%x, %y), replica_groups={}
  %c = (f32[10,2]{1,0}, f32[40,2]{1,0}) all-gather-start(%x), dimensions={0}
  %d = f32[40,2]{1,0} all-gather-done(%c)
  ROOT %e = pred[5]{0} all-to-all(%x)
  %f = f32[7]{0} fusion(%x), metadata={op_name="all-reduce(of a name)"}
  %g = u32[] all-reduce(%x)
"""


def test_collectives_by_kind_and_type() -> None:
    assert collectives_of(HLO) == (
        Collective("all-gather", "f32", 1, 40 * 2 * 4),
        Collective("all-reduce", "bf16", 1, 4 * 16 * 2),
        Collective("all-reduce", "f32", 2, (64 * 8 + 8 + 3) * 4),
        Collective("all-reduce", "u32", 1, 4),
        Collective("all-to-all", "pred", 1, 5),
    )
    assert collectives_of("") == ()


def test_memory_and_arithmetic_of_a_product() -> None:
    compiled = jax.jit(lambda a, b: a @ b).lower(jnp.zeros((64, 32)), jnp.zeros((32, 16))).compile()
    found = estimate(compiled)
    assert found.flops == pytest.approx(2 * 64 * 32 * 16, rel=0.05)
    assert found.arguments == 4 * (64 * 32 + 32 * 16) and found.outputs == 4 * 64 * 16
    assert found.peak >= found.arguments + found.outputs and found.collectives == ()


def test_a_program_of_a_newer_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As jaxlib 0.10.2 does not read what libtpu 0.0.52 makes for a v5p."""
    compiled = jax.jit(lambda a: a + 1).lower(jnp.zeros(3)).compile()

    def unreadable(_: object) -> str:
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure\nmore")

    monkeypatch.setattr(type(compiled), "as_text", unreadable)
    with pytest.raises(DataError, match=r"cannot read \(INTERNAL: RET_CHECK failure\).*jax\[tpu\]"):
        estimate(compiled)


def test_of_a_loop_one_turn_is_counted() -> None:
    """What the words of the table rest on."""

    def repeated(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda y, _: (jnp.tanh(y @ y), None), x, length=10)[0]

    found = estimate(jax.jit(repeated).lower(jnp.zeros((64, 64))).compile())
    assert found.flops == pytest.approx(2 * 64**3, rel=0.05)


def test_bound_is_the_slower_of_arithmetic_and_memory_and_then_communication() -> None:
    chip = CHIPS["v5e"]
    none = {"arguments": 0, "outputs": 0, "temporaries": 0, "code": 0}
    busy = Estimate(**none, flops=197e12, traffic=5e15, memory_traffic=819_000_000, collectives=())
    assert busy.seconds(chip) == pytest.approx(1)
    summed = (Collective("all-reduce", "f32", 1, int(1e9)),)
    waiting = Estimate(**none, flops=197e9, traffic=5e15, memory_traffic=int(819e9), collectives=summed)
    assert waiting.seconds(chip) == pytest.approx(1 + 2 * 1e9 / 200e9)


def test_weak_scaling() -> None:
    chip = CHIPS["v5e"]
    assert weak_scaling(0.01, 10**8, chip, 1) == 1
    assert weak_scaling(0.01, 10**8, chip, 2) == pytest.approx(0.01 / (0.01 + 1e8 / 200e9))
    assert weak_scaling(0.01, 10**8, chip, 256) < weak_scaling(0.01, 10**8, chip, 8)


def test_an_unknown_chip_is_refused() -> None:
    assert chip_of("v5p:2x2x4") is CHIPS["v5p"]
    with pytest.raises(DataError, match=r"`topology`.*'v9:2x2'.*v4, v5e, v5p, v6e"):
        chip_of("v9:2x2")
