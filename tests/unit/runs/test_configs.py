"""Every configuration is one of settings, and the rungs of a ladder differ in what they are compared for, only."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import pytest
from fixtures import REPOSITORY

from apl_jax.declarations import Choice, to_dict
from apl_jax.detectors import build_detector
from apl_jax.runs.plans import plan_stages
from apl_jax.runs.settings import Settings, configurations, plain_detector, read_config
from apl_jax.structs import DataFacts

LADDER = [f"{d}-{loss}" for d, loss in itertools.product(("spot", "actionformer"), ("target", "negative", "hybrid"))]
VARIANTS = {
    "spsw": [
        "full",
        "demo",
        "smoke",
        "fixed",
        "alqa",
        "icd",
        "apl",
        "apl-tridet",
        "fixed-bmn",
        "apl-bmn",
        "apl-pgcn",
        "full-pgcn",
    ],
    "hapt": [
        "full",
        "smoke",
        "fixed",
        "alqa",
        "icd",
        "apl",
        "full-tridet",
        "full-bmn",
        "apl-bmn",
        "fixed-pgcn",
        "apl-pgcn",
    ],
    "spsw_nontarget": [*LADDER, "spot-soft", "spot-complementary", "apl-hybrid"],
    "hapt_nontarget": [*LADDER, "spot-soft", "spot-complementary", "apl-hybrid"],
    "thumos14": [
        *("apl", "icd", "alqa", "fixed", "full", "tridet", "bmn", "pgcn", "nontarget", "spot", "spot_tsn"),
        "synthetic",
    ],
    "activitynet": [
        *(name + tsp for name in ("apl", "icd", "alqa", "fixed", "full", "nontarget") for tsp in ("", "-tsp")),
        *("spot", "bmn", "synthetic"),
    ],
    "epic": [task + full for task in ("verb", "noun", "action") for full in ("", "_full")],
}
# Of each data set, the width of its features and its classes.
SHAPES = {
    "spsw": (120, 4), "hapt": (300, 12), "spsw_nontarget": (120, 4), "hapt_nontarget": (300, 12),
    "thumos14": (2048, 20), "activitynet": (512, 200), "epic": (2304, 97),
}  # fmt: skip


def settings_of(name: str, variant: str) -> Settings:
    return read_config(f"{name}:{variant}")


def facts_of(name: str, settings: Settings) -> DataFacts:
    return DataFacts(*SHAPES[name], settings.data.max_length_t)


def test_all_configurations_are_tried() -> None:
    assert sorted(VARIANTS) == configurations()
    assert read_config(str(REPOSITORY / "examples" / "plugin_config.py")).detector.name == "conv"


@pytest.mark.parametrize(("name", "variant"), [(n, v) for n, variants in VARIANTS.items() for v in variants])
def test_variant_has_its_stages_in_order(name: str, variant: str) -> None:
    settings = settings_of(name, variant)
    assert settings.data.name == name.partition("_")[0]
    assert [s for s in plan_stages(settings, facts_of(name, settings)) if s.name.endswith("_evaluation")]


@pytest.mark.parametrize(("name", "variant"), [(n, v) for n, variants in VARIANTS.items() for v in variants])
def test_variant_has_a_detector(name: str, variant: str) -> None:
    """Shapes only: the large ones would take half a gigabyte."""
    settings = settings_of(name, variant)
    assert count_parameters(settings.detector, *SHAPES[name]) > 1000
    if settings.detector.name == "actionformer":
        assert settings.data.length_multiple % 2**settings.detector.settings.branch_blocks == 0


@pytest.mark.parametrize(
    ("name", "variant", "width", "classes", "expected"),
    [
        ("thumos14", "full", 2048, 20, 29_251_612),
        ("activitynet", "full-tsp", 512, 1, 6_943_497),
        ("activitynet", "full", 2048, 1, 8_123_145),
        ("epic", "verb_full", 2304, 97, 29_763_177),
    ],
)
def test_plain_detector_has_the_parameters_of_the_reference(
    name: str, variant: str, width: int, classes: int, expected: int
) -> None:
    """Counted in the reference (spec 1.1); on ActivityNet it has one class where these configurations have 200."""
    assert count_parameters(plain_detector(settings_of(name, variant).detector), width, classes) == expected


@functools.cache
def count_parameters(detector: Choice, width: int, classes: int) -> int:
    built = build_detector(detector, DataFacts(width, classes))
    params = jax.eval_shape(lambda: built.init(jax.random.key(0))[0])
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("name", "variant", "steps"),
    [
        ("thumos14", "apl", (1500, 2000, 3600)),
        ("thumos14", "full", (None, 3500, None)),
        ("thumos14", "spot", (1200, 2000, 1350)),
        ("thumos14", "bmn", (None, 800, None)),
        ("thumos14", "pgcn", (None, 3500, None)),
        ("activitynet", "apl", (9045, 2000, 8130)),
        ("activitynet", "full-tsp", (None, 9045, None)),
        ("activitynet", "spot", (1152, 2000, 5415)),
        ("activitynet", "bmn", (None, 5427, None)),
        ("epic", "noun", (3705, 2000, 4662)),
    ],
)
def test_epochs_of_the_papers_in_steps(name: str, variant: str, steps: tuple[int | None, ...]) -> None:
    learning = settings_of(name, variant).learning
    stages = (learning.pretrain, learning.supervised, learning.self_train)
    assert all(expected in (None, stage.steps) for expected, stage in zip(steps, stages, strict=True))


def test_synthetic_features_change_the_network_and_its_steps_only() -> None:
    """Data, splits, method, selection and evaluation are those of the run that is tried out."""
    synthetic, real = (to_dict(settings_of("thumos14", variant)) for variant in ("synthetic", "apl"))
    assert synthetic["data"].pop("synthetic") != real["data"].pop("synthetic")
    for settings in (synthetic, real):
        for part in ("width", "heads", "stem_blocks", "embedding_convs", "head_layers"):
            settings["detector"].pop(part)
        for stage in ("pretrain", "supervised", "self_train"):
            settings["learning"][stage].pop("steps")
            settings["learning"][stage]["optimizer"].pop("learning_rate")
    assert synthetic == real


@pytest.mark.parametrize("name", VARIANTS)
def test_unknown_variant_is_answered_with_the_known(name: str) -> None:
    with pytest.raises(ValueError, match=r"configs/.*:nonsense: expected"):
        settings_of(name, "nonsense")


@pytest.mark.parametrize("name", ("spsw_nontarget", "hapt_nontarget"))
@pytest.mark.parametrize("detector", ("spot", "actionformer"))
def test_rungs_differ_in_self_training_alone(name: str, detector: str) -> None:
    """Table II compares losses on unlabelled snippets: labels, teacher, steps and detector are the same."""

    def shared(loss: str) -> list[Any]:
        settings = settings_of(name, f"{detector}-{loss}")
        stages = plan_stages(settings, facts_of(name, settings))
        return [stage for stage in stages if "self_train" not in stage.name and "space" not in stage.name]

    target, negative, hybrid = (shared(loss) for loss in ("target", "negative", "hybrid"))
    assert target == negative == hybrid and len(target) >= 4
    plain, divided = (to_dict(settings_of(name, f"{detector}-{loss}"))["learning"] for loss in ("target", "hybrid"))
    ours, theirs = divided.pop("method"), plain.pop("method")
    changed = {key for key in ours if ours[key] != theirs[key]}
    assert changed == {"labelled_negative", "negative_weight", "positive_weight"}
    assert divided == plain
