"""SPOT against its public code: the network, in float64 and float32, and the mask losses (spec 3.2, 3.4)."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apl_jax.detectors.spot import SnippetTargets, SpotOutputs, build_spot, mask_loss
from apl_jax.detectors.spot_settings import SpotSettings
from apl_jax.ops.mask_losses import dice, weighted_cross_entropy
from apl_jax.structs import Batch, DataFacts, PyTree, Targets

GOLDEN = Path(__file__).parent

# Reference name -> ours, and how its array is turned: torch keeps [out, in] and [out, in, width].
WEIGHTS = {
    "embedding.w_qs.weight": ("backbone/query_kernel", lambda x: x.T),
    "embedding.w_ks.weight": ("backbone/key_kernel", lambda x: x.T),
    "embedding.w_vs.weight": ("backbone/value_kernel", lambda x: x.T),
    "embedding.fc.weight": ("backbone/merge_kernel", lambda x: x.T),
    "embedding.fc.bias": ("backbone/merge_bias", lambda x: x),
    "embedding.layer_norm.weight": ("backbone/norm/scale", lambda x: x),
    "embedding.layer_norm.bias": ("backbone/norm/bias", lambda x: x),
    "classifier.0.weight": ("class_head/predictor/kernel", lambda x: x[..., 0].T),
    "classifier.0.bias": ("class_head/predictor/bias", lambda x: x),
    "global_mask.0.weight": ("mask_head/hidden/kernel", lambda x: x.transpose(2, 1, 0)),
    "global_mask.0.bias": ("mask_head/hidden/bias", lambda x: x),
    "global_mask.2.weight": ("mask_head/kernel", lambda x: x[..., 0].T),
}
UNUSED = ("embedding.pos_enc.",)  # a position table that the reference builds and does not add


def reference() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "spot.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def import_parameters(record: dict[str, np.ndarray], dtype: type) -> PyTree:
    """The recorded weights as a tree of ours; every one must have its place."""
    tree: dict = {}
    for name, value in record.items():
        if name.startswith("param/") and not name.removeprefix("param/").startswith(UNUSED):
            path, turn = WEIGHTS[name.removeprefix("param/")]
            *folders, leaf = path.split("/")
            node = tree
            for folder in folders:
                node = node.setdefault(folder, {})
            node[leaf] = jnp.asarray(turn(value), dtype)
    return tree


def settings_of(record: dict[str, np.ndarray]) -> tuple[SpotSettings, DataFacts]:
    config = json.loads(str(record["config"]))
    s = SpotSettings(steps=config["temporal_scale"], heads=config["heads"], mask_hidden=config["mask_hidden"])
    return s, DataFacts(config["feat_dim"], config["num_classes"])


def batch_of(features: np.ndarray, dtype: type) -> Batch:
    videos, steps = features.shape[:2]
    none = jnp.zeros((videos, 1), bool)
    targets = Targets(jnp.zeros((videos, 1, 2)), jnp.zeros((videos, 1), jnp.int32), none, jnp.ones((videos, 1)), none)
    return Batch(jnp.asarray(features, dtype), jnp.ones((videos, steps), bool), targets, jnp.arange(videos))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-5)])
def test_network(dtype: type, tolerance: float) -> None:
    record = reference()
    with jax.enable_x64(dtype is np.float64):
        detector = build_spot(*settings_of(record))
        params, shapes = import_parameters(record, dtype), jax.eval_shape(detector.init, jax.random.key(0))[0]
        assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
        outputs = jax.jit(detector.apply, static_argnums=2)(
            params, batch_of(record["x"].transpose(0, 2, 1), dtype), None
        )
        found = {
            "features": outputs.features[:, 0].transpose(0, 2, 1),
            "class_logits": outputs.class_logits[:, 0].transpose(0, 2, 1),
            "mask": jax.nn.sigmoid(outputs.mask_logits[:, 0]),  # rows are queries in both
        }
        for name, value in found.items():
            assert value.dtype == dtype
            np.testing.assert_allclose(value, record[name], atol=tolerance, rtol=0, err_msg=name)


def test_mask_losses() -> None:
    """T = 10, p = sigmoid(sin k) of the flat index k, target = rows and columns 2 to 5."""
    cell = jnp.arange(100, dtype=jnp.float32).reshape(1, 10, 10)
    inside = (jnp.arange(10) >= 2) & (jnp.arange(10) <= 5)
    target = (inside[:, None] & inside)[None]
    logits, everywhere = jnp.sin(cell), jnp.ones_like(cell)
    p = jax.nn.sigmoid(logits)
    np.testing.assert_allclose(weighted_cross_entropy(p, target, everywhere, 10.0), 0.585687, atol=1e-6)
    np.testing.assert_allclose(dice(p, target, everywhere, 1.0), 0.806199, atol=1e-6)

    # The same through the detector's own loss, in which annotations become the target.
    settings = SpotSettings(steps=10, dice_factor=1.0)
    snippets = jnp.ones((1, 1, 10), bool)
    empty = jnp.zeros((1, 1, 10, 4))
    outputs = SpotOutputs(
        empty, logits[:, None], empty, empty, snippets, jnp.zeros((1, 1)), jnp.ones(1), jnp.array([10])
    )  # fmt: skip
    goal = SnippetTargets(jnp.zeros((1, 1, 10), jnp.int32), target[:, None], jnp.ones((1, 1, 10)), ~snippets)
    np.testing.assert_allclose(mask_loss(outputs, goal, settings), 0.717994, atol=1e-6)
    # Without its factor, dice never is zero: a perfect mask loses a half, less what the added ones bring.
    exact = jnp.where(target, 1.0, 0.0)
    np.testing.assert_allclose(dice(exact, target, everywhere, 2.0), 0.0, atol=1e-6)
    np.testing.assert_allclose(dice(exact, target, everywhere, 1.0), 1 - 17 / 33, atol=1e-6)
