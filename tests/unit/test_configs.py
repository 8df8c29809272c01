"""Every configuration is one of settings, and the rungs of a ladder differ in what they are compared for, only."""

from __future__ import annotations

import itertools
import runpy
from pathlib import Path
from typing import Any

import pytest

from apl_jax.cli import to_settings
from apl_jax.declarations import to_dict
from apl_jax.pipeline.stages import plan_stages
from apl_jax.settings import Settings

CONFIGS = Path(__file__).parents[2] / "configs"
LADDER = [f"{d}-{loss}" for d, loss in itertools.product(("spot", "actionformer"), ("target", "negative", "hybrid"))]
VARIANTS = {
    "spsw": ["full", "demo", "smoke", "fixed", "alqa", "icd", "apl"],
    "hapt": ["full", "smoke", "fixed", "alqa", "icd", "apl"],
    "spsw_nontarget": [*LADDER, "spot-soft", "spot-complementary", "apl-hybrid"],
    "hapt_nontarget": [*LADDER, "spot-soft", "spot-complementary", "apl-hybrid"],
}


def settings_of(name: str, variant: str) -> Settings:
    return to_settings(runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](variant))


def test_all_configurations_are_tried() -> None:
    assert sorted(VARIANTS) == sorted(path.stem for path in CONFIGS.glob("*.py"))


@pytest.mark.parametrize(("name", "variant"), [(n, v) for n, variants in VARIANTS.items() for v in variants])
def test_variant_has_a_calendar(name: str, variant: str) -> None:
    settings = settings_of(name, variant)
    assert settings.data.name == name.partition("_")[0]
    assert [stage for stage in plan_stages(settings) if stage.name.endswith("_evaluation")]


@pytest.mark.parametrize("name", VARIANTS)
def test_unknown_variant_is_answered_with_the_known(name: str) -> None:
    with pytest.raises(ValueError, match=r"configs/.*:nonsense: expected"):
        settings_of(name, "nonsense")


@pytest.mark.parametrize("name", ("spsw_nontarget", "hapt_nontarget"))
@pytest.mark.parametrize("detector", ("spot", "actionformer"))
def test_rungs_differ_in_self_training_alone(name: str, detector: str) -> None:
    """Table II compares losses on unlabelled snippets: labels, teacher, steps and detector are the same."""

    def shared(loss: str) -> list[Any]:
        stages = plan_stages(settings_of(name, f"{detector}-{loss}"))
        return [(s.name, s.needs, s.depends_on) for s in stages if "self_train" not in s.name and "space" not in s.name]

    target, negative, hybrid = (shared(loss) for loss in ("target", "negative", "hybrid"))
    assert target == negative == hybrid and len(target) >= 4
    plain, divided = (to_dict(settings_of(name, f"{detector}-{loss}"))["learning"] for loss in ("target", "hybrid"))
    changed = {key for key in divided["nontarget"] if divided["nontarget"][key] != plain["nontarget"][key]}
    assert changed == {"labelled_negative", "negative_weight", "positive_weight"}
    assert {k: v for k, v in divided.items() if k != "nontarget"} == {
        k: v for k, v in plain.items() if k != "nontarget"
    }
