"""Every bad data set a user may point the program at is refused by open_dataset in one message (issue 2, point 5)."""

import json

import numpy as np
import pytest

from apl_jax.data.dataset import open_dataset
from apl_jax.data.files import DataError
from apl_jax.declarations import SettingsError
from apl_jax.settings import DataSettings


@pytest.fixture
def folder(tmp_path):
    """A small good data set of 6 videos of 10 s: document, signals, and a function that saves and opens it."""
    random = np.random.default_rng(0)
    names = [f"v{i}" for i in range(6)]
    signals = {name: random.normal(size=(1000, 2)).astype(np.float32) for name in names}
    database = {
        name: {
            "subset": "test" if i == 5 else "training",
            "duration": 10.0,
            "fps": 100.0,
            "subject": i,
            "annotations": [{"segment": [1.0, 2.0], "label": "walk"}, {"segment": [3.0, 4.0], "label": "turn"}],
        }
        for i, name in enumerate(names)
    }

    def open_it(**changes):
        (tmp_path / "annotations.json").write_text(json.dumps({"database": database}))
        if signals:
            np.savez(tmp_path / "signals_100hz.npz", allow_pickle=False, **signals)
        return open_dataset(DataSettings(root=str(tmp_path), **{"label_ratio": 0.4, **changes}))

    return tmp_path, database, signals, open_it


def refused(open_it, *words, **changes):
    """Opening fails with a single message that holds all the words."""
    with pytest.raises(DataError) as caught:
        open_it(**changes)
    message = str(caught.value)
    assert "\n" not in message and "expected" in message and "Try: " in message
    for word in words:
        assert word in message, message


def test_the_good_one_opens(folder):
    data = folder[3]()
    assert (len(data.labelled.ids), len(data.unlabelled.ids), len(data.evaluation.ids)) == (2, 3, 1)


def test_missing_feature_file(folder):
    root, _, signals, open_it = folder
    signals.clear()
    refused(open_it, str(root), "no features")


@pytest.mark.parametrize("video", ["v1", "v5"])
def test_missing_recording(folder, video):
    _, _, signals, open_it = folder
    del signals[video]
    refused(open_it, "signals_100hz.npz", repr(video), "no features")


def test_truncated_feature_file(folder):
    root, _, signals, open_it = folder
    open_it()
    path = root / "signals_100hz.npz"
    path.write_bytes(path.read_bytes()[:5000])
    signals.clear()
    refused(open_it, str(path), "unreadable archive")


def test_nan_in_features(folder):
    _, _, signals, open_it = folder
    signals["v3"][417, 1] = np.nan
    refused(open_it, "'v3'", "nan at row 417, channel 1")


def test_annotation_outside_its_video(folder):
    _, database, _, open_it = folder
    database["v2"]["annotations"][1]["segment"] = [9.0, 12.0]
    refused(open_it, "annotations.json", "'v2'", "annotations[1].segment", "[9, 12]", "[0, 10]")
    assert "1 segments kept" in open_it(strict_annotations=False).notes[0]


def test_empty_video_list(folder):
    _, database, _, open_it = folder
    database.clear()
    refused(open_it, "annotations.json", "no videos")


def test_video_shorter_than_one_window(folder):
    _, database, signals, open_it = folder
    signals["v4"] = signals["v4"][:12]
    database["v4"].update(duration=0.12, annotations=[])
    refused(open_it, "'v4'", "12 samples", "window of 20")


def test_features_of_another_rate(folder):
    _, database, _, open_it = folder
    database["v0"]["fps"] = 50.0
    refused(open_it, "'v0'", "20.00 s of features", "10.00 s")


def test_missing_rate(folder):
    _, database, _, open_it = folder
    del database["v0"]["fps"]
    refused(open_it, "'v0', fps")


def test_ratio_that_leaves_a_class_uncovered(folder):
    _, database, _, open_it = folder
    for i, name in enumerate(["v0", "v1", "v2"]):
        database[name]["annotations"] = [{"segment": [1.0, 2.0], "label": f"rare{i}"}]
    refused(
        open_it, "`data.label_ratio=0.4`", "2 labelled of 5", "`data.label_ratio=0.8`", "`data.allow_uncovered=True`"
    )
    assert open_it(label_ratio=0.8).split.uncovered_classes == ()
    split = open_it(allow_uncovered=True).split
    assert split.labelled == ("v0", "v1") and split.uncovered_classes == ("rare2", "turn", "walk")


@pytest.mark.parametrize("ratio", [0.0, 1.5])
def test_impossible_ratio(folder, ratio):
    with pytest.raises(SettingsError, match=r"`label_ratio`: found .*, expected more than 0 and at most 1"):
        folder[3](label_ratio=ratio)


def test_no_training_and_no_test_videos(folder):
    refused(folder[3], "'training'", "'val'", training_subset="val")
    refused(folder[3], "'test'", "'val'", test_subset="val")


def test_no_such_folder(tmp_path):
    refused(lambda: open_dataset(DataSettings(root=str(tmp_path / "none"))), "none/annotations.json", "no such file")
