"""What a finished run leaves for prediction: ``model.json``, and the averaged parameters of its stages.

Nothing here needs the training data, which may be gone.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from apl_jax import __version__
from apl_jax.data.annotations import is_number
from apl_jax.data.batching import Standardizer
from apl_jax.data.files import load_json, refusal
from apl_jax.declarations import fingerprint, from_dict
from apl_jax.runs.context import Room
from apl_jax.runs.plans import plain_settings
from apl_jax.runs.training_stage import abstract_arm
from apl_jax.settings import Settings
from apl_jax.structs import PyTree
from apl_jax.training.checkpoint import Checkpoints
from apl_jax.devices import build_mesh, enable_compile_cache

MODEL = "model.json"
FORMAT = 1
_PLAIN_ARMS = ("supervised", "supervised_matched")  # trained with plain_settings (pipeline/stages.py)
_UNTRAINED = "pretrain"  # its heads have learnt nothing yet


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained detector and all that turns a feature file into its input."""

    settings: Settings  # of the arm
    stage: str
    classes: tuple[str, ...]
    windowed: bool  # trained on ready-made rows, not on windows of a raw signal
    longest_t: int  # grid steps of the longest video that the run has seen, rounded up to length_multiple
    fps: float | None  # of all training videos, where it is one
    standardizer: Standardizer  # [D]
    params: PyTree  # the detector's, averaged
    mesh: Mesh


def describe_model(room: Room, stage: str | None) -> dict[str, Any]:
    """What ``model.json`` of a run holds: what prediction needs besides checkpoints and settings, as JSON types."""
    settings, dataset = room.settings, room.dataset
    rates = {record.fps for record in (*dataset.labelled.records, *dataset.unlabelled.records)}
    return {
        "format": FORMAT,
        "version": __version__,
        "settings_fingerprint": fingerprint(settings),
        "stage": stage,
        "classes": list(dataset.classes),
        "feature_width": room.feature_width,
        "features": "rows" if dataset.windowed else "signal",
        "longest_t": max(dataset.labelled.length_t, dataset.evaluation.length_t),
        "fps": rates.pop() if len(rates) == 1 and min(rates) > 0 else None,
        "mean": dataset.standardizer.mean.tolist(),
        "std": dataset.standardizer.std.tolist(),
    }


def open_model(workdir: Path, stage: str = "") -> Model:
    """Opens the model of a finished run's folder; ``stage`` "" is the final arm's. The training data may be gone.

    ``workdir`` may also be a stage's folder within it, or one of its checkpoints, as :func:`run_of` reads it.

    Raises :class:`~apl_jax.data.files.DataError` when the folder is no finished run or has no such stage,
    :class:`~apl_jax.training.checkpoint.CheckpointError` when its checkpoint is of another model.
    """
    enable_compile_cache()
    card, settings = read_model(workdir)
    workdir, named, step = run_of(workdir)
    if stage and named not in ("", stage):
        raise refusal(f"--stage={stage}", f"a checkpoint of {named!r}", "one stage", "give the folder of the run")
    stage = stage or named
    stages = sorted(
        path.parent.parent.name
        for path in workdir.glob("stages/*/checkpoints/[0-9]*")
        if path.parent.parent.name != _UNTRAINED
    )
    stage = stage or str(card["stage"])
    if stage not in stages:
        found = f"no checkpoint of a stage {stage!r}"
        expected = f"one of {', '.join(dict.fromkeys(stages)) or 'the stages of a run, of which none is left'}"
        raise refusal(f"{workdir}: --stage", found, expected, "one of these, or nothing for the final arm's")
    settings = plain_settings(settings) if stage in _PLAIN_ARMS else settings
    mesh = build_mesh()
    like = abstract_arm(settings, int(card["feature_width"]), len(card["classes"]), mesh)
    folder = workdir / "stages" / stage / "checkpoints"
    if step is not None and not (folder / str(step)).is_dir():
        kept = ", ".join(sorted((path.name for path in folder.glob("[0-9]*")), key=int))
        raise refusal(
            f"{folder / str(step)}", "no such checkpoint", f"one of {kept}", "one of these, or the run's folder"
        )
    store = Checkpoints(folder, 1)
    params = store.restore(like, step).averaged["detector"]
    store.close()
    standardizer = Standardizer(np.array(card["mean"], np.float32), np.array(card["std"], np.float32))
    windowed = card["features"] == "rows"
    classes, longest_t = tuple(card["classes"]), int(card["longest_t"])
    return Model(settings, stage, classes, windowed, longest_t, card["fps"], standardizer, params, mesh)


def run_of(path: Path) -> tuple[Path, str, int | None]:
    """The run folder, stage and step that a path means, as ``<run>``, ``<run>/stages/<stage>[/checkpoints[/<step>]]``.

    What it does not say is "" and None: the final arm's stage, the newest step.
    """
    path = path.absolute()
    at = next((n for n, parent in enumerate(path.parents) if parent.name == "stages"), None)
    if at is None or (path / "settings.json").is_file():
        return path, "", None
    stage, *inside = path.parts[len(path.parts) - 1 - at :]
    plain = inside[:1] in ([], ["checkpoints"]) and len(inside) < 3
    if not plain or not all(name.isdecimal() for name in inside[1:]):
        return path, "", None
    return path.parents[at].parent, stage, int(inside[1]) if len(inside) == 2 else None


def read_model(workdir: Path) -> tuple[dict[str, Any], Settings]:
    """``model.json`` of a finished run and the run's settings; raises :class:`~apl_jax.data.files.DataError`.

    ``workdir`` as :func:`run_of` reads it.
    """
    workdir = run_of(workdir)[0]
    path = workdir / MODEL
    if not (workdir / "settings.json").is_file():
        remedy = "--workdir=<the folder that apl-jax run wrote>"
        raise refusal(str(workdir / "settings.json"), "no such file", "the folder of a finished run", remedy)
    again = f"the command of the run again, apl-jax run --workdir={workdir} ...: it skips all stages that are done"
    if not path.is_file():
        raise refusal(str(path), "no such file (an unfinished run, or one of an earlier version)", "it", again)
    card, document = load_json(path), load_json(workdir / "settings.json")
    if card.get("format") != FORMAT:
        raise refusal(f"{path}: format", repr(card.get("format")), f"{FORMAT}, as this version writes it", again)
    if card.get("settings_fingerprint") != fingerprint(document):
        found = "that the run was begun with other settings since, and not finished"
        raise refusal(str(path), found, "a finished run", again)
    _check_card(path, card, again)
    return card, from_dict(Settings, document)


def _check_card(path: Path, card: dict[str, Any], again: str) -> None:
    width, classes = card.get("feature_width"), card.get("classes")
    numbers = all(
        isinstance(card.get(name), list) and len(card[name]) == width and all(map(is_number, card[name]))
        for name in ("mean", "std")
    )
    named = isinstance(classes, list) and bool(classes) and all(isinstance(name, str) for name in classes)
    clock = card.get("fps") is None or (is_number(card["fps"]) and card["fps"] > 0)
    counted = isinstance(width, int) and isinstance(card.get("longest_t"), int) and card["longest_t"] > 0
    if not (numbers and named and clock and counted and card.get("features") in ("rows", "signal")):
        expected = "classes, feature_width, features, longest_t, fps, mean and std"
        raise refusal(str(path), "a damaged file", expected, again)
