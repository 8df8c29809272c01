"""ICD: the discriminator that judges whether two instances show the same action (APL 3.2, Eq. 9; spec A16)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from apl_jax.nn.blocks import uniform_fan_in
from apl_jax.structs import Array, PyTree, pytree


@pytree
class Projections:
    """What instances contribute to the first layer of the MLP, ``[..., hidden]`` each."""

    as_left: Array
    as_right: Array


class Discriminator(nn.Module):
    """MLP ``[a; b] -> hidden -> 1`` on max-pooled raw features ``[..., width]``; returns logits.

    The first layer of a concatenation is a sum of two projections, so each instance is projected once, however many it
    is compared with, and no pair is ever concatenated.
    """

    width: int
    hidden: int

    def setup(self) -> None:
        self.kernel = self.param("kernel", uniform_fan_in, (2 * self.width, self.hidden))
        self.bias = self.param("bias", nn.initializers.zeros, (self.hidden,))
        self.out_kernel = self.param("out_kernel", uniform_fan_in, (self.hidden, 1))
        self.out_bias = self.param("out_bias", nn.initializers.zeros, ())

    def __call__(self, left: Array, right: Array) -> Array:
        """Logits ``[...]`` of pairs ``left [..., D]``, ``right [..., D]``, broadcast against each other."""
        return self.score(left @ self.kernel[: self.width], right @ self.kernel[self.width :])

    def project(self, rows: Array) -> Projections:
        """Both projections of instances ``[..., D]``."""
        return Projections(rows @ self.kernel[: self.width], rows @ self.kernel[self.width :])

    def score(self, left: Array, right: Array) -> Array:
        """Logits ``[...]`` of pairs that are projected already, ``[..., hidden]``."""
        hidden = jax.nn.relu(left + right + self.bias)
        return (hidden @ self.out_kernel)[..., 0] + self.out_bias


class InstanceDiscriminator(NamedTuple):
    """The discriminator as pure functions; pairs ``left``, ``right`` ``[..., D]`` broadcast against each other.

    ``init(key, feature_width) -> params`` · ``logits(params, left, right)`` of the pair in this order ·
    ``project(params, rows)``, what ``compare`` needs of instances ``[..., D]`` · ``compare(params, left, right)`` of
    projected pairs: their similarity in (0, 1), the mean of both orders if symmetric (spec A18).
    """

    init: Callable[[Array, int], PyTree]
    logits: Callable[[PyTree, Array, Array], Array]
    project: Callable[[PyTree, Array], PyTree]
    compare: Callable[[PyTree, PyTree, PyTree], Array]


def build_discriminator(*, hidden: int, symmetric: bool) -> InstanceDiscriminator:
    """ICD's discriminator for any feature width.

    Args:
        hidden: width of the hidden layer of the parameters that ``init`` makes; everything else goes by the parameters
            that it is given.
        symmetric: ``compare`` averages both orders of a pair.
    """

    def call(params: PyTree, *arguments: PyTree, method: str = "__call__") -> PyTree:
        both_widths, hidden = params["kernel"].shape
        return Discriminator(both_widths // 2, hidden).apply({"params": params}, *arguments, method=method)

    def init(key: Array, feature_width: int) -> PyTree:
        row = jnp.zeros((1, feature_width))
        return Discriminator(feature_width, hidden).init(key, row, row)["params"]

    def logits(params: PyTree, left: Array, right: Array) -> Array:
        return call(params, left, right)

    def project(params: PyTree, rows: Array) -> Projections:
        return call(params, rows, method="project")

    def compare(params: PyTree, left: Projections, right: Projections) -> Array:
        forward = jax.nn.sigmoid(call(params, left.as_left, right.as_right, method="score"))
        if not symmetric:
            return forward
        # An MLP on a concatenation is not symmetric, so the two orders may disagree.
        return 0.5 * (forward + jax.nn.sigmoid(call(params, right.as_left, left.as_right, method="score")))

    return InstanceDiscriminator(init, logits, project, compare)
