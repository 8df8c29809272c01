"""MixUp on labelled recordings: two of a batch are mixed, and so are their annotations (spec 4.4; our reading).

APL's Table 1 has it as a rival and says no more than its name. Zhang et al. (ICLR 2018) mix inputs and labels of a
classifier; here the instances of both recordings are targets, each with its recording's share as weight.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from apl_jax.declarations import Checked, number
from apl_jax.learning.detection import detection
from apl_jax.learning.method import LABELLED, Method, MethodContext, Pass, register_method
from apl_jax.learning.nontarget import detection_of
from apl_jax.learning.perturb import clip_segments
from apl_jax.structs import Array, Batch


@dataclass(frozen=True)
class MixupSettings(Checked):
    """MixUp of labelled recordings."""

    concentration: float = number(0.2, above=0, at_most=1e3)  # both parameters of the beta distribution of shares
    keep_ratio: float = number(0.5, at_least=0, at_most=1)  # of an instance that the shorter recording must reach


def mix(key: Array, batch: Batch, settings: MixupSettings) -> Batch:
    """Every video of ``batch`` mixed with the next one, cut to the shorter of both; a single one as it is.

    Features are ``share * own + (1 - share) * other``; instances ``[B, 2 N]`` are those of both, with weights times the
    shares, and so are proposals, where there are some.
    """
    videos = len(batch.mask)
    if videos == 1:
        return batch
    share = jax.random.beta(key, settings.concentration, settings.concentration, (videos,))
    other = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), batch)
    mask = batch.mask & other.mask
    blend = share[:, None, None]
    features = jnp.where(mask[..., None], blend * batch.features + (1 - blend) * other.features, 0)
    cut = jax.vmap(lambda found, length: clip_segments(found, jnp.int32(0), length, settings.keep_ratio))
    together = lambda *parts: jax.tree.map(lambda *x: jnp.concatenate(x, 1), *(cut(p, mask.sum(-1)) for p in parts))
    weighed = lambda targets, share: dataclasses.replace(targets, weight=targets.weight * share[:, None])
    targets = together(weighed(batch.targets, share), weighed(other.targets, 1 - share))
    proposals = batch.proposals and together(batch.proposals, other.proposals)
    return dataclasses.replace(batch, features=features, mask=mask, targets=targets, proposals=proposals)


def build_mixup(settings: MixupSettings, context: MethodContext) -> Method:
    """The detection loss on mixed labelled videos; unlabelled ones take no part."""

    def view(key: Array, batch: Batch) -> Batch:
        view_key, mix_key = jax.random.split(key)
        return mix(mix_key, context.view(view_key, batch), settings)

    terms = {detection_of(LABELLED): detection(context, LABELLED)}
    return Method({LABELLED: Pass(LABELLED, view)}, terms, teacher=False)


register_method("mixup", MixupSettings, build_mixup)
