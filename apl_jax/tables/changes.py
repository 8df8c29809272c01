"""Changes of settings that make the rows of the papers' tables from the configuration with everything in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apl_jax.runs.settings import Settings, matched_steps
from apl_jax.tables.table import Changes

Change = Callable[[Settings], Changes]


def changed(*changes: Change, **values: Any) -> Change:
    """Several changes after one another, then single settings; ``__`` in a name stands for the dot of its path."""

    def change(settings: Settings) -> Changes:
        found: dict[str, Any] = {}
        for one in changes:
            found |= one(settings)
        return found | {name.replace("__", "."): value for name, value in values.items()}

    return change


def only(variant: str) -> Change:
    """No other variant of the run: what a row does not show is not trained."""
    return lambda settings: {"variants": (variant,)}


# The rungs of APL's Table 2, from the top down


def with_apl(settings: Settings) -> Changes:
    """APL as it is configured; a configuration of another method, such as auto, gets APL's with its defaults."""
    method = {} if settings.learning.method.name == "apl" else {"learning.method.name": "apl"}
    return {"variants": ("semi_supervised",), **method}


def without_contrast(settings: Settings) -> Changes:
    """APL without ACP."""
    contrast = {"learning.pretrain.steps": 0, "learning.teacher.contrast.weight": 0.0}
    return {**with_apl(settings), **contrast, "learning.method.contrast.weight": 0.0}


def without_discriminator(settings: Settings) -> Changes:
    """ALQA alone."""
    asked = {"learning.teacher.icd.enabled": False, "learning.method.icd.enabled": False}
    return {**without_contrast(settings), **asked, "learning.selection.chain": ("dynamic",)}


def fixed_threshold(settings: Settings) -> Changes:
    """The plain detector; pseudo labels are what is surer than .3."""
    return {**without_discriminator(settings), **_plain_teacher(settings)}


def _plain_teacher(settings: Settings) -> Changes:
    del settings
    return {
        "variants": ("semi_supervised",),
        "detector.quality.branches": "none",
        "learning.pretrain.steps": 0,
        "learning.teacher.contrast.weight": 0.0,
        "learning.teacher.icd.enabled": False,
        "learning.selection.chain": ("fixed",),
        "learning.candidates": "background",
    }


# Other methods, with the detector as it was published


def npl_style(settings: Settings) -> Changes:
    """NPL-style ranking and weights of the pseudo labels of a plain detector."""
    return {**fixed_threshold(settings), "learning.selection.chain": ("npl_style",)}


def instead(method: str) -> Change:
    """A method that needs no teacher, on the plain detector and for as many steps as APL takes altogether."""

    def change(settings: Settings) -> Changes:
        steps = matched_steps(settings.learning)
        named = {"learning.method.name": method, "learning.self_train.steps": steps}
        return {**_plain_teacher(settings), **named, "learning.selection.chain": ("dynamic",)}

    return change


def mean_teacher(method: str) -> Change:
    """The same, whose teacher is averaged by SSTAP's own rule (spec 4.1; 4.2 recommends it for SSP too)."""
    return lambda settings: {**instead(method)(settings), "learning.self_train.optimizer.ema_ramp_length": 21}


def automatic(settings: Settings) -> Changes:
    """What to do is decided by evidence of the labelled recordings."""
    del settings
    return {"variants": ("semi_supervised",), "learning.method.name": "auto"}


# Learning from non-target classes


def losses(negative: bool, positive: bool) -> Change:
    """The losses of paper 002's Table II beside that of the target."""
    return changed(
        only("semi_supervised"),
        learning__method__negative_weight=float(negative),
        learning__method__positive_weight=float(positive),
        learning__method__labelled_negative=negative,
    )


def rival(name: str) -> Change:
    """What other papers do with the class distribution (Table V)."""
    return changed(losses(False, False), learning__method__rival=name)


def non_targets(settings: Settings) -> Changes:
    """Positive and negative classes of the plain detector, under the labels of its teacher (Table III)."""
    named = {"learning.method.name": "nontarget", "learning.method.pseudo_labels": "teacher"}
    return {**_plain_teacher(settings), **named}


def apl_and_non_targets(settings: Settings) -> Changes:
    """Both papers at once, with the weights that were the best on held-out recordings (docs/results)."""
    named: dict[str, Any] = {"variants": ("semi_supervised",), "learning.method.name": "apl_nontarget"}
    weights = {"positive_weight": 0.2, "negative_weight": 0.2, "silenced_weight": 0.1, "labelled_negative": False}
    return named | {f"learning.method.{name}": value for name, value in weights.items()}
