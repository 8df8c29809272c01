"""Weights of the PyTorch ActionFormer, as a dict of numpy arrays under its own names, in this package's layout."""

from __future__ import annotations

import re

import jax
import numpy as np

from apl_jax.structs import PyTree

_SHOWN = 6  # complaints of a kind in one message

# Reference module path -> ours. The first pattern that matches wins; \1 .. are layer numbers.
_RENAMES = [
    (r"backbone\.embd\.(\d+)\.conv", r"backbone/embedding_\1/conv"),
    (r"backbone\.embd_norm\.(\d+)", r"backbone/embedding_\1/norm"),
    (r"backbone\.(stem|branch)\.(\d+)\.ln1", r"backbone/\1_\2/norm_attention"),
    (r"backbone\.(stem|branch)\.(\d+)\.ln2", r"backbone/\1_\2/norm_mlp"),
    (r"backbone\.(stem|branch)\.(\d+)\.attn\.proj", r"backbone/\1_\2/attention/projection"),
    (r"backbone\.(stem|branch)\.(\d+)\.attn\.(\w+)_conv\.conv", r"backbone/\1_\2/attention/\3_conv"),
    (r"backbone\.(stem|branch)\.(\d+)\.attn\.(\w+)", r"backbone/\1_\2/attention/\3"),
    (r"backbone\.(stem|branch)\.(\d+)\.mlp\.0", r"backbone/\1_\2/expand"),
    (r"backbone\.(stem|branch)\.(\d+)\.mlp\.3", r"backbone/\1_\2/contract"),
    (r"backbone\.(stem|branch)\.(\d+)\.drop_path_attn", r"backbone/\1_\2/scale_attention"),
    (r"backbone\.(stem|branch)\.(\d+)\.drop_path_mlp", r"backbone/\1_\2/scale_mlp"),
    (r"neck\.lateral_convs\.(\d+)\.conv", r"neck/lateral_\1"),
    (r"neck\.fpn_convs\.(\d+)\.conv", r"neck/conv_\1"),
    (r"neck\.fpn_norms\.(\d+)", r"neck/norm_\1"),
    (r"cls_head\.head\.(\d+)\.conv", r"class_head/trunk/layer_\1/conv"),
    (r"cls_head\.norm\.(\d+)", r"class_head/trunk/layer_\1/norm"),
    (r"cls_head\.cls_head\.conv", r"class_head/predictor"),
    (r"reg_head\.head\.(\d+)\.conv", r"regression_head/trunk/layer_\1/conv"),
    (r"reg_head\.norm\.(\d+)", r"regression_head/trunk/layer_\1/norm"),
    (r"reg_head\.offset_head\.conv", r"regression_head/predictor"),
]


def to_path(name: str) -> str:
    """Our slash-separated parameter path of a reference parameter name; ``KeyError`` if there is none."""
    scale = re.fullmatch(r"reg_head\.scale\.(\d+)\.scale", name)
    if scale:
        return f"regression_head/scale_{scale[1]}"
    module, _, leaf = name.rpartition(".")
    for pattern, path in _RENAMES:
        match = re.fullmatch(pattern, module)
        if match:
            ours = match.expand(path)
            return f"{ours}/" + ("scale" if leaf == "weight" and "norm" in ours else leaf.replace("weight", "kernel"))
    raise KeyError(f"reference parameter {name!r} has no counterpart")


def to_layout(path: str, value: np.ndarray) -> np.ndarray:
    """A torch array in our layout: conv ``[O, I, K]`` to ``[K, I, O]``, pointwise ``[I, O]``, depthwise ``[K, C]``."""
    if value.ndim != 3:
        return value
    if not path.endswith("kernel"):
        return value.reshape(-1)  # norms and layer scales are [1, C, 1]
    if re.search(r"attention/\w+_conv/|neck/conv_", path):
        return value[:, 0].T
    if value.shape[2] == 1 and "lateral" not in path:
        return value[..., 0].T
    return value.transpose(2, 1, 0)


def import_parameters(reference: dict[str, np.ndarray]) -> PyTree:
    """Nested parameter dict from reference arrays by name; every array is used, unknown names raise ``KeyError``."""
    tree: dict = {}
    for name, value in reference.items():
        path = to_path(name)
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = to_layout(path, np.asarray(value))
    return tree


def import_model(reference: dict[str, np.ndarray], shapes: PyTree) -> PyTree:
    """All parameters of a model, float32, whose ``shapes`` (of arrays or of their descriptions) are known.

    Nothing is guessed: a reference array without a counterpart, a parameter that no array fills, one filled twice, a
    shape that differs and values that are not finite are errors. Raises ``ValueError`` that counts them and lists the
    first of each kind, a line each.
    """
    expected = {"/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree.leaves_with_path(shapes)}
    found: dict[str, str] = {}  # our path -> the reference's name
    wrong: list[str] = []
    left_over: list[str] = []
    for name, value in sorted(reference.items()):
        described = f"{name}: found {_shape(value.shape)} {value.dtype}"
        try:
            path = to_path(name)
        except KeyError:
            path = ""
        if path not in expected:
            left_over.append(f"{described}, expected nothing: the network of these settings has no such parameter")
        elif path in found:
            wrong.append(f"{described}, which is {path}, as is {found[path]}")
        else:
            problem = _problem(path, value, expected[path].shape)
            wrong.extend([f"{described}, {problem}"] if problem else [])
            found[path] = name
    missing = [
        f"{path}: found nothing, expected {_shape(x.shape)}" for path, x in expected.items() if path not in found
    ]
    if wrong or left_over or missing:
        lines = [f"{len(wrong)} parameters that differ, {len(left_over)} left over, {len(missing)} missing:"]
        for kind in (wrong, left_over, missing):
            lines += kind[:_SHOWN] + ([f"and {len(kind) - _SHOWN} more such"] if len(kind) > _SHOWN else [])
        raise ValueError("\n  ".join(lines))
    return jax.tree.map(lambda x: np.array(x, np.float32, order="C"), import_parameters(reference))


def _problem(path: str, value: np.ndarray, shape: tuple[int, ...]) -> str:
    """What is wrong with a reference array that is to become parameter ``path`` of ``shape``; "" if nothing."""
    # As many values as expected, and in the expected layout: none can have been dropped or repeated on the way.
    same = value.size == np.prod(shape, dtype=int) and to_layout(path, value).shape == shape
    if not same:
        return f"expected {_shape(shape)} (as {path}, in this package's layout)"
    if value.dtype.kind in "iub" or not np.isfinite(value).all():
        return "expected finite floating-point numbers"
    return ""


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
