"""Learning from non-target classes as terms (paper 002, III-F, Eq. 12; spec 7.B).

Labelled snippets exclude every other class. Unlabelled ones learn, besides their pseudo label, from the positive and
negative classes of the snippet's own distribution. Where background is a class of the head (SPOT), every snippet has a
distribution worth dividing; where it is not (ActionFormer's sigmoids), a point has one only if its pseudo label calls
it foreground (C11): far from any action all scores are low, and their ratios say nothing. Where pseudo labels are the
teacher's, a snippet's own surest class may be another than its label's; then both count as target and neither is
excluded. On sigmoids the classes are divided as if an action were there (``given_action``): background is only what the
surest class leaves, and below a score of .5 it would be the target, and the action itself one of the negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

from apl_jax.declarations import number, one_of
from apl_jax.detectors.base import ClassDistribution, DetectionLoss, PointTargets
from apl_jax.learning.class_division import (
    DivisionSettings,
    complementary_loss,
    divide_classes,
    labelled_negative_loss,
    non_target_losses,
    rankable_probs,
    soft_label_loss,
)
from apl_jax.learning.method import MethodContext, Metrics, Term, TermInputs, TermValue
from apl_jax.ops.masking import masked_mean
from apl_jax.structs import Array


@dataclass(frozen=True)
class NonTargetTermSettings(DivisionSettings):
    """Weights of the terms (paper 002, Eq. 12; Tables II and V)."""

    negative_weight: float = number(1.0, at_least=0, at_most=1e6)  # of l_neg; 0 leaves it out, as rows of Table II do
    positive_weight: float = number(1.0, at_least=0, at_most=1e6)  # of l_pos
    labelled_negative: bool = True  # negative learning on labelled snippets too (III-F)
    rival: str = one_of("none", "soft_label", "complementary")  # Table V, in place of positive and negative classes
    sharpening: float = number(0.5, above=0, at_most=1e3)  # temperature of the soft label (C12)


def trusted_mask(context: MethodContext, class_probs: ClassDistribution, points: PointTargets) -> Array:
    """Snippets ``[B, S]`` whose class distribution is worth dividing."""
    background = context.detector.facts.background_class
    return class_probs.mask & (~points.silent_mask if background else points.foreground_mask)


def labelled_negatives(context: MethodContext, seen: str) -> Term:
    """Negative learning on the labelled pass ``seen``: all classes but the annotated one (III-F)."""

    def loss(inputs: TermInputs) -> TermValue:
        class_probs = inputs.passes[seen].outputs.distribution()
        points = inputs.earlier[detection_of(seen)].points
        each = labelled_negative_loss(points.classes, class_probs.log_out)
        value = masked_mean(each, trusted_mask(context, class_probs, points))
        return TermValue(value, {f"{seen}/negative": value})

    return Term(loss, (seen, detection_of(seen)))


def non_target_classes(
    context: MethodContext, settings: NonTargetTermSettings, seen: str, weight: float, divided_by: str = "",
    foreground_only: bool = False,
) -> Term:  # fmt: skip
    """What the snippets of the unlabelled pass ``seen`` learn beside their pseudo label.

    ``divided_by``: the pass whose distribution is divided, where it is not that of ``seen``. ``foreground_only``: only
    snippets that a pseudo label calls foreground take part, whatever the detector.
    """

    def loss(inputs: TermInputs) -> TermValue:
        class_probs = inputs.passes[seen].outputs.distribution()
        found: DetectionLoss = inputs.earlier[detection_of(seen)]
        trusted = trusted_mask(context, class_probs, found.points)
        if foreground_only:
            trusted = class_probs.mask & found.points.foreground_mask
        probability = probs_of(context, settings, inputs, divided_by or seen)
        value, metrics = _rival_or_hybrid(settings, probability, class_probs, trusted, found, inputs.key)
        return TermValue(value, {f"{seen}/{name}": metric for name, metric in metrics.items()})

    needs = (seen, detection_of(seen), *((divided_by,) if divided_by else ()))
    return Term(loss, needs, weight=weight)


def silenced_negatives(context: MethodContext, settings: DivisionSettings, seen: str, weight: float) -> Term:
    """Negative learning alone, under instances that selection left aside: neither their class nor their borders are
    trusted, but their distribution still says what they are not."""

    def loss(inputs: TermInputs) -> TermValue:
        class_probs = inputs.passes[seen].outputs.distribution()
        points = inputs.earlier[detection_of(seen)].points
        relation = divide_classes(probs_of(context, settings, inputs, seen), settings)
        each = non_target_losses(relation, class_probs.log_in, class_probs.log_out).negative
        value = masked_mean(each, points.silent_mask & class_probs.mask)
        return TermValue(value, {f"{seen}/silenced_negative": value})

    return Term(loss, (seen, detection_of(seen)), weight=weight)


def detection_of(seen: str) -> str:
    """Name of the detection term on a pass, by which other terms find what its targets made of each point."""
    return f"detection_{seen}"


def probs_of(context: MethodContext, settings: DivisionSettings, inputs: TermInputs, seen: str) -> Array:
    """The probabilities ``[B, S, C + 1]`` of a pass that are divided."""
    probability = inputs.passes[seen].outputs.distribution().probability
    return rankable_probs(probability, context.detector.facts.background_class, settings)


def _rival_or_hybrid(
    s: NonTargetTermSettings, probability: Array, class_probs: ClassDistribution, mask: Array, found: DetectionLoss,
    key: Array,
) -> tuple[Array, Metrics]:  # fmt: skip
    """Positive and negative classes of the snippets under ``mask``, or one of Table V's rivals of them."""
    if s.rival == "soft_label":  # replaces the one-hot pseudo label
        value = masked_mean(soft_label_loss(probability, class_probs.log_in, s.sharpening), mask)
        return value - found.class_loss, {"soft_label": value}
    relation = divide_classes(probability, s, found.points.classes)
    if s.rival == "complementary":
        value = masked_mean(complementary_loss(key, relation, class_probs.log_out), mask)
        return value, {"complementary": value}
    each = non_target_losses(relation, class_probs.log_in, class_probs.log_out)
    positive, negative = masked_mean(each.positive, mask), masked_mean(each.negative, mask)
    metrics = {"positive": positive, "negative": negative}
    return s.positive_weight * positive + s.negative_weight * negative, metrics
