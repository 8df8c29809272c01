"""Law 14: a network of bfloat16 products sums in float32, its parameters' gradients above all.

What is summed over positions is summed over devices too, and a sum over 256 devices in bfloat16 loses what most of them
add. XLA reduces over devices in the type of the sum that it splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import CLASSES, FEATURE_WIDTH, in_bfloat16, random_batch, tiny_choice, variants

from apl_jax.detectors import build_detector
from apl_jax.registry import DETECTORS
from apl_jax.structs import DataFacts

SUMS = ("reduce_sum", "dot_general", "conv_general_dilated", "cumsum")  # of which parameters' gradients are made
STEPS = 16


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr, those of loops, branches and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def sums_in_bfloat16(function: Any, *arguments: Any) -> list[str]:
    closed = jax.make_jaxpr(function)(*arguments)
    found = []
    for equation in equations(closed.jaxpr):
        narrow = [v.aval for v in equation.outvars if getattr(v.aval, "dtype", None) == jnp.bfloat16]
        if equation.primitive.name in SUMS and narrow:
            found.append(f"{equation.primitive.name} -> {narrow[0].shape}")
    return found


CASES = [name for name in DETECTORS if in_bfloat16(tiny_choice(name)) != tiny_choice(name)]


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_summed_in_float32(name: str) -> None:
    for choice in variants(name).values():
        detector = build_detector(in_bfloat16(choice), DataFacts(FEATURE_WIDTH, CLASSES, STEPS))
        params, state = jax.eval_shape(detector.init, jax.random.key(0))
        batch = random_batch([STEPS, STEPS - 5], STEPS)

        def loss(params: Any, state: Any, detector=detector, batch=batch) -> Any:
            outputs = detector.apply(params, batch, jax.random.key(1))
            return detector.loss(outputs, batch.targets, state, jax.random.key(2)).total

        assert sums_in_bfloat16(jax.grad(loss), params, state) == []


def test_a_narrow_sum_is_found() -> None:
    bias, rows = jnp.zeros(CLASSES), jnp.ones((4, STEPS, CLASSES), jnp.bfloat16)
    narrow = lambda bias: (rows + bias.astype(jnp.bfloat16)).astype(jnp.float32).sum()
    assert set(sums_in_bfloat16(jax.grad(narrow), bias)) == {f"reduce_sum -> ({CLASSES},)"}
    scan = lambda bias: jax.lax.scan(lambda total, row: (total + narrow(bias), None), 0.0, np.arange(3.0))[0]
    assert sums_in_bfloat16(jax.grad(scan), bias)
