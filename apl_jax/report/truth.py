"""Whether a run was scored with the annotations that there are now: its numbers are no longer true of others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apl_jax.data.annotations import Annotations
from apl_jax.data.dataset import open_truth, truth_digest
from apl_jax.data.files import DataError, load_json, refusal
from apl_jax.declarations import from_dict
from apl_jax.settings import DataSettings, EvaluationSettings

_AGAIN = "the command of the run again: it repeats the scoring, and trains nothing again"


def open_truths(settings: Mapping[str, Any]) -> dict[str, Annotations]:
    """The annotations of a run's data by what they measure: ``unlabelled``, of the classes that were taught, and
    ``evaluation``, of those that predictions have.

    ``settings`` are those of ``settings.json``. Raises :class:`~apl_jax.data.files.DataError`.
    """
    data = from_dict(DataSettings, settings["data"], "data")
    evaluation = from_dict(EvaluationSettings, settings["evaluation"], "evaluation")
    return {"unlabelled": open_truth(data), "evaluation": open_truth(data, named=evaluation.protocol == "external")}


def check_truths(
    workdir: Path, results: Mapping[str, Any], split: Mapping[str, Any], now: Mapping[str, Annotations]
) -> None:
    """Compares the annotations of the videos that a run measured with those that it measured them by.

    Raises :class:`~apl_jax.data.files.DataError` where they were corrected since, or are of videos that are not there.
    """
    for role, before in results["data"].get("truth", {}).items():
        missing = [video for video in split[role] if video not in now[role].videos]
        if missing:
            where, found = f"{workdir / 'split.json'}: {role}", f"video {missing[0]!r}, which has no annotation"
            raise refusal(where, found, "videos of the data set", f"use the data of the run, or {_AGAIN}")
        if truth_digest(now[role], split[role]) != before:
            found = f"numbers of other annotations: those of the {role} videos have changed since"
            raise refusal(str(workdir / "results.json"), found, "a run scored with what is annotated now", _AGAIN)


def check_present_truths(workdir: Path, settings: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """As :func:`check_truths`, of a run whose data may have gone: then its numbers are taken as they are."""
    if not results["data"].get("truth"):
        return
    try:
        now, split = open_truths(settings), load_json(workdir / "split.json")
    except DataError:
        return
    check_truths(workdir, results, split, now)
