"""The tests check shapes in signatures: ``tests/conftest.py`` sees to it, for everything that they call."""

from __future__ import annotations

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from apl_jax.ops.segments import pool_max


def test_wrong_shapes_and_types_are_refused() -> None:
    features, segments = np.ones((9, 5), np.float32), np.array([[0, 3], [2, 8]], np.float32)
    assert pool_max(jnp.asarray(features), segments, 9).shape == (2, 5)
    for wrong in (
        (features[None], segments, 9),  # an axis too many
        (features, segments[:, :1], 9),  # no end
        (features.astype(int), segments, 9),
        (features, segments, "9"),
    ):
        with pytest.raises(jaxtyping.TypeCheckError):
            pool_max(*wrong)
