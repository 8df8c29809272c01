"""Which choices of methods a run refuses before it starts."""

from __future__ import annotations

import pytest

from apl_jax.declarations import SettingsError, override
from apl_jax.runs.plans import plan_stages
from apl_jax.runs.settings import read_config
from apl_jax.structs import DataFacts


@pytest.mark.parametrize("role", ["pretext", "teacher"])
@pytest.mark.parametrize("name", ["apl", "apl_nontarget"])
def test_a_stage_before_the_pseudo_labels_cannot_learn_from_them(role: str, name: str) -> None:
    settings = override(read_config("spsw:smoke"), {f"learning.{role}.name": name})
    with pytest.raises(SettingsError, match=f"`learning.{role}`: found '{name}', which learns from pseudo labels"):
        plan_stages(settings, DataFacts(feature_width=8, num_classes=4))
