"""What the recorded runs of ActionFormer's and TriDet's references share; TriDet's names and layouts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apl_jax.detectors.pyramid_settings import PyramidDecoding
from apl_jax.detectors.quality import QualitySettings
from apl_jax.detectors.tridet_settings import TriDetSettings
from apl_jax.structs import Batch, PyTree, Targets

Reference = dict[str, np.ndarray]


def read_reference(path: Path) -> Reference:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def below(reference: Reference, prefix: str) -> Reference:
    """The arrays whose names begin so, without that."""
    return {name.removeprefix(prefix): v for name, v in reference.items() if name.startswith(prefix)}


def read_batch(reference: Reference, steps: int) -> Batch:
    """The recorded training videos, padded to ``steps``."""
    videos = len({name.split("/")[1] for name in reference if name.startswith("in/")})
    width, most = len(reference["in/0/feats"]), max(len(reference[f"in/{i}/labels"]) for i in range(videos))
    features, mask = np.zeros((videos, steps, width), np.float32), np.zeros((videos, steps), bool)
    segments_t, labels = np.zeros((videos, most, 2), np.float32), np.zeros((videos, most), np.int32)
    exists = np.zeros((videos, most), bool)
    for i in range(videos):
        rows, n = reference[f"in/{i}/feats"].T, len(reference[f"in/{i}/labels"])
        features[i, : len(rows)], mask[i, : len(rows)] = rows, True
        segments_t[i, :n], labels[i, :n] = reference[f"in/{i}/segments"], reference[f"in/{i}/labels"]
        exists[i, :n] = True
    targets = Targets(
        jnp.asarray(segments_t), jnp.asarray(labels), jnp.asarray(exists),
        jnp.ones((videos, most)), jnp.zeros((videos, most), bool),
    )  # fmt: skip
    return Batch(jnp.asarray(features), jnp.asarray(mask), targets, jnp.arange(videos))


def assert_gradients(ours: PyTree, theirs: PyTree, mostly: float) -> None:
    """Within 1e-4 of each tensor's largest entry.

    Some gradients are zero in exact arithmetic: a constant added to all keys of an attention row leaves its softmax as
    it is, hence those of the key projection's bias and of what feeds it alike for all keys. Both programs compute
    rounding errors there, a ten-millionth of the model's largest gradient, and these need not agree; they are fewer
    than the share of tensors that is not ``mostly``.
    """
    noise = 1e-6 * max(float(np.abs(g).max()) for g in jax.tree.leaves(theirs))
    above = 0
    pairs = list(zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True))
    for (path, found), expected in pairs:
        tolerance = max(1e-4 * np.abs(expected).max(), noise)
        np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0, err_msg=jax.tree_util.keystr(path))
        above += np.abs(expected).max() > noise
    assert above > mostly * len(pairs)


def tridet_config(reference: Reference) -> dict[str, Any]:
    return json.loads(str(reference["config"]))


def tridet_settings(config: dict[str, Any]) -> TriDetSettings:
    """The settings of a recorded run: no stochastic depth, but the layer scales that the reference ties to it."""
    train, test = config["train_cfg"], config["test_cfg"]
    assert config["fpn_type"] == "identity" and config["embd_kernel_size"] == 3 and config["downsample_type"] == "max"
    assert train["center_sample"] == "radius" and test["nms_method"] == "soft" and not train["head_empty_cls"]
    return TriDetSettings(
        width=config["embd_dim"], embedding_convs=config["backbone_arch"][0], stem_blocks=config["backbone_arch"][1],
        branch_blocks=config["backbone_arch"][2], windows=(1, *config["n_sgp_win_size"][1:]), kernel_factor=config["k"],
        mlp_width=config["sgp_mlp_dim"], initial_deviation=config["init_conv_vars"], bins=config["num_bins"],
        tiou_power=config["iou_weight_power"], head_width=config["head_dim"], head_layers=config["head_num_layers"],
        head_kernel=config["head_kernel_size"], boundary_kernel=config["boudary_kernel_size"],
        absolute_position=config["use_abs_pe"], position_length_t=config["max_seq_len"], drop_path=0.0,
        regression_ranges=tuple(map(tuple, config["regression_range"])), input_noise=config["input_noise"],
        center_radius=train["center_sample_radius"], prior_probability=train["cls_prior_prob"],
        label_smoothing=train["label_smoothing"], regression_weight=train["loss_weight"],
        normalizer_init=train["init_loss_norm"], masking="reference", quality=QualitySettings(branches="none"),
        decoding=PyramidDecoding(
            score_threshold=test["pre_nms_thresh"], top_k_per_level=test["pre_nms_topk"], sigma=test["nms_sigma"],
            min_score=test["min_score"], max_detections=test["max_seg_num"], class_wise=test["multiclass_nms"],
            duration_threshold_t=test["duration_thresh"], iou_threshold=test["iou_threshold"],
            voting_threshold=test["voting_thresh"],
        ),
    )  # fmt: skip


_TRIDET_NAMES = [
    (r"backbone\.embd\.(\d+)\.conv\.weight", r"backbone/embedding_\1/conv/kernel"),
    (r"backbone\.embd_norm\.(\d+)\.(\w+)", r"backbone/embedding_\1/norm/\2"),
    (r"backbone\.(stem|branch)\.(\d+)\.ln\.(\w+)", r"backbone/\1_\2/norm_sgp/\3"),
    (r"backbone\.(stem|branch)\.(\d+)\.gn\.(\w+)", r"backbone/\1_\2/norm_mlp/\3"),
    (r"backbone\.(stem|branch)\.(\d+)\.psi\.(\w+)", r"backbone/\1_\2/gate/\3"),
    (r"backbone\.(stem|branch)\.(\d+)\.fc\.(\w+)", r"backbone/\1_\2/instant/\3"),
    (r"backbone\.(stem|branch)\.(\d+)\.convw\.(\w+)", r"backbone/\1_\2/narrow/\3"),
    (r"backbone\.(stem|branch)\.(\d+)\.convkw\.(\w+)", r"backbone/\1_\2/wide/\3"),
    (r"backbone\.(stem|branch)\.(\d+)\.global_fc\.(\w+)", r"backbone/\1_\2/global/\3"),
    (r"backbone\.(stem|branch)\.(\d+)\.mlp\.0\.(\w+)", r"backbone/\1_\2/expand/\3"),
    (r"backbone\.(stem|branch)\.(\d+)\.mlp\.2\.(\w+)", r"backbone/\1_\2/contract/\3"),
    (r"backbone\.branch\.(\d+)\.drop_path_out\.(scale)", r"backbone/branch_\1/scale_sgp/\2"),
    (r"backbone\.branch\.(\d+)\.drop_path_mlp\.(scale)", r"backbone/branch_\1/scale_mlp/\2"),
    (r"neck\.fpn_norms\.(\d+)\.(\w+)", r"neck/norm_\1/\2"),
    (r"cls_head\.head\.(\d+)\.conv\.(\w+)", r"class_head/trunk/layer_\1/conv/\2"),
    (r"cls_head\.norm\.(\d+)\.(\w+)", r"class_head/trunk/layer_\1/norm/\2"),
    (r"cls_head\.cls_head\.conv\.(\w+)", r"class_head/predictor/\1"),
    (r"(start|end)_head\.head\.(\d+)\.conv\.(\w+)", r"trident_head/\1_head/trunk/layer_\2/conv/\3"),
    (r"(start|end)_head\.norm\.(\d+)\.(\w+)", r"trident_head/\1_head/trunk/layer_\2/norm/\3"),
    (r"(start|end)_head\.cls_head\.conv\.(\w+)", r"trident_head/\1_head/predictor/\2"),
    (r"reg_head\.head\.(\d+)\.conv\.(\w+)", r"trident_head/trunk/layer_\1/conv/\2"),
    (r"reg_head\.norm\.(\d+)\.(\w+)", r"trident_head/trunk/layer_\1/norm/\2"),
    (r"reg_head\.offset_head\.conv\.(\w+)", r"trident_head/predictor/\1"),
    (r"reg_head\.scale\.(\d+)\.scale", r"trident_head/scale_\1"),
]


def tridet_parameters(reference: Reference) -> PyTree:
    """Parameters under the reference's names, in this package's tree and layouts."""
    tree: dict = {}
    for name, value in reference.items():
        matches = [match.expand(path) for pattern, path in _TRIDET_NAMES if (match := re.fullmatch(pattern, name))]
        assert len(matches) == 1, name
        *parents, leaf = matches[0].split("/")
        if leaf == "weight":
            leaf = "scale" if "norm" in parents[-1] else "kernel"
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = _tridet_layout(parents, leaf, value)
    return tree


def _tridet_layout(parents: list[str], leaf: str, value: np.ndarray) -> np.ndarray:
    if leaf != "kernel":
        return value.reshape(-1) if value.ndim else value
    if parents[-1] in ("gate", "instant", "narrow", "wide", "global"):
        return value[:, 0].T
    return value[..., 0].T if parents[-1] in ("expand", "contract") else value.transpose(2, 1, 0)
