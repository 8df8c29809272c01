"""The door: ``apl-jax run | evaluate | predict | thresholds ...``. ConfigDict becomes settings here, unknown below."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from apl_jax.declarations import from_dict
from apl_jax.settings import EvaluationSettings, Settings

if TYPE_CHECKING:
    from apl_jax.evaluation.average_precision import Instances

FLAGS = flags.FLAGS
_EXTERNAL_FLAGS = "external_scores", "external_top_k", "external_combination"  # of evaluate, as in the settings
USAGE = """usage:
  apl-jax inspect --config=configs/spsw.py [--config.data.root=FOLDER ...] [--workdir=FOLDER]
      tells what a data folder holds and all that is wrong with it, with a page of plots; fails where a run would
  apl-jax run --config=configs/spsw.py:apl --workdir=runs/spsw [--config.NAME=VALUE ...]
      trains, labels, trains again, evaluates; the same command resumes. Ends with a table, results.json, report.html
  apl-jax evaluate --annotations=FILE --predictions=FILE [--subset=test] [--tiou=0.3,0.5]
      scores any prediction JSON (ActivityNet's submission layout) against any annotation JSON, without a model;
      [--external_scores=FILE [--external_top_k=2] [--external_combination=sqrt] [--out=FILE]]: under the external
      protocol, with the classes of a video-level classifier
  apl-jax predict --workdir=runs/spsw --features=FILE|FOLDER [--out=FILE.json|FILE.csv] [--timelines=FILE.html|FOLDER]
      detects in new recordings with a finished run's model; [--stage=] [--min_score=0.1] [--top_k=] [--thresholds=FILE]
      [--annotations=FILE | --fps= --duration=]: their clocks, where training does not tell
  apl-jax thresholds --workdir=runs/spsw --annotations=FILE --predictions=FILE --out=FILE [--subset=] [--tiou=0.5]
      the least score of each class with the best F1, for predict: from predictions of --min_score=0
  apl-jax rehearse --config=configs/thumos14.py --config.data.root=FOLDER --out=FOLDER [--videos=N]
      writes features made up from a folder's annotations, to try out complete runs before there are real ones
  apl-jax prepare-hapt --source=FOLDER --out=FOLDER
      the folder that UCI distributes as "HAPT Data Set", made a data folder for configs/hapt.py
  apl-jax import-actionformer --checkpoint=FILE --config=configs/thumos14.py --workdir=NEW [--classes=FILE]
      the reference implementation's published weights as a run folder, for predict and export
  apl-jax export --workdir=runs/spsw --out=FOLDER [--length=ROWS] [--stage=]
      the model as StableHLO, with NMS inside, and an example that runs it without this package
  apl-jax report --workdir=runs/spsw
      writes report.html of a finished run again
  apl-jax compare runs/spsw_0 runs/spsw_1 ...
      one table of many finished runs: mean and deviation over those that differ in their seeds alone
"""


def to_settings(config: ConfigDict) -> Settings:
    """A config file's ConfigDict as settings. Raises ``ValueError`` naming an unknown or mistyped entry."""
    return from_dict(Settings, config.to_dict())


def _run(_: list[str]) -> None:
    import jax

    from apl_jax.runs.run import run
    from apl_jax.report import print_table, write_report

    if FLAGS.config is None or not FLAGS.workdir:
        raise ValueError("apl-jax run: needs --config=configs/<file>.py[:variant] and --workdir=<folder>")
    settings = to_settings(FLAGS.config)
    if settings.runtime.distributed == "auto":
        jax.distributed.initialize()
    workdir = Path(FLAGS.workdir).expanduser()
    results = run(settings, workdir, shlex.join(["apl-jax", *sys.argv[1:]]))
    if jax.process_index() == 0:
        print_table(results)
        page = write_report(workdir)
        print(f"\nresults   {workdir / 'results.json'}\nreport    {page}")


def _evaluate(_: list[str]) -> None:
    from apl_jax.data.annotations import read_annotations
    from apl_jax.evaluation.average_precision import average_precision, instances_from_annotations
    from apl_jax.evaluation.submission import read_submission
    from apl_jax.report import print_average_precision

    if not FLAGS.annotations or not FLAGS.predictions:
        raise ValueError("apl-jax evaluate: needs --annotations=<json> and --predictions=<json>")
    # Published annotation files have instances that overshoot their videos; scoring keeps them as they stand.
    annotations = read_annotations(FLAGS.annotations, strict=False)
    records = [r for r in annotations.videos.values() if not FLAGS.subset or r.subset == FLAGS.subset.lower()]
    if not records:
        subsets = sorted({r.subset for r in annotations.videos.values()})
        raise ValueError(f"--subset: found {FLAGS.subset!r}, expected one of {', '.join(subsets)}")
    # The external protocol does not look at labels, which may be those of a class-agnostic detector.
    names = None if any(FLAGS[name].value is not None for name in _EXTERNAL_FLAGS) else annotations.classes
    submission = read_submission(FLAGS.predictions, [r.id for r in records], names)
    for note in (
        *annotations.notes,
        *(f"predictions name an unknown class {label!r}: left out" for label in submission.unknown_labels),
        *(f"predictions name a video outside the truth, {video!r}: left out" for video in submission.unknown_videos),
    ):
        print(f"note: {note}", file=sys.stderr)
    predictions = _under_protocol(submission.instances, [r.id for r in records], annotations.classes)
    tiou = tuple(float(x) for x in FLAGS.tiou)
    result = average_precision(instances_from_annotations(records), predictions, tiou, len(annotations.classes), (1, 5))
    print_average_precision(result.as_dict(annotations.classes))


def _under_protocol(predictions: Instances, videos: Sequence[str], classes: Sequence[str]) -> Instances:
    """Predictions as they are, or under the external protocol where flags ask for it; these go to ``--out`` too."""
    from apl_jax.evaluation.external import protocol_words, with_external_classes
    from apl_jax.evaluation.submission import write_submission

    given = {name: FLAGS[name].value for name in _EXTERNAL_FLAGS if FLAGS[name].value is not None}
    if not given:
        return predictions
    evaluation: EvaluationSettings = from_dict(EvaluationSettings, {"protocol": "external", **given}, "evaluate")
    fused, notes = with_external_classes(predictions, videos, classes, evaluation)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if out := _path("out"):
        write_submission(out, fused, videos, classes)
    print(f"protocol  {protocol_words(evaluation)}")
    return fused


def _predict(_: list[str]) -> None:
    from apl_jax.inference.prediction import Request, predict, write_predictions
    from apl_jax.report.predictions import print_surest, write_timelines

    if not FLAGS.workdir or not FLAGS.features:
        raise ValueError("apl-jax predict: needs --workdir=<folder of a finished run> and --features=<file or folder>")
    request = Request(
        Path(FLAGS.features).expanduser(), FLAGS.stage, _path("annotations"), FLAGS.fps, FLAGS.duration,
        _path("thresholds"), FLAGS.min_score, FLAGS.top_k, _path("out"), _path("timelines"),
    )  # fmt: skip
    found = predict(Path(FLAGS.workdir).expanduser(), request)
    if request.out:
        write_predictions(request.out, found)
        print(f"predictions  {request.out}  ({len(found.instances):,} instances in {len(found.records):,} videos)")
    else:
        print_surest(found.instances, found.records, found.classes, 10)
    if request.timelines:
        title = f"{found.stage} of {FLAGS.workdir}"
        page = write_timelines(request.timelines, found.instances, found.records, found.classes, title)
        print(f"timelines    {page}")
    if any(len(record.labels) for record in found.records):
        print("note: these videos are annotated; apl-jax evaluate scores predictions of --min_score=0", file=sys.stderr)


def _thresholds(_: list[str]) -> None:
    from apl_jax.evaluation.thresholds import write_thresholds
    from apl_jax.inference.prediction import choose_thresholds
    from apl_jax.report.predictions import print_thresholds

    workdir, annotations, predictions, out = (_path(name) for name in ("workdir", "annotations", "predictions", "out"))
    tiou = FLAGS.tiou if FLAGS["tiou"].present else ["0.5"]
    if workdir is None or annotations is None or predictions is None or out is None or len(tiou) != 1:
        raise ValueError("apl-jax thresholds: needs --workdir, --annotations, --predictions, --out, one --tiou")
    chosen, classes = choose_thresholds(workdir, annotations, predictions, FLAGS.subset, float(tiou[0]))
    write_thresholds(out, chosen.score, classes)
    print_thresholds(chosen, classes)


def _import_actionformer(_: list[str]) -> None:
    from apl_jax.interop.import_actionformer import import_actionformer

    checkpoint, workdir = _path("checkpoint"), _path("workdir")
    if checkpoint is None or workdir is None or FLAGS.config is None:
        raise ValueError(
            "apl-jax import-actionformer: needs --checkpoint=<file>, --config=configs/<file>.py with the settings of "
            "its network, and --workdir=<new folder>"
        )
    card = import_actionformer(checkpoint, to_settings(FLAGS.config), workdir, _path("classes"))
    print(f"{len(card['classes'])} classes, {card['feature_width']} features per row")
    print(f"model     {workdir}\nnext      apl-jax predict --workdir={workdir} --features=<file or folder>")


def _export(_: list[str]) -> None:
    from apl_jax.inference.export import EXAMPLE, export_model

    workdir, out = _path("workdir"), _path("out")
    if workdir is None or out is None:
        raise ValueError("apl-jax export: needs --workdir=<folder of a finished run> and --out=<folder>")
    card = export_model(workdir, out, FLAGS.length, FLAGS.stage)
    print(f"exported  {out}  ({card['stage']}, up to {card['length']} feature rows, {', '.join(card['platforms'])})")
    print(f"next      python {out / EXAMPLE} <recording.npy> <frames per second>")


def _path(flag: str) -> Path | None:
    """The path that a flag gives, if any."""
    value: str = getattr(FLAGS, flag)
    return Path(value).expanduser() if value else None


def _inspect(_: list[str]) -> int:
    from tqdm import tqdm

    from apl_jax.inspection.inspection import inspect_dataset
    from apl_jax.report.inspection_page import default_folder, next_step, terminal_text, write_inspection

    settings = Settings() if FLAGS.config is None else to_settings(FLAGS.config)
    hidden = not settings.runtime.progress
    found = inspect_dataset(settings, lambda videos: tqdm(videos, "reading features", unit="video", disable=hidden))
    print(terminal_text(found))
    folder = _path("workdir") or default_folder(found.name)
    print(f"\npage   {write_inspection(found, folder, shlex.join(['apl-jax', *sys.argv[1:]]))}")
    print(next_step(found, sys.argv[2:]))
    return 1 if found.errors else 0


def _report(_: list[str]) -> None:
    from apl_jax.report import write_report

    if not FLAGS.workdir:
        raise ValueError("apl-jax report: needs --workdir=<folder of a finished run>")
    print(write_report(Path(FLAGS.workdir).expanduser()))


def _compare(folders: list[str]) -> None:
    from apl_jax.report.compare import comparison

    if not folders:
        raise ValueError("apl-jax compare: needs the folders of finished runs, such as runs/spsw_*")
    print(comparison([Path(folder).expanduser() for folder in folders]))


def _prepare_hapt(_: list[str]) -> None:
    from apl_jax.interop.hapt import prepare_hapt

    source, out = _path("source"), _path("out")
    if source is None or out is None:
        raise ValueError("apl-jax prepare-hapt: needs --source=<UCI's folder 'HAPT Data Set'> and --out=<folder>")
    count = prepare_hapt(source, out)
    print(f"prepared  {out}  ({count} recordings)\nnext      --config=configs/hapt.py --config.data.root={out}")


def _rehearse(_: list[str]) -> None:
    from tqdm import tqdm

    from apl_jax.data.synthetic import write_rehearsal

    out = _path("out")
    if FLAGS.config is None or out is None:
        raise ValueError("apl-jax rehearse: needs --config=configs/<file>.py[:variant] and --out=<folder>")
    settings = to_settings(FLAGS.config)
    follow = lambda videos: tqdm(videos, "making features", unit="video", disable=not settings.runtime.progress)
    count = write_rehearsal(settings.data, out, FLAGS.videos, follow)
    where = f"--config.data.root={out} --config.data.rehearsal.enabled=False"
    print(f"rehearsal  {out}  ({count:,} videos; a run on it: {where})")


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "inspect": _inspect, "run": _run, "evaluate": _evaluate, "predict": _predict, "thresholds": _thresholds,
    "import-actionformer": _import_actionformer, "export": _export, "report": _report, "compare": _compare,
    "rehearse": _rehearse, "prepare-hapt": _prepare_hapt,
}  # fmt: skip


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "config file, with :variant", lock_config=True)
    flags.DEFINE_string("workdir", "", "folder of the run; to predict and export also of a stage or checkpoint in it")
    flags.DEFINE_string("annotations", "", "annotation JSON")
    flags.DEFINE_string("predictions", "", "prediction JSON")
    flags.DEFINE_string("features", "", "features to predict on: a file, or a folder of them")
    flags.DEFINE_string("stage", "", "stage whose parameters predict; empty = that of the final arm")
    flags.DEFINE_string("out", "", "file to write: predictions (.json, .csv), thresholds (.json); rehearse: folder")
    flags.DEFINE_string("source", "", "prepare-hapt: folder as UCI distributes it")
    flags.DEFINE_string("checkpoint", "", "checkpoint of the reference implementation")
    flags.DEFINE_string("classes", "", "text file with the classes of a checkpoint, one per line, in their order")
    flags.DEFINE_integer("length", None, "feature rows that the exported program takes")
    flags.DEFINE_string("thresholds", "", "JSON with the least score of each class")
    flags.DEFINE_string("timelines", "", "page (.html) or folder of pictures to draw")
    flags.DEFINE_float("min_score", 0.1, "least score of a prediction whose class has no threshold")
    flags.DEFINE_integer("top_k", None, "at most so many predictions per video")
    flags.DEFINE_integer("videos", None, "rehearse: features of so many videos only", lower_bound=1)
    flags.DEFINE_string("external_scores", None, "evaluate: JSON or CSV with a probability per video and class")
    flags.DEFINE_integer("external_top_k", None, "evaluate: classes of a video that each of its segments is given")
    flags.DEFINE_string("external_combination", None, "evaluate: sqrt or product of class and segment score")
    flags.DEFINE_float("fps", None, "samples or frames per second of the features' recordings")
    flags.DEFINE_float("duration", None, "length of the recording, seconds")
    flags.DEFINE_string("subset", "", "score only the videos of this subset; empty = all")
    flags.DEFINE_list("tiou", ["0.3", "0.4", "0.5", "0.6", "0.7"], "tIoU thresholds")


def _set_up_log() -> None:
    """Our own lines plain, those of libraries only when something is wrong (orbax tells its life story)."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    # A failed write surfaces once, as CheckpointError; asyncio and orbax's storage would repeat it for every array.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _quiet_closed_loop
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours = logging.getLogger("apl_jax")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)


def _quiet_closed_loop(problem: Any) -> None:
    if "Event loop is closed" not in str(problem.exc_value):
        sys.__unraisablehook__(problem)


def _main(arguments: list[str]) -> int:
    from apl_jax.data.files import DataError
    from apl_jax.training.loop import Preempted

    _set_up_log()
    command, rest = arguments[1], arguments[2:]
    if rest and command != "compare":
        print(
            f"apl-jax {command}: found the stray argument {rest[0]!r}; flags begin with --\n\n{USAGE}", file=sys.stderr
        )
        return 2
    try:
        return COMMANDS[command](rest) or 0
    except Preempted as stop:
        print(f"apl-jax: {stop}", file=sys.stderr)
        return 0
    except KeyboardInterrupt:
        print("apl-jax: interrupted. The same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    except (DataError, ValueError, OSError, RuntimeError) as error:
        print(f"apl-jax: {error}", file=sys.stderr)
        return 1


def main() -> None:
    """Entry point of the ``apl-jax`` command."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        known = len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help")
        print("" if known else f"apl-jax: no command {sys.argv[1]!r}\n", USAGE, sep="", file=sys.stderr)
        sys.exit(0 if known and len(sys.argv) > 1 else 2)
    _define_flags()
    app.run(_main)


if __name__ == "__main__":
    main()
