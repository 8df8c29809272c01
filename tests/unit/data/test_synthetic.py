"""Synthetic features: the same everywhere, on the real timeline, neither trivial nor hopeless, and never unmarked."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from apl_jax.data.annotations import VideoRecord
from apl_jax.data.dataset import open_dataset, open_truth
from apl_jax.data.features.folder import open_features
from apl_jax.data.files import DataError
from apl_jax.data.synthetic import SyntheticFeatures, coverage, extraction_grid, write_synthetic
from apl_jax.declarations import SettingsError
from apl_jax.settings import DataSettings, SyntheticSettings
from apl_jax.structs import TimeGrid

REAL = Path(__file__).parents[4] / "shared" / "data" / "annotations"
CLASSES = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Annotations of 24 videos of half a minute to a minute, at 25 frames per second."""
    draws = np.random.default_rng(0)
    database = {}
    for v in range(24):
        duration, time, rows = draws.uniform(30, 60), draws.uniform(0, 3), []
        while True:
            start, time = time, time + draws.uniform(1.5, 5)
            if time > duration:
                break
            number = int(draws.integers(CLASSES))
            rows.append({"segment": [start, time], "label": f"action {number}", "label_id": number})
            time += draws.uniform(1, 5)
        subset = "test" if v % 3 == 0 else "training"
        database[f"v\u00edde\u00f3_{v}"] = {"subset": subset, "duration": duration, "fps": 25.0, "annotations": rows}
    root = tmp_path / "data"
    root.mkdir()
    (root / "annotations.json").write_text(json.dumps({"database": database}))
    return root


def settings_of(root: Path, **changes) -> DataSettings:
    made = SyntheticSettings(enabled=True, width=256, group=3)
    return DataSettings(
        **{"name": "own", "root": str(root), "window": 16, "stride": 4, "label_ratio": 0.5, "synthetic": made} | changes
    )


def test_a_video_is_the_same_in_every_process_and_order(folder: Path) -> None:
    settings = settings_of(folder)
    source = open_features(settings)
    forwards = {video: source.read(video).tobytes() for video in source.ids}
    backwards = open_features(settings)
    assert {video: backwards.read(video).tobytes() for video in reversed(backwards.ids)} == forwards
    code = (
        "import sys, zlib; from apl_jax.data.features.folder import open_features\n"
        "from apl_jax.settings import DataSettings, SyntheticSettings\n"
        f"source = open_features({settings!r})\n"
        f"print(zlib.crc32(source.read({source.ids[5]!r})), source.digest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(zlib.crc32(forwards[source.ids[5]])), source.digest()]
    assert len(set(forwards.values())) == len(forwards)


def test_other_settings_and_annotations_make_another_digest(folder: Path) -> None:
    settings = settings_of(folder)
    digests = {
        open_features(changed).digest()
        for changed in (
            settings,
            dataclasses.replace(settings, stride=8),
            dataclasses.replace(settings, synthetic=dataclasses.replace(settings.synthetic, seed=1)),
        )
    }
    document = json.loads((folder / "annotations.json").read_text())
    next(iter(document["database"].values()))["annotations"].pop()
    (folder / "annotations.json").write_text(json.dumps(document))
    assert len(digests | {open_features(settings).digest()}) == 4


def test_rows_are_those_of_an_extraction(folder: Path) -> None:
    """As many as windows fit, and a fixed number that spans the video where stride is 0; all finite, of one width."""
    for changes in ({}, {"stride": 16}, {"stride": 0, "grid": "resize", "fixed_length_t": 20}):
        settings = settings_of(folder, **changes)
        source = open_features(settings)
        for video, record in open_truth(settings).videos.items():
            frames = round(record.duration_s * 25)
            expected = 1 + (frames - 16) // settings.stride if settings.stride else 20
            rows = source.read(video)
            assert rows.shape == (expected, 256) and rows.dtype == np.float32 and np.isfinite(rows).all()


def test_coverage_is_the_share_of_what_a_row_sees() -> None:
    """Windows of 2 s, one every second; an instance of 3 to 5.5 s; by hand."""
    blank = np.zeros(1, np.int32), np.ones(1, np.float32), np.zeros(1, bool)
    record = VideoRecord("v", "", 8.0, 1.0, None, np.array([[3.0, 5.5]]), *blank)
    grid = TimeGrid(fps=1.0, stride=1, window=2, length=7)
    np.testing.assert_allclose(coverage(record, grid, 1.0)[:, 0], [0, 0, 0.5, 1, 0.75, 0.25, 0])
    np.testing.assert_allclose(coverage(record, grid, 2.0)[:, 0], [0, 0.25, 0.5, 0.625, 0.625, 0.375, 0.125])
    assert coverage(dataclasses.replace(record, segments_s=np.zeros((0, 2))), grid, 1.0).shape == (7, 0)


def probe(settings: DataSettings, unit: float = 1.0) -> tuple[float, float]:
    """Accuracy of a linear classifier of rows (in ``unit``) on test videos, and of naming the commonest class."""
    truth, source = open_truth(settings), open_features(settings)
    rows: dict[str, list[np.ndarray]] = {"training": [], "test": []}
    names: dict[str, list[np.ndarray]] = {"training": [], "test": []}
    for video, record in truth.videos.items():
        inside = coverage(record, extraction_grid(record, settings), 1.0)
        chosen = np.where(inside.max(1) > 0.5, record.labels[inside.argmax(1)], CLASSES)
        rows[record.subset].append(source.read(video)[::4] / unit)
        names[record.subset].append(chosen[::4])
    x, y = np.concatenate(rows["training"]), np.concatenate(names["training"])
    model = LogisticRegression(C=10.0, max_iter=300).fit(x, y)
    truths = np.concatenate(names["test"])
    return float(model.score(np.concatenate(rows["test"]), truths)), float(np.bincount(truths).max() / len(truths))


def test_classes_can_be_learnt_but_not_without_error(folder: Path) -> None:
    accuracy, chance = probe(settings_of(folder))
    assert chance < 0.55 and chance + 0.15 < accuracy < 0.97


def test_noise_alone_teaches_nothing(folder: Path) -> None:
    """The probe above is not fooled: with noise in place of features it is no better than chance."""
    noise = SyntheticSettings(enabled=True, width=256, noise=1e4)
    accuracy, chance = probe(settings_of(folder, synthetic=noise), unit=noise.noise)
    assert accuracy < chance + 0.05


def test_prototypes_of_a_group_are_confusable(folder: Path) -> None:
    source = open_features(settings_of(folder, synthetic=SyntheticSettings(enabled=True, width=4096, group=3)))
    assert isinstance(source, SyntheticFeatures)
    unit = source._classes / np.linalg.norm(source._classes, axis=1, keepdims=True)
    cosine = unit @ unit.T
    same = np.arange(CLASSES)[:, None] // 3 == np.arange(CLASSES) // 3
    np.testing.assert_allclose(cosine[same & ~np.eye(CLASSES, dtype=bool)], 0.5, atol=0.06)
    np.testing.assert_allclose(cosine[~same], 0, atol=0.08)


def test_a_data_set_says_that_it_is_synthetic_and_shows_labels_of_labelled_videos_only(folder: Path) -> None:
    """What happens in unlabelled videos is in their features, as in any recording; their labels are out of reach."""
    dataset = open_dataset(settings_of(folder))
    assert dataset.synthetic and dataset.name == "own (synthetic features)"
    assert any("synthetic features, made from the annotations" in note for note in dataset.notes)
    assert all(len(record.labels) for record in dataset.labelled.records)
    others = dataset.unlabelled.records + dataset.evaluation.records
    assert others and all(len(record.labels) == 0 and len(record.segments_s) == 0 for record in others)


def test_written_features_are_the_same_data_set_and_are_marked_too(folder: Path, tmp_path: Path) -> None:
    settings, out = settings_of(folder), tmp_path / "out"
    assert write_synthetic(settings, out) == 24
    read = dataclasses.replace(settings, root=str(out), synthetic=SyntheticSettings())
    made, written = open_dataset(settings), open_dataset(read)
    assert written.synthetic and (written.name, written.split, written.digests) == (made.name, made.split, made.digests)
    np.testing.assert_array_equal(made.labelled.features, written.labelled.features)
    assert json.loads((out / "features.json").read_text())["source"].startswith("synthetic ")
    assert sorted(path.name for path in out.iterdir()) == ["annotations.json", "features", "features.json"]


def test_writing_goes_on_where_it_was_interrupted(folder: Path, tmp_path: Path) -> None:
    settings, out = settings_of(folder), tmp_path / "out"
    seen: list[str] = []

    def stop(videos):
        for video in videos:
            if len(seen) == 5:
                raise KeyboardInterrupt
            seen.append(video)
            yield video

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(settings, out, follow=stop)
    there = {path.name: path.stat().st_mtime_ns for path in (out / "features").iterdir()}
    assert len(there) == 5
    assert write_synthetic(settings, out) == 24
    after = {path.name: path.stat().st_mtime_ns for path in (out / "features").iterdir()}
    assert len(after) == 24 and {name: after[name] for name in there} == there


def test_other_features_are_never_mixed_in(folder: Path, tmp_path: Path) -> None:
    settings, out = settings_of(folder), tmp_path / "out"
    assert write_synthetic(settings, out, limit=2) == 2
    other = dataclasses.replace(settings, synthetic=dataclasses.replace(settings.synthetic, seed=1))
    with pytest.raises(DataError, match=r"out: found features of synthetic .*; expected a new folder"):
        write_synthetic(other, out)
    (out / "features.json").unlink()
    with pytest.raises(DataError, match="found features without a manifest"):
        write_synthetic(settings, out)


@pytest.mark.parametrize(
    "change", [{"width": 0}, {"group": 0}, {"backgrounds": 0}, {"wander_s": 0.0}, {"confusion": 2.0}]
)
def test_impossible_settings_are_refused(change: dict[str, float]) -> None:
    (name,) = change
    with pytest.raises(SettingsError, match=f"`{name}`: found .*, expected (at least|more than)"):
        dataclasses.replace(SyntheticSettings(enabled=True), **change)


def test_a_video_without_a_clock_is_refused_by_name(folder: Path) -> None:
    document = json.loads((folder / "annotations.json").read_text())
    video = next(iter(document["database"]))
    del document["database"][video]["fps"]
    (folder / "annotations.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=f"video '{video}': found fps 0; expected frames per second"):
        open_features(settings_of(folder)).read(video)


def real_settings(name: str, **changes) -> DataSettings:
    if not REAL.is_dir():
        pytest.skip(f"needs the published annotation files in {REAL}")
    made = SyntheticSettings(enabled=True, width=64)
    return DataSettings(name=name, root=str(REAL), strict_annotations=False, synthetic=made, **changes)


def test_thumos14_has_its_real_lengths() -> None:
    settings = real_settings("thumos14", window=16, stride=4, training_subset="validation")
    source, videos = open_features(settings), open_truth(settings).videos
    assert len(source.ids) == 412
    longest = max(videos.values(), key=lambda record: record.duration_s * record.fps)
    rows = {record.id: extraction_grid(record, settings).length for record in videos.values()}
    assert 630_000 < sum(rows.values()) < 650_000
    for video in (longest.id, *source.ids[::60]):
        assert source.read(video).shape == (rows[video], 64)
        assert np.isfinite(source.read(video)).all()


@pytest.mark.parametrize(("stride", "fps"), [pytest.param(0, 0.0, marks=pytest.mark.exhaustive), (16, 15.0)])
def test_activitynet_has_its_real_lengths(stride: int, fps: float) -> None:
    fixed = {"grid": "resize", "fixed_length_t": 100}
    settings = real_settings("activitynet", window=16, stride=stride, fps=fps, test_subset="validation", **fixed)
    source, videos = open_features(settings), open_truth(settings).videos
    assert len(source.ids) == 19228
    for video in source.ids[::2000]:
        expected = 1 + (round(videos[video].duration_s * 15) - 16) // 16 if stride else 100
        assert source.read(video).shape == (expected, 64)
