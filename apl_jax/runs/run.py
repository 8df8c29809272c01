"""A whole run: stages in order, each skipped, resumed or begun, then the results file and the page."""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import jax

from apl_jax import __version__
from apl_jax.data.dataset import open_dataset
from apl_jax.data.features.sources import data_root
from apl_jax.data.splits import write_split
from apl_jax.declarations import fingerprint, to_dict
from apl_jax.evaluation.external import check_protocol, external_digest, protocol_words, read_class_scores
from apl_jax.learning.methods import METHODS
from apl_jax.learning.selection import build_selector
from apl_jax.runs.ledger import Ledger, Stage
from apl_jax.inference.model import MODEL, describe_model
from apl_jax.runs.context import Room
from apl_jax.runs.plans import matched_steps, plan_stages
from apl_jax.settings import Settings
from apl_jax.devices import build_mesh, device_bytes, enable_compile_cache, host_bytes
from apl_jax.training.state import describe_parameters

log = logging.getLogger(__name__)


def open_room(settings: Settings, workdir: Path) -> Room:
    """Opens the data set and the devices for a run in ``workdir``; writes nothing."""
    enable_compile_cache()
    # Impossible settings are refused before anything is written, and as far as can be before anything is read.
    build_selector(settings.learning.selection)
    if settings.learning.method not in METHODS:
        raise ValueError(
            f"config.learning.method: found {settings.learning.method!r}, expected one of {', '.join(METHODS)}"
        )
    if jax.process_index() == 0:
        log.info("reading the data in %s", data_root(settings.data))
    dataset = open_dataset(settings.data, settings.runtime.host_share * host_bytes())
    if not dataset.split.unlabelled and "semi_supervised" in settings.arms:
        raise ValueError(
            f"config.data.label_ratio: found {settings.data.label_ratio:g}, which leaves no video unlabelled; expected "
            "less than 1 for the arm 'semi_supervised'. Try --config.arms=\"('supervised',)\"."
        )
    mesh = build_mesh()
    room = Room(settings, dataset, Ledger(workdir), mesh, device_bytes(mesh))
    room.detector(settings)  # refuses what cannot be built for these data
    _check_protocol(room)
    return room


def _check_protocol(room: Room) -> None:
    """Refuses class scores that do not fit the evaluation videos, and says what else is to be known about them."""
    evaluation, classes = room.settings.evaluation, room.scored_truth.classes
    check_protocol(evaluation)
    if evaluation.protocol == "strict":
        return
    notes = read_class_scores(evaluation.external_scores, room.dataset.split.evaluation, classes).notes
    if room.settings.network.nms.class_wise:
        switch = f"--config.{room.settings.detector}.nms.class_wise=False"
        notes += (f"class-wise NMS leaves one action several segments; the external protocol is meant for {switch}",)
    for note in notes if room.ledger.first_process else ():
        log.info("note: %s", note)


def run(settings: Settings, workdir: Path, command: str = "") -> dict[str, Any]:
    """Carries out every stage that is not done yet and returns the results, which ``results.json`` holds too.

    Running the same command again after any interruption ends in the same final state; after a change of settings,
    only the stages that depend on it are done again. ``command`` is kept in the results, for whoever reads them.
    """
    room = open_room(settings, workdir)
    ledger = room.ledger
    with ledger.locked():
        if ledger.first_process:
            log.info("%s", start_page(room, workdir))
        ledger.write(workdir / "settings.json", to_dict(settings))
        if ledger.first_process:
            write_split(workdir / "split.json", room.dataset.split)
        fingerprints: dict[str, str] = {}
        results: dict[str, Any] = {}
        stages = plan_stages(settings)
        for number, stage in enumerate(stages, 1):
            mark = _fingerprint(stage, room, fingerprints)
            fingerprints[stage.name] = mark
            results[stage.name] = _carry_out(stage, mark, room, f"{number}/{len(stages)}")
        summary = summarise(room, results) | {"command": command}
        ledger.write(workdir / MODEL, describe_model(room, summary["final_arm"]))
        ledger.write(workdir / "results.json", summary)
    return summary


def start_page(room: Room, workdir: Path) -> str:
    """Who runs, on what, with which settings unlike the defaults, which model, which shapes, and where to."""
    settings, dataset = room.settings, room.dataset
    tables = {"labelled": dataset.labelled, "unlabelled": dataset.unlabelled, "evaluation": dataset.evaluation}
    shapes = "  ".join(f"{name} {list(t.shape)}" for name, t in tables.items())
    changed = "\n".join(f"    {name} = {value!r}" for name, value in differences(Settings(), settings).items())
    params = jax.eval_shape(lambda: room.detector(settings).init(jax.random.key(0))[0])
    notes = "".join(f"\n  note      {note}" for note in dataset.notes)
    return (
        f"apl_jax {__version__}, jax {jax.__version__}, process {jax.process_index() + 1} of {jax.process_count()}, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}\n"
        f"  data      {dataset.name}: {len(dataset.classes)} classes; {shapes}{notes}\n"
        f"  feed      {room.describe_feed()}\n"
        f"  split     {settings.data.label_ratio:.0%} labelled, seed {settings.data.split_seed}\n"
        f"  writes    {workdir.absolute()}\n"
        f"  settings  unlike the defaults:\n{changed}\n{describe_parameters(params)}"
    )


def differences(default: Any, settings: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names and values of the settings that differ from another instance of their class."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        here, there = getattr(settings, field.name), getattr(default, field.name)
        if dataclasses.is_dataclass(here):
            found |= differences(there, here, f"{prefix}{field.name}.")
        elif here != there:
            found[prefix + field.name] = here
    return found


def _fingerprint(stage: Stage, room: Room, earlier: dict[str, str]) -> str:
    """Hash of all that the stage's result depends on, the data and the earlier stages included."""
    # Held-back truth is no input of training, but it is one of the scores.
    return fingerprint(
        stage.name, to_dict(_Plain(stage.depends_on))["value"], room.dataset.digest,
        [earlier[name] for name in stage.needs], __version__,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Plain:
    value: Any


def _carry_out(stage: Stage, mark: str, room: Room, position: str) -> dict[str, Any]:
    done = room.ledger.result(stage.name, mark)
    if done is not None:
        log.info("%s %s: done before", position, stage.name)
        return done
    folder = room.ledger.begin(stage.name, mark)
    started = time.perf_counter()
    result = stage.run(room, folder)
    result["seconds"] = round(time.perf_counter() - started, 2)
    room.ledger.finish(stage.name, mark, result)
    headline = f", average mAP {100 * result['average_map']:.2f}" if "average_map" in result else ""
    log.info("%s %s: %.1f s%s", position, stage.name, result["seconds"], headline)
    return result


def summarise(room: Room, results: dict[str, Any]) -> dict[str, Any]:
    """What ``results.json`` holds: arms with their mAP, pseudo-label quality per round, and where they come from."""
    suffix = "_evaluation"
    arms = {name.removesuffix(suffix): value for name, value in results.items() if name.endswith(suffix)}
    settings = room.settings
    final = f"self_train_{settings.learning.rounds}"
    return {
        "version": __version__,
        "settings_fingerprint": fingerprint(settings),
        "data": {
            "name": room.dataset.name, "variant": room.dataset.variant,
            "features": "rehearsal" if room.dataset.made_up else "read",
            "digest": room.dataset.digest, "classes": list(room.dataset.classes),
            "label_ratio": settings.data.label_ratio, "split_seed": settings.data.split_seed,
            "split_digest": room.dataset.split.digest, "labelled": len(room.dataset.split.labelled),
            "unlabelled": len(room.dataset.split.unlabelled), "evaluated": len(room.dataset.split.evaluation),
            "evaluated_on": "validation subjects" if settings.data.validation_subjects else "test subset",
        },
        "protocol": protocol_words(settings.evaluation, settings.data.class_agnostic),
        "external_digest": external_digest(settings.evaluation),
        "seed": settings.seed,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "steps": {name: value["steps"] for name, value in results.items() if "steps" in value},
        "matched_steps": matched_steps(settings),
        "arms": arms,
        "final_arm": final if final in arms else next(reversed(arms), None),
        "pseudo_labels": {name: value for name, value in results.items() if "tau_pos" in value},
        "label_space": {
            name.removesuffix("_label_space"): value["label_space"]
            for name, value in results.items() if "label_space" in value
        },
    }  # fmt: skip
