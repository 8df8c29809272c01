"""Methods that learn from non-target classes: alone on any detector (paper 002), and together with APL.

**nontarget** (III-F, Eq. 12). Labelled snippets have their usual loss and exclude every other class. Unlabelled ones
have the detector's loss on pseudo labels, which is the target term, and below it the positive and negative classes of
the snippet's own distribution. With both weights 0 and without ``labelled_negative`` it is the target-only baseline
(Eq. 1). Where background is a class of the head (SPOT), every snippet has a distribution worth dividing; where it is
not (ActionFormer's sigmoids), a point has one only if its pseudo label calls it foreground (systems C11): far from any
action all scores are low, and their ratios say nothing. Where pseudo labels are the teacher's, a snippet's own surest
class may be another than its label's; then both count as target and neither is excluded. On sigmoids the classes are
divided as if an action were there (``nontarget.given_action``): background is only what the surest class leaves, and
below a score of .5 it would be the target, and the action itself one of the negatives.

**apl_nontarget**, both papers at once, on what APL's self-training is. Each point of an unlabelled video falls in one
of three regions, and its evidence decides what it may be taught:

* *Selected* (kept or promoted by ALQA and ICD): location and class are trusted. The detector's loss with the joint soft
  label, as in APL, and the positive and negative classes as above: the target is likely right, so what is excluded is
  excluded safely, and a close second class is not pushed down by the focal loss alone.
* *Left aside* (dropped by ICD, or candidates below tau_pos): something may be there, but neither its class nor its
  borders are trusted; APL's detection loss is silent there (systems A14). Their distribution still tells what it is
  *not*: negative learning only, with ``silenced_weight``. Positive learning would raise classes of a point that may be
  background, which the sigmoids cannot say.
* *Background*: as in APL.

Measured (README, Learning from non-target classes), this is behind APL alone on spsw, with 4 classes, and on average
ahead of it on HAPT, with 12: where a target is wrong, the true class is nearly always among the negatives, and
self-training makes the network surer of its mistakes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from apl_jax.detectors.base import ClassDistribution, Roles
from apl_jax.learning.nontarget import (
    complementary_loss,
    rankable_probs,
    divide_classes,
    labelled_negative_loss,
    non_target_losses,
    soft_label_loss,
)
from apl_jax.learning.objective import (
    Ingredients,
    Method,
    Metrics,
    Taught,
    average,
    consistency,
    detect_both,
    initialise,
    taught,
)
from apl_jax.settings import NonTargetSettings
from apl_jax.structs import Array, PyTree


def _mean(value: Array, mask: Array) -> Array:
    """Mean of ``value`` over a mask; 0 over none."""
    return jnp.where(mask, value, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def _divided_mask(parts: Ingredients, belief: ClassDistribution, roles: Roles) -> Array:
    """Snippets ``[B, S]`` whose class distribution is worth dividing."""
    trusted = ~roles.silent_mask if parts.detector.background else roles.foreground_mask
    return belief.mask & trusted


def _labelled_negatives(parts: Ingredients, belief: ClassDistribution, known: Taught) -> tuple[Array, Metrics]:
    """Negative learning on labelled snippets: all classes but the annotated one (III-F)."""
    roles = known.losses.roles
    loss = _mean(labelled_negative_loss(roles.classes, belief.log_out), _divided_mask(parts, belief, roles))
    return loss, {"labelled/negative": loss}


def _unlabelled_terms(
    s: NonTargetSettings, probability: Array, belief: ClassDistribution, mask: Array, unknown: Taught, key: Array
) -> tuple[Array, Metrics]:
    """What the snippets under ``mask`` learn beside their pseudo label: positive and negative classes, or a rival."""
    part = divide_classes(probability, s, unknown.losses.roles.classes)
    if s.rival == "soft_label":  # replaces the one-hot pseudo label
        loss = _mean(soft_label_loss(probability, belief.log_in, s.sharpening), mask)
        return loss - unknown.losses.class_loss, {"unlabelled/soft_label": loss}
    if s.rival == "complementary":
        loss = _mean(complementary_loss(key, part, belief.log_out), mask)
        return loss, {"unlabelled/complementary": loss}
    terms = non_target_losses(part, belief.log_in, belief.log_out)
    positive, negative = _mean(terms.positive, mask), _mean(terms.negative, mask)
    metrics = {"unlabelled/positive": positive, "unlabelled/negative": negative}
    return s.positive_weight * positive + s.negative_weight * negative, metrics


def _hybrid(parts: Ingredients, weight: float, labels: str, with_apl: bool) -> Method:
    """Both methods; ``weight`` is that of all unlabelled losses, ``labels`` whose pseudo labels are (as
    ``nontarget.pseudo_labels``), ``with_apl`` restricts the division to selected points and adds what those left aside
    exclude."""
    s = parts.settings.nontarget

    def loss(params: PyTree, averaged: PyTree, state: PyTree, batches: dict, key: Array):
        detect_key, labelled_key, unlabelled_key, pair_key, rival_key = jax.random.split(key, 5)
        labelled, unlabelled = detect_both(parts, params, batches, detect_key)
        known = taught(parts, labelled, state, "labelled", labelled_key)
        # Who labels also says what is divided: the network itself, or its average on the same view without dropout.
        labeller = unlabelled[1]
        if labels == "averaged":
            labeller = jax.lax.stop_gradient(parts.detector.apply(averaged["detector"], unlabelled[0], None))
        own = None if labels == "teacher" else parts.detector.annotate(labeller)
        unknown = taught(parts, unlabelled, known.state, "unlabelled", unlabelled_key, own)
        metrics = known.metrics | unknown.metrics

        belief, roles = unlabelled[1].distribution(), unknown.losses.roles
        divided = roles.foreground_mask & belief.mask if with_apl else _divided_mask(parts, belief, roles)
        probability = rankable_probs(labeller.distribution().probability, parts.detector.background, s)
        extra, more = _unlabelled_terms(s, probability, belief, divided, unknown, rival_key)
        metrics |= more
        if with_apl:
            terms = non_target_losses(divide_classes(probability, s), belief.log_in, belief.log_out)
            doubtful = _mean(terms.negative, roles.silent_mask & belief.mask)
            extra = extra + s.silenced_weight * doubtful
            metrics |= {"unlabelled/silenced_negative": doubtful}

        total = known.total + weight * (unknown.total + extra)
        if s.labelled_negative:
            excluded, more = _labelled_negatives(parts, labelled[1].distribution(), known)
            total, metrics = total + excluded, metrics | more
        pair_loss, more = consistency(parts, params, batches, pair_key)
        return total + pair_loss, (unknown.state, metrics | more)

    return Method(initialise(parts), loss, average(parts))


def build_nontarget(parts: Ingredients) -> Method:
    """Hybrid positive-negative learning on any detector (paper 002, Eq. 12); see the module's text."""
    s = parts.settings.nontarget
    return _hybrid(parts, s.unlabelled_weight, s.pseudo_labels, with_apl=False)


def build_apl_nontarget(parts: Ingredients) -> Method:
    """APL's self-training, and non-target classes where its selection is sure and where it is not; see the module's
    text. Pseudo labels are those of the pseudo_label stage, whatever ``nontarget.pseudo_labels`` says."""
    return _hybrid(parts, parts.settings.unlabelled_weight, "teacher", with_apl=True)
