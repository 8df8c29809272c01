"""A finished run's model as StableHLO: forward pass, decoding and NMS in one program that needs not this package.

``model.stablehlo`` is what :mod:`jax.export` serialises, weights and standardisation inside; ``model.json`` says what
goes in and comes out; ``example.py`` runs it on a recording with numpy and jax. One artefact serves CPU, CUDA and TPU,
and batches of any size.

An artefact is a deliverable, not an archive. jax promises to read it for six months, in versions after the one that
wrote it, and in versions up to three weeks older; beyond, it may be refused. Keep the run folder, and export again.
"""

from __future__ import annotations

import importlib.resources
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from apl_jax import __version__
from apl_jax.data.batching import padded_length
from apl_jax.data.files import refusal, write_bytes, write_json, write_text
from apl_jax.inference.model import PARAMETERS, Model, open_model
from apl_jax.structs import Array, Batch, Targets

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, CARD, EXAMPLE = "model.stablehlo", "model.json", "example.py"
_FORMAT = 1
# Name, shape behind the batch, dtype and meaning of what the program takes, in its order, and of what it returns.
_INPUTS = (
    ("features", ("T", "D"), "float32", "rows of the grid (see grid), not standardised; anything beyond length"),
    ("length", (), "int32", "rows that are real, at most T"),
    ("first_s", (), "float32", "centre of the first row, seconds"),
    ("step_s", (), "float32", "from one row to the next, seconds"),
    ("duration_s", (), "float32", "length of the recording in seconds, where segments are cut off"),
)
_OUTPUTS = (
    ("segments_s", ("K", 2), "float32", "start and end in seconds"),
    ("segments_t", ("K", 2), "float32", "start and end in feature rows, not cut off"),
    ("labels", ("K",), "int32", "place in classes"),
    ("confidence", ("K",), "float32", "falling, after Soft-NMS"),
    ("mask", ("K",), "bool", "which of the K are detections; the others are padding"),
)
log = logging.getLogger(__name__)


def export_model(workdir: Path, out: Path, length_t: int | None = None, stage: str = "") -> dict[str, Any]:
    """Writes the model of a run as the three files of this module to the folder ``out``; returns its ``model.json``.

    ``length_t`` is T, how many feature rows the program takes; shorter recordings are padded, longer ones need another
    export. It is rounded up to ``data.length_multiple``; None means the longest that the run has seen. ``stage`` and
    errors as in :func:`~apl_jax.inference.model.open_model`; :class:`~apl_jax.data.files.DataError` also for an
    impossible length and a folder that is a run's.
    """
    if length_t is not None and length_t < 1:
        raise refusal("`length`", str(length_t), "at least 1 feature row", "leave it out")
    if (out / "settings.json").exists() or (out / PARAMETERS).exists() or (out.exists() and not out.is_dir()):
        found = "the folder of a run or a model, whose model.json would be lost" if out.is_dir() else "a file"
        raise refusal(f"`out={out}`", found, "a folder of its own", f"`out={out}_export`")
    model = open_model(workdir, stage)
    if model.wants_proposals:
        found = f"{model.card.detector.name}, which refines proposals, without a generator"
        raise refusal(f"{workdir}: model", found, "a model that finds segments by itself", "train with a generator")
    data = model.card.grid
    steps = padded_length([length_t or model.card.longest_t], data.length_multiple)
    log.info(
        "T = %d feature rows, a multiple of %d%s", steps, data.length_multiple,
        "" if length_t else ": as many as the longest recording of the run has; `length=<rows>` for another",
    )  # fmt: skip
    sizes = {"T": steps, "D": model.card.feature_width}
    (batch,) = export.symbolic_shape("batch")
    inputs = [jax.ShapeDtypeStruct((batch, *(sizes[n] for n in shape)), dtype) for _, shape, dtype, _ in _INPUTS]
    exported = export.export(jax.jit(build_program(model)), platforms=PLATFORMS)(*inputs)
    card = _describe(model, exported, sizes)
    write_bytes(out / PROGRAM, bytes(exported.serialize()))
    example = importlib.resources.files("apl_jax.inference").joinpath("export_example.py")
    write_text(out / EXAMPLE, example.read_text("utf-8"))
    write_json(out / CARD, card)
    return card


def build_program(model: Model) -> Callable[..., dict[str, Array]]:
    """From feature rows ``[B, T, D]``, lengths, clocks and durations ``[B]`` to detections ``[B, K]`` in seconds.

    The same that :func:`~apl_jax.inference.prediction.predict_videos` computes of rows on their grid. The clock is two
    numbers of each recording, so that one program serves every grid (data/grids.py). Traceable with any B.
    """
    detector, standardizer = model.detector, model.card.standardizer
    params = jax.device_get(model.params)  # constants of the program belong to no device

    def program(features: Array, length: Array, first_s: Array, step_s: Array, duration_s: Array) -> dict[str, Array]:
        batch, steps, _ = features.shape
        mask = jnp.arange(steps) < length[:, None]
        rows = (features - standardizer.mean) / standardizer.std
        none = jnp.zeros((batch, 1), bool)
        targets = Targets(jnp.zeros((batch, 1, 2)), none.astype(jnp.int32), none, none.astype(jnp.float32), none)
        videos = Batch(jnp.where(mask[..., None], rows, 0), mask, targets, jnp.arange(batch, dtype=jnp.int32))
        found = detector.decode(detector.apply(params, videos, None))
        first_s, step_s, duration_s = (clock[:, None, None] for clock in (first_s, step_s, duration_s))
        segments_s = jnp.clip(first_s + found.segments_t * step_s, 0.0, duration_s)
        inside = segments_s[..., 1] > segments_s[..., 0]
        return {
            "segments_s": segments_s, "segments_t": found.segments_t, "labels": found.labels,
            "confidence": found.confidence, "mask": found.mask & inside,
        }  # fmt: skip

    return program


def _describe(model: Model, exported: export.Exported, sizes: dict[str, int]) -> dict[str, Any]:
    """What ``model.json`` beside the program holds, as JSON types."""
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    sizes = sizes | {"K": outputs["labels"].shape[1]}
    card, data = model.card, model.card.grid

    def listed(entries: tuple) -> list[dict[str, Any]]:
        return [
            {"name": name, "shape": ["batch", *(sizes.get(n, n) for n in shape)], "dtype": dtype, "meaning": meaning}
            for name, shape, dtype, meaning in entries
        ]

    return {
        "format": _FORMAT, "version": __version__, "jax": jax.__version__,
        "calling_convention_version": exported.calling_convention_version, "platforms": list(exported.platforms),
        "detector": card.detector.name, "stage": card.stage, "classes": list(model.classes),
        "data": card.data, "licence": card.licence,
        "feature_width": sizes["D"], "length": sizes["T"],
        "features": "rows" if model.windowed else "signal",
        "window": data.window, "stride": data.stride, "fps": data.fps or card.fps,
        "grid": data.grid, "fixed_length": None if data.grid == "rows" else data.fixed_length_t,
        "inputs": listed(_INPUTS), "outputs": listed(_OUTPUTS),
    }  # fmt: skip
