"""Benchmarks as published: THUMOS14's test sets, ActivityNet's cleaning, and which file of a folder is read."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from apl_jax.data.annotations import read_annotations
from apl_jax.data.dataset import open_dataset, open_truth
from apl_jax.data.files import DataError
from apl_jax.data.published import THUMOS14_VARIANTS, annotation_file, choose_variant, clean_activitynet
from apl_jax.settings import DataSettings

REAL = Path(__file__).parents[3] / ".." / "shared" / "data" / "annotations"
needs_shared = pytest.mark.skipif(not REAL.is_dir(), reason=f"the shared annotations {REAL} are absent")
NOT_EVERYWHERE = ("video_test_0000270", "video_test_0001292", "video_test_0001496")


def thumos(test=213, ambiguous=True):
    """A small THUMOS14: 213 test videos and one of validation, with the counts of nothing real."""
    names = [*NOT_EVERYWHERE, *(f"video_test_9{i:06d}" for i in range(test - 3))]
    rows = [
        {"segment": [1, 2], "label": "CliffDiving", "label_id": 4},
        {"segment": [1, 2], "label": "Diving", "label_id": 7},
        {"segment": [1, 3], "label": "Diving", "label_id": 7},
    ]
    unclear = [{"segment": [4, 5], "label": "Ambiguous", "label_id": 5}] * ambiguous
    database = {name: {"subset": "Test", "duration": 10, "fps": 30, "annotations": rows + unclear} for name in names}
    database["video_test_0001292"]["annotations"] = unclear
    shown = unclear + rows
    database["video_validation_1"] = {"subset": "Validation", "duration": 10, "fps": 30, "annotations": shown}
    return {"version": "x", "database": database}


def opened(folder, document, **changes):
    """What a folder with that document is read as."""
    (folder / "thumos14.json").write_text(json.dumps(document))
    return open_truth(DataSettings(**{"name": "thumos14", "root": str(folder), **changes}))


@pytest.mark.parametrize(
    ("variant", "count", "left_out"),
    [("213", 213, ()), ("212", 212, (1,)), ("211", 211, (0, 1)), ("210", 210, (0, 1, 2))],
)
def test_variants_leave_out_the_videos_they_stand_for(tmp_path, variant, count, left_out):
    annotations = opened(tmp_path, thumos(), variant=variant)
    test = {video for video, r in annotations.videos.items() if r.subset == "test"}
    assert len(test) == count and set(NOT_EVERYWHERE) - test == {NOT_EVERYWHERE[i] for i in left_out}
    instances = 3 * len(test - {"video_test_0001292"})
    assert annotations.variant == f"{variant}, {instances} instances"  # not the published number
    notes = " ".join(annotations.notes)
    assert f"test set {variant!r}: {count} videos, {instances} instances" in notes
    assert "1 validation videos, 3 instances" in notes
    assert f"{instances // 3 + 1} CliffDiving segments are annotated as Diving too" in notes
    assert f"{count + 1} segments of the class 'Ambiguous' left out" in notes
    assert f"{THUMOS14_VARIANTS[variant].instances} instances there" in notes


def test_ambiguous_is_no_class(tmp_path):
    annotations = opened(tmp_path, thumos())
    assert annotations.classes == ("CliffDiving", "Diving")  # Ambiguous stood between them
    record = annotations.videos["video_validation_1"]
    assert record.labels.tolist() == [0, 1, 1] and record.segments_s.tolist() == [[1, 2], [1, 2], [1, 3]]
    assert "video_validation_1" not in annotations.first_classes  # its first annotation was ambiguous
    assert annotations.first_classes["video_test_0000270"] == 0


def test_212_is_the_default_with_and_without_1292(tmp_path):
    with_it, without = thumos(), thumos()
    del without["database"]["video_test_0001292"]
    a, b = (opened(tmp_path, document) for document in (with_it, without))
    assert set(a.videos) == set(b.videos) and a.variant == b.variant == "212, 636 instances"


def test_variant_refusals(tmp_path):
    without = thumos()
    del without["database"]["video_test_0001292"]
    with pytest.raises(DataError, match=r"video 'video_test_0001292': found no entry.*variant=212"):
        opened(tmp_path, without, variant="213")
    with pytest.raises(
        DataError, match=r"found 100 videos of subset 'test' .*; expected the 212 of THUMOS14's variant"
    ):
        opened(tmp_path, thumos(101))
    with pytest.raises(DataError, match="found '214'; expected one of 213, 212, 211, 210"):
        opened(tmp_path, thumos(), variant="214")
    with pytest.raises(DataError, match="found '212' for the data set 'mine'"):
        opened(tmp_path, thumos(), name="mine", variant="212")
    annotations = opened(tmp_path, thumos(101), name="mine")
    assert "Ambiguous" in annotations.classes and (annotations.variant, annotations.notes) == ("", ())


def test_variant_reaches_the_data_set(tmp_path):
    document = thumos()
    (tmp_path / "features").mkdir()
    for video in document["database"]:
        np.save(tmp_path / "features" / f"{video}.npy", np.ones((29, 2), np.float32))
    (tmp_path / "thumos14.json").write_text(json.dumps(document))
    settings = DataSettings(
        name="thumos14", root=str(tmp_path), variant="210", training_subset="validation", label_ratio=1.0
    )
    data = open_dataset(settings)
    assert data.variant == "210, 630 instances" and len(data.evaluation.ids) == 210
    assert not set(NOT_EVERYWHERE) & set(data.evaluation.ids) and len(data.notes) == 4
    assert open_dataset(DataSettings()).variant == ""


@needs_shared
@pytest.mark.parametrize(
    ("variant", "videos", "instances"), [("212", 212, 3358), ("211", 211, 3329), ("210", 210, 3311)]
)
def test_real_thumos14(variant, videos, instances):
    path = REAL / "thumos14.json"
    annotations = choose_variant(read_annotations(path, strict=False), path, variant)
    count, total = Counter(), Counter()
    for record in annotations.videos.values():
        count[record.subset] += 1
        total[record.subset] += len(record.labels)
    assert count == {"validation": 200, "test": videos} and total == {"validation": 3007, "test": instances}
    assert len(annotations.classes) == 20 and annotations.variant == variant
    assert "360 CliffDiving segments" in annotations.notes[-1]
    with pytest.raises(DataError, match="video_test_0001292"):
        choose_variant(annotations, path, "213")


@needs_shared
def test_real_activitynet():
    path = REAL / "activitynet13_anno.json"
    annotations = clean_activitynet(read_annotations(path, strict=False), path)
    counts = Counter(record.subset for record in annotations.videos.values())
    assert counts == {"training": 9649, "validation": 4728, "testing": 4851} and len(annotations.classes) == 200
    assert sum(len(record.labels) for record in annotations.videos.values()) == 22152 - 12 - 50
    assert "12 segments left out because they have no length" in annotations.notes[1]
    assert "50 segments left out that repeat another of their class, in 26 videos" in annotations.notes[2]
    assert len(annotations.notes) == 3


def test_activitynet_loses_short_and_repeated_instances(tmp_path):
    segments = [[1, 2], [1.0009, 2.0009], [1.0012, 2], [1, 2], [5, 5.0009], [1, 2.5], [5, 5.0011]]
    rows = [{"segment": s, "label": "a" if i != 3 else "b", "weight": i / 10} for i, s in enumerate(segments)]
    database = {
        "v": {"subset": "training", "duration": 10, "annotations": rows},
        "w": {"subset": "validation", "duration": 10, "annotations": rows[:1]},
    }
    (tmp_path / "annotations.json").write_text(json.dumps({"database": database}))
    settings = {"root": str(tmp_path), "strict_annotations": False}
    plain = open_truth(DataSettings(name="mine", **settings))
    assert len(plain.videos["v"].labels) == 7 and plain.notes == ()
    annotations = open_truth(DataSettings(name="ActivityNet_tsp", **settings))
    record = annotations.videos["v"]
    assert record.segments_s.tolist() == [segments[i] for i in (0, 2, 3, 5, 6)]
    assert record.labels.tolist() == [0, 0, 1, 0, 0]
    np.testing.assert_allclose(record.weight, [0, 0.2, 0.3, 0.5, 0.6])
    assert len(record.ignore) == 5 and annotations.videos["w"].segments_s.tolist() == [[1, 2]]
    assert "1 segments left out that are shorter than 0.001 s, in 1 videos such as v" in annotations.notes[0]
    assert "1 segments left out that repeat another" in annotations.notes[1]


def test_a_folder_holds_one_annotation_file(tmp_path):
    with pytest.raises(DataError, match=r"annotations.json: found no such file"):
        open_truth(DataSettings(root=str(tmp_path)))
    for name in ("thumos14.json", "activity_net.v1-3.min.json"):
        (tmp_path / name).write_text(json.dumps(thumos()))
    with pytest.raises(
        DataError, match=r"found thumos14.json and activity_net.v1-3.min.json; expected the annotations"
    ):
        open_truth(DataSettings(root=str(tmp_path)))
    (tmp_path / "thumos14.json").unlink()
    assert len(open_truth(DataSettings(root=str(tmp_path))).videos) == 214
    (tmp_path / "EPIC_100_train.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match="and tables of EPIC-KITCHENS-100"):
        open_truth(DataSettings(root=str(tmp_path)))


def test_files_of_other_benchmarks_are_no_matter(tmp_path):
    """A folder may hold the annotations of several benchmarks; the name says which; a file of one's own is in doubt."""
    for name in ("thumos14.json", "activity_net.v1-3.min.json"):
        (tmp_path / name).write_text(json.dumps(thumos()))
    (tmp_path / "EPIC_100_train.csv").write_text("a\n1\n")
    for name, file in (("THUMOS14_i3d", "thumos14.json"), ("activitynet", "activity_net.v1-3.min.json")):
        assert annotation_file(tmp_path, name) == tmp_path / file
    assert len(open_truth(DataSettings(name="thumos14", root=str(tmp_path))).videos) == 213
    (tmp_path / "annotations.json").write_text("{}")
    with pytest.raises(DataError, match=r"found annotations.json and thumos14.json; expected the annotations of one"):
        annotation_file(tmp_path, "thumos14")


def test_frame_rate_of_an_extraction_replaces_the_videos_own(tmp_path):
    (tmp_path / "annotations.json").write_text(json.dumps(thumos()))
    own, given = (open_truth(DataSettings(name="own", root=str(tmp_path), fps=fps)).videos for fps in (0.0, 12.5))
    assert {record.fps for record in given.values()} == {12.5} != {record.fps for record in own.values()}
    assert all(given[video].duration_s == record.duration_s for video, record in own.items())
