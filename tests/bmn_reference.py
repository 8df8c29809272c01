"""Names and layouts of the reference weights of BMN, and of SSTAP's heads on it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from apl_jax.structs import PyTree


def of_time(x: np.ndarray) -> np.ndarray:
    return x.transpose(2, 1, 0)


def flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(x.shape[0], -1).T


def of_map(x: np.ndarray) -> np.ndarray:
    return x.transpose(2, 3, 1, 0).reshape(9, x.shape[1], x.shape[0])


# Reference name -> ours and how its array is turned; torch keeps [out, in, ...].
_LAYERS = {
    "x_1d_b.0": ("backbone/conv_0/", of_time),
    "x_1d_b.2": ("backbone/conv_1/", of_time),
    "x_1d_s.0": ("boundary_head/start/conv/", of_time),
    "x_1d_s.2": ("boundary_head/start/predictor/", flat),
    "x_1d_e.0": ("boundary_head/end/conv/", of_time),
    "x_1d_e.2": ("boundary_head/end/predictor/", flat),
    "x_1d_p.0": ("map_head/reduce/", of_time),
    "x_3d_p.0": ("map_head/", lambda x: x[..., 0, 0].transpose(2, 1, 0)),
    "x_2d_p.0": ("map_head/contract/", flat),
    "x_2d_p.2": ("map_head/conv_0_", of_map),
    "x_2d_p.4": ("map_head/conv_1_", of_map),
    "x_2d_p.6": ("map_head/predictor_", flat),
}
_HEADS = {
    "recons.0": ("reconstruction/hidden/", of_time),
    "recons.2": ("reconstruction/output/", of_time),
    "clip_order.0": ("clip_order/summary/", of_time),
    "clip_order_linear": ("clip_order/output/", flat),
}
_UNUSED = ("sample_mask",)  # fixed


def bmn_parameters(weights: dict[str, np.ndarray], dtype: type = np.float32) -> PyTree:
    """The recorded weights as a tree of ours; every one must have its place. SSTAP's heads stand beside BMN's parts."""
    tree: dict = {}
    for name, value in weights.items():
        if name not in _UNUSED:
            layer, _, kind = name.rpartition(".")
            path, turn = (_LAYERS | _HEADS)[layer]
            *folders, leaf = (path + ("kernel" if kind == "weight" else "bias")).split("/")
            node = tree
            for folder in folders:
                node = node.setdefault(folder, {})
            node[leaf] = jnp.asarray(turn(value) if kind == "weight" else value, dtype)
    return tree
