"""Inspection: every problem of a data folder found in one pass."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apl_jax.data.features.sources import embedded_root
from apl_jax.data.files import DataError
from apl_jax.declarations import Choice, override
from apl_jax.inspection.inspection import Inspection, inspect_dataset, overlapping_mask
from apl_jax.ops.coverage import HIDDEN, OUTSIDE, SHORT
from apl_jax.registry import DETECTORS
from apl_jax.report.inspection_page import next_step, size, terminal_text, write_inspection
from apl_jax.settings import DataSettings


def detector(name: str = "actionformer", **changes: Any) -> Choice:
    return Choice(name, override(DETECTORS[name].settings(), changes))


@pytest.mark.parametrize("seed", range(5))
def test_overlap_is_that_of_all_pairs(seed: int) -> None:
    draws = np.random.default_rng(seed)
    start = draws.integers(0, 40, 12).astype(float)
    segments_s = np.stack([start, start + draws.integers(1, 6, 12)], -1)
    pairs = [
        any(i != j and max(a, c) < min(b, d) for j, (c, d) in enumerate(segments_s))
        for i, (a, b) in enumerate(segments_s)
    ]
    assert any(pairs) and overlapping_mask(segments_s).tolist() == pairs
    assert overlapping_mask(np.zeros((0, 2))).tolist() == []


# Folders


class Folder:
    """A data set of twelve videos of 20 s at 25 fps as feature rows (window 16, stride 4), and what to do to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names = [f"vidéo {i}" for i in range(12)]
        self.database: dict[str, Any] = {
            name: {
                "subset": "test" if i > 8 else "training", "duration": 20.0, "fps": 25.0,
                "annotations": [{"segment": [1.0037, 4.0037], "label": "a <b>"}, {"segment": [6.0, 9.0], "label": "c"}],
            }
            for i, name in enumerate(self.names)
        }  # fmt: skip
        rows = np.random.default_rng(0).normal(size=(122, 3)).astype(np.float32)
        self.features: dict[str, np.ndarray] = {name: rows.copy() for name in self.names}

    def inspect(self, *, by: Choice | None = None, semi_supervised: bool = True, **changes: Any) -> Inspection:
        (self.root / "annotations.json").write_text(json.dumps({"database": self.database}))
        if self.features:
            (self.root / "features").mkdir(exist_ok=True)
        for name, rows in self.features.items():
            np.save(self.root / "features" / f"{name}.npy", rows)
        data = DataSettings(name="own", root=str(self.root), window=16, stride=4, label_ratio=0.4)
        return inspect_dataset(dataclasses.replace(data, **changes), by or detector(), semi_supervised)

    def annotate(self, video: int, *instances: tuple[float, float, str]) -> None:
        listed = [{"segment": [start, end], "label": label} for start, end, label in instances]
        self.database[self.names[video]]["annotations"] = listed


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_nothing_is_wrong(folder: Folder) -> None:
    found = folder.inspect()
    assert found.errors == () and found.notes == () and found.uncovered == () and found.overlapping == 0
    assert found.subsets == {"test": (3, 6, 60.0), "training": (9, 18, 180.0)}
    assert {s: c.tolist() for s, c in found.class_counts.items()} == {"test": [3, 3], "training": [9, 9]}
    assert found.labelled_counts.tolist() == [4, 4] and found.rates == {25.0: 12}
    survey = found.survey
    assert survey is not None and survey.windowed and survey.width == 3
    assert survey.rows.tolist() == [122] * 12 and np.allclose(survey.seconds_per_row, 0.16)
    assert np.allclose(survey.lengths_t, 18.75) and survey.round_trip_s < 1e-9 < survey.round_trip_float32_s < 1e-4
    assert survey.table_bytes == {"training": 9 * 122 * 3 * 4, "evaluation": 3 * 122 * 3 * 4}


@pytest.mark.parametrize(("grid", "how"), [("resize", "resized to 100"), ("pool", "pooled as in BSN to 100")])
def test_a_fixed_grid(grid: str, how: str, folder: Folder, tmp_path: Path) -> None:
    names = folder.names
    for name in names[:6]:
        folder.features[name] = folder.features[name][:119]  # 0.5 s less, within 5 %
    folder.features[names[7]] = folder.features[names[7]][:95]
    folder.features[names[8]][3, 1] = np.nan
    folder.annotate(2, (1.0, 4.0, "c"), (6.01, 6.03, "a <b>"))
    found = folder.inspect(grid=grid, fixed_length_t=100)
    survey = found.survey
    assert survey is not None and survey.rows.tolist() == [100] * 10 and survey.round_trip_s < 1e-9
    assert sorted(survey.extracted.tolist()) == [119] * 6 + [122] * 4
    assert np.allclose(np.unique(survey.seconds_per_row.round(6)), [0.1952, 0.2])
    assert survey.table_bytes == {"training": 7 * 100 * 3 * 4, "evaluation": 3 * 100 * 3 * 4}
    assert [error.count for error in found.errors] == [1, 1]
    assert any("(0.784 to 0.784 times as long" in error.what for error in found.errors)
    assert [hit.start_s for hit in found.uncovered] == [6.01]
    text = terminal_text(found)
    assert f"window 16, stride 4, 119 to 122 rows, {how}: " in text and "[100, 3]" in text
    assert how in write_inspection(found, tmp_path / "out", "x").read_text()


def test_rows_that_span_their_videos(folder: Folder) -> None:
    """Stride 0, as the 400 x 100 tables: no rate, and no length that could disagree."""
    for entry in folder.database.values():
        del entry["fps"]
    folder.features[folder.names[3]] = folder.features[folder.names[3]][:100]
    found = folder.inspect(stride=0, grid="resize", fixed_length_t=100)
    assert found.errors == () and found.survey is not None and found.survey.extracted.tolist() == []
    assert np.allclose(found.survey.seconds_per_row, 0.2) and found.survey.round_trip_s < 1e-9
    assert "rows that span their video, resized to 100: 0.2 s per row" in terminal_text(found)


def test_the_table_is_as_large_as_the_one_that_a_run_makes() -> None:
    from apl_jax.data.dataset import open_dataset

    data = DataSettings()
    found, dataset = inspect_dataset(data, detector(), True), open_dataset(data)
    assert found.survey is not None and found.errors == ()
    tables = {"training": dataset.all_training, "evaluation": dataset.evaluation}
    rows = {name: sum(table.read(v).nbytes for v in range(len(table.ids))) for name, table in tables.items()}
    assert found.survey.table_bytes == rows
    assert found.root == embedded_root() and len(found.durations_s) == 223


def test_all_problems_at_once(folder: Folder) -> None:
    names = folder.names
    for i in (0, 1, 2, 3, 9):
        del folder.features[names[i]]
    folder.features[names[4]][7, 2] = np.nan
    for i in (5, 6, 7, 10):
        folder.features[names[i]] = folder.features[names[i]][:95]
    folder.features[names[8]] = folder.features[names[8]][:, :2]
    folder.features |= {"stranger": np.zeros((3, 3)), "v_stranger": np.zeros((3, 3))}
    found = folder.inspect()
    errors = {finding.what.partition(" (")[0]: finding for finding in found.errors}
    counts = {what: finding.count for what, finding in errors.items()}
    missing, infinite, length = (
        "annotated videos without features",
        "videos with features that are not finite",
        "videos whose features disagree with their duration by more than `data.length_tolerance`",
    )
    assert counts.pop(missing) == 5 and counts.pop(infinite) == 1 and counts.pop(length) == 4
    assert list(counts.values()) == [1], counts  # the narrow one, or the only other one, whichever was read later
    assert all(len(finding.examples) <= 3 for finding in found.errors)
    for example in errors[length].examples:
        assert "392 samples at 25 per second = 15.68 s" in example and "20.00 s" in example and ".npy" in example
    assert "(0.784 to 0.784 times as long, 0.784 on median)" in errors[length].what
    assert all("no features" in example for example in errors[missing].examples)
    assert len(errors[missing].examples) == 3
    (infinite_example,) = errors[infinite].examples
    assert repr(names[4]) in infinite_example and "row 7, channel 2" in infinite_example
    (strangers,) = (note for note in found.notes if "no annotated video" in note.what)
    assert strangers.count == 2
    text = terminal_text(found)
    assert text.index("errors\n") < text.index("notes\n") and "· and 2 more" in text


def test_features_with_the_prefix_are_no_strangers(folder: Folder) -> None:
    folder.features = {f"v_{name}": rows for name, rows in folder.features.items()}
    found = folder.inspect()
    assert found.errors == () and found.notes == ()


def test_recordings_without_a_clock_or_shorter_than_a_window(folder: Folder) -> None:
    del folder.database[folder.names[0]]["fps"]
    found = folder.inspect(window=600)
    whats = [finding.what for finding in found.errors]
    assert len(whats) == 2 and any("samples per second" in what for what in whats), whats
    assert any("duration" in what for what in whats)  # 122 rows with a window of 24 s are 43 s


def test_instances_that_teach_nothing_are_named(folder: Folder) -> None:
    folder.database[folder.names[2]]["duration"] = 20.9  # its features end at 20 s
    folder.annotate(2, (1.0, 4.0, "c"), (6.01, 6.03, "a <b>"), (20.6, 20.8, "c"), (0.99, 4.01, "a <b>"))
    found = folder.inspect()
    assert found.errors == () and found.overlapping == 2
    assert {(hit.cause, hit.start_s) for hit in found.uncovered} == {
        (SHORT, 6.01), (OUTSIDE, 20.6), (HIDDEN, 0.99),
    }  # fmt: skip
    text = terminal_text(found)
    assert "video 'vidéo 2'" in text and "6.01 to 6.03 s, a <b>" in text
    assert any("overlap" in note.what and "7.7%" in note.what for note in found.notes)
    assert [note.count for note in found.notes if "no grid point covers" in note.what] == [1, 1, 1]


def test_what_is_covered_is_the_detectors_to_say(folder: Folder) -> None:
    """SPOT gives every instance whose middle lies on the features a snippet, however short it is."""
    folder.database[folder.names[2]]["duration"] = 20.9
    folder.annotate(2, (1.0, 4.0, "c"), (6.01, 6.03, "a <b>"), (20.6, 20.8, "c"))
    found = folder.inspect(by=detector("spot"))
    assert [(hit.cause, hit.start_s) for hit in found.uncovered] == [(OUTSIDE, 20.6)]
    folder.features.clear()
    (folder.root / "features").rename(folder.root / "elsewhere")
    assert folder.inspect(by=detector("spot")).uncovered == ()  # and without features there is no grid


def test_a_detector_that_cannot_be_built_is_one_of_the_errors(folder: Folder) -> None:
    found = folder.inspect(by=detector(width=30, heads=4))
    assert len(found.errors) == 1 and "`detector.width`: found 30" in found.errors[0].what
    assert found.survey is not None and found.uncovered == ()


def test_classes_that_are_not_told_apart(folder: Folder) -> None:
    found = folder.inspect(class_agnostic=True)
    assert found.errors == () and found.classes == ("a <b>", "c")  # of the annotations


def test_ignored_instances_need_no_point(folder: Folder) -> None:
    folder.database[folder.names[2]]["annotations"][0] |= {"segment": [6.01, 6.03], "ignore": True}
    assert folder.inspect().uncovered == ()


def test_a_class_without_labels_is_an_error_unless_allowed(folder: Folder) -> None:
    for i in range(9):
        folder.annotate(i, (1.0, 2.0, f"class {i % 9}"))
    found = folder.inspect()
    assert any("uncovered" in finding.what for finding in found.errors)
    assert found.split is not None and len(found.split.labelled) == 4  # the rest is told all the same
    allowed = folder.inspect(allow_uncovered=True)
    assert allowed.errors == ()
    notes = {note.what: note for note in allowed.notes}
    assert notes["classes that no labelled video shows"].count == 7  # 5 of training, and 2 of the test set only
    assert notes["classes that no evaluated video shows: their average precision is not defined"].count == 9


def test_videos_that_cannot_be_divided_are_read_all_the_same(folder: Folder) -> None:
    folder.features[folder.names[1]][0, 0] = np.inf
    found = folder.inspect(test_subset="validation")
    assert len(found.errors) == 2 and found.split is None
    assert "'validation'" in found.errors[0].what and "not finite" in found.errors[1].what
    assert found.survey is not None and len(found.survey.rows) == 8
    terminal_text(found)


def test_other_notes(folder: Folder) -> None:
    folder.database[folder.names[3]]["subset"] = "testing"
    del folder.features[folder.names[3]]  # nobody reads them
    folder.annotate(4)
    found = folder.inspect(max_length_t=100)
    notes = {note.what.partition(" (")[0].partition(":")[0]: note.count for note in found.notes}
    assert found.errors == ()
    assert notes == {
        "annotated videos that a run does not use": 1, "videos without any instance, all of them background": 1,
        "videos of more rows than `data.max_length_t=100`": 11,
    }  # fmt: skip


def test_point_3_ignored_instances_are_not_counted(folder: Folder) -> None:
    """A class of which the evaluated videos show nothing but ignored instances cannot be scored."""
    for name in folder.names[9:]:
        folder.database[name]["annotations"][1]["ignore"] = True
    found = folder.inspect()
    assert found.class_counts["test"].tolist() == [3, 0] and found.subsets["test"] == (3, 3, 60.0)
    (note,) = found.notes
    assert note.what.startswith("classes that no evaluated video shows") and note.examples == ("'c'",)


def test_point_1_videos_that_nobody_annotated_are_no_background(folder: Folder) -> None:
    del folder.database[folder.names[0]]["annotations"]
    del folder.database[folder.names[11]]["annotations"]
    found = folder.inspect()
    notes = [note.what for note in found.notes]
    assert found.errors == () and found.split is not None and folder.names[0] in found.split.unlabelled
    assert any(note.startswith("1 of 9 training videos are not annotated") for note in notes)
    assert any(note.startswith("1 of 3 evaluated videos are not annotated") for note in notes)
    assert not any("without any instance" in note for note in notes)


def test_every_label_leaves_none_to_learn_from(folder: Folder) -> None:
    (error,) = folder.inspect(label_ratio=1.0).errors
    assert "unlabelled" in error.what and "`data.label_ratio=0.1`, or `variants=('supervised',)`" in error.what
    assert folder.inspect(label_ratio=1.0, semi_supervised=False).errors == ()


def test_no_features_at_all(folder: Folder, tmp_path: Path) -> None:
    folder.features = {}
    found = folder.inspect()
    assert found.survey is None and len(found.errors) == 1 and "no features" in found.errors[0].what
    assert "vid" in terminal_text(found)
    assert write_inspection(found, tmp_path / "out", "x").is_file()


def test_annotations_that_cannot_be_read(folder: Folder) -> None:
    folder.inspect()
    (folder.root / "annotations.json").write_text('{"database": ')
    with pytest.raises(DataError, match="line 1"):
        inspect_dataset(DataSettings(root=str(folder.root)), detector(), True)


def test_a_data_set_without_any_instance(folder: Folder, tmp_path: Path) -> None:
    for i in range(12):
        folder.annotate(i)
    found = folder.inspect()
    assert "12 videos, 0 instances, 0 classes" in terminal_text(found)
    assert write_inspection(found, tmp_path / "out", "x").is_file()


# The page


def test_the_page(folder: Folder, tmp_path: Path) -> None:
    folder.features[folder.names[1]][0, 0] = np.inf
    folder.annotate(2, (1.0, 4.0, "c"), (6.01, 6.03, "a <b>"))
    found = folder.inspect()
    page = write_inspection(found, tmp_path / "out", "apl-jax inspect '<&>'").read_text()
    assert "a &lt;b&gt;" in page and "<b>c" not in page and "a <b>" not in page and "&lt;&amp;&gt;" in page
    assert page.index(">Errors</h2>") < page.index(">Notes</h2>") < page.index(">Classes</h2>")
    assert page.count("<svg") == 3 and "src=" not in page and "<script" not in page
    assert "6.010" in page  # the table of instances that nothing covers
    again = write_inspection(folder.inspect(), tmp_path / "again", "apl-jax inspect '<&>'").read_text()
    assert again == page


def test_next_step(folder: Folder) -> None:
    assert "a new folder as `workdir`, such as runs/own" in next_step(folder.inspect())
    folder.features.clear()
    (folder.root / "features" / "vidéo 3.npy").unlink()
    assert next_step(folder.inspect()).startswith("1 error: a run would stop there")


def test_sizes() -> None:
    assert [size(n) for n in (12, 2048, 3.5 * 2**20, 2.25 * 2**40)] == ["12 bytes", "2.0 KiB", "3.5 MiB", "2,304.0 GiB"]
