"""Facts of a data set: those of all recordings, and those of labelled ones only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from apl_jax.configuration.facts import read_facts
from apl_jax.data.files import DataError
from apl_jax.settings import DataSettings

CLASSES = ("wave", "push")


def write_folder(root: Path, rows: int = 100, stride: int = 1, fps: float = 20.0, channels: int = 3) -> Path:
    """Ten training recordings of random walks and two test ones, with two instances each."""
    draws = np.random.default_rng(0)
    (root / "features").mkdir(parents=True)
    database = {}
    for i in range(12):
        walk = np.cumsum(draws.normal(size=(rows, channels)), 0).astype(np.float32)
        walk[:, -1] = 7.0
        np.save(root / "features" / f"r{i}.npy", walk)
        found = [{"segment": [1.0 + c, 1.5 + c], "label": label} for c, label in enumerate(CLASSES)]
        subset = "training" if i < 10 else "test"
        database[f"r{i}"] = {"subset": subset, "duration": rows * stride / fps, "fps": fps, "annotations": found}
    (root / "annotations.json").write_text(json.dumps({"database": database}))
    return root


def settings(root: Path, **changes: object) -> DataSettings:
    return DataSettings(name="walks", root=str(root), label_ratio=0.2, **changes)  # pyright: ignore[reportArgumentType]


def test_facts(tmp_path: Path) -> None:
    facts = read_facts(settings(write_folder(tmp_path)))
    assert (facts.classes, facts.labelled, facts.training, len(facts.samples), facts.instances) == (2, 2, 10, 12, 4)
    assert (facts.fps, facts.stride, facts.window, facts.windowed, facts.row_s) == (20.0, 1, 1, True, 0.05)
    assert (facts.columns, facts.constant, facts.most_instances) == (3, 1, 2)
    np.testing.assert_allclose(facts.lengths_s, 0.5)
    np.testing.assert_array_equal(facts.class_counts, [2, 2])
    assert facts.covered == pytest.approx(0.2) and facts.concurrent == 0.0
    assert 0.9 < facts.neighbours < 1


def test_stride_of_stored_rows(tmp_path: Path) -> None:
    """Without features.json, rows and durations tell the stride, and nothing tells the window."""
    facts = read_facts(settings(write_folder(tmp_path, stride=4)))
    assert (facts.stride, facts.window, facts.row_s) == (4, 0, 0.2)


def test_manifest_wins(tmp_path: Path) -> None:
    root = write_folder(tmp_path, stride=4)
    (root / "features.json").write_text(json.dumps({"stride": 4, "window": 16, "width": 3, "fps": 20.0}))
    facts = read_facts(settings(root))
    assert (facts.stride, facts.window) == (4, 16)


def test_a_stride_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path, stride=1)
    document = json.loads((root / "annotations.json").read_text())
    for entry in document["database"].values():
        entry["duration"] *= 2.5
    (root / "annotations.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"2\.5 frames for each row"):
        read_facts(settings(root))


def test_unlabelled_annotations_change_nothing(tmp_path: Path) -> None:
    """The law: what unlabelled and test recordings show reaches no fact but the names of classes."""
    root = write_folder(tmp_path)
    before = read_facts(settings(root))
    from apl_jax.data.dataset import open_truth
    from apl_jax.data.splits import build_split

    split = build_split(open_truth(settings(root)), settings(root))
    (root / "split.json").write_text(json.dumps({"labelled": list(split.labelled)}))
    document = json.loads((root / "annotations.json").read_text())
    for video in (*split.unlabelled, *split.evaluation):
        document["database"][video]["annotations"] = [{"segment": [0.0, 4.9], "label": "wave"}] * 9
    (root / "annotations.json").write_text(json.dumps(document))
    after = read_facts(settings(root, split_file=str(root / "split.json")))
    assert after.digest == before.digest


def test_concurrent_actions(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    document = json.loads((root / "annotations.json").read_text())
    for entry in document["database"].values():
        entry["annotations"].append({"segment": [1.25, 1.75], "label": "push"})
    (root / "annotations.json").write_text(json.dumps(document))
    facts = read_facts(settings(root))
    assert facts.covered == pytest.approx(1.25 / 5) and facts.concurrent == pytest.approx(0.25 / 1.25)
