"""Tables, standardisation, targets, and the opened data set: shapes, values, and what cannot be reached (law 3)."""

import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from apl_jax.data.annotations import Annotations, VideoRecord
from apl_jax.data.batching import Standardizer, build_targets
from apl_jax.data.dataset import Dataset, open_dataset, open_truth
from apl_jax.data.features.folder import open_features
from apl_jax.data.features.sources import embedded_root
from apl_jax.data.files import DataError
from apl_jax.data.grids import window_signal
from apl_jax.settings import DataSettings
from apl_jax.structs import TimeGrid

HAPT = Path(__file__).parents[3] / ".." / "shared" / "data" / "hapt"
SETTINGS = DataSettings()


@pytest.fixture(scope="module")
def dataset():
    return open_dataset(SETTINGS)


def test_tables_hold_windows_standardised_and_padded(dataset):
    assert dataset.labelled.features.shape == (15, 160, 120)
    assert dataset.unlabelled.features.shape == (138, 160, 120)
    assert dataset.evaluation.features.shape[0] == 70
    source = open_features(SETTINGS)
    for table in (dataset.labelled, dataset.unlabelled, dataset.evaluation):
        assert table.features.dtype == np.float32 and table.lengths.dtype == np.int32
        assert table.features.shape[1] % SETTINGS.length_multiple == 0
        assert (table.features[~table.mask] == 0).all()
        assert table.mask.sum(1).tolist() == table.lengths.tolist() == [grid.length for grid in table.grids]
        rows = window_signal(source.read(table.ids[3]), 20, 10)
        expected = (rows - dataset.standardizer.mean) / dataset.standardizer.std
        np.testing.assert_allclose(table.features[3, : len(rows)], expected, rtol=1e-5, atol=1e-5)


def test_statistics_are_those_of_all_training_videos(dataset):
    tables = dataset.labelled, dataset.unlabelled
    rows = np.concatenate([table.features[table.mask] for table in tables]).astype(np.float64)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(rows.std(0), 1, atol=1e-4)
    full = open_dataset(dataclasses.replace(SETTINGS, label_ratio=1.0))
    np.testing.assert_allclose(full.standardizer.mean, dataset.standardizer.mean, rtol=1e-6, atol=1e-6)


def test_full_ratio_leaves_an_empty_unlabelled_table():
    full = open_dataset(dataclasses.replace(SETTINGS, label_ratio=1.0))
    assert full.unlabelled.features.shape == (0, 160, 120) and full.unlabelled.mask.shape == (0, 160)
    targets = build_targets(full.unlabelled.records, full.unlabelled.grids)
    assert targets.segments_t.shape == (0, 1, 2) and targets.mask.shape == (0, 1)


def reachable(value, seen=None):
    """Every object reachable from ``value`` through attributes, dicts and sequences."""
    seen = {} if seen is None else seen
    if id(value) in seen or isinstance(value, (str, bytes, int, float, type(None))):
        return seen
    seen[id(value)] = value
    inner = list(vars(value).values()) if hasattr(value, "__dict__") else []
    inner += list(value.values()) if isinstance(value, dict) else []
    inner += list(value) if isinstance(value, (tuple, list, set, frozenset)) else []
    for item in inner:
        reachable(item, seen)
    return seen


def test_no_annotation_but_the_labelled_ones_can_be_reached(dataset):
    """Law 3, by structure: walk the object, collect what it holds."""
    objects = reachable(dataset).values()
    assert not any(isinstance(x, Annotations) for x in objects)
    taught = {x.id for x in objects if isinstance(x, VideoRecord) and len(x.labels)}
    assert taught == set(dataset.split.labelled)
    truth = open_truth(SETTINGS)
    secrets = {
        float(x)
        for video in dataset.split.unlabelled + dataset.split.evaluation
        for x in truth.videos[video].segments_s.ravel()
    } - {float(x) for video in dataset.split.labelled for x in truth.videos[video].segments_s.ravel()}
    small = [x for x in objects if isinstance(x, np.ndarray) and x.dtype == np.float64]
    assert len(secrets) > 500 and not any(np.isin(x, list(secrets)).any() for x in small)


@pytest.fixture(scope="module")
def altered(tmp_path_factory, dataset):
    """The embedded data set with all annotations of unlabelled and test videos moved and relabelled."""
    root = tmp_path_factory.mktemp("altered")
    (root / "signals_100hz.npz").symlink_to(embedded_root() / "signals_100hz.npz")
    document = json.loads((embedded_root() / "annotations.json").read_text())
    names = list(dataset.classes)
    for video in dataset.split.unlabelled + dataset.split.evaluation:
        for row in document["database"][video]["annotations"]:
            label = (row.pop("label_id") + 1) % len(names)
            row.update(segment=[0.5 * t for t in row["segment"]], label=names[label], label_id=label)
    (root / "annotations.json").write_text(json.dumps(document))
    return root, document


def same(a: Dataset, b: Dataset):
    assert (a.digest, a.split, a.classes) == (b.digest, b.split, b.classes)
    for name in ("labelled", "unlabelled", "evaluation"):
        first, second = getattr(a, name), getattr(b, name)
        assert first.features.tobytes() == second.features.tobytes() and first.ids == second.ids
        ours, theirs = (build_targets(t.records, t.grids) for t in (first, second))
        for field in ("segments_t", "labels", "mask", "weight", "ignore_mask"):
            assert np.array_equal(getattr(ours, field), getattr(theirs, field))


def test_changing_hidden_annotations_changes_nothing(dataset, altered):
    """Law 3, by content."""
    root, _ = altered
    changed = dataclasses.replace(SETTINGS, root=str(root))
    before, after = (open_truth(s).videos[dataset.split.unlabelled[0]] for s in (SETTINGS, changed))
    assert not np.array_equal(before.segments_s, after.segments_s) and not np.array_equal(before.labels, after.labels)
    same(dataset, open_dataset(changed))


def changed_digests(a: Dataset, b: Dataset) -> set[str]:
    """Names of the digests in which two data sets differ; the digest of all says the same."""
    found = {name for name in a.digests if a.digests[name] != b.digests[name]}
    assert a.digests.keys() == b.digests.keys() == {"training", "labelled", "evaluation"}
    assert bool(found) == (a.digest != b.digest)
    return found


def test_changing_a_labelled_annotation_changes_the_digest_of_these_alone(dataset, altered, tmp_path):
    root, document = altered
    (tmp_path / "signals_100hz.npz").symlink_to(root / "signals_100hz.npz")
    document = json.loads(json.dumps(document))
    document["database"][dataset.split.labelled[0]]["annotations"][0]["segment"][0] -= 0.01
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    changed = open_dataset(dataclasses.replace(SETTINGS, root=str(tmp_path)))
    assert changed_digests(dataset, changed) == {"labelled"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"split_seed": 1}, {"training", "labelled"}),
        ({"label_ratio": 0.2}, {"training", "labelled"}),
        ({"window": 10}, {"training", "evaluation"}),
        ({"length_multiple": 32}, {"training", "evaluation"}),
        ({"std_floor": 1e-2}, {"training", "evaluation"}),
        ({"name": "mine", "licence": "mine", "max_length_t": 64}, set()),  # no rows change; crops are the stages' own
    ],
)
def test_digests_follow_split_and_windows(dataset, change, expected):
    assert changed_digests(dataset, open_dataset(dataclasses.replace(SETTINGS, **change))) == expected


def test_opening_is_fast():
    times = []
    for _ in range(5):  # the fastest: other processes may hold any of them up
        start = time.perf_counter()
        open_dataset(SETTINGS)
        times.append(time.perf_counter() - start)
    assert min(times) < 1.5


@pytest.mark.skipif(not HAPT.is_dir(), reason=f"the shared data folder {HAPT} is absent")
def test_hapt():
    data = open_dataset(dataclasses.replace(SETTINGS, name="hapt", root=str(HAPT), window=50, stride=25))
    assert data.labelled.features.shape == (4, 1296, 300) and data.unlabelled.features.shape == (38, 1296, 300)
    assert len(data.evaluation.ids) == 19 and data.split.uncovered_classes == ()


def record(name="v", segments=(), labels=(), weight=None, ignore=None):
    n = len(labels)
    return VideoRecord(
        name, "training", 10.0, 10.0, None, np.array(segments, float).reshape(n, 2), np.array(labels, np.int32),
        np.ones(n, np.float32) if weight is None else np.array(weight, np.float32),
        np.zeros(n, bool) if ignore is None else np.array(ignore),
    )  # fmt: skip


def test_targets_on_the_grid():
    grid = TimeGrid(fps=10.0, stride=2, window=4, length=49)
    first = record("a", [[1, 2], [0, 0.1]], [1, 0], weight=[1, 0.5], ignore=[False, True])
    targets = build_targets([first, record("b")], [grid, grid])
    np.testing.assert_allclose(targets.segments_t, [[[4, 9], [-1, -0.5]], [[0, 0], [0, 0]]])
    assert np.asarray(targets.labels).tolist() == [[1, 0], [0, 0]]
    assert np.asarray(targets.mask).tolist() == [[True, True], [False, False]]
    assert np.asarray(targets.weight).tolist() == [[1, 0.5], [0, 0]]
    assert np.asarray(targets.ignore_mask).tolist() == [[False, True], [False, False]]
    wide = build_targets([first], [grid], max_instances=5)
    assert wide.segments_t.shape == (1, 5, 2) and np.asarray(wide.mask).sum() == 2
    with pytest.raises(DataError, match="video 'a': found 2 instances; expected at most 1"):
        build_targets([first], [grid], max_instances=1)


def test_standardizer_centres_constants_without_blowing_them_up():
    rows = [np.array([[1.0, 5.0], [3.0, 5.0]], np.float32), np.array([[5.0, 5.0]], np.float32)]
    standardizer = Standardizer.fit(rows, 1e-3)
    np.testing.assert_allclose(standardizer.mean, [3, 5])
    np.testing.assert_allclose(standardizer.std, [np.sqrt(8 / 3), 1])
    applied = standardizer.apply(rows[0])
    assert applied.dtype == np.float32
    np.testing.assert_allclose(applied, [[-2 / np.sqrt(8 / 3), 0], [0, 0]], atol=1e-6)


def test_standardizer_keeps_its_digits_far_from_zero():
    rows = np.random.default_rng(0).normal(1e4, 1.0, size=(5000, 3)).astype(np.float32)
    standardizer = Standardizer.fit([rows[:2000], rows[2000:]], 1e-3)
    np.testing.assert_allclose(standardizer.std, rows.astype(np.float64).std(0), rtol=1e-5)


def ready_made(root, lengths, width=4, fps=30.0, stride=4, window=16):
    """A data folder of ready-made feature rows."""
    (root / "features").mkdir()
    random = np.random.default_rng(0)
    database = {}
    for i, length in enumerate(lengths):
        np.save(root / "features" / f"v{i}.npy", random.normal(size=(length, width)).astype(np.float32))
        database[f"v{i}"] = {
            "subset": "test" if i == len(lengths) - 1 else "training",
            "duration": ((length - 1) * stride + window) / fps,
            "fps": fps,
            "annotations": [{"segment": [0.1, 0.4], "label": "a"}],
        }
    (root / "annotations.json").write_text(json.dumps({"database": database}))
    return DataSettings(root=str(root), window=window, stride=stride, label_ratio=0.5)


def test_ready_made_rows_are_not_windowed_again(tmp_path):
    settings = ready_made(tmp_path, [10, 33, 21])
    data = open_dataset(settings)
    assert data.labelled.features.shape == data.unlabelled.features.shape == (1, 48, 4)
    assert data.evaluation.lengths.tolist() == [21] and data.evaluation.features.shape == (1, 32, 4)
    assert data.evaluation.grids[0].offset == 2.0
    with pytest.raises(DataError, match="within 5 %"):
        open_dataset(dataclasses.replace(settings, stride=8))


@pytest.mark.parametrize(("video", "expected"), [("v0", "training"), ("v1", "training"), ("v2", "evaluation")])
def test_one_number_in_the_middle_of_a_large_file_changes_the_digest(tmp_path, video, expected):
    """Of a file of 8 MB, whose size and first and last rows stay what they are."""
    settings = ready_made(tmp_path, [2100, 2200, 2300], width=1024)
    before = open_dataset(settings)
    path = tmp_path / "features" / f"{video}.npy"
    rows, stat = np.load(path), path.stat()
    rows[len(rows) // 2, 511] = np.nextafter(rows[len(rows) // 2, 511], np.inf)
    np.save(path, rows)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size > 2**23
    assert changed_digests(before, open_dataset(settings)) == {expected}


def test_digests_are_the_same_whether_rows_stay_in_memory_or_not(tmp_path):
    settings = ready_made(tmp_path, [10, 33, 21])
    assert open_dataset(settings).digests == open_dataset(settings, hold_bytes=0).digests


def test_the_digest_of_a_data_set_does_not_depend_on_where_it_lies(tmp_path):
    (tmp_path / "one").mkdir()
    settings = ready_made(tmp_path / "one", [10, 33, 21])
    before = open_dataset(settings)
    (tmp_path / "one").rename(tmp_path / "two")
    assert open_dataset(dataclasses.replace(settings, root=str(tmp_path / "two"))).digest == before.digest


def test_training_knows_nothing_of_test_videos(tmp_path):
    """One more or fewer, or with other annotations: what is trained stays what it is."""
    settings = ready_made(tmp_path, [10, 33, 21, 17])
    path = tmp_path / "annotations.json"
    document = json.loads(path.read_text())
    document["database"]["v2"]["subset"] = "test"
    path.write_text(json.dumps(document))
    before = open_dataset(settings)
    assert before.evaluation.ids == ("v2", "v3")
    document["database"]["v3"]["annotations"] = []
    path.write_text(json.dumps(document))
    assert changed_digests(before, open_dataset(settings)) == set()
    del document["database"]["v2"]
    path.write_text(json.dumps(document))
    after = open_dataset(settings)
    assert after.evaluation.ids == ("v3",) and changed_digests(before, after) == {"evaluation"}


def test_a_duration_is_part_of_a_recording(tmp_path):
    settings = ready_made(tmp_path, [10, 33, 21])
    before = open_dataset(settings)
    document = json.loads((tmp_path / "annotations.json").read_text())
    document["database"]["v2"]["duration"] *= 1.01
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    assert changed_digests(before, open_dataset(settings)) == {"evaluation"}
