"""Annotation files: counts and grids of the real ones, order of classes, keys of pseudo labels, atomic writing."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apl_jax.data.annotations import parse_annotations, read_annotations
from apl_jax.data.dataset import annotation_digest
from apl_jax.data.features.sources import embedded_root
from apl_jax.data.files import DataError, load_csv, write_json
from apl_jax.structs import TimeGrid

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data folder {SHARED} is absent")


def document(*annotations: Any, duration: Any = 10.0, **entry: Any) -> dict[str, Any]:
    """One video called v with the given annotations."""
    return {"database": {"v": {"subset": "Training", "duration": duration, "annotations": list(annotations), **entry}}}


def read(tmp_path, content, **options):
    """What read_annotations makes of a document."""
    path = tmp_path / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_annotations(path, **options)


def test_embedded_counts():
    annotations = read_annotations(embedded_root() / "annotations.json")
    assert annotations.classes == ("standing_up", "walking", "turning", "sitting_down")
    assert Counter(r.subset for r in annotations.videos.values()) == {"training": 153, "test": 70}
    assert sum(len(r.labels) for r in annotations.videos.values()) == 1362
    subjects = {r.subject for r in annotations.videos.values() if r.subset == "test"}
    assert subjects == {3, 6, 9, 12, 15, 18, 21}
    first = annotations.videos["s01_01_sp"]
    np.testing.assert_array_equal(first.segments_s[:2], [[0.761, 2.059], [2.059, 4.323]])
    assert (first.duration_s, first.fps, first.subject, first.labels[:2].tolist()) == (13.185, 102.467, 1, [0, 1])
    assert first.weight.tolist() == [1.0] * len(first.labels) and not first.ignore.any()
    assert annotations.notes == ()


@needs_shared
def test_hapt_counts():
    annotations = read_annotations(SHARED / "hapt" / "annotations.json")
    assert Counter(r.subset for r in annotations.videos.values()) == {"training": 42, "test": 19}
    assert sum(len(r.labels) for r in annotations.videos.values()) == 1214
    assert len(annotations.classes) == 12 and annotations.classes[0] == "walking"


@needs_shared
def test_thumos14_as_published():
    path = SHARED / "annotations" / "thumos14.json"
    annotations = read_annotations(path, strict=False)
    videos, instances = Counter(), Counter()
    for record in annotations.videos.values():
        videos[record.subset] += 1
        instances[record.subset] += len(record.labels)
    assert videos == {"validation": 200, "test": 212}
    assert instances == {"validation": 3007, "test": 3358}
    assert len(annotations.classes) == 20 and annotations.classes[4] == "CliffDiving"
    assert len(annotations.notes) == 1 and "30 segments" in annotations.notes[0]
    with pytest.raises(
        DataError, match=r"thumos14.json: video 'video_test_0000270', annotations\[7\].segment: .*outside"
    ):
        read_annotations(path)


@needs_shared
def test_activitynet_as_published():
    annotations = read_annotations(SHARED / "annotations" / "activitynet13_anno.json", strict=False)
    counts = Counter(record.subset for record in annotations.videos.values())
    assert counts == {"training": 9649, "validation": 4728, "testing": 4851}
    assert len(annotations.classes) == 200 and list(annotations.classes) == sorted(annotations.classes)
    assert sum(len(record.labels) for record in annotations.videos.values()) == 22152 - 12  # 12 have no length
    record = annotations.videos["v_QOlSCBRmfWY"]
    assert record.duration_s == 82.73 and record.fps == pytest.approx(2067 / 82.73)
    assert annotations.classes[record.labels[0]] == "Ballet"


def resized(fps, stride, window, length):
    """The grid of a recording resized to a fixed number of rows, by its duration (spec 1.2)."""

    def grid(duration_s):
        rows = max(1, 1 + (int(duration_s * fps) - window) // stride)
        step = ((rows - 1) * stride + window) / length
        return TimeGrid(fps, step, step, length)

    return grid


def rows(fps, stride, window):
    """The grid of a recording at a fixed rate, by its duration."""
    return lambda duration_s: TimeGrid(fps, stride, window, max(1, 1 + (int(duration_s * fps) - window) // stride))


@needs_shared
@pytest.mark.parametrize(
    ("file", "grid_of"),
    [
        ("thumos14.json", lambda record: rows(record.fps, 4, 16)),  # I3D; spec 1.1
        ("thumos14.json", lambda record: rows(30.0, 16, 32)),  # EPIC-KITCHENS-100's grid on real durations
        ("activitynet13_anno.json", lambda record: resized(15.0, 16, 16, 192)),  # TSP
        ("activitynet13_anno.json", lambda record: resized(25.0, 16, 16, 192)),  # I3D
        ("activitynet13_anno.json", lambda record: resized(record.fps, 16, 16, 100)),  # TSN, BMN's 100 steps
    ],
    ids=["thumos14", "epic", "activitynet-tsp", "activitynet-i3d", "activitynet-tsn"],
)
def test_seconds_survive_the_grid_of_every_real_video(file, grid_of):
    annotations = read_annotations(SHARED / "annotations" / file, strict=False)
    worst = 0.0
    for record in annotations.videos.values():
        grid = grid_of(record)(record.duration_s)
        seconds = np.append(np.linspace(0, record.duration_s, 5), record.segments_s)
        steps = grid.to_t(seconds)
        worst = max(worst, float(np.abs(grid.to_s(steps) - seconds).max()))
        # The first row stands for the middle of its window, the last for a time within the video.
        assert grid.to_t(0.5 * grid.window / grid.fps) == pytest.approx(0, abs=1e-9)
        last_s = float(grid.to_s(grid.length - 1))
        assert 0 < last_s < record.duration_s, record.id
    assert worst < 1e-6


def test_class_of_the_first_annotation_is_kept_also_when_it_is_dropped(tmp_path):
    first = [{"segment": [1, 1], "label": "b"}, {"segment": [3, 4], "label": "a"}, {"segment": [1, 2], "label": "c"}]
    content = document(*first)
    content["database"]["w"] = {"duration": 5}
    annotations = read(tmp_path, content, strict=False)
    assert annotations.first_classes == {"v": 1}
    assert annotations.videos["v"].labels.tolist() == [0, 2]


def test_classes_follow_label_id_else_name(tmp_path):
    rows = [
        {"segment": [0, 1], "label": "zebra", "label_id": 2},
        {"segment": [1, 2], "label": "ant", "label_id": 7},
        {"segment": [2, 3], "label": "zebra"},  # its number is known from the other row
    ]
    annotations = read(tmp_path, document(*rows))
    assert annotations.classes == ("zebra", "ant")
    assert annotations.videos["v"].labels.tolist() == [0, 1, 0]
    without = [{"segment": r["segment"], "label": r["label"]} for r in rows]
    annotations = read(tmp_path, document(*without))
    assert annotations.classes == ("ant", "zebra")
    assert annotations.videos["v"].labels.tolist() == [1, 0, 1]
    annotations = read(tmp_path, document(*rows), classes=("ant", "bee", "zebra"))
    assert annotations.videos["v"].labels.tolist() == [2, 0, 2]


def test_pseudo_label_keys_come_back(tmp_path):
    rows = [
        {"segment": [0, 1], "label": "a", "weight": 0.25, "ignore": False, "score": 0.9, "reason": "KEPT"},
        {"segment": [1, 2], "label": "a", "ignore": True},
    ]
    record = read(tmp_path, document(*rows)).videos["v"]
    assert record.weight.tolist() == [0.25, 1.0] and record.ignore.tolist() == [False, True]
    assert (record.subset, record.fps, record.subject) == ("training", 0.0, None)


def test_video_without_annotations(tmp_path):
    content = document(duration=3)
    del content["database"]["v"]["annotations"]
    record = read(tmp_path, content).videos["v"]
    assert record.segments_s.shape == (0, 2) and record.labels.shape == (0,)


def test_without_annotations_strips_every_array(tmp_path):
    record = read(tmp_path, document({"segment": [0, 1], "label": "a"}, fps=25)).videos["v"].without_annotations()
    assert record.segments_s.shape == (0, 2)
    assert [len(x) for x in (record.labels, record.weight, record.ignore)] == [0, 0, 0]
    assert (record.id, record.duration_s, record.fps) == ("v", 10.0, 25.0)


@pytest.mark.parametrize(
    ("segment", "duration", "expected"),
    [
        ([8, 10.5], 10.0, [8, 10]),  # half a second over the end
        ([-0.5, 2], 10.0, [0, 2]),
        ([90, 201.9], 200.0, [90, 200]),  # 1 % of a long video
        ([8, 10.51], 10.0, None),
        ([-0.51, 2], 10.0, None),
        ([10.1, 10.4], 10.0, None),  # nothing of it is inside
        ([90, 202.1], 200.0, None),
    ],
)
def test_tolerance(tmp_path, segment, duration, expected):
    content = document({"segment": segment, "label": "a"}, duration=duration)
    if expected is None:
        with pytest.raises(DataError, match="outside its video"):
            read(tmp_path, content)
    else:
        annotations = read(tmp_path, content)
        np.testing.assert_array_equal(annotations.videos["v"].segments_s, [expected])
        assert "1 segments cut" in annotations.notes[0]
    lenient = read(tmp_path, content, strict=False).videos["v"]
    np.testing.assert_array_equal(lenient.segments_s, [segment])


def test_a_lenient_reading_has_its_limits_too(tmp_path):
    for segment in ([1, 1e300], [-1e9, 2]):
        with pytest.raises(DataError, match=r"segment: found .*; expected times of at most 1e\+08 seconds"):
            read(tmp_path, document({"segment": segment, "label": "a"}), strict=False)


def test_nobody_annotated_it_is_not_nothing_happens_in_it(tmp_path):
    content = {"database": {name: {"duration": 10.0} for name in ("absent", "null", "empty")}}
    content["database"]["null"]["annotations"] = None
    content["database"]["empty"]["annotations"] = []
    videos = read(tmp_path, content).videos
    assert {name: record.annotated for name, record in videos.items()} == {
        "absent": False,
        "null": False,
        "empty": True,
    }
    assert not videos["empty"].without_annotations().annotated
    digests = {annotation_digest([dataclasses.replace(record, id="v")]) for record in videos.values()}
    assert len(digests) == 2


@pytest.mark.parametrize("times", [["62.5", "0:01:04"], ["01:02.5", "64"], ["00:01:02.5", " 1:04.0 "]])
def test_times_may_be_text_that_can_only_be_seconds(tmp_path, times):
    content = document({"segment": times, "label": "a"}, duration="0:10:00")
    record = read(tmp_path, content).videos["v"]
    assert record.segments_s.tolist() == [[62.5, 64.0]] and record.duration_s == 600


def test_without_durations_where_no_clock_is_needed(tmp_path):
    content = document({"segment": [1, 1e6], "label": "a"})
    del content["database"]["v"]["duration"]
    with pytest.raises(DataError, match="duration: found no value"):
        read(tmp_path, content)
    found = parse_annotations(content, tmp_path, strict=False, clocks=False)
    assert math.isnan(found.videos["v"].duration_s) and found.videos["v"].segments_s.tolist() == [[1, 1e6]]
    assert not found.notes


ROW = {"segment": [1, 2], "label": "a", "label_id": 0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"database": {', r"line 1, column 15: found broken JSON"),
        ("[1, 2]", "a JSON list"),
        ("[" * 100_000, "nested too deeply"),
        ('{"database": {"v": {"duration": 1}, "v": {"duration": 2}}}', "the key 'v' twice"),
        ({"results": {}}, r"no key 'database' \(keys: results\)"),
        ({"database": {}}, "database: found no videos"),
        ({"database": [1]}, "found a list"),
        ({"database": {"v": 3}}, "video 'v': found 3"),
        ({"database": {"v": {"annotations": []}}}, "video 'v', duration: found no value"),
        (document(duration=0), "video 'v', duration: found 0"),
        (document(duration=1e9), "video 'v', duration: found 1000000000.0"),
        (document({**ROW, "segment": [-1e300, 1e300]}), r"segment: found \[-1e\+300, 1e\+300\]"),
        ('{"database": {"v": {"duration": 1' + "0" * 5000 + "}}}", "found a number too long to read"),
        ('{"database": {"v\\ud800": {"duration": 1}}}', "no UTF-8"),
        (document(duration="nine"), "video 'v', duration: found 'nine'"),
        ('{"database": {"v": {"duration": NaN}}}', "video 'v', duration: found nan"),
        ('{"database": {"v": {"duration": 1' + "0" * 400 + "}}}", "video 'v', duration"),
        (document(fps=-1), "video 'v', fps: found -1"),
        (document(subject="anna"), "video 'v', subject: found 'anna'"),
        (document(subset=3), "video 'v', subset: found 3"),
        (document(annotations={}), "video 'v', annotations: found {}"),
        (document(7), r"annotations\[0\]: found 7"),
        (document({"label": "a"}), r"annotations\[0\]\.segment: found no value"),
        (document(ROW, {**ROW, "segment": [1, 2, 3]}), r"annotations\[1\]\.segment: found \[1, 2, 3\]"),
        (document({**ROW, "segment": ["1_0", 2]}), r"segment: found \['1_0', 2\]; expected two finite numbers"),
        (document({**ROW, "segment": [2, 2]}), r"segment: found \[2, 2\]; expected an end after the start"),
        (document({**ROW, "segment": [3, 1]}), "an end after the start"),
        (document({**ROW, "segment": [5, 15]}), r"found \[5, 15\], outside its video; expected times within \[0, 10\]"),
        (document({"segment": [1, 2]}), "label: found no value"),
        (document({**ROW, "label": 4}), "label: found 4"),
        (document({**ROW, "label_id": "0"}), "label_id: found '0'"),
        (document(ROW, {**ROW, "label_id": 1}), "found 1 for 'a', which was 0 before"),
        (document(ROW, {**ROW, "label": "b"}), "label_id 0 for both 'a' and 'b'"),
        (document({**ROW, "weight": 1.5}), "weight: found 1.5"),
        (document({**ROW, "ignore": 1}), "ignore: found 1"),
    ],
)
def test_refusals_name_file_video_and_key(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, content)
    assert str(tmp_path / "annotations.json") in str(caught.value) and "Try: " in str(caught.value)


def test_unknown_class(tmp_path):
    with pytest.raises(DataError, match="video 'v', label: found unknown class 'a'; expected one of b, c"):
        read(tmp_path, document(ROW), classes=("b", "c"))


def test_missing_file_and_foreign_bytes(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_annotations(tmp_path / "none.json")
    with pytest.raises(DataError, match="found a folder"):
        read_annotations(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\x80\x04\xff")
    with pytest.raises(DataError, match="no UTF-8"):
        read_annotations(tmp_path / "binary.json")


def test_bmn_layout_needs_its_table(tmp_path):
    with pytest.raises(DataError, match=r"annotations_video_info\.csv"):
        read(tmp_path, {"v": {"duration_second": 3.0, "duration_frame": 90, "annotations": []}})


def test_bmn_layout(tmp_path):
    content = {"v": {"duration_second": 3.0, "duration_frame": 90, "annotations": [{"segment": [1, 2], "label": "a"}]}}
    table = tmp_path / "annotations_video_info.csv"
    table.write_text("video,numFrame,subset\nv,90,Training\n")
    record = read(tmp_path, content).videos["v"]
    assert (record.subset, record.fps, record.duration_s) == ("training", 30.0, 3.0)
    with pytest.raises(DataError, match="video 'w', duration: found no value"):
        read(tmp_path, {**content, "w": {"annotations": []}})  # it must not be lost in silence
    table.write_text("video,numFrame\nv,90\n")
    with pytest.raises(DataError, match="found columns 'video', 'numFrame'; expected each once, with video, subset"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "header: found columns none"),
        (b"a,b\n", "found no rows"),
        (b"a,a\n1,2\n", "header: found columns 'a', 'a'"),
        (b"a,b\n1,2\n3\n", "line 3: found 1 fields; expected 2"),
        (b"a,b\n1,2\n\n3\n", "line 3: found an empty line"),
        (b'a,b\n1,2\n3,"4', "after line 2: found broken CSV"),
        (b"a,b\n1,\xff\n", "no UTF-8"),
        (b"a,c\n1,2\n", "expected each once, with a, b"),
    ],
)
def test_broken_csv(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_bytes(text)
    with pytest.raises(DataError, match=message) as caught:
        load_csv(path, ("a", "b"))
    assert str(path) in str(caught.value) and "Try: " in str(caught.value)
    path.write_bytes(b'\xef\xbb\xbfb, a\n"x\ny", 1\n')
    assert load_csv(path, ("a", "b")) == [(3, {"b": "x\ny", "a": "1"})]


def test_write_round_trip_and_no_leftovers(tmp_path):
    path = tmp_path / "deep" / "labels.json"
    content = document({**ROW, "label": "marche à pied", "weight": 0.5}, fps=30.0, subject=4)
    write_json(path, document(ROW))
    os.link(
        path, tmp_path / "former"
    )  # a second name of the first file: renaming leaves it alone, overwriting does not
    write_json(path, content)
    assert json.loads((tmp_path / "former").read_text()) == document(ROW)
    record = read_annotations(path).videos["v"]
    assert (record.fps, record.subject, record.weight.tolist()) == (30.0, 4, [0.5])
    assert read_annotations(path).classes == ("marche à pied",)
    assert [p.name for p in path.parent.iterdir()] == ["labels.json"]


def test_write_refuses_nan_and_keeps_the_former_file(tmp_path):
    path = tmp_path / "labels.json"
    write_json(path, document(ROW))
    before = path.read_bytes()
    with pytest.raises(DataError, match="JSON cannot hold"):
        write_json(path, document({**ROW, "score": float("nan")}))
    assert path.read_bytes() == before


def test_full_disk_leaves_the_former_file(tmp_path):
    """A limit on file size makes the write fail midway, as a full disk does."""
    path = tmp_path / "labels.json"
    write_json(path, document(ROW))
    before = path.read_bytes()
    program = """
import resource, sys
from apl_jax.data.files import write_json
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_json(sys.argv[1], {"database": {str(i): {"duration": 1.0} for i in range(5000)}})
except OSError as error:
    print(error.errno, error)
    sys.exit(3)
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    assert "could not save (File too large)" in done.stdout and str(path) in done.stdout
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["labels.json"]


def test_unwritable_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not save"):
        write_json(tmp_path / "file" / "labels.json", document(ROW))
