"""Mean teachers: a student agrees with its own running average on other views of the same videos (spec 4).

SSTAP (Wang et al., CVPR 2021) and SSP (Ji et al., ICCV 2019) were written for proposal networks. Here they are terms
that know a detector only by its ``compare``, ``flip`` and ``sharpen``, so that they work with any; on other detectors
than BMN that is our reading. The teacher is the average that every stage keeps (``optimizer.ema_decay``); SSTAP's own
rule for it is ``optimizer.ema_ramp_length=21``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from apl_jax.declarations import Checked, number
from apl_jax.detectors.base import Outputs, as_they_are
from apl_jax.learning.detection import detection
from apl_jax.learning.method import (
    LABELLED,
    UNLABELLED,
    Method,
    MethodContext,
    Pass,
    Term,
    TermInputs,
    TermValue,
    View,
    register_method,
)
from apl_jax.learning.nontarget import detection_of
from apl_jax.nn.self_supervision import ClipOrder, Reconstruction
from apl_jax.ops.masking import apply_mask, masked_mean, reverse_time
from apl_jax.structs import Array, Batch, Detections, PyTree, Targets

_PARTS = (LABELLED, UNLABELLED)
RECONSTRUCTION, ORDER = "reconstruction", "clip_order"  # owners of parameters


@dataclass(frozen=True)
class ConsistencySettings(Checked):
    """How much student and teacher must agree (spec 4.1)."""

    consistency: float = number(6.0, at_least=0, at_most=1e6)  # the weight that is reached
    ramp_steps: int = number(250, at_least=1, at_most=10_000_000)  # until it is reached: half of 500, as 5 of 10 epochs
    # channels moved one step later, and as many earlier: one in so many of the width, one at least
    shift_divisor: int = number(64, at_least=1, at_most=1_000_000)
    channel_drop: float = number(0.2, at_least=0, below=1)  # of whole channels, for the student
    teacher_drop: float = number(0.05, at_least=0, below=1)  # of single values, for the teacher


@dataclass(frozen=True)
class SstapSettings(ConsistencySettings):
    """Self-supervised semi-supervised temporal action proposals (spec 4.1)."""

    flip: float = number(0.1, at_least=0, at_most=1e6)  # of the consistency of reversed videos, times its weight
    flip_drop: float = number(0.1, at_least=0, below=1)  # of whole channels, on reversed videos
    reconstruction: float = number(0.0005, at_least=0, at_most=1e6)  # weight of rebuilding dropped steps
    step_drop: float = number(0.2, at_least=0, below=1)  # of whole steps, for reconstruction
    order: float = number(0.01, at_least=0, at_most=1e6)  # weight of telling exchanged halves
    order_parts: int = number(100, at_least=2, at_most=100_000)  # of a video, that its order is told from
    order_drop: float = number(0.5, at_least=0, below=1)  # of the parts
    groups: int = number(4, at_least=1, at_most=10_000)  # of channels, of the convolutions that reconstruct


@dataclass(frozen=True)
class SspSettings(ConsistencySettings):
    """Sequence perturbations: temporal shift, in place of warping, and time masking (spec 4.2; our reading)."""

    channel_drop: float = number(0.0, at_least=0, below=1)
    teacher_drop: float = number(0.0, at_least=0, below=1)
    masks: int = number(2, at_least=0, at_most=1000)  # spans of a video that are blank
    mask_share: float = number(0.1, at_least=0, at_most=1)  # of a video, the longest span


# Views: what is done to a view that was drawn before


def shift_channels(features: Array, channels: Array, earlier: int) -> Array:
    """``features [B, T, D]`` whose first ``earlier`` of the ``channels`` move one step earlier and whose others move
    one step later; the step that becomes free is 0 (spec 4.1)."""
    moved = features[..., channels]
    ahead = jnp.pad(moved[:, 1:, :earlier], ((0, 0), (0, 1), (0, 0)))
    behind = jnp.pad(moved[:, :-1, earlier:], ((0, 0), (1, 0), (0, 0)))
    return features.at[..., channels].set(jnp.concatenate([ahead, behind], -1))


def _shifted(divisor: int) -> View:
    """Temporal shift of channels that are drawn once for the batch."""

    def view(key: Array, batch: Batch) -> Batch:
        width = batch.features.shape[-1]
        each_way = min(max(width // divisor, 1), width // 2)
        channels = jax.random.permutation(key, width)[: 2 * each_way]
        return _with_features(batch, shift_channels(batch.features, channels, each_way))

    return view


def dropout_factor(key: Array, rate: float, shape: tuple[int, ...]) -> Array:
    """0 with probability ``rate``, otherwise 1 / (1 - rate)."""
    return jax.random.bernoulli(key, 1 - rate, shape) / (1 - rate)


def _dropping(rate: float, *, steps: bool = True, channels: bool = True) -> View:
    """Dropout of the features: of values, of whole channels (``steps=False``) or of whole steps (``channels=False``).

    It is drawn time first, so that the draws of valid steps do not depend on how many padded ones follow (law 1).
    """

    def view(key: Array, batch: Batch) -> Batch:
        if rate == 0:
            return batch
        videos, length, width = batch.features.shape
        factor = dropout_factor(key, rate, (length if steps else 1, videos, width if channels else 1))
        return _with_features(batch, batch.features * jnp.moveaxis(factor, 0, 1))

    return view


def _reversed(key: Array, batch: Batch) -> Batch:
    """The video backwards, its padding staying at the end; its targets are left as they are, and not looked at."""
    del key
    turned = _with_features(batch, reverse_time(batch.features, batch.mask))
    if batch.proposals is None:
        return turned
    last = batch.mask.sum(-1)[:, None, None] - 1.0
    proposals = dataclasses.replace(batch.proposals, segments_t=last - batch.proposals.segments_t[..., ::-1])
    return dataclasses.replace(turned, proposals=proposals)


def _masked(spans: int, share: float) -> View:
    """Random spans of a video blank, each up to ``share`` of its length."""

    def view(key: Array, batch: Batch) -> Batch:
        start_key, extent_key = jax.random.split(key)
        drawn, length = (len(batch.mask), spans, 1), batch.mask.sum(-1)[:, None, None]
        extent = share * length * jax.random.uniform(extent_key, drawn)
        start = (length - extent) * jax.random.uniform(start_key, drawn)
        time = jnp.arange(batch.mask.shape[1])
        blank = ((time >= start) & (time < start + extent)).any(1)
        return _with_features(batch, jnp.where(blank[..., None], 0.0, batch.features))

    return view


def _halves_exchanged(key: Array, batch: Batch) -> Batch:
    """Half of the videos with their halves exchanged; one target each, of class 0 if so, otherwise of class 1."""
    order_key, coin_key = jax.random.split(key)
    videos = len(batch.mask)
    half = (videos + jax.random.bernoulli(coin_key).astype(jnp.int32)) // 2  # of an odd number, one more or one less
    exchanged = jax.random.permutation(order_key, videos) < half
    length, time = batch.mask.sum(-1)[:, None], jnp.arange(batch.mask.shape[1])
    rows = jnp.where(batch.mask & exchanged[:, None], (time + length // 2) % jnp.maximum(length, 1), time)
    features = jnp.take_along_axis(batch.features, rows[..., None], axis=1)
    one, nothing = jnp.ones((len(batch.mask), 1)), jnp.zeros((len(batch.mask), 1, 2))
    targets = Targets(nothing, 1 - exchanged[:, None].astype(jnp.int32), one > 0, one, one < 0)
    return dataclasses.replace(batch, features=features, targets=targets)


def _with_features(batch: Batch, features: Array) -> Batch:
    return dataclasses.replace(batch, features=jnp.where(batch.mask[..., None], features, 0))


def _in_turn(*views: View) -> View:
    """Each view of what the one before it gave."""

    def view(key: Array, batch: Batch) -> Batch:
        for each, own in zip(views, jax.random.split(key, len(views)), strict=True):
            batch = each(own, batch)
        return batch

    return view


# Terms


def ramp(steps_done: Array, ramp_steps: int) -> Array:
    """Share of the consistency's weight after so many steps: exp(-5 (1 - done)^2) (spec 4.1)."""
    return jnp.exp(-5 * (1 - jnp.minimum(steps_done / ramp_steps, 1)) ** 2)


def _consistency(context: MethodContext, s: ConsistencySettings, seen: str, weight: float, flipped: bool) -> Term:
    """Student against teacher on one kind of videos; ``flipped``: the student saw them reversed."""
    student, teacher = f"{seen}_reversed" if flipped else seen, f"{seen}_teacher"

    def loss(inputs: TermInputs) -> TermValue:
        sharpen = context.detector.sharpen if seen == UNLABELLED else as_they_are
        theirs, mask = sharpen(inputs.passes[teacher].outputs)
        ours = inputs.passes[student].outputs
        ours = context.detector.flip(ours) if flipped else ours
        value = sum(context.detector.compare(ours, theirs, mask).values(), jnp.zeros(()))
        name = f"{student}/consistency"
        return TermValue(ramp(inputs.state, s.ramp_steps) * value, {name: value}, inputs.state + 1)

    return Term(loss, (student, teacher), lambda key: ({}, jnp.float32(0)), weight)


def _frame_features(outputs: Outputs, mask: Array) -> Array:
    """The features ``[B, T, R]`` of every grid step, 0 at padded ones."""
    return apply_mask(outputs.represent(jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)), mask)


def _width_of_features(context: MethodContext) -> int:
    """R of the frame features of this detector; nothing is computed."""
    facts = context.facts

    def features(key: Array) -> Array:
        mask, zero, segment = jnp.ones((1, facts.max_steps), bool), jnp.zeros((1, 1)), jnp.zeros((1, 1, 2))
        label, absent = zero.astype(jnp.int32), zero > 0
        proposals = Detections(segment, label, zero, zero, zero, zero, absent)
        rows = jnp.zeros((1, facts.max_steps, facts.feature_width))
        batch = Batch(rows, mask, Targets(segment, label, absent, zero, absent), label[0], proposals)
        return _frame_features(context.detector.apply(context.detector.init(key)[0], batch, None), mask)

    return jax.eval_shape(features, jax.random.key(0)).shape[-1]


def _reconstruction(context: MethodContext, s: SstapSettings) -> Term:
    """Mean squared error of rebuilding all features from those of the steps that were not dropped."""
    module = Reconstruction(context.facts.feature_width, s.groups)

    def init(key: Array) -> tuple[dict[str, PyTree], PyTree]:
        features = jnp.zeros((1, 1, _width_of_features(context)))
        return {RECONSTRUCTION: module.init(key, features, jnp.ones((1, 1), bool))["params"]}, ()

    def loss(inputs: TermInputs) -> TermValue:
        value = jnp.zeros(())
        for part in _PARTS:
            seen, whole = inputs.passes[f"{part}_partial"], inputs.passes[f"{part}_source"].view
            params = {"params": inputs.params[RECONSTRUCTION]}
            rebuilt: Any = module.apply(params, _frame_features(seen.outputs, whole.mask), whole.mask)
            value += masked_mean(jnp.square(rebuilt - whole.features).mean(-1), whole.mask)
        return TermValue(value, {"reconstruction": value})

    needs = tuple(f"{part}_partial" for part in _PARTS)
    return Term(loss, needs, init, s.reconstruction, sees=tuple(f"{part}_source" for part in _PARTS))


def _order(context: MethodContext, s: SstapSettings) -> Term:
    """Cross-entropy of telling whether the halves of a video were exchanged."""
    module = ClipOrder(s.order_parts)

    def init(key: Array) -> tuple[dict[str, PyTree], PyTree]:
        blank = jnp.zeros((1, 1))
        features = jnp.zeros((1, 1, _width_of_features(context)))
        return {ORDER: module.init(key, features, blank > 0, blank)["params"]}, ()

    def loss(inputs: TermInputs) -> TermValue:
        losses = []
        for i, part in enumerate(_PARTS):
            seen = inputs.passes[f"{part}_order"]
            mask, targets = seen.view.mask, seen.view.targets
            keep = dropout_factor(jax.random.fold_in(inputs.key, i), s.order_drop, (len(mask), s.order_parts))
            params = {"params": inputs.params[ORDER]}
            logits: Any = module.apply(params, _frame_features(seen.outputs, mask), mask, keep)
            losses.append(optax.softmax_cross_entropy_with_integer_labels(logits, targets.labels[:, 0]))
        value = jnp.concatenate(losses).mean()
        return TermValue(value, {"clip_order": value})

    return Term(loss, tuple(f"{part}_order" for part in _PARTS), init, s.order)


# Methods


def _mean_teacher(
    context: MethodContext, s: ConsistencySettings, student: View
) -> tuple[dict[str, Pass], dict[str, Term]]:
    """Student and teacher on views of one crop, of labelled and of unlabelled videos."""
    passes: dict[str, Pass] = {}
    terms = {detection_of(LABELLED): detection(context, LABELLED)}
    for part in _PARTS:
        passes[f"{part}_source"] = Pass(part)  # what the others are views of
        passes[part] = Pass(part, student, same_view_as=f"{part}_source")
        teacher = _dropping(s.teacher_drop)
        passes[f"{part}_teacher"] = Pass(part, teacher, same_view_as=f"{part}_source", ema=True, dropout=False)
        terms[f"consistency_{part}"] = _consistency(context, s, part, s.consistency, flipped=False)
    return passes, terms


def build_sstap(settings: SstapSettings, context: MethodContext) -> Method:
    """Consistency of shifted and of reversed videos, masked reconstruction, and clip order (spec 4.1, 4.4).

    The detection loss of labelled videos is taken on the perturbed view.
    """
    s = settings
    passes, terms = _mean_teacher(
        context, s, _in_turn(_shifted(s.shift_divisor), _dropping(s.channel_drop, steps=False))
    )
    for part in _PARTS:
        views = {
            "reversed": (s.flip, _in_turn(_reversed, _dropping(s.flip_drop, steps=False))),
            "partial": (s.reconstruction, _dropping(s.step_drop, channels=False)),
            "order": (s.order, _halves_exchanged),
        }
        for name, (weight, view) in views.items():
            if weight > 0:
                passes[f"{part}_{name}"] = Pass(part, view, same_view_as=f"{part}_source")
        if s.flip > 0:
            terms[f"flip_{part}"] = _consistency(context, s, part, s.flip * s.consistency, flipped=True)
    if s.reconstruction > 0:
        terms["reconstruction"] = _reconstruction(context, s)
    if s.order > 0:
        terms["clip_order"] = _order(context, s)
    return Method(passes, terms)


def build_ssp(settings: SspSettings, context: MethodContext) -> Method:
    """Consistency under sequence perturbations (spec 4.2)."""
    s = settings
    student = _in_turn(
        _shifted(s.shift_divisor), _masked(s.masks, s.mask_share), _dropping(s.channel_drop, steps=False)
    )
    return Method(*_mean_teacher(context, s, student))


register_method("sstap", SstapSettings, build_sstap)
register_method("ssp", SspSettings, build_ssp)
