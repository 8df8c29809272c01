"""EPIC-KITCHENS-100's tables; and mutated annotation files of both kinds, which are read rightly or refused."""

import copy
import csv
import json
import math
from typing import Any

import numpy as np
import pytest

from apl_jax.data.annotation_tables import read_epic
from apl_jax.data.annotations import Annotations
from apl_jax.data.dataset import open_truth
from apl_jax.data.files import DataError, write_json
from apl_jax.data.published import read_published
from apl_jax.data.splits import build_split
from apl_jax.settings import DataSettings

HEADER = [
    "narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp",
    "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class", "all_nouns",
    "all_noun_classes",
]  # fmt: skip
INFO = [["video_id", "duration", "fps", "resolution"]] + [
    [video, "3700.5", fps, "1920x1080"]
    for video, fps in [("P01_01", "59.94005994005994"), ("P01_02", "50.0"), ("P22_101", "50.0"), ("P30_01", "29.97")]
]


def action(number, video, start, stop, verb, noun, narration="take the, well, plate"):
    """One row of a table of actions."""
    person = video.split("_")[0]
    return [
        f"{video}_{number}", person, video, "00:00:00.00", start, stop, "1", "2", narration, "take", str(verb), "plate",
        str(noun), "['plate']", "[2]",
    ]  # fmt: skip


TABLES = {
    "EPIC_100_train.csv": [
        HEADER,
        action(0, "P01_01", "00:00:00.14", "00:00:03.37", 3, 12),
        action(1, "P01_01", "00:59:59.99", "01:00:01", 0, 2),
        action(2, "P01_02", "00:00:10.50", "00:00:12.00", 96, 299),
        action(3, "P22_101", "00:01:00.00", "00:02:00.00", 3, 2),
    ],
    "EPIC_100_validation.csv": [
        HEADER,
        action(0, "P30_01", "00:00:01.00", "00:00:02.00", 0, 2),
        action(1, "P30_01", "00:00:05.00", "00:00:06.00", 0, 12),  # a pair that training does not show
    ],
    "EPIC_100_video_info.csv": INFO,
}


def write(folder, tables):
    """Saves the tables of a folder."""
    for name, rows in tables.items():
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)


def changed(table, row, column, value):
    """The tables with one cell changed; row 0 is the header."""
    tables = copy.deepcopy(TABLES)
    names = TABLES[table][0]
    tables[table][row][names.index(column)] = value
    return tables


def test_published_tables(tmp_path):
    write(tmp_path, TABLES)
    annotations = read_epic(tmp_path, "verb")
    assert annotations.classes == tuple(map(str, range(97))) and annotations.variant == "verb"
    assert {video: r.subset for video, r in annotations.videos.items()} == {
        "P01_01": "training", "P01_02": "training", "P22_101": "training", "P30_01": "validation",
    }  # fmt: skip
    record = annotations.videos["P01_01"]
    np.testing.assert_allclose(record.segments_s, [[0.14, 3.37], [3599.99, 3601]])
    assert record.labels.tolist() == [3, 0] and record.labels.dtype == np.int32
    assert (record.duration_s, record.subject) == (3700.5, 1) and record.fps == pytest.approx(60000 / 1001)
    assert record.weight.tolist() == [1, 1] and not record.ignore.any()
    assert annotations.videos["P22_101"].subject == 22 and annotations.notes == ()
    nouns = read_epic(tmp_path, "noun")
    assert len(nouns.classes) == 300 and nouns.videos["P01_02"].labels.tolist() == [299]
    assert nouns.first_classes == {"P01_01": 12, "P01_02": 299, "P22_101": 2, "P30_01": 2}


def test_actions_are_the_pairs_of_training(tmp_path):
    write(tmp_path, TABLES)
    annotations = read_epic(tmp_path, "action")
    assert annotations.classes == ("0 2", "3 2", "3 12", "96 299")
    assert annotations.videos["P01_01"].labels.tolist() == [2, 0]
    assert annotations.videos["P30_01"].labels.tolist() == [0]
    assert len(annotations.notes) == 1 and "1 of 2 actions left out, of 1 pairs" in annotations.notes[0]
    assert annotations.first_classes["P01_02"] == 3


@pytest.mark.parametrize("suffix", ["", "_v2"])
def test_names_of_classes(tmp_path, suffix):
    verbs = [["id", "key", "instances"]] + [[str(i), f"verb-{i}", "['x', 'y']"] for i in reversed(range(97))]
    nouns = [["id", "key"]] + [[str(i), f"board:{i}"] for i in range(300)]
    extra = {f"EPIC_100_verb_classes{suffix}.csv": verbs, f"EPIC_100_noun_classes{suffix}.csv": nouns}
    write(tmp_path, TABLES | extra)
    assert read_epic(tmp_path, "verb").classes[96] == "verb-96"
    assert read_epic(tmp_path, "action").classes[2] == "verb-3 board:12"
    write(tmp_path, {f"EPIC_100_verb_classes{suffix}.csv": verbs[:-1]})  # without class 0
    with pytest.raises(DataError, match="found no class 0; expected every number from 0 to 96"):
        read_epic(tmp_path, "verb")
    write(tmp_path, {f"EPIC_100_verb_classes{suffix}.csv": [*verbs[:-1], ["0", "verb-1", "[]"]]})
    with pytest.raises(DataError, match="line 98: found class 0, 'verb-1', once more"):
        read_epic(tmp_path, "verb")


def test_a_run_opens_the_folder(tmp_path):
    write(tmp_path, TABLES)
    settings = DataSettings(
        name="epic", root=str(tmp_path), task="noun", test_subset="validation", label_ratio=0.5, allow_uncovered=True
    )
    annotations = open_truth(settings)
    assert (annotations.variant, len(annotations.classes)) == ("noun", 300)
    split = build_split(annotations, settings)
    assert (len(split.labelled), len(split.unlabelled), split.evaluation) == (2, 1, ("P30_01",))


TRAIN, VALIDATION, VIDEOS = TABLES


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (changed(TRAIN, 1, "verb_class", "97"), r"train.csv: line 2, video 'P01_01', verb_class: found '97'"),
        (changed(TRAIN, 1, "verb_class", "-1"), "a whole number from 0 to 96"),
        (changed(TRAIN, 1, "verb_class", "٣"), "verb_class: found"),  # a digit, of another script
        (changed(TRAIN, 1, "start_timestamp", "0:75:00"), "line 2, video 'P01_01', start_timestamp: found '0:75:00'"),
        (changed(TRAIN, 1, "stop_timestamp", "nan"), "expected a time as HH:MM:SS.ff"),
        (
            changed(TRAIN, 1, "stop_timestamp", "00:00:00.10"),
            "line 2, video 'P01_01'.segment: .*an end after the start",
        ),
        (changed(TRAIN, 2, "stop_timestamp", "01:03:00.00"), r"line 3.*\[3599.99, 3780\], outside its video"),
        (changed(TRAIN, 2, "narration_id", "P01_01_0"), "line 3, video 'P01_01', narration_id: found 'P01_01_0' again"),
        (changed(TRAIN, 3, "video_id", "P30_01"), "validation.csv: line 2, video 'P30_01': found a video that .*train"),
        (changed(TRAIN, 3, "video_id", ""), "line 4, video '': found no name"),
        (changed(TRAIN, 3, "video_id", "P99_99"), "'P99_99': .*expected a row of EPIC_100_video_info.csv for it"),
        (
            changed(TRAIN, 0, "verb_class", "verbs"),
            "train.csv: header: found columns 'narration_id'.*with .*verb_class",
        ),
        (changed(VIDEOS, 1, "duration", "inf"), "video_info.csv: line 2, video 'P01_01', duration: found 'inf'"),
        (changed(VIDEOS, 1, "fps", "0.0"), "fps: found '0.0'; expected a positive number"),
        (changed(VIDEOS, 2, "video_id", "P01_01"), "line 3, video 'P01_01': found it a second time"),
    ],
)
def test_refusals_name_file_line_and_column(tmp_path, tables, message):
    write(tmp_path, tables)
    with pytest.raises(DataError, match=message) as caught:
        read_epic(tmp_path, "verb")
    assert str(tmp_path) in str(caught.value) and "Try: " in str(caught.value)


def test_missing_tables(tmp_path):
    for missing, message in [
        (TRAIN, "train.csv: found no such file"),
        (VALIDATION, "validation.csv: found no such file"),
        (VIDEOS, r"video_info.csv: found no such file; expected the table of videos \(video_id, duration, fps\)"),
    ]:
        write(tmp_path, TABLES)
        (tmp_path / missing).unlink()
        with pytest.raises(DataError, match=message):
            read_epic(tmp_path, "verb")


def test_lenient_reading_keeps_what_strict_reading_refuses(tmp_path):
    write(tmp_path, changed(TRAIN, 2, "stop_timestamp", "01:03:00.00"))
    annotations = read_epic(tmp_path, "verb", strict=False)
    assert annotations.videos["P01_01"].segments_s[1].tolist() == [3599.99, 3780]
    assert "1 segments kept although they leave their video" in annotations.notes[0]


# Mutations. Whatever happens to a file, what is read is sound, or it is refused in one line for people.

DOCUMENT = {
    "version": "1",
    "database": {
        f"v{i}": {
            "subset": "training" if i else "test",
            "duration": 10.0,
            "fps": 30,
            "subject": i,
            "annotations": [
                {"segment": [1.0, 2.5], "label": "walk", "label_id": 0, "weight": 0.5, "ignore": False},
                {"segment": [2, 9.75], "label": "tourner à gauche", "label_id": 1},
            ],
            "ignored": [{"segment": [3, 4], "label": "walk"}],
        }
        for i in range(3)
    },
}
BMN = {
    f"v{i}": {"duration_second": 9.5, "duration_frame": 285, "annotations": [{"segment": [1, 2.5], "label": "walk"}]}
    for i in range(3)
}
VALUES: list[Any] = [
    None, True, False, 0, -1, 1e308, -1e308, 5e-324, 10**400, float("nan"), float("inf"), "", "walk", "9", "\udcff",
    "\x00", "日本", "a\nb", [], {}, [1, 2], [[1, 2]], {"a": 1}, "v" * 1000,
]  # fmt: skip
CELLS = [
    "", "nan", "inf", "-1", "1e9", "9" * 40, "00:00:00", "99:99:99", "999:59:59.99", "00:00:01,5", "½", "٣", "\x00",
    "日本", 'a"b', "a\nb", "P01_01", "P30_01", "96", "300", "1.5",
]  # fmt: skip


def nodes(tree):
    """Every container in a document with every key or index in it."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(entries):
        yield tree, key
        yield from nodes(value)


def mutate_tree(random, tree):
    """One to three changes to a JSON document."""
    for _ in range(random.integers(1, 4)):
        places = list(nodes(tree))
        if not places:
            return
        holder, key = places[random.integers(len(places))]
        other, other_key = places[random.integers(len(places))]
        kind = random.integers(5)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            holder[key], other[other_key] = copy.deepcopy((other[other_key], holder[key]))
        elif kind == 2 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 3 and isinstance(holder, dict):
            holder[str(VALUES[random.integers(len(VALUES))])] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(VALUES[random.integers(len(VALUES))])


def mutate_rows(random, rows):
    """One to three changes to a table."""
    for _ in range(random.integers(1, 4)):
        row, other = (rows[random.integers(len(rows))] for _ in range(2))
        if not row or not other:
            continue
        column = random.integers(len(row))
        kind = random.integers(6)
        if kind == 0:
            del row[column]
        elif kind == 1:
            place = random.integers(len(other))
            row[column], other[place] = other[place], row[column]
        elif kind == 2:
            rows.insert(random.integers(len(rows)), list(row))
        elif kind == 3:
            row[column] = row[(column + 1) % len(row)]
        else:
            row[column] = CELLS[random.integers(len(CELLS))]


def mutate_bytes(random, data):
    """One to three changes to the bytes of a file."""
    for _ in range(random.integers(1, 4)):
        if not data:
            break
        i, j = sorted(random.integers(len(data), size=2))
        changes = [
            data[:i], data[:i] + data[j:], data[:j] + data[i:j] + data[j:], data[:i] + random.bytes(1) + data[i + 1 :],
            data[:i] + b"\xef\xbb\xbf" + data[i:], data[:i] + b"9" * 5000 + data[i:], data[:i] + b'"' + data[i:],
            data[:i] + b"-" + data[i:],
        ]  # fmt: skip
        data = changes[random.integers(len(changes))]
    return data


def outcome(folder, **settings):
    """ "read" when the folder is read as sound annotations, "refused" when it is refused; fails otherwise."""
    try:
        annotations = read_published(folder, DataSettings(**settings))
    except DataError as error:
        assert "expected" in str(error) and "Try: " in str(error) and "\n" not in str(error), str(error)
        return "refused"
    check(annotations)
    write_json(folder / "again" / "ids.json", {"ids": list(annotations.videos), "classes": list(annotations.classes)})
    return "read"


def check(annotations: Annotations):
    """Whether training can rely on every field."""
    count = len(annotations.classes)
    assert len(set(annotations.classes)) == count and annotations.videos
    assert all(0 <= c < count for c in annotations.first_classes.values())
    for video, r in annotations.videos.items():
        n = len(r.labels)
        assert r.id == video and isinstance(r.subset, str)
        assert r.segments_s.shape == (n, 2) and r.weight.shape == r.ignore.shape == (n,)
        assert r.segments_s.dtype == np.float64 and r.labels.dtype == np.int32
        assert 0 < r.duration_s < math.inf and 0 <= r.fps < math.inf
        assert np.isfinite(r.segments_s).all() and (r.segments_s[:, 0] < r.segments_s[:, 1]).all()
        assert ((r.labels >= 0) & (r.labels < count)).all() and ((r.weight >= 0) & (r.weight <= 1)).all()


@pytest.mark.parametrize("layout", ["database", "bmn"])
@pytest.mark.parametrize("name", ["mine", "thumos14", "activitynet"])
def test_mutated_json(tmp_path, layout, name):
    table = "".join(["video,subset\n", *(f"v{i},training\n" for i in range(3))])
    (tmp_path / "annotations_video_info.csv").write_text(table)
    seen = {"read": 0, "refused": 0}
    for seed in range(200):
        random = np.random.default_rng([seed, len(layout), len(name)])
        tree = copy.deepcopy(DOCUMENT if layout == "database" else BMN)
        if seed % 2:
            mutate_tree(random, tree)
        data = json.dumps(tree, ensure_ascii=bool(seed % 4 == 1)).encode("utf-8", "surrogatepass")
        (tmp_path / "annotations.json").write_bytes(data if seed % 2 else mutate_bytes(random, data))
        strict = bool(random.integers(2))
        seen[outcome(tmp_path, name=name, root=str(tmp_path), strict_annotations=strict)] += 1
    assert seen["refused"] >= 50 and (seen["read"] >= 10 or name == "thumos14")  # never 212 test videos here


@pytest.mark.parametrize("task", ["verb", "noun", "action"])
def test_mutated_tables(tmp_path, task):
    classes = [["id", "key"]] + [[str(i), f"verb-{i}"] for i in range(97)]
    good = TABLES | {"EPIC_100_verb_classes.csv": classes}
    names = list(good)
    seen = {"read": 0, "refused": 0}
    for seed in range(200):
        random = np.random.default_rng([seed, len(task)])
        tables = copy.deepcopy(good)
        victim = names[random.integers(len(names))]
        if seed % 2:
            mutate_rows(random, tables[victim])
        write(tmp_path, tables)
        if seed % 2 == 0:
            (tmp_path / victim).write_bytes(mutate_bytes(random, (tmp_path / victim).read_bytes()))
        strict = bool(random.integers(2))
        seen[outcome(tmp_path, name="epic", root=str(tmp_path), task=task, strict_annotations=strict)] += 1
    assert seen["refused"] >= 50 and seen["read"] >= 10
