"""``apl-jax predict``: detections in new recordings."""

from __future__ import annotations

from argparse import Namespace

from apl_jax.cli.configuration import declare_plugin, load_plugins
from apl_jax.cli.parser import Command, Parser, number, path, whole_number
from apl_jax.text import counted, say

MIN_SCORE = 0.1
_SHOWN = 10  # predictions on the terminal


def _declare(parser: Parser) -> None:
    parser.flag("workdir", "FOLDER", "folder of a finished run, or of a model", path, required=True)
    parser.flag("features", "PATH", "features to predict on: a file, or a folder of them", path, required=True)
    words = "training stage whose model predicts, in the folder of a run"
    parser.flag("stage", "NAME", words, default="", shown="that of the final variant")
    words = "annotation JSON with frame rates and durations of the videos; its instances are drawn, not used"
    parser.flag("annotations", "FILE", words, path)
    words = "subset of the annotations whose videos are predicted, such as test"
    parser.flag("subset", "NAME", words, default="", shown="all videos")
    words = "samples or frames per second of the recordings"
    parser.flag("fps", "RATE", words, number, shown="that of training, if it had one")
    words = "length of the recording in seconds, of a single one"
    parser.flag("duration", "SECONDS", words, number, shown="what its features cover")
    words = "JSON with the least score of each class, as apl-jax thresholds writes it"
    parser.flag("thresholds", "FILE", words, path)
    words = "least score of a prediction whose class has no threshold"
    parser.flag("min_score", "SCORE", words, number, default=MIN_SCORE)
    parser.flag("top_k", "K", "at most so many predictions per video", whole_number, shown="no limit")
    words = "JSON or CSV with proposals of the recordings, for a model that refines them and has no generator"
    parser.flag("proposals", "FILE", words, path)
    parser.flag("out", "FILE", "predictions to write, .json or .csv", path, shown="the surest on the terminal")
    parser.flag("timelines", "PATH", "page to draw (.html), or folder for a picture of each video", path)
    declare_plugin(parser)


def _carry_out(arguments: Namespace) -> None:
    from apl_jax.inference.prediction import Request, predict, write_predictions
    from apl_jax.report.predictions import print_surest, write_timelines

    load_plugins(arguments)
    request = Request(
        arguments.features, arguments.stage, arguments.annotations, arguments.fps, arguments.duration,
        arguments.thresholds, arguments.min_score, arguments.top_k, arguments.out, arguments.timelines,
        arguments.subset, arguments.proposals,
    )  # fmt: skip
    found = predict(arguments.workdir, request)
    instances, videos = counted(len(found.instances), "instance"), counted(len(found.records), "video")
    if request.out:
        write_predictions(request.out, found)
        say(f"predictions  {request.out}  ({instances} in {videos})")
    else:
        print_surest(found.instances, found.records, found.classes, _SHOWN)
    if request.timelines:
        title = f"{found.stage} of {arguments.workdir}"
        page = write_timelines(request.timelines, found.instances, found.records, found.classes, title)
        say(f"timelines    {page}")
    if any(len(record.labels) for record in found.records):
        say("note: these videos are annotated; apl-jax evaluate scores predictions of --min_score=0", error=True)


COMMAND = Command(
    "predict",
    "detect in new recordings with a trained model",
    "Detects in new recordings of any length, annotated or not, with the model of a finished run.",
    (
        "--workdir=runs/spsw --features=NEW --fps=50 --out=found.csv --timelines=found.html",
        "--workdir=runs/spsw/model --features=walk.npy --fps=100 --min_score=0.3",
    ),
    _declare,
    _carry_out,
)
