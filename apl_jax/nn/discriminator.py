"""ICD: the discriminator that judges whether two instances show the same action (APL 3.2, Eq. 9; systems A16)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from apl_jax.nn.blocks import uniform_fan_in
from apl_jax.settings import DiscriminatorSettings
from apl_jax.structs import Array, PyTree


class Discriminator(nn.Module):
    """MLP ``[a; b] -> hidden -> 1`` on max-pooled raw features; returns logits.

    The first layer of a concatenation is a sum of two projections: when every detection meets every labelled instance
    by broadcasting, each of them is projected once and no pair is ever concatenated.
    """

    hidden: int

    @nn.compact
    def __call__(self, left: Array, right: Array) -> Array:
        """Logits ``[...]`` of pairs ``left [..., D]``, ``right [..., D]``, broadcast against each other."""
        width = left.shape[-1]
        kernel = self.param("kernel", uniform_fan_in, (2 * width, self.hidden))
        bias = self.param("bias", nn.initializers.zeros, (self.hidden,))
        out_kernel = self.param("out_kernel", uniform_fan_in, (self.hidden, 1))
        out_bias = self.param("out_bias", nn.initializers.zeros, ())
        hidden = jax.nn.relu(left @ kernel[:width] + right @ kernel[width:] + bias)
        return (hidden @ out_kernel)[..., 0] + out_bias


class InstanceDiscriminator(NamedTuple):
    """The discriminator as pure functions; pairs ``left``, ``right`` ``[..., D]`` broadcast against each other.

    ``init(key, feature_width) -> params`` · ``logits(params, left, right)`` of the pair in this order ·
    ``similarity(params, left, right)`` in (0, 1), the mean of both orders if symmetric (systems A18).
    """

    init: Callable[[Array, int], PyTree]
    logits: Callable[[PyTree, Array, Array], Array]
    similarity: Callable[[PyTree, Array, Array], Array]


def build_discriminator(settings: DiscriminatorSettings) -> InstanceDiscriminator:
    """ICD's discriminator for any feature width."""
    module = Discriminator(settings.hidden)

    def init(key: Array, feature_width: int) -> PyTree:
        row = jnp.zeros((1, feature_width))
        return module.init(key, row, row)["params"]

    def logits(params: PyTree, left: Array, right: Array) -> Array:
        return cast(Array, module.apply({"params": params}, left, right))

    def similarity(params: PyTree, left: Array, right: Array) -> Array:
        forward = jax.nn.sigmoid(logits(params, left, right))
        # An MLP on a concatenation is not symmetric, so the two orders may disagree.
        return 0.5 * (forward + jax.nn.sigmoid(logits(params, right, left))) if settings.symmetric else forward

    return InstanceDiscriminator(init, logits, similarity)
