"""``apl-jax thresholds``: the least score of each class that is worth believing."""

from __future__ import annotations

from argparse import Namespace

from apl_jax.cli.configuration import declare_plugin, load_plugins
from apl_jax.cli.parser import Command, Parser, number, path


def _declare(parser: Parser) -> None:
    parser.flag("workdir", "FOLDER", "folder of a finished run, or of a model", path, required=True)
    parser.flag("annotations", "FILE", "annotation JSON of the videos that were predicted", path, required=True)
    words = "prediction JSON that this model made of them, best with --min_score=0"
    parser.flag("predictions", "FILE", words, path, required=True)
    parser.flag("subset", "NAME", "look at the videos of this subset only", default="", shown="all videos")
    parser.flag("tiou", "NUMBER", "least overlap of a prediction with the instance it finds", number, default=0.5)
    parser.flag("out", "FILE", "JSON to write", path, required=True)
    declare_plugin(parser)


def _carry_out(arguments: Namespace) -> None:
    from apl_jax.evaluation.thresholds import write_thresholds
    from apl_jax.inference.prediction import choose_thresholds
    from apl_jax.report.predictions import print_thresholds

    load_plugins(arguments)
    chosen, classes = choose_thresholds(
        arguments.workdir, arguments.annotations, arguments.predictions, arguments.subset, arguments.tiou
    )
    write_thresholds(arguments.out, chosen.score, classes)
    print_thresholds(chosen, classes)


COMMAND = Command(
    "thresholds",
    "choose the least score of each class for predict",
    "Chooses, on annotated videos, the least score of each class with the best F1, for apl-jax predict --thresholds.",
    ("--workdir=runs/spsw --annotations=A.json --predictions=P.json --subset=validation --out=T.json",),
    _declare,
    _carry_out,
)
