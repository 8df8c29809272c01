"""ICD: the discriminator that judges whether two instances show the same action (APL 3.2, Eq. 9; systems A16)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from apl_jax.nn.blocks import uniform_fan_in
from apl_jax.structs import Array


class Discriminator(nn.Module):
    """MLP ``[a; b] -> hidden -> 1`` on max-pooled raw features; returns logits.

    The first layer of a concatenation is a sum of two projections, so that comparing every detection with every
    labelled instance projects each of them once: ``project`` then ``compare``.
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


def build_discriminator(hidden: int, symmetric: bool):
    """The pair ``init(key, width) -> params`` and ``similarity(params, left, right) -> probability in (0, 1)``.

    ``symmetric`` averages D(a, b) and D(b, a), since an MLP on a concatenation is not symmetric (systems A18).
    """
    module = Discriminator(hidden)

    def init(key: Array, width: int) -> dict:
        return dict(module.init(key, jnp.zeros((1, width)), jnp.zeros((1, width)))["params"])

    def similarity(params: dict, left: Array, right: Array) -> Array:
        one = jax.nn.sigmoid(module.apply({"params": params}, left, right))
        if not symmetric:
            return one
        return 0.5 * (one + jax.nn.sigmoid(module.apply({"params": params}, right, left)))

    return init, similarity
