"""HAPT from UCI's own folder: a folder written in its layout comes back as the prepared data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from apl_jax.data.annotations import read_annotations
from apl_jax.data.features.folder import open_folder
from apl_jax.data.files import DataError
from apl_jax.interop.hapt import prepare_hapt
from apl_jax.settings import DataSettings

NAMES = ("WALKING", "SITTING", "STAND_TO_SIT")


def write_uci(folder: Path, signals: dict[str, np.ndarray], labels: list[tuple[int, ...]], names=NAMES) -> Path:
    """A folder as UCI's archive unpacks to; odd users are in training."""
    for part in ("RawData", "Train", "Test"):
        (folder / part).mkdir(parents=True)
    users = sorted({int(video[-2:]) for video in signals})
    for part, file, rest in (("Train", "subject_id_train.txt", 1), ("Test", "subject_id_test.txt", 0)):
        lines = [f"{user}\n" * 2 for user in users if user % 2 == rest] or ["99\n"]
        (folder / part / file).write_text("".join(lines))
    (folder / "activity_labels.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    (folder / "RawData" / "labels.txt").write_text("".join(" ".join(map(str, row)) + " \n" for row in labels))
    for video, signal in signals.items():
        for sensor, columns in (("acc", slice(0, 3)), ("gyro", slice(3, 6))):
            np.savetxt(folder / "RawData" / f"{sensor}_{video}.txt", signal[:, columns], "%.17g")
    return folder


@pytest.fixture
def uci(tmp_path: Path) -> Path:
    draws = np.random.default_rng(0)
    signals = {name: draws.normal(size=(count, 6)) for name, count in (("exp01_user01", 200), ("exp02_user02", 150))}
    labels = [(1, 1, 2, 11, 60), (1, 1, 3, 61, 90), (2, 2, 1, 1, 150)]
    return write_uci(tmp_path / "HAPT Data Set", signals, labels)


def test_prepared_folder(uci: Path, tmp_path: Path) -> None:
    assert prepare_hapt(uci, tmp_path / "hapt") == 2
    annotations = read_annotations(tmp_path / "hapt" / "annotations.json")
    assert annotations.classes == ("walking", "sitting", "stand_to_sit")
    first = annotations.videos["exp01_user01"]
    np.testing.assert_allclose(first.segments_s, [[0.2, 1.2], [1.2, 1.8]])
    assert (first.subset, first.subject, first.fps, first.duration_s) == ("training", 1, 50.0, 4.0)
    assert annotations.videos["exp02_user02"].subset == "test"
    source = open_folder(tmp_path / "hapt", DataSettings())
    raw = np.loadtxt(uci / "RawData" / "gyro_exp01_user01.txt")
    assert not source.windowed
    np.testing.assert_allclose(source.read("exp01_user01")[:, 3:], raw, atol=2e-3)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("RawData/labels.txt", "1 1 9 1 20\n", "activity 9 from sample 1 to 20"),
        ("RawData/labels.txt", "1 1 2 1 900\n", "within 200 samples"),
        ("RawData/labels.txt", "1 1 2 1\n", "first and last sample"),
        ("RawData/labels.txt", "words\n", "unreadable table"),
        ("RawData/acc_exp01_user01.txt", "1 2 nan\n", "finite numbers: x, y, z"),
        ("RawData/acc_exp01_user01.txt", "1 2 3\n", "1 and 200 samples"),
        ("activity_labels.txt", "one WALKING\n", "a number and a name"),
        ("Train/subject_id_train.txt", "3\n", "user 1 in neither list"),
        ("Test/subject_id_test.txt", "1\n2\n", "user 1, who is in training too"),
        ("RawData/gyro_exp02_user02.txt", None, "no such file"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(
    file: str, content: str | None, words: str, uci: Path, tmp_path: Path
) -> None:
    (uci / file).unlink()
    if content is not None:
        (uci / file).write_text(content)
    with pytest.raises(DataError, match=words):
        prepare_hapt(uci, tmp_path / "hapt")
    assert not (tmp_path / "hapt").exists()


def test_the_shared_copy_comes_out_again(shared: Path, tmp_path: Path) -> None:
    """Three recordings of the prepared data set, written as UCI does, are what they were."""
    document = json.loads((shared / "data" / "hapt" / "annotations.json").read_text())["database"]
    classes = {a["label_id"]: a["label"] for entry in document.values() for a in entry["annotations"]}
    names = [classes[i].upper() for i in range(len(classes))]
    with np.load(shared / "data" / "hapt" / "signals_50hz.npz", allow_pickle=False) as archive:
        chosen = {video: archive[video].astype(np.float64) for video in sorted(document)[:3]}
    labels = [
        (
            int(video[3:5]),
            int(video[-2:]),
            a["label_id"] + 1,
            round(a["segment"][0] * 50) + 1,
            round(a["segment"][1] * 50),
        )
        for video in chosen
        for a in document[video]["annotations"]
    ]
    prepare_hapt(write_uci(tmp_path / "uci", chosen, labels, names), tmp_path / "out")
    prepared = json.loads((tmp_path / "out" / "annotations.json").read_text())["database"]
    with np.load(tmp_path / "out" / "signals_50hz.npz", allow_pickle=False) as archive:
        for video, signal in chosen.items():
            np.testing.assert_array_equal(archive[video], signal)
            for one, other in zip(prepared[video]["annotations"], document[video]["annotations"], strict=True):
                assert one["label"] == other["label"] and one["label_id"] == other["label_id"]
                np.testing.assert_allclose(one["segment"], other["segment"], atol=1e-9)
            assert abs(prepared[video]["duration"] - document[video]["duration"]) < 1e-9
