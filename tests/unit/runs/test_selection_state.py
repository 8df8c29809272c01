"""What a selection chain remembers from round to round: written by one labelling stage, handed to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import CLASSES, FEATURE_WIDTH, random_bank, random_batch, random_weights, tiny_choice

from apl_jax.declarations import Chain, Choice, override
from apl_jax.detectors import build_detector
from apl_jax.devices import build_mesh
from apl_jax.learning.icd import class_members
from apl_jax.learning.selection import Link, chain, observe_nothing
from apl_jax.registry import SELECTION
from apl_jax.runs.labelling_stage import (
    SELECTION_STATE,
    LabellingPart,
    build_selection,
    read_selection_state,
    select_pseudo_labels,
    write_selection_state,
)
from apl_jax.runs.plans import plan_stages
from apl_jax.runs.settings import Settings
from apl_jax.structs import DataFacts, PseudoLabels, Reason

STEPS, SHARE, MEMORY = 16, 0.25, 0.6
FACTS = DataFacts(FEATURE_WIDTH, CLASSES, STEPS)
DETECTOR = tiny_choice("actionformer")
VIDEOS = random_batch([16, 11, 9, 16], STEPS, seed=3)
NAMES = ("dynamic", "fixed", "surest_share")


def choice(name: str, **changes: Any) -> Choice:
    return Choice(name, override(SELECTION[name].settings(), changes))


# A stranger's link (examples/plugin.py): its threshold is a running mean over rounds.
SUREST = choice("surest_share", share=SHARE, memory=MEMORY, tau_neg=0.05)


class Inputs:
    """What a labelling stage sees of a run of four unlabelled videos, whose stages leave their files in ``workdir``."""

    facts, mesh, bank, first_process = FACTS, build_mesh(), random_bank(), True
    members = class_members(random_bank(), CLASSES)

    def __init__(self, workdir: Path, first_process: bool = True) -> None:
        self._workdir, self.first_process = workdir, first_process

    def folder(self, stage: str) -> Path:
        return self._workdir / stage

    def parameters(self, stage: str) -> dict[str, Any]:
        """Other ones for every teacher."""
        shapes = jax.eval_shape(build_detector(DETECTOR, FACTS).init, jax.random.key(0))[0]
        return {"detector": random_weights(shapes, seed=int(stage.rpartition("_")[2]))}

    def map_videos(self, videos: str, function: Any, params: Any) -> Any:
        assert videos == "unlabelled"
        return jax.jit(function)(params, VIDEOS)


def labelled(inputs: Any, number: int, links: tuple[Choice, ...], before: str = "") -> PseudoLabels:
    """The labels of round ``number``, as the stage ``pseudo_label_<number>`` finds them."""
    name = f"pseudo_label_{number}"
    part = LabellingPart(name, DETECTOR, Chain(links), "ignore", f"teacher_{number}", before=before)
    return select_pseudo_labels(part, inputs, inputs.folder(name))


def quantile(labels: PseudoLabels) -> float:
    """The threshold that the stranger's rule would have without a memory."""
    found = labels.detections
    return float(np.quantile(found.confidence[found.mask & (found.confidence > 0.05)], 1 - SHARE))


def test_the_threshold_of_a_round_is_the_memory_of_the_next(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path)
    rounds = [labelled(inputs, 1, (SUREST,))]
    rounds += [labelled(inputs, n, (SUREST,), f"pseudo_label_{n - 1}") for n in (2, 3)]
    alone = [quantile(labels) for labels in rounds]
    assert len({round(tau, 3) for tau in alone}) == 3  # the teachers differ in what they are sure of
    expected = alone[0]
    for labels, tau in zip(rounds, alone, strict=True):
        expected = MEMORY * expected + (1 - MEMORY) * tau
        np.testing.assert_allclose(labels.threshold, expected, rtol=1e-5)
        above = labels.detections.mask & (labels.detections.confidence >= np.float32(labels.threshold))
        assert ((labels.reason == Reason.KEPT) == above).all() and above.any()
    for number, labels in enumerate(rounds, 1):
        stored = read_selection_state(build_selection(Chain((SUREST,)), FACTS), inputs.folder(f"pseudo_label_{number}"))
        assert float(stored[0]) == labels.threshold.flat[0]


def test_a_round_that_is_done_again_begins_where_it_began(tmp_path: Path) -> None:
    """It reads what the round before left, not what it wrote itself; and leaves the same."""
    inputs = Inputs(tmp_path)
    labelled(inputs, 1, (SUREST,))
    once = labelled(inputs, 2, (SUREST,), "pseudo_label_1")
    content = (inputs.folder("pseudo_label_2") / SELECTION_STATE).read_bytes()
    again = labelled(inputs, 2, (SUREST,), "pseudo_label_1")
    jax.tree.map(np.testing.assert_array_equal, once, again)
    assert (inputs.folder("pseudo_label_2") / SELECTION_STATE).read_bytes() == content
    assert not np.allclose(labelled(inputs, 2, (SUREST,)).threshold, once.threshold)  # without a memory


def test_every_link_has_its_own_place(tmp_path: Path) -> None:
    """Links without a memory take none; two that have one do not meet."""
    inputs, other = Inputs(tmp_path), choice("surest_share", share=0.6, memory=0.1, tau_neg=0.05)
    before = choice("dynamic"), SUREST
    link = chain(*(SELECTION[c.name].build(c.settings, FACTS) for c in (*before, other)))
    assert jax.tree.map(float, link.init()) == ((), -1.0, -1.0)
    labelled(inputs, 1, (*before, other))
    first, second = jax.tree.leaves(read_selection_state(link, inputs.folder("pseudo_label_1")))
    assert 0 < second < first < 1  # that of fewer detections is higher
    labelled(inputs, 2, before, "pseudo_label_1")
    assert (inputs.folder("pseudo_label_2") / SELECTION_STATE).is_file()


@pytest.mark.parametrize("links", [("dynamic",), ("fixed",), ("dynamic", "fixed")])
def test_who_remembers_nothing_writes_nothing(links: tuple[str, ...], tmp_path: Path) -> None:
    inputs, choices = Inputs(tmp_path), tuple(choice(name) for name in links)
    labelled(inputs, 1, choices)
    labelled(inputs, 2, choices, "pseudo_label_1")  # reads none
    assert not list(tmp_path.rglob(SELECTION_STATE))
    assert read_selection_state(build_selection(Chain(choices), FACTS), tmp_path / "nowhere") == ((),) * len(links)


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    labelled(Inputs(tmp_path, first_process=False), 1, (SUREST,))
    assert not list(tmp_path.rglob(SELECTION_STATE))


def test_any_tree_of_arrays_can_be_remembered(tmp_path: Path) -> None:
    state = {
        "count": jnp.int32(7), "by_class": jnp.arange(6.0).reshape(2, 3) / 3, "seen": jnp.array([True, False]),
        "nested": (jnp.float32(-0.0), {"b": jnp.uint8(3), "a": jnp.float32(jnp.nan)}, ()), "none": jnp.zeros((0, 4)),
    }  # fmt: skip
    fresh = jax.tree.map(jnp.zeros_like, state)
    link = Link(lambda: fresh, observe_nothing, lambda state, labels, observed: (state, labels))
    whole = chain(SELECTION["fixed"].build(choice("fixed").settings, FACTS), link)
    write_selection_state(((), state), tmp_path, first_process=True)
    found = read_selection_state(whole, tmp_path)
    assert jax.tree.structure(found) == jax.tree.structure(whole.init())
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_rounds_follow_one_another_in_the_plan() -> None:
    """Each labelling stage needs, and is handed, the one before; its fingerprint then changes with that one's."""
    settings = override(Settings(), {"learning.rounds": 3, "learning.selection.chain": ["surest_share"]})
    stages = {stage.name: stage for stage in plan_stages(settings, FACTS)}
    assert [stages[f"pseudo_label_{n}"].handed.before for n in (1, 2, 3)] == ["", "pseudo_label_1", "pseudo_label_2"]
    assert stages["pseudo_label_1"].needs == ("teacher",)
    assert stages["pseudo_label_2"].needs == ("self_train_1", "pseudo_label_1")
    assert stages["pseudo_label_3"].needs == ("self_train_2", "pseudo_label_2")
    assert stages["pseudo_label_2"].handed.selection.names == ("surest_share",)
