"""The classes of every unlabelled snippet divided into target, positive, negative and ambiguous ones, and the losses of
each part (paper 002, III-C to III-F; spec 7.B).

Nothing here knows a detector; all of it works on a class distribution (:class:`~apl_jax.detectors.base.
ClassDistribution`) over C actions and background. The division is made without gradient, the losses are not.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from apl_jax.declarations import Checked, number
from apl_jax.structs import Array


@dataclass(frozen=True)
class DivisionSettings(Checked):
    """How the classes are divided."""

    # lambda: least probability of a positive class, as a fraction of the target's (Table IV)
    closeness: float = number(0.85, at_least=0, at_most=1)
    # likeliest classes after the target that are never negative; 0 is the paper's rule (Eq. 8)
    protected_runners_up: int = number(0, at_least=0, at_most=100_000)
    # of a snippet; a flat distribution would make every class positive
    max_positives: int = number(5, at_least=0, at_most=100_000)
    given_action: bool = True  # sigmoids: divide the classes of a foreground point without background; False = C11
    # the distribution is flattened to p^(1/temperature) before it is divided: a network that is surer than it is right
    # has its true class among the negatives. 1 = the paper; fitted to held-out recordings by learning.method.name=auto
    temperature: float = number(1.0, above=0, at_most=1e3)


class ClassRelation(enum.IntEnum):
    """What a class is to a snippet (Eq. 4)."""

    TARGET = 0  # the surest class
    POSITIVE = 1  # nearly as sure
    NEGATIVE = 2  # among the least likely classes that together weigh no more than the target
    AMBIGUOUS = 3  # neither: teaches nothing


class RelationLosses(NamedTuple):
    """Losses per snippet ``[...]``, not yet weighted or averaged."""

    target: Array
    positive: Array
    negative: Array


# Rounding must not decide whether a flat distribution has negatives (C10).
_SLACK = 1e-6


def divide_classes(probability: Array, settings: DivisionSettings, labelled: Array | None = None) -> Array:
    """The :class:`ClassRelation` of every class: ``[..., C + 1]`` int32 from probabilities ``[..., C + 1]`` that sum to
    1.

    Negative: the largest set of least likely classes whose probabilities sum to at most that of the target (Eq. 8).
    Positive: at least ``closeness`` times as likely as the target (Eq. 10), the ``max_positives`` likeliest of them;
    those beyond are ambiguous. A class that meets both rules is positive, and the target is only the target (spec
    C1, C2). The first of equally likely classes is the target. The ``protected_runners_up`` likeliest classes after it
    are never negative, which is not in the paper: once the target has half of the probability its rule excludes all.

    ``labelled [..., C + 1]`` is 1 at the class (or classes) of a pseudo label. They are targets too: the label of a
    teacher may differ from the snippet's own surest class, and one loss must not exclude what another teaches.
    """
    p = jax.lax.stop_gradient(probability)
    target = jnp.arange(p.shape[-1]) == jnp.argmax(p, -1, keepdims=True)
    most = p.max(-1, keepdims=True)

    close = (p >= settings.closeness * most) & ~target
    # Place in the falling order of likelihood, the target being first; ties keep the order of the classes.
    place = jnp.argsort(jnp.argsort(-jnp.where(target, jnp.inf, p), -1, stable=True), -1, stable=True)
    positive = close & (place <= settings.max_positives)

    rising = jnp.argsort(p, -1, stable=True)
    weight = jnp.cumsum(jnp.take_along_axis(p, rising, -1), -1)
    back = jnp.argsort(rising, -1, stable=True)
    light = jnp.take_along_axis(weight, back, -1) <= most + _SLACK
    negative = light & ~target & ~close & (place > settings.protected_runners_up)

    relation = jnp.where(negative, ClassRelation.NEGATIVE, ClassRelation.AMBIGUOUS)
    relation = jnp.where(positive, ClassRelation.POSITIVE, relation)
    named = target if labelled is None else target | (labelled > 0)
    return jnp.where(named, ClassRelation.TARGET, relation).astype(jnp.int32)


def given_action(probability: Array) -> Array:
    """Distribution ``[..., C + 1]`` of a snippet that is known to show an action: background has no share of it."""
    actions = probability.at[..., -1].set(0.0)
    return actions / jnp.maximum(actions.sum(-1, keepdims=True), 1e-12)


def rankable_probs(probability: Array, background: bool, settings: DivisionSettings) -> Array:
    """What is divided on snippets that are taken to show an action ``[..., C + 1]``.

    A softmax with background as it is. Of sigmoids (``background`` False) the share of background is computed: 1 - the
    largest score (spec C11). Where all scores are below one half it would be the target, and the action itself one
    of the negatives; hence it is left out, unless ``settings.given_action`` is False. Then ``settings.temperature``.
    """
    ranked = given_action(probability) if settings.given_action and not background else probability
    return ranked if settings.temperature == 1 else sharpened(ranked, settings.temperature)


def non_target_losses(relation: Array, log_in: Array, log_out: Array) -> RelationLosses:
    """Target, positive and negative losses of each snippet (Eq. 5, 11, 9): sums over the classes of each part (C3).

    ``log_in`` and ``log_out`` ``[..., C + 1]`` are log-likelihoods of being, and of not being, of a class.
    """
    total = lambda kind, value: -jnp.where(relation == kind, value, 0.0).sum(-1)
    return RelationLosses(
        total(ClassRelation.TARGET, log_in),
        total(ClassRelation.POSITIVE, log_in),
        total(ClassRelation.NEGATIVE, log_out),
    )


def labelled_negative_loss(classes: Array, log_out: Array) -> Array:
    """Negative learning where the class is known: every other class, background too, is excluded (III-F; C5).

    ``classes [..., C + 1]`` is 1 at the true class (or classes) of a snippet.
    """
    return -jnp.where(classes > 0, 0.0, log_out).sum(-1)


def sharpened(probability: Array, temperature: float) -> Array:
    """Distribution ``[..., C + 1]`` with its differences enlarged, by a temperature above 1 made smaller:
    ``p^(1/temperature)``, normalised (C12). What is impossible stays so."""
    log_p = jnp.where(probability > 0, jnp.log(jnp.maximum(probability, 1e-12)), -jnp.inf)
    likely = (probability > 0).any(-1, keepdims=True)  # of no class at all: no NaN
    return jnp.where(likely, jax.nn.softmax(jnp.where(likely, log_p, 0.0) / temperature, -1), 0.0)


def soft_label_loss(probability: Array, log_in: Array, temperature: float) -> Array:
    """Cross-entropy with the sharpened distribution itself, the rival "soft pseudo label" of Table V."""
    return -(jax.lax.stop_gradient(sharpened(probability, temperature)) * log_in).sum(-1)


def complementary_loss(key: Array, relation: Array, log_out: Array) -> Array:
    """One random class other than the target is excluded, the rival "complementary label" of Table V."""
    draw = jax.random.uniform(key, relation.shape) - jnp.where(relation == ClassRelation.TARGET, jnp.inf, 0.0)
    chosen = jnp.argmax(draw, -1)[..., None]
    return -jnp.take_along_axis(log_out, chosen, -1)[..., 0]
