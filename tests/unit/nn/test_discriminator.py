"""ICD's MLP: the pair by pair form, broadcasting, and symmetry (APL Eq. 9; spec A16, A18)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from apl_jax.nn.discriminator import build_discriminator

WIDTH = 7


def test_it_is_an_mlp_on_the_concatenated_pair() -> None:
    draws = np.random.default_rng(0)
    discriminator = build_discriminator(hidden=5, symmetric=True)
    params = jax.tree.map(lambda x: jnp.asarray(draws.normal(size=x.shape), jnp.float32),
                          jax.eval_shape(lambda: discriminator.init(jax.random.key(0), WIDTH)))  # fmt: skip
    assert params["kernel"].shape == (2 * WIDTH, 5)
    left, right = draws.normal(size=(4, WIDTH)).astype(np.float32), draws.normal(size=(6, WIDTH)).astype(np.float32)
    found = discriminator.logits(params, left[:, None], right[None])
    assert found.shape == (4, 6)
    for i in range(4):
        for j in range(6):
            hidden = np.maximum(np.concatenate([left[i], right[j]]) @ params["kernel"] + params["bias"], 0)
            expected = hidden @ params["out_kernel"][:, 0] + params["out_bias"]
            np.testing.assert_allclose(found[i, j], expected, rtol=1e-4, atol=1e-5)

    forward, backward = found, discriminator.logits(params, right[None], left[:, None])
    assert jnp.abs(forward - backward).max() > 0.1
    ours, theirs = discriminator.project(params, left[:, None]), discriminator.project(params, right[None])
    both = discriminator.compare(params, ours, theirs)
    np.testing.assert_allclose(both, (jax.nn.sigmoid(forward) + jax.nn.sigmoid(backward)) / 2, rtol=1e-5)
    np.testing.assert_allclose(both, discriminator.compare(params, theirs, ours), rtol=1e-6)
    # Only fresh parameters go by `hidden`; what is given is compared as it is.
    literal = build_discriminator(hidden=1, symmetric=False)
    np.testing.assert_allclose(literal.compare(params, ours, theirs), jax.nn.sigmoid(forward), rtol=1e-5)
