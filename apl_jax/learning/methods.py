"""The methods of both papers, each a list of passes and terms.

To add one: write a settings class, a builder that returns a :class:`~apl_jax.learning.method.Method`, and a line that
registers it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from apl_jax.declarations import Checked, Choice, SettingsError, choice, number, numbers, one_of
from apl_jax.learning.contrast import ClassContrastSettings, StudentContrastSettings, class_contrast
from apl_jax.learning.detection import detection
from apl_jax.learning.icd import IcdPairSettings, icd_pairs
from apl_jax.learning.method import (
    LABELLED,
    PSEUDO_LABELLED,
    UNLABELLED,
    Method,
    MethodContext,
    Pass,
    Term,
    TermInputs,
    register_method,
)
from apl_jax.learning.nontarget import (
    NonTargetTermSettings,
    detection_of,
    labelled_negatives,
    non_target_classes,
    silenced_negatives,
)
from apl_jax.registry import METHODS


@dataclass(frozen=True)
class SupervisedSettings(Checked):
    """The detector on labelled videos, and what APL trains beside it (APL supplement A)."""

    contrast: ClassContrastSettings = field(default_factory=ClassContrastSettings)
    icd: IcdPairSettings = field(default_factory=IcdPairSettings)


@dataclass(frozen=True)
class AplSettings(Checked):
    """APL's self-training (Eq. 12)."""

    unlabelled_weight: float = number(2.0, at_least=0, at_most=1e6)  # beta
    contrast: StudentContrastSettings = field(default_factory=StudentContrastSettings)
    icd: IcdPairSettings = field(default_factory=IcdPairSettings)


@dataclass(frozen=True)
class NonTargetSettings(NonTargetTermSettings):
    """Hybrid positive-negative learning (paper 002, Eq. 12)."""

    unlabelled_weight: float = number(1.0, at_least=0, at_most=1e6)  # alpha, Eq. 1
    # whose they are: the network's own at each step | its averaged weights' | those of the pseudo_label stage (C8)
    pseudo_labels: str = one_of("online", "averaged", "teacher")


@dataclass(frozen=True)
class AplNonTargetSettings(NonTargetTermSettings):
    """Both papers at once."""

    unlabelled_weight: float = number(2.0, at_least=0, at_most=1e6)  # beta of APL's Eq. 12
    # of negative learning under what selection left aside
    silenced_weight: float = number(0.5, at_least=0, at_most=1e6)
    contrast: StudentContrastSettings = field(default_factory=StudentContrastSettings)
    icd: IcdPairSettings = field(default_factory=IcdPairSettings)


@dataclass(frozen=True)
class AutoSettings(Checked):
    """Self-training whose choices are made by cross-fitting on the labelled recordings of the user's own data.

    Decided are: pre-training or none, the number of steps, whether ALQA is of use or the plain detector labels and
    learns, the threshold of pseudo labels, whether ICD is asked and at which similarities, and which of plain detector,
    teacher and student stays. All of it is evidence of networks on
    labelled recordings that they have not seen (runs/cross_fit_stage.py, runs/decision_stage.py).
    """

    student: Choice = choice(METHODS, "apl")  # what the student learns by
    folds: int = number(4, at_least=2, at_most=1000)  # of the labelled recordings, at most
    # whose average labels, and whose average stays (detectors/ensemble.py); so many times one costs training and
    # prediction
    networks: int = number(4, at_least=1, at_most=100)
    # numbers of steps that are tried, as multiples of learning.supervised.steps, rising; the last one says how long
    # cross-fitting takes, the others cost nothing
    lengths: tuple[float, ...] = numbers((0.5, 1.0), above=0, at_most=1000)
    # beta of the F-score whose best threshold selects labels: below 1, a wrong label counts more than a missed one,
    # which the ignored candidates around the threshold make harmless
    recall_weight: float = number(0.5, above=0, at_most=100)
    # share of the held-out instances that may have no candidate: those are taught as background
    background_share: float = number(0.1, at_least=0, at_most=1)
    # least confidence of a candidate all the same: far below, there are detections nearly everywhere
    least_candidate: float = number(0.05, at_least=0, at_most=1)
    # largest p-value (sign test on held-out instances) at which another way replaces the plain one, which is: no
    # pre-training, all steps, the student
    doubt: float = number(0.1, above=0, at_most=0.5)
    least_auc: float = number(0.65, at_least=0.5, at_most=1)  # of ICD's similarity, to be asked at all
    # share of right labels that dropping by similarity may cost, and of wrong detections that promoting may let in
    lost_share: float = number(0.05, at_least=0, at_most=1)
    wrong_share: float = number(0.1, at_least=0, at_most=1)
    # largest tIoU of a promoted detection with a surer label of its class (learning.selection.icd.promote_overlap)
    promote_overlap: float = number(0.1, at_least=0, at_most=1)
    # right held-out detections that a threshold is chosen from, and right and wrong ones that ICD is judged by
    least_detections: int = number(10, at_least=1, at_most=1_000_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
            raise SettingsError(f"`lengths`: found {self.lengths}, expected rising numbers, one at least")


def plain_supervised() -> SupervisedSettings:
    """The detector's own loss on labelled videos, and nothing else: the baseline."""
    return SupervisedSettings(ClassContrastSettings(weight=0.0), IcdPairSettings(enabled=False))


def build_supervised(settings: SupervisedSettings, context: MethodContext) -> Method:
    """The detector on labelled videos, and ICD on their instances beside it."""
    terms = {
        detection_of("labelled"): detection(context, "labelled"),
        **_contrast(context, settings.contrast, "labelled"),
        **_icd(context, settings.icd),
    }
    return Method({"labelled": Pass(LABELLED)}, terms, teacher=False)


def build_apl(settings: AplSettings, context: MethodContext) -> Method:
    """L = L_s + beta L_u on labelled and pseudo-labelled videos together (APL Eq. 12)."""
    passes = {"labelled": Pass(LABELLED), "unlabelled": Pass(PSEUDO_LABELLED)}
    return Method(passes, _apl_terms(settings, context))


def build_nontarget(settings: NonTargetSettings, context: MethodContext) -> Method:
    """Pseudo labels, and below them positive and negative classes, on any detector.

    With both weights 0 and without ``labelled_negative`` it is the target-only baseline (Eq. 1). ``online`` and
    ``averaged`` labels are made within the step: there is no labelling stage then.
    """
    s = settings
    passes = {"labelled": Pass(LABELLED), "unlabelled": Pass(UNLABELLED)}
    labeller = "unlabelled"
    if s.pseudo_labels == "teacher":
        passes["unlabelled"] = Pass(PSEUDO_LABELLED)
    elif s.pseudo_labels == "averaged":  # on the same view, without dropout
        labeller = "labeller"
        passes[labeller] = Pass(UNLABELLED, same_view_as="unlabelled", ema=True, dropout=False)
    own: dict[str, Any] = {}
    if s.pseudo_labels != "teacher":
        annotate = lambda inputs: online_targets(context, inputs, labeller)
        own = {"targets": annotate, "needs": (labeller,)}
    terms = {
        detection_of("labelled"): detection(context, "labelled"),
        detection_of("unlabelled"): detection(context, "unlabelled", weight=s.unlabelled_weight, **own),
        "non_target": non_target_classes(context, s, "unlabelled", s.unlabelled_weight, labeller),
    }
    if s.labelled_negative:
        terms["labelled_negative"] = labelled_negatives(context, "labelled")
    return Method(passes, terms)


def online_targets(context: MethodContext, inputs: TermInputs, labeller: str) -> Any:
    """The predictions of a pass as pseudo labels within the step (spec C8)."""
    return context.detector.annotate(inputs.passes[labeller].outputs)


def build_apl_nontarget(settings: AplNonTargetSettings, context: MethodContext) -> Method:
    """APL's self-training, and non-target classes where its selection is sure and where it is not.

    Each point of an unlabelled video falls in one of three regions, and what is known there decides what it learns:

    * *Selected* (kept or promoted by ALQA and ICD): location and class are trusted. The detector's loss with the joint
      soft label, as in APL, and positive and negative classes: the target is likely right, so what is excluded is
      excluded safely, and a close second class is not pushed down by the focal loss alone.
    * *Left aside* (dropped by ICD, or candidates below tau_pos): something may be there, but neither its class nor its
      borders are trusted; APL's detection loss is silent there (A14). Negative learning only. Positive learning would
      raise classes of a point that may be background, which the sigmoids cannot say.
    * *Background*: as in APL.

    Measured (docs/results), this is behind APL alone on spsw, with 4 classes, and on average ahead of it on HAPT, with
    12: where a target is wrong, the true class is nearly always among the negatives.
    """
    s, beta = settings, settings.unlabelled_weight
    terms = _apl_terms(AplSettings(beta, s.contrast, s.icd), context)
    terms["non_target"] = non_target_classes(context, s, "unlabelled", beta, foreground_only=True)
    terms["silenced_negative"] = silenced_negatives(context, s, "unlabelled", beta * s.silenced_weight)
    if s.labelled_negative:
        terms["labelled_negative"] = labelled_negatives(context, "labelled")
    return Method({"labelled": Pass(LABELLED), "unlabelled": Pass(PSEUDO_LABELLED)}, terms)


def build_auto(settings: AutoSettings, context: MethodContext) -> Method:
    """The student's method, with the choices around it left to evidence."""
    student = METHODS[settings.student.name].build(settings.student.settings, context)
    if PSEUDO_LABELLED not in student.videos:
        raise SettingsError(
            f"`student`: found {settings.student.name!r}, which learns from no pseudo labels; expected one that does, "
            "for auto decides which labels are made. Try: `apl`."
        )
    return student._replace(evidence=settings)


def _apl_terms(settings: AplSettings, context: MethodContext) -> dict[str, Term]:
    beta, contrast = settings.unlabelled_weight, settings.contrast
    return {
        detection_of("labelled"): detection(context, "labelled"),
        detection_of("unlabelled"): detection(context, "unlabelled", weight=beta),
        **_contrast(context, contrast, "labelled"),
        **(_contrast(context, contrast, "unlabelled", beta) if contrast.unlabelled else {}),
        **_icd(context, settings.icd),
    }


def _contrast(
    context: MethodContext, settings: ClassContrastSettings, seen: str, weight: float = 1.0
) -> dict[str, Term]:
    if settings.weight == 0:
        return {}
    return {f"contrast_{seen}": class_contrast(context, settings, seen, weight * settings.weight)}


def _icd(context: MethodContext, settings: IcdPairSettings) -> dict[str, Term]:
    return {"icd_pairs": icd_pairs(context, settings)} if settings.enabled else {}


register_method("supervised", SupervisedSettings, build_supervised)
register_method("apl", AplSettings, build_apl)
register_method("nontarget", NonTargetSettings, build_nontarget)
register_method("apl_nontarget", AplNonTargetSettings, build_apl_nontarget)
register_method("auto", AutoSettings, build_auto)
