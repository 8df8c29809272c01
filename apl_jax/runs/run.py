"""A whole run: stages in order, each skipped, resumed or begun, then the results file and the model."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from apl_jax import __version__
from apl_jax.data.dataset import open_dataset, open_truth
from apl_jax.data.features.sources import data_root
from apl_jax.data.files import read_bytes, write_bytes
from apl_jax.data.splits import write_split
from apl_jax.declarations import differences, fingerprint, to_dict
from apl_jax.detectors import build_detector, decoding_of
from apl_jax.devices import build_mesh, device_bytes, enable_compile_cache, host_bytes
from apl_jax.evaluation.external import check_protocol, external_digest, protocol_words, read_class_scores
from apl_jax.feeds.passes import BatchPlan
from apl_jax.inference.model import CARD, FOLDER, GENERATOR, PARAMETERS, ModelCard, write_card
from apl_jax.interruption import stop_if_requested
from apl_jax.runs.context import EVALUATION_TRUTH, UNLABELLED_TRUTH, RunContext
from apl_jax.runs.evidence import (
    MODEL,
    TEACHER,
    TRIAL_PRETRAIN,
    decided,
    final_stage,
    foreseen_stages,
    known_stages,
)
from apl_jax.runs.forecast import in_words, seconds_left, steps_of
from apl_jax.runs.ledger import Ledger, check_workdir
from apl_jax.runs.plans import PROPOSALS, check_split, generator_of, total_steps
from apl_jax.runs.settings import Settings, default_settings, plain_detector
from apl_jax.runs.stages import Stage, stage_fingerprint
from apl_jax.structs import DataFacts
from apl_jax.training.state import describe_parameters

BASELINES = ("supervised", "supervised_matched")  # stages that train the plain detector
# Training stages whose network is no detector of the run yet, or another one.
UNSCORED = ("pretrain", TRIAL_PRETRAIN, GENERATOR)
TRUTHS = {"evaluation": EVALUATION_TRUTH, "unlabelled": UNLABELLED_TRUTH}  # digests that results keep, by role
_EVALUATION, _LABEL_SPACE, _QUALITY = "_evaluation", "_label_space", "_quality"
log = logging.getLogger(__name__)


def open_run(settings: Settings, workdir: Path, shared: Path | None = None) -> RunContext:
    """Opens the data set and the devices for a run in ``workdir``; writes nothing. ``shared``: see
    :class:`~apl_jax.runs.ledger.Ledger`."""
    check_workdir(workdir)
    enable_compile_cache()
    # Impossible settings are refused before anything is written, and as far as can be before anything is read.
    check_protocol(settings.evaluation)
    known_stages(settings, DataFacts(1, 1, settings.data.max_length_t), {})
    if jax.process_index() == 0:
        log.info("reading the data in %s", data_root(settings.data))
    dataset = open_dataset(settings.data, settings.runtime.host_share * host_bytes())
    check_split(settings, dataset.split)
    mesh, data, runtime = build_mesh(), settings.data, settings.runtime
    edge_t = dataset.labelled.grids[0].offset
    context = RunContext(
        dataset=dataset,
        facts=DataFacts(dataset.labelled.width, len(dataset.classes), data.max_length_t, edge_t),
        truth=open_truth(data),
        scored_truth=open_truth(data, named=settings.evaluation.protocol == "external"),
        ledger=Ledger(workdir, shared),
        mesh=mesh,
        runtime=runtime,
        batches=BatchPlan(runtime.prediction_batch, data.max_length_t, data.length_multiple, runtime.read_threads),
        device_bytes=device_bytes(mesh),
        reads_unlabelled="semi_supervised" in settings.variants,
    )
    build_detector(settings.detector, context.facts)  # refuses what cannot be built for these data
    _note_protocol(settings, context)
    return context


def _note_protocol(settings: Settings, context: RunContext) -> None:
    """Refuses class scores that do not fit the evaluation videos, and says what else is to be known about them."""
    evaluation = settings.evaluation
    if evaluation.protocol == "strict":
        return
    classes = context.scored_truth.classes
    notes = read_class_scores(evaluation.external_scores, context.dataset.split.evaluation, classes).notes
    if getattr(decoding_of(settings.detector), "class_wise", False):
        notes += ("class-wise NMS leaves one action several segments; set `detector.decoding.class_wise=False`",)
    for note in notes if context.ledger.first_process else ():
        log.info("note: %s", note)


def run(settings: Settings, workdir: Path, command: str = "", shared: Path | None = None) -> dict[str, Any]:
    """Carries out every stage that is not done yet and returns the results, which ``results.json`` holds too.

    Running the same command again after any interruption ends in the same final state; after a change of settings,
    only the stages that depend on it are done again. ``command`` is kept in the results, for whoever reads them. Runs
    that are given the same folder ``shared`` do the stages that they have in common once.
    """
    context = open_run(settings, workdir, shared)
    ledger = context.ledger
    with ledger.locked():
        if ledger.first_process:
            log.info("%s", start_page(settings, context))
        ledger.write(workdir / "settings.json", to_dict(settings))
        if ledger.first_process:
            write_split(workdir / "split.json", context.dataset.split)
        fingerprints: dict[str, str] = {}
        results: dict[str, Any] = {}
        while todo := [s for s in known_stages(settings, context.facts, results) if s.name not in results]:
            foreseen = foreseen_stages(settings, context.facts, results)
            for stage in todo:
                fingerprints[stage.name] = stage_fingerprint(stage, context.digest, fingerprints)
                position = f"{len(results) + 1}/{len(foreseen)}"
                results[stage.name] = carry_out(stage, fingerprints[stage.name], context, position)
                if ledger.first_process:
                    _tell_what_is_left(stage, foreseen, results, context)
                if "steps" in results[stage.name] and stage.name not in UNSCORED and ledger.first_process:
                    card = describe_model(settings, context, results, stage.name)
                    write_card(ledger.folder(stage.name) / FOLDER, card)
        summary = summarise(settings, context, results) | {"command": command}
        if ledger.first_process:
            _write_final_model(context, summary["final_variant"])
        ledger.write(workdir / "results.json", summary)
    return summary


def _tell_what_is_left(stage: Stage, foreseen: list[Stage], results: Mapping[str, Any], context: RunContext) -> None:
    """After a training stage: how long the run will take from here."""
    labelled = len(context.dataset.labelled.ids)
    left = seconds_left(foreseen, results, context.facts, labelled) if steps_of(stage, labelled) else None
    if left:
        log.info("    %s", in_words(left))


def carry_out(stage: Stage, mark: str, context: RunContext, position: str) -> dict[str, Any]:
    """A stage's result: from the ledger where it is done under the fingerprint ``mark``, else by doing it."""
    with context.ledger.claimed(mark):
        return _carried_out(stage, mark, context, position)


def _carried_out(stage: Stage, mark: str, context: RunContext, position: str) -> dict[str, Any]:
    done = context.ledger.result(stage.name, mark)
    if done is not None:
        log.info("%s %s: done before", position, stage.name)
        return done
    stop_if_requested(f"before {stage.name}")
    folder = context.ledger.begin(stage.name, mark)
    started = time.perf_counter()
    result = stage.work(stage.handed, context.inputs(stage.reads), folder)
    result["seconds"] = round(time.perf_counter() - started, 2)
    context.ledger.finish(stage.name, mark, result)
    headline = _headline(result)
    log.info("%s %s: %.1f s%s", position, stage.name, result["seconds"], headline)
    for sentence in (*result.get("because", ()), *result.get("warnings", ())):
        log.info("    %s", sentence)
    return result


def _headline(result: Mapping[str, Any]) -> str:
    """The score of a stage for the log, where it has one."""
    if "not_scored" in result:
        return f", not scored: {result['not_scored']}"
    return f", average mAP {100 * result['average_map']:.2f}" if "average_map" in result else ""


def start_page(settings: Settings, context: RunContext) -> str:
    """Who runs, on what, with which settings unlike the defaults, which model, which shapes, and where to."""
    dataset = context.dataset
    shapes = "  ".join(f"{name} {list(context.table(name).shape)}" for name in ("labelled", "unlabelled", "evaluation"))
    changes = differences(default_settings(settings), settings)
    changed = "\n".join(f"    {name} = {value!r}" for name, value in changes.items())
    detector = build_detector(settings.detector, context.facts)
    params = {"detector": jax.eval_shape(lambda: detector.init(jax.random.key(0))[0])}
    notes = "".join(f"\n  note      {note}" for note in dataset.notes)
    foreseen = foreseen_stages(settings, context.facts, {})
    steps = sum(steps_of(stage, len(dataset.labelled.ids)) for stage in foreseen)
    return (
        f"apl_jax {__version__}, jax {jax.__version__}, process {jax.process_index() + 1} of {jax.process_count()}, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}\n"
        f"  data      {dataset.name}: {len(dataset.classes)} classes; {shapes}{notes}\n"
        f"  feed      {context.describe_feed()}\n"
        f"  split     {settings.data.label_ratio:.0%} labelled, seed {settings.data.split_seed}\n"
        f"  detector  {settings.detector.name}, method {settings.learning.method.name}, "
        f"selection {' -> '.join(settings.learning.selection.names)}\n"
        f"  work      {len(foreseen)} stages, {steps:,} training steps of one network, on crops of at most "
        f"{settings.data.max_length_t} rows (data.max_length_t); what is left is told after the first\n"
        f"  writes    {context.ledger.workdir.absolute()}\n"
        f"  settings  unlike the defaults:\n{changed}\n{describe_parameters(params)}"
    )


def describe_model(settings: Settings, context: RunContext, results: Mapping[str, Any], stage: str) -> ModelCard:
    """What ``model.json`` says about the model that a training stage left; ``results`` are those of earlier stages."""
    dataset, data = context.dataset, settings.data
    plain = stage in BASELINES
    rates = {record.fps for record in (*dataset.labelled.records, *dataset.unlabelled.records)}
    return ModelCard(
        stage=stage,
        detector=plain_detector(settings.detector) if plain else decided(settings, context.facts, results).detector,
        classes=dataset.classes,
        feature_width=context.facts.feature_width,
        features="rows" if dataset.windowed else "signal",
        grid=data.for_prediction(),
        longest_t=max(dataset.labelled.length_t, dataset.evaluation.length_t),
        fps=rates.pop() if len(rates) == 1 and min(rates) > 0 else None,
        standardizer=dataset.standardizer,
        prediction_batch=settings.runtime.prediction_batch,
        generator=generator_of(settings, context.facts),
        max_proposals=settings.learning.max_proposals if settings.learning.proposals else None,
        data=dataset.name,
        licence=dataset.licence,
    )


def _write_final_model(context: RunContext, stage: str | None) -> None:
    """The final variant's model as the run's own: ``model/``."""
    if stage is None:
        return
    source, target = context.ledger.folder(stage) / FOLDER, context.ledger.workdir / FOLDER
    for name in (PARAMETERS, CARD):
        write_bytes(target / name, read_bytes(source / name, "a file of the model that was trained"))


def _decisions(chosen: Settings, results: Mapping[str, Any]) -> dict[str, Any]:
    """What was decided, with its evidence, and the settings that followed; empty where nothing was."""
    made = {name: results[name] for name in (TEACHER, MODEL) if name in results}
    return made | {"learning": to_dict(chosen.learning), "detector": to_dict(chosen.detector)} if made else {}


def _about_data(settings: Settings, context: RunContext) -> dict[str, Any]:
    """Which data a run was made with, and how it was split."""
    dataset, data = context.dataset, settings.data
    return {
        "name": dataset.name, "variant": dataset.variant,
        "features": "synthetic" if dataset.synthetic else "read",
        "identity": dataset.identity, "digest": dataset.digest, "classes": list(dataset.classes),
        "label_ratio": data.label_ratio, "split_seed": data.split_seed,
        "split_digest": dataset.split.digest, "labelled": len(dataset.split.labelled),
        "unlabelled": len(dataset.split.unlabelled), "evaluated": len(dataset.split.evaluation),
        "excluded": {"count": len(dataset.excluded), "digest": fingerprint(list(dataset.excluded))},
        "length_tolerance": data.length_tolerance,
        "evaluated_on": "validation subjects" if data.validation_subjects else "test subset",
        "truth": {name: context.digest(read) for name, read in TRUTHS.items()},
    }  # fmt: skip


def summarise(settings: Settings, context: RunContext, results: Mapping[str, Any]) -> dict[str, Any]:
    """What ``results.json`` holds: variants with their mAP, pseudo-label quality per round, and where they come
    from."""
    variants = {n.removesuffix(_EVALUATION): value for n, value in results.items() if n.endswith(_EVALUATION)}
    students = [name for name in variants if name.startswith("self_train")]
    final = final_stage(results) or (students[-1] if students else next(reversed(variants), None))
    chosen = decided(settings, context.facts, results)
    trained = [name for name, result in results.items() if "steps" in result and name != TRIAL_PRETRAIN]
    return {
        "version": __version__,
        "settings_fingerprint": fingerprint(settings),
        "data": _about_data(settings, context),
        "detector": settings.detector.name,
        "method": settings.learning.method.name,
        "protocol": protocol_words(settings.evaluation, settings.data.class_agnostic),
        "external_digest": external_digest(settings.evaluation),
        "seed": settings.seed,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "steps": {name: results[name]["steps"] for name in trained},
        "matched_steps": total_steps(chosen, context.facts),
        "decisions": _decisions(chosen, results),
        "variants": variants,
        "final_variant": final,
        "average_map": variants[final]["average_map"] if final else None,
        "pseudo_labels": {
            name: value | {"quality": results[name + _QUALITY]["quality"]}
            for name, value in results.items() if "tau_pos" in value
        },
        "proposals": results.get(PROPOSALS, {}).get("source"),
        "label_space": {
            name.removesuffix(_LABEL_SPACE): value["label_space"]
            for name, value in results.items() if "label_space" in value
        },
    }  # fmt: skip
