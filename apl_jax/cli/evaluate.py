"""``apl-jax evaluate``: a file of predictions, or of proposals, scored against an annotation file, without a model."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from apl_jax.cli.parser import PROGRAM, Command, Parser, UsageError, numbers, path, whole_number
from apl_jax.text import say

if TYPE_CHECKING:
    from apl_jax.data.annotations import Annotations, VideoRecord
    from apl_jax.evaluation.average_precision import Instances

TIOU = (0.3, 0.4, 0.5, 0.6, 0.7)
RECALL_AT = (1, 5)
_EXTERNAL = ("external_scores", "external_top_k", "external_combination")  # as in the evaluation settings


def _declare(parser: Parser) -> None:
    parser.flag("annotations", "PATH", "annotation JSON, or the folder of a data set", path, required=True)
    words = "predictions: JSON in the layout of ActivityNet's submissions, or a CSV as apl-jax predict writes it"
    parser.flag("predictions", "FILE", words, path, required=True)
    parser.flag("subset", "NAME", "score the videos of this subset only", default="", shown="all videos")
    shown = f"{','.join(map(str, TIOU))}; with --proposals 0.5:0.05:0.95"
    parser.flag("tiou", "NUMBERS", "tIoU thresholds, or first:step:last", numbers, shown=shown)
    parser.switch("proposals", "score segments without looking at classes: average recall, and the area under it")
    words = "JSON or CSV with a probability per video and class: scores under the external protocol"
    parser.flag("external_scores", "FILE", words)
    parser.flag("external_top_k", "K", "classes of a video that each of its segments is given", whole_number, shown="2")
    words = "how class and segment score are combined"
    parser.flag("external_combination", "sqrt|product", words, shown="sqrt")
    words = "what a class of EPIC-KITCHENS-100's tables is"
    parser.flag("task", "verb|noun|action", words, default="", shown="verb")
    parser.flag("out", "FILE", "JSON to write the predictions to that the external protocol makes", path)


def _carry_out(arguments: Namespace) -> None:
    from apl_jax.data.files import refusal
    from apl_jax.data.truth import read_truth
    from apl_jax.evaluation.scoring import coverage_notes, score, why_not_scored
    from apl_jax.evaluation.submission import read_submission
    from apl_jax.report import print_average_precision

    if arguments.proposals and arguments.external_scores:
        expected = "one of them: of proposals, classes are not looked at"
        raise UsageError(f"{PROGRAM} evaluate: found --proposals and --external_scores, expected {expected}")
    external = {name: value for name in _EXTERNAL if (value := getattr(arguments, name)) is not None}
    if (external or arguments.out) and not arguments.external_scores:
        given = [f"--{name}" for name in (*external, "out") if getattr(arguments, name) is not None]
        raise UsageError(f"{PROGRAM} evaluate: found {', '.join(given)}, expected --external_scores=<file> with it")
    annotations = read_truth(arguments.annotations, task=arguments.task)
    records = _choose_videos(annotations, arguments.subset)
    if reason := why_not_scored(records):
        raise refusal(f"{arguments.annotations}", reason, "instances to score against", "a file with annotations")
    # The external protocol does not look at labels, which may be those of a class-agnostic detector; proposals may have
    # none.
    names = None if external or arguments.proposals else annotations.classes
    submission = read_submission(arguments.predictions, [r.id for r in records], names)
    for note in (*annotations.notes, *coverage_notes(records, submission)):
        say(f"note: {note}", error=True)
    predictions = submission.instances
    if arguments.proposals:
        _score_proposals(records, predictions, arguments.tiou)
        return
    if external:
        predictions = _with_external_classes(predictions, records, annotations.classes, external, arguments)
    tiou = arguments.tiou or TIOU
    print_average_precision(score(records, predictions, annotations.classes, tiou, RECALL_AT))


def _score_proposals(records: Sequence[VideoRecord], proposals: Instances, tiou: Sequence[float] | None) -> None:
    """Prints the average recall of proposals at ``tiou``, by default ActivityNet's thresholds."""
    from apl_jax.evaluation.proposal_recall import TIOU as ACTIVITYNET
    from apl_jax.evaluation.proposal_recall import proposal_recall
    from apl_jax.evaluation.scoring import judged
    from apl_jax.report import print_proposal_recall

    print_proposal_recall(proposal_recall(*judged(records, proposals), tiou or ACTIVITYNET).as_dict())


def _choose_videos(annotations: Annotations, subset: str) -> list[VideoRecord]:
    """The videos of a subset, or all."""
    from apl_jax.data.files import refusal

    records = [r for r in annotations.videos.values() if not subset or r.subset == subset.lower()]
    if not records:
        subsets = sorted({r.subset for r in annotations.videos.values()})
        raise refusal("`subset`", repr(subset), f"one of {', '.join(subsets)}", "one of these, or none")
    return records


def _with_external_classes(
    predictions: Instances, records: Sequence[VideoRecord], classes: Sequence[str], external: dict[str, Any],
    arguments: Namespace,
) -> Instances:  # fmt: skip
    """Predictions under the external protocol; they go to ``--out`` too."""
    from apl_jax.declarations import from_dict
    from apl_jax.evaluation.external import protocol_words, with_external_classes
    from apl_jax.evaluation.submission import write_submission
    from apl_jax.settings import EvaluationSettings

    evaluation: EvaluationSettings = from_dict(EvaluationSettings, {"protocol": "external", **external})
    videos = [record.id for record in records]
    fused, notes = with_external_classes(predictions, videos, classes, evaluation)
    for note in notes:
        say(f"note: {note}", error=True)
    if arguments.out:
        write_submission(arguments.out, fused, videos, classes)
    say(f"protocol  {protocol_words(evaluation)}")
    return fused


COMMAND = Command(
    "evaluate",
    "score a prediction file against an annotation file",
    "Scores any prediction JSON against any annotation JSON, without a model: average precision and recall. With "
    "--proposals: average recall at 1, 5, 10 and 100 proposals per video, and the area under it (AUC).",
    (
        "--annotations=A.json --predictions=P.json --subset=test --tiou=0.3,0.5",
        "--annotations=A.json --predictions=P.json --subset=test --proposals",
        "--annotations=A.json --predictions=P.json --external_scores=classes.json --out=named.json",
    ),
    _declare,
    _carry_out,
)
