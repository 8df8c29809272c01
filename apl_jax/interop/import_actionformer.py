"""A network that others trained, as the folder of a finished run: prediction and export then know no difference."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from apl_jax import __version__
from apl_jax.data.annotations import Annotations
from apl_jax.data.dataset import open_truth
from apl_jax.data.files import DataError, refusal, write_json
from apl_jax.declarations import fingerprint, to_dict
from apl_jax.detectors import build_detector
from apl_jax.devices import build_mesh, replicated
from apl_jax.inference.model import FORMAT, MODEL
from apl_jax.interop.actionformer_weights import import_model
from apl_jax.interop.torch_files import read_state_dict
from apl_jax.nn.pyramid import legal_length
from apl_jax.runs.training_stage import abstract_arm
from apl_jax.settings import DataSettings, Settings
from apl_jax.structs import PyTree
from apl_jax.training.checkpoint import Checkpoints

STAGE = "imported"
_AVERAGED, _PLAIN = "state_dict_ema", "state_dict"
_PARALLEL = "module."  # what torch.nn.DataParallel puts before every name
_FIRST_LAYER = "backbone.embd.0.conv.weight"  # [width, feature width, 3]
log = logging.getLogger(__name__)


def import_actionformer(
    checkpoint: Path, settings: Settings, workdir: Path, classes_file: Path | None = None
) -> dict[str, Any]:
    """Writes the reference implementation's checkpoint as a run folder in ``workdir``; returns its ``model.json``.

    The network is that of ``settings.actionformer``, as the reference computes it: without quality heads
    (``quality.branches="none"``) and with its masking. Class c is the c-th line of ``classes_file`` or, without one,
    the c-th class by ``label_id`` of the data set's annotations, which is the order that the published checkpoints
    have. Features are not standardised, because the reference does not. The feature width is that of the first layer;
    all else must agree with the settings.

    Raises :class:`~apl_jax.data.files.DataError` for files that cannot be read, a folder that is not empty, and
    parameters that differ, each with its name and shapes; nothing is written then.
    """
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise refusal(f"`workdir={workdir}`", "a folder that is not empty", "a new one", "another `workdir`")
    settings = reference_settings(settings)
    source, weights = choose_weights(checkpoint, read_state_dict(checkpoint))
    classes, fps = _read_classes(classes_file) if classes_file else _published_classes(settings.data)
    # Without embedding convolutions the features themselves are the residual stream.
    first = weights.get(_FIRST_LAYER, np.zeros((0, settings.actionformer.width, 0)))
    width = first.shape[1] if first.ndim == 3 else settings.actionformer.width
    shapes = jax.eval_shape(build_detector(settings, width, len(classes)).init, jax.random.key(0))[0]
    try:
        params = import_model(weights, shapes)
    except ValueError as error:
        remedy = "the settings of this network as `actionformer`..., and `classes` with its names"
        expected = f"the network of `config` with {len(classes)} classes"
        raise refusal(f"{checkpoint}: {source}", str(error), expected, remedy) from None
    log.info("%s: %s, %d arrays, all of which have their place", checkpoint, source, len(weights))
    log.info(
        "written settings: masking 'reference', quality.branches 'none', length_multiple %d",
        settings.data.length_multiple,
    )
    card = {
        "format": FORMAT, "version": __version__, "settings_fingerprint": fingerprint(settings), "stage": STAGE,
        "classes": list(classes), "feature_width": width, "features": "rows",
        "longest_t": settings.data.max_length_t, "fps": fps, "mean": [0.0] * width, "std": [1.0] * width,
    }  # fmt: skip
    write_run(workdir, settings, card, params)
    return card


def reference_settings(settings: Settings) -> Settings:
    """The settings under which this package computes what the reference does. Raises ``DataError`` for another
    detector's settings."""
    if settings.detector != "actionformer":
        raise refusal("config.detector", repr(settings.detector), "'actionformer'", "the `config` of an ActionFormer")
    network = dataclasses.replace(
        settings.actionformer,
        masking="reference",
        quality=dataclasses.replace(settings.actionformer.quality, branches="none"),
    )
    multiple = legal_length(settings.data.length_multiple, network)
    data = dataclasses.replace(settings.data, length_multiple=multiple)
    return dataclasses.replace(settings, actionformer=network, data=data)


def choose_weights(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[str, dict[str, np.ndarray]]:
    """Which of a checkpoint's state dicts it is, and its arrays by the reference's own names.

    The averaged parameters are what the reference evaluates; those of the last step serve where there are no others,
    and so does a file that holds one state dict and nothing else. Raises ``DataError`` for any other.
    """
    for group in (_AVERAGED, _PLAIN):
        chosen = {name.removeprefix(f"{group}/"): v for name, v in arrays.items() if name.startswith(f"{group}/")}
        if chosen:
            break
    else:
        group, chosen = "the file itself", dict(arrays)
        if not arrays or any("/" in name for name in arrays):
            groups = ", ".join(dict.fromkeys(name.partition("/")[0] for name in arrays))
            found = f"arrays under {groups[:200]}" if arrays else "no arrays"
            raise refusal(str(path), found, f"{_AVERAGED} or {_PLAIN}", "the checkpoint that training wrote")
    if all(name.startswith(_PARALLEL) for name in chosen):
        chosen = {name.removeprefix(_PARALLEL): value for name, value in chosen.items()}
    return group, chosen


def _read_classes(path: Path) -> tuple[tuple[str, ...], float | None]:
    """Class names, a line each, and no frame rate."""
    try:
        names = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise refusal(f"`classes={path}`", f"{error}", "a text file with a class on each line", "check it") from None
    if not names or len(set(names)) < len(names):
        found = "a class twice" if names else "no classes"
        raise refusal(f"`classes={path}`", found, "each class once, a line each, in their order", "correct it")
    return tuple(names), None


def _published_classes(settings: DataSettings) -> tuple[tuple[str, ...], float | None]:
    """Classes of the data set's annotations by ``label_id``, and the frame rate where all training videos share one."""
    try:
        truth: Annotations = open_truth(settings)
    except DataError as error:
        raise DataError(f"{error} Or name the classes yourself: `classes=<text file, a class on each line>`.") from None
    subset = settings.training_subset.lower()
    rates = {record.fps for record in truth.videos.values() if record.subset == subset}
    return truth.classes, rates.pop() if len(rates) == 1 and min(rates) > 0 else None


def write_run(workdir: Path, settings: Settings, card: dict[str, Any], params: PyTree) -> None:
    """The folder of a finished run whose only stage is ``card["stage"]``, with these parameters of the detector.

    ``card`` is its ``model.json``. The checkpoint is a train state of no steps: but for the parameters and their
    average, which are the same, it is zeros.
    """
    mesh = build_mesh()
    like = abstract_arm(settings, card["feature_width"], len(card["classes"]), mesh)
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    state = dataclasses.replace(
        blank, params=blank.params | {"detector": params}, averaged=blank.averaged | {"detector": params}
    )
    write_json(workdir / "settings.json", to_dict(settings))
    store = Checkpoints(workdir / "stages" / card["stage"] / "checkpoints", 1)
    store.save(jax.device_put(state, replicated(mesh)), 0, force=True)
    store.close()
    write_json(workdir / MODEL, card)  # last: with it the folder is a finished run's
