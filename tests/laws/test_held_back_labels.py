"""Law 3: labels of unlabelled videos cannot reach a training step."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures import CLASSES, FEATURE_WIDTH, smoke_settings, tiny_choice
from run_folders import assert_same_state

from apl_jax.data.dataset import open_dataset, open_truth
from apl_jax.data.features.sources import embedded_root
from apl_jax.declarations import override
from apl_jax.registry import DETECTORS, METHODS
from apl_jax.runs.context import LABELLED, TRAINING, StageInputs
from apl_jax.runs.plans import plan_stages
from apl_jax.runs.run import run
from apl_jax.runs.settings import Settings
from apl_jax.runs.training_stage import TrainingPart
from apl_jax.structs import DataFacts

NOTHING: Any = None  # in place of a run's context, which a refusal does not touch


def test_changing_held_back_labels_changes_no_byte_of_the_trained_state(small_run: Path, tmp_path: Path) -> None:
    """Every annotation outside the labelled set is replaced by nonsense; fingerprints and training data stay."""
    split = json.loads((small_run / "split.json").read_text())
    document = json.loads((embedded_root() / "annotations.json").read_text())
    draws = np.random.default_rng(0)
    for video, entry in document["database"].items():
        if video not in split["labelled"]:
            for annotation in entry["annotations"]:
                start, end = np.sort(draws.uniform(0, entry["duration"], 2))
                annotation["segment"] = [float(start), float(end)]
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    for archive in embedded_root().glob("signals_*.npz"):
        (tmp_path / archive.name).symlink_to(archive)

    honest = smoke_settings(**{"data.split_file": str(small_run / "split.json")})
    tampered = smoke_settings(**{"data.split_file": str(small_run / "split.json"), "data.root": str(tmp_path)})
    one, other = open_dataset(honest.data), open_dataset(tampered.data)
    # The change is real: evaluation sees it.
    video = split["unlabelled"][0]
    truths = [open_truth(settings.data).videos[video].segments_s for settings in (honest, tampered)]
    assert not np.allclose(*truths)
    # What training is made from does not: the same digest (hence the same fingerprints) and the same bytes.
    assert one.digest == other.digest
    for table in ("labelled", "unlabelled", "evaluation"):
        a, b = getattr(one, table), getattr(other, table)
        assert a.features.tobytes() == b.features.tobytes()
        for mine, theirs in zip(a.records, b.records, strict=True):
            assert mine.segments_s.tobytes() == theirs.segments_s.tobytes()
            assert mine.labels.tobytes() == theirs.labels.tobytes()
    assert all(len(record.labels) == 0 for record in one.unlabelled.records)


@pytest.mark.exhaustive
def test_a_run_on_tampered_labels_ends_in_the_same_state(small_run: Path, tmp_path: Path) -> None:
    """The whole training path, not just its inputs: same parameters after a run with nonsense held back."""
    root = tmp_path / "data"
    root.mkdir()
    split = json.loads((small_run / "split.json").read_text())
    document = json.loads((embedded_root() / "annotations.json").read_text())
    for video, entry in document["database"].items():
        if video not in split["labelled"]:
            shift = entry["annotations"][0]["segment"][0] / 2
            for annotation in entry["annotations"]:
                annotation["segment"] = [annotation["segment"][0] - shift, annotation["segment"][1] - shift]
    (root / "annotations.json").write_text(json.dumps(document))
    for archive in embedded_root().glob("signals_*.npz"):
        (root / archive.name).symlink_to(archive)
    only = {"data.root": str(root), "variants": ("semi_supervised",), "evaluation.label_space.enabled": False}
    run(smoke_settings(**only), tmp_path / "run")
    for stage in ("pretrain", "teacher", "self_train_1"):
        assert_same_state(small_run, tmp_path / "run", stage)
    # What was trained and labelled would not even be done again; its score alone is another.
    read = lambda workdir, stage, file: (workdir / "stages" / stage / file).read_text()
    done = lambda workdir, stage: json.loads(read(workdir, stage, "done.json"))
    for stage in ("pretrain", "teacher", "pseudo_label_1", "self_train_1"):
        assert done(small_run, stage)["fingerprint"] == done(tmp_path / "run", stage)["fingerprint"], stage
    scored = [done(workdir, "pseudo_label_1_quality") for workdir in (small_run, tmp_path / "run")]
    assert scored[0]["fingerprint"] != scored[1]["fingerprint"] and scored[0]["result"] != scored[1]["result"]
    labels, same = (read(workdir, "pseudo_label_1", "pseudo_labels.json") for workdir in (small_run, tmp_path / "run"))
    assert labels == same and '"kept"' in labels


@pytest.mark.parametrize("kind", list(METHODS))
@pytest.mark.parametrize("detector_name", list(DETECTORS))
def test_no_training_stage_reads_them(detector_name: str, kind: str) -> None:
    """Whatever is registered: of annotations a training stage is given those of the labelled videos; it is an error to
    ask for more."""
    facts = DataFacts(FEATURE_WIDTH, CLASSES, 64)
    settings = dataclasses.replace(Settings(), detector=tiny_choice(detector_name))
    chosen = {"learning.method.name": kind, "learning.selection.chain": ("dynamic",), "learning.rounds": 2}
    trainings = [s for s in plan_stages(override(settings, chosen), facts) if isinstance(s.handed, TrainingPart)]
    assert {"supervised", "supervised_matched", "pretrain", "self_train_1"} <= {stage.name for stage in trainings}
    for stage in trainings:
        assert set(stage.reads) == {TRAINING, LABELLED}
        inputs = StageInputs(NOTHING, frozenset(stage.reads))
        for ask in (inputs.unlabelled_truth, inputs.evaluation_truth, lambda i=inputs: i.table("evaluation")):
            with pytest.raises(RuntimeError, match="without having said so"):
                ask()
