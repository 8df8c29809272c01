"""Proposals from a file in a run: which stages there are, what they depend on, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import proposal_detector
import pytest

from apl_jax.data.annotations import unannotated
from apl_jax.data.files import DataError
from apl_jax.declarations import Choice, SettingsError, Unhashed, override
from apl_jax.registry import DETECTORS
from apl_jax.runs.context import read_proposals
from apl_jax.runs.given_proposals import GivenProposalsPart, take_proposals
from apl_jax.runs.plans import generator_of, plan_stages
from apl_jax.runs.settings import Settings
from apl_jax.runs.stages import stage_fingerprint
from apl_jax.structs import DataFacts, TimeGrid

FACTS = DataFacts(6, 4, 100)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """Of a detector that wants proposals, with a file of them."""
    proposal_detector.register()
    file = tmp_path / "given.json"
    file.write_text(json.dumps({"results": {"a": [{"segment": [1, 3], "score": 0.5}], "b": []}}))
    base = override(Settings(), {"learning.proposals": str(file)})
    yield dataclasses.replace(base, detector=Choice("naming", proposal_detector.NamingSettings()))
    DETECTORS.forget("naming")


def marks(settings: Settings) -> dict[str, str]:
    found: dict[str, str] = {}
    context: Any = SimpleNamespace(digest=str)
    for stage in plan_stages(settings, FACTS):
        found[stage.name] = stage_fingerprint(stage, context.digest, found)
    return found


def test_no_generator_is_trained(settings: Settings) -> None:
    stages = {stage.name: stage for stage in plan_stages(settings, FACTS)}
    assert list(stages)[:2] == ["proposals", "evaluation_proposals"] and "generator" not in stages
    assert {stages[name].work for name in ("proposals", "evaluation_proposals")} == {take_proposals}
    assert stages["proposals"].reads == ("training",) and stages["evaluation_proposals"].reads == ("evaluation",)
    assert stages["teacher"].needs == ("pretrain", "proposals") and stages["teacher"].handed.proposer == ""
    assert generator_of(settings, FACTS) is None
    own = override(settings, {"learning.proposals": ""})
    trained = {stage.name: stage for stage in plan_stages(own, FACTS)}
    assert trained["teacher"].handed.proposer == "generator" and generator_of(own, FACTS) is not None


def test_what_the_file_holds_decides_and_not_where_it_is(settings: Settings, tmp_path: Path) -> None:
    before, file = marks(settings), Path(settings.learning.proposals)
    moved = tmp_path / "moved.json"
    moved.write_bytes(file.read_bytes())
    assert marks(override(settings, {"learning.proposals": str(moved)})) == before
    fewer = marks(override(settings, {"learning.max_proposals": 3}))
    file.write_text(json.dumps({"results": {"a": [], "b": []}}))
    for changed in (fewer, marks(settings)):
        assert {name for name in before if before[name] != changed[name]} == set(before), "all stages begin with them"


def test_a_detector_that_finds_segments_by_itself_takes_none(settings: Settings) -> None:
    with pytest.raises(SettingsError, match=r"`learning\.proposals`: found .*'actionformer' finds segments by itself"):
        plan_stages(dataclasses.replace(settings, detector=Settings().detector), FACTS)


def test_a_file_that_is_not_there_is_refused_before_anything(settings: Settings) -> None:
    with pytest.raises(DataError, match=r"no such file.*learning\.proposals"):
        plan_stages(override(settings, {"learning.proposals": "/nowhere.json"}), FACTS)


def test_the_stage(settings: Settings, tmp_path: Path) -> None:
    records = tuple(unannotated(video, 10.0, 10.0) for video in ("a", "b"))
    table = SimpleNamespace(ids=("a", "b"), records=records, grids=(TimeGrid(10.0, 10.0, 10.0, 10),) * 2)
    inputs: Any = SimpleNamespace(table=lambda videos: table, first_process=True)
    part = plan_stages(settings, FACTS)[0].handed
    result = take_proposals(part, inputs, tmp_path)
    assert result["proposals"] == 1 and result["source"]["digest"] == part.digest
    assert "'b'" in result["warnings"][0]
    found = read_proposals(tmp_path)["training"]
    assert found.mask.tolist() == [[True], [False]] and found.segments_t[0, 0].tolist() == [0.5, 2.5]
    changed = GivenProposalsPart("another", Unhashed(settings.learning.proposals), 5, "training")
    with pytest.raises(DataError, match=r"another content.*run the same command again"):
        take_proposals(changed, inputs, tmp_path)
