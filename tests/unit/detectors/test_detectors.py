"""Detectors by name: built from settings by field name, refused in words, registered from outside."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import jax
import pytest
from fixtures import CLASSES, FEATURE_WIDTH, random_batch, tiny_choice

from apl_jax.declarations import Checked, Choice, SettingsError, from_dict, number
from apl_jax.detectors import build, build_detector, register_detector, without_decoding
from apl_jax.detectors.actionformer_settings import ActionFormerSettings
from apl_jax.detectors.quality import QualitySettings
from apl_jax.detectors.spot_settings import SpotDecoding, SpotSettings
from apl_jax.registry import DETECTORS
from apl_jax.settings import NmsSettings
from apl_jax.structs import DataFacts

FACTS = DataFacts(FEATURE_WIDTH, CLASSES)
SMALL: dict[str, Any] = {
    "width": 8, "heads": 2, "branch_blocks": 1, "windows": (3, 0), "regression_ranges": ((0, 4), (4, 10000)),
}  # fmt: skip


@pytest.mark.parametrize("quality", [{"branches": "none"}, QualitySettings(branches="none")])
def test_settings_by_name(quality: Any) -> None:
    built = build("actionformer", feature_width=FEATURE_WIDTH, num_classes=CLASSES, **SMALL, quality=quality)
    settings = from_dict(ActionFormerSettings, {**SMALL, "quality": {"branches": "none"}})
    chosen = build_detector(Choice("actionformer", settings), FACTS)
    shapes, others = (jax.eval_shape(d.init, jax.random.key(0)) for d in (built, chosen))
    assert shapes == others and "tiou" not in shapes[0]["regression_head"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("actionformr", {}, "`name`: found 'actionformr', no such detector; there are actionformer, bmn, ensemble"),
        ("actionformer", {"widht": 3}, "Did you mean 'width'?"),
        ("actionformer", {"width": 0}, "`width`: found 0, expected at least 1"),
        ("actionformer", {"width": "8"}, "`width`: found '8', expected a whole number"),
        ("actionformer", {"quality": {"epsilon": 0.0}}, "`quality.epsilon`: found 0.0, expected more than 0"),
        ("actionformer", {"width": 10}, "`detector.width`: found 10, expected a multiple of `detector.heads` = 4"),
        ("actionformer", {"windows": (3,)}, "`detector.windows`: found 1 values, expected one per level"),
        ("actionformer", {"windows": (4,) * 6}, "`detector.windows`: found (4, 4, 4, 4, 4, 4), expected odd"),
        ("actionformer", {"regression_ranges": ((0, 4),)}, "`detector.regression_ranges`: found 1 pairs"),
        ("actionformer", {"regression_ranges": ((4, 0),) * 6}, "`detector.regression_ranges`: found [(4.0, 0.0)]"),
        ("spot", {"decoding": {"class_thresholds": []}}, "`detector.decoding.class_thresholds`: found ()"),
    ],
)
def test_refusals(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        build(name, feature_width=FEATURE_WIDTH, num_classes=CLASSES, **changes)


@pytest.mark.parametrize("name", ["actionformer", "spot"])
def test_training_is_not_handed_decoding(name: str) -> None:
    """What only ``decode`` reads reaches neither losses nor on-line labels."""
    choice = tiny_choice(name)
    other = dataclasses.replace(choice.settings.decoding, score_threshold=0.9, max_detections=3)
    changed = Choice(name, dataclasses.replace(choice.settings, decoding=other))
    assert without_decoding(changed) == without_decoding(choice)
    assert without_decoding(changed).settings.decoding == type(other)()
    batch, results = random_batch([16, 9], 16), []
    for detector in (build_detector(choice, FACTS), build_detector(changed, FACTS)):

        @jax.jit
        def run(key: jax.Array, detector=detector) -> tuple:
            params, state = detector.init(key)
            outputs = detector.apply(params, batch, None)
            own = detector.annotate(outputs)
            return own, detector.loss(outputs, own, state, key), detector.decode(outputs)

        results.append(jax.device_get(run(jax.random.key(0))))
    (own, loss, found), (own_too, loss_too, found_too) = results
    assert all((a == b).all() for a, b in zip(jax.tree.leaves((own, loss)), jax.tree.leaves((own_too, loss_too))))
    assert found.mask.shape[1] != found_too.mask.shape[1] == 3


def test_baselines_have_no_quality_heads() -> None:
    plain = DETECTORS["actionformer"].plain(ActionFormerSettings(width=64))
    assert plain == ActionFormerSettings(width=64, quality=QualitySettings(branches="none"))
    assert DETECTORS["spot"].plain(SpotSettings()) == SpotSettings()


def test_defaults_of_suppression() -> None:
    """SPOT's are of its own paper; all else is as for the others."""
    own = {"sigma": 0.1, "max_detections": 100, "top_k_per_level": 200}
    decoding = SpotDecoding()
    assert {f.name: getattr(decoding, f.name) for f in dataclasses.fields(NmsSettings)} == {
        f.name: own.get(f.name, getattr(NmsSettings(), f.name)) for f in dataclasses.fields(NmsSettings)
    }


def test_every_number_has_bounds() -> None:
    """Of every registered detector, nested settings included."""

    def unbounded(settings: Any, path: str) -> list[str]:
        found = []
        for f in dataclasses.fields(settings):
            value = getattr(settings, f.name)
            if dataclasses.is_dataclass(value):
                found += unbounded(value, f"{path}.{f.name}")
            elif not isinstance(value, (bool, str)) and "bounds" not in f.metadata:
                found.append(f"{path}.{f.name}")
        return found

    assert [name for entry in DETECTORS for name in unbounded(DETECTORS[entry].settings(), entry)] == []


@dataclass(frozen=True)
class OwnSettings(Checked):
    """Of a detector that is not the package's."""

    size: int = number(8, at_least=1)


def build_own(settings: OwnSettings, facts: DataFacts) -> Any:
    small = {**SMALL, "width": settings.size}
    return build("actionformer", feature_width=facts.feature_width, num_classes=facts.num_classes, **small)


def test_a_detector_from_outside() -> None:
    try:
        register_detector("of_a_test", OwnSettings, build_own)
        detector = build("of_a_test", feature_width=FEATURE_WIDTH, num_classes=CLASSES, size=4)
        shapes, _ = jax.eval_shape(detector.init, jax.random.key(0))
        assert shapes["neck"]["norm_0"]["scale"].shape == (4,)
        choice = Choice("of_a_test", OwnSettings())
        assert without_decoding(choice) is choice  # it has no settings of decoding
    finally:
        DETECTORS.forget("of_a_test")
