"""A network that others trained, as a model of this package: prediction and export then know no difference."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from apl_jax.data.annotations import Annotations
from apl_jax.data.batching import Standardizer
from apl_jax.data.dataset import open_truth
from apl_jax.data.files import DataError, read_lines, refusal
from apl_jax.data.names import read_name
from apl_jax.declarations import Choice
from apl_jax.detectors import build_detector
from apl_jax.detectors.actionformer import without_quality
from apl_jax.inference.model import FOLDER, OWNER, ModelCard, write_model
from apl_jax.interop.actionformer_weights import import_model
from apl_jax.interop.torch_files import read_state_dict
from apl_jax.ops.pyramid import legal_length
from apl_jax.settings import DataSettings, GridSettings
from apl_jax.structs import DataFacts

STAGE = "imported"
_AVERAGED, _PLAIN = "state_dict_ema", "state_dict"
_PARALLEL = "module."  # what torch.nn.DataParallel puts before every name
_FIRST_LAYER = "backbone.embd.0.conv.weight"  # [width, feature width, 3]
log = logging.getLogger(__name__)


def import_actionformer(
    checkpoint: Path, detector: Choice, data: DataSettings, workdir: Path, classes_file: Path | None = None,
    prediction_batch: int = 16,
) -> ModelCard:  # fmt: skip
    """Writes the reference implementation's checkpoint as a model, ``model/`` in ``workdir``; returns its card.

    Its network is that of ``detector``, an ActionFormer, as the reference computes it: without quality heads
    (``quality.branches="none"``) and with its masking. Class c is the c-th line of ``classes_file`` or, without one,
    the c-th class by ``label_id`` of the annotations of ``data``, which is the order that the published checkpoints
    have. Features are not standardised, because the reference does not. The feature width is that of the first layer;
    all else must agree with the settings. ``prediction_batch``: videos that the model will predict together.

    Raises :class:`~apl_jax.data.files.DataError` for files that cannot be read, a folder that is not empty, and
    parameters that differ, each with its name and shapes; nothing is written then.
    """
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise refusal(f"`workdir={workdir}`", "a folder that is not empty", "a new one", "another `workdir`")
    detector, grid = reference_settings(detector, data)
    source, weights = choose_weights(checkpoint, read_state_dict(checkpoint))
    classes, fps = _read_classes(classes_file) if classes_file else _published_classes(data)
    first = weights.get(_FIRST_LAYER, np.zeros(0))
    width = first.shape[1] if first.ndim == 3 else detector.settings.width
    shapes = jax.eval_shape(build_detector(detector, DataFacts(width, len(classes))).init, jax.random.key(0))[0]
    try:
        params = import_model(weights, shapes)
    except ValueError as error:
        remedy = "the settings of this network as `detector`..., and `classes` with its names"
        expected = f"the network of `config` with {len(classes)} classes"
        raise refusal(f"{checkpoint}: {source}", str(error), expected, remedy) from None
    log.info("%s: %s, %d arrays, all of which have their place", checkpoint, source, len(weights))
    log.info("written settings: masking 'reference', quality.branches 'none', length_multiple %d", grid.length_multiple)
    card = ModelCard(
        stage=STAGE,
        detector=detector,
        classes=classes,
        feature_width=width,
        features="rows",
        grid=grid,
        longest_t=data.max_length_t,
        fps=fps,
        standardizer=Standardizer(np.zeros(width, np.float32), np.ones(width, np.float32)),
        prediction_batch=prediction_batch,
        data=data.name,
        licence=data.licence,
    )
    write_model(workdir / FOLDER, card, {OWNER: params})
    return card


def reference_settings(detector: Choice, data: DataSettings) -> tuple[Choice, GridSettings]:
    """The detector and the grid with which this package computes what the reference does. Raises ``DataError`` for
    another detector."""
    if detector.name != "actionformer":
        remedy = "the `config` of an ActionFormer"
        raise refusal("`detector.name`", repr(detector.name), "'actionformer'", remedy)
    network = dataclasses.replace(without_quality(detector.settings), masking="reference")
    multiple = legal_length(data.length_multiple, network.branch_blocks + 1)
    return Choice(detector.name, network), dataclasses.replace(data.for_prediction(), length_multiple=multiple)


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
    lines = read_lines(path, "`classes`, a text file with a class on each line")
    names = [read_name(line, f"`classes={path}`") for line in lines if line.strip()]
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
