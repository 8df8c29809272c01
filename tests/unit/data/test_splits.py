"""Splits by ratio and seed: determined, nested, covering, stratified, and refused when they cannot be."""

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from apl_jax.data.annotations import Annotations, VideoRecord, read_annotations
from apl_jax.data.dataset import open_truth
from apl_jax.data.files import DataError
from apl_jax.data.splits import annotation_notes, build_split, write_split
from apl_jax.declarations import SettingsError
from apl_jax.settings import DataSettings

ACTIVITYNET = Path(__file__).parents[3] / ".." / "shared" / "data" / "annotations" / "activitynet13_anno.json"


def record(name, classes, subset="training", subject=None):
    """A video with one instance of each given class."""
    n = len(classes)
    segments_s = np.stack([np.arange(n), np.arange(n) + 0.5], -1).astype(float).reshape(n, 2)
    return VideoRecord(
        name, subset, 100.0, 10.0, subject, segments_s, np.array(classes, np.int32), np.ones(n, np.float32),
        np.zeros(n, bool),
    )  # fmt: skip


def annotations(videos, classes):
    """Annotations of the given records, one test video added."""
    records = [*videos, record("test", [0], "test")]
    return Annotations("", tuple(f"c{i}" for i in range(classes)), {r.id: r for r in records})


@pytest.mark.parametrize("rule", ["cover", "first_class"])
def test_point_1_a_video_that_nobody_annotated_is_never_labelled(rule, tmp_path):
    known = [record(f"v{i:02d}", [i % 2]) for i in range(10)]
    bare = [dataclasses.replace(record(f"u{i:02d}", []), annotated=False) for i in range(30)]
    data = annotations([*known, *bare], 2)
    for seed in range(5):
        split = split_of(data, split_rule=rule, label_ratio=0.4, split_seed=seed)
        assert len(split.labelled) == 4 and not set(split.labelled) & {r.id for r in bare}
        assert len(split.unlabelled) == 36
    notes = annotation_notes(data, split)
    assert notes == ("30 of 40 training videos are not annotated, so never labelled and never scored, such as u00",)
    write_split(tmp_path / "split.json", dataclasses.replace(split, labelled=("v00", "v01", "u03")))
    with pytest.raises(DataError, match="1 videos such as 'u03', which nobody annotated"):
        split_of(data, split_file=str(tmp_path / "split.json"))
    with pytest.raises(DataError, match="none of 30 annotated"):
        split_of(annotations(bare, 1), label_ratio=0.4)


def test_a_class_that_is_only_to_be_ignored_is_not_covered():
    known = [record(f"v{i}", [0, 1]) for i in range(4)]
    known[0] = dataclasses.replace(known[0], ignore=np.array([False, True]))
    split = split_of(annotations(known, 2), label_ratio=0.25)
    assert split.labelled != ("v0",) and not split.uncovered_classes


@pytest.fixture(scope="module")
def long_tail():
    """200 single-class videos: class 0 has 100, class 1 has 50, ..., classes 6 and 7 have 3 and 2."""
    counts = [100, 50, 25, 12, 5, 3, 3, 2]
    videos = [record(f"v{c}_{i:03d}", [c]) for c, count in enumerate(counts) for i in range(count)]
    return annotations(videos, 8)


def split_of(data, **changes):
    return build_split(data, dataclasses.replace(DataSettings(), **changes))


@pytest.fixture(scope="module")
def embedded():
    return open_truth(DataSettings())


@pytest.mark.parametrize(("ratio", "count"), [(0.001, 1), (0.1, 15), (0.2, 31), (0.4, 61), (0.6, 92), (1.0, 153)])
def test_embedded_counts(embedded, ratio, count):
    split = split_of(embedded, label_ratio=ratio)
    assert (len(split.labelled), len(split.unlabelled), len(split.evaluation)) == (count, 153 - count, 70)
    training = {video for video, r in embedded.videos.items() if r.subset == "training"}
    assert set(split.labelled) | set(split.unlabelled) == training and not set(split.labelled) & set(split.unlabelled)
    assert {embedded.videos[video].subset for video in split.evaluation} == {"test"}
    assert split.uncovered_classes == ()


@pytest.mark.parametrize("seed", range(5))
def test_smaller_ratio_is_a_prefix_of_a_larger_one(long_tail, seed):
    lists = [split_of(long_tail, label_ratio=r, split_seed=seed).labelled for r in (0.04, 0.1, 0.2, 0.4, 0.6, 1.0)]
    assert [len(x) for x in lists] == [8, 20, 40, 80, 120, 200]
    for smaller, larger in itertools.pairwise(lists):
        assert larger[: len(smaller)] == smaller


@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_covered_and_in_proportion(long_tail, seed):
    covered = split_of(long_tail, label_ratio=0.04, split_seed=seed).labelled
    assert {int(video[1]) for video in covered} == set(range(8))
    half = Counter(int(video[1]) for video in split_of(long_tail, label_ratio=0.5, split_seed=seed).labelled)
    for c, count in enumerate([100, 50, 25, 12, 5, 3, 3, 2]):
        assert abs(half[c] - count / 2) <= 3


def test_pure_function_of_seed_and_ratio_not_of_file_order(long_tail):
    backwards = Annotations("", long_tail.classes, dict(reversed(list(long_tail.videos.items()))))
    assert split_of(long_tail, split_seed=3) == split_of(backwards, split_seed=3)
    assert split_of(long_tail, split_seed=3).digest == split_of(backwards, split_seed=3).digest
    splits = {split_of(long_tail, split_seed=seed).labelled for seed in range(10)}
    assert len(splits) == 10
    assert split_of(long_tail, split_seed=3).digest != split_of(long_tail, split_seed=4).digest


def test_times_and_weights_do_not_move_the_split(long_tail):
    moved = {
        video: dataclasses.replace(r, segments_s=r.segments_s + 7, weight=r.weight / 2)
        for video, r in long_tail.videos.items()
    }
    assert split_of(Annotations("", long_tail.classes, moved, ())) == split_of(long_tail)


def test_cover_uses_videos_that_show_several_rare_classes():
    videos = [record(f"v{i}", [0]) for i in range(9)] + [record("rich", [1, 2, 3])]
    for seed in range(5):
        labelled = split_of(annotations(videos, 4), label_ratio=0.2, split_seed=seed).labelled
        assert labelled[0] == "rich" and labelled[1] != "rich"


def test_cover_prefers_the_video_that_shows_more():
    videos = [record("both", [0, 1]), record("only0", [0]), record("x1", [1]), record("y1", [1])]
    for seed in range(10):
        assert split_of(annotations(videos, 2), label_ratio=0.25, split_seed=seed).labelled == ("both",)


def test_uncovered_class_is_refused_with_the_ratio_that_would_do(long_tail):
    with pytest.raises(DataError, match="leave uncovered") as caught:
        split_of(long_tail, label_ratio=0.02)
    message = str(caught.value)
    assert "4 labelled of 200" in message and "`data.label_ratio=0.04` (the smallest" in message and "c0" in message
    split = split_of(long_tail, label_ratio=0.02, allow_uncovered=True)
    assert len(split.labelled) == 4 and len(split.uncovered_classes) == 4
    assert {int(video[1]) for video in split.labelled}.isdisjoint(int(c[1]) for c in split.uncovered_classes)
    assert split_of(long_tail, label_ratio=0.04).uncovered_classes == ()


def test_class_without_training_video_is_recorded_not_refused():
    split = split_of(annotations([record("a", [0]), record("b", [0])], 3), label_ratio=1.0)
    assert split.uncovered_classes == ("c1", "c2")


def test_background_only_videos_take_part():
    videos = [record(f"v{i}", [0]) for i in range(5)] + [record(f"empty{i}", []) for i in range(5)]
    split = split_of(annotations(videos, 1), label_ratio=1.0)
    assert len(split.labelled) == 10


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, float("nan")])
def test_ratio_out_of_range(long_tail, ratio):
    with pytest.raises(SettingsError, match=r"`label_ratio`: found .*, expected more than 0 and at most 1"):
        split_of(long_tail, label_ratio=ratio)


def test_no_video_to_train_or_evaluate_on(long_tail):
    with pytest.raises(DataError, match=r"found subsets 'test', 'training'; expected videos of subset 'validation'"):
        split_of(long_tail, training_subset="validation")
    with pytest.raises(DataError, match="to evaluate on"):
        split_of(long_tail, test_subset="testing")


def test_subsets_are_compared_in_lower_case(long_tail):
    assert split_of(long_tail, training_subset="Training", test_subset="TEST") == split_of(long_tail)


def test_validation_subjects_leave_training_and_keep_the_test_set_out(embedded):
    split = split_of(embedded, validation_subjects=(1, 4))
    assert {embedded.videos[video].subject for video in split.evaluation} == {1, 4}
    assert {embedded.videos[video].subset for video in split.evaluation} == {"training"}
    rest = {embedded.videos[video].subject for video in split.labelled + split.unlabelled}
    assert not rest & {1, 4} and len(split.labelled + split.unlabelled) + len(split.evaluation) == 153
    assert len(split.labelled) == round(0.1 * (153 - len(split.evaluation)))


def test_unknown_or_all_subjects(embedded):
    with pytest.raises(DataError, match=r"`data.validation_subjects`: found \[3\]"):  # 3 is a test subject
        split_of(embedded, validation_subjects=(1, 3))
    subjects = {r.subject for r in embedded.videos.values() if r.subset == "training"}
    with pytest.raises(DataError, match="all training subjects"):
        split_of(embedded, validation_subjects=tuple(sorted(subjects)))


def test_written_split_can_be_used_again(tmp_path, embedded):
    split = split_of(embedded, label_ratio=0.2, split_seed=7)
    path = tmp_path / "split.json"
    write_split(path, split)
    document = json.loads(path.read_text())
    assert document["labelled"] == list(split.labelled) and document["unlabelled"] == list(split.unlabelled)
    assert (document["seed"], document["ratio"], document["digest"]) == (7, 0.2, split.digest)
    again = split_of(embedded, split_file=str(path))
    assert (again.labelled, again.unlabelled, again.evaluation) == (split.labelled, split.unlabelled, split.evaluation)


def test_split_file_of_another_data_set(tmp_path, embedded, long_tail):
    write_split(tmp_path / "split.json", split_of(long_tail))
    with pytest.raises(DataError, match="expected ids of training videos"):
        split_of(embedded, split_file=str(tmp_path / "split.json"))
    (tmp_path / "split.json").write_text('{"labelled": []}')
    with pytest.raises(DataError, match="expected a list of video ids"):
        split_of(embedded, split_file=str(tmp_path / "split.json"))


def test_split_file_that_leaves_a_class_uncovered(tmp_path, long_tail):
    (tmp_path / "split.json").write_text('{"labelled": ["v0_000"]}')
    with pytest.raises(DataError, match=r"split.json: found 1 labelled .* c1, c2"):
        split_of(long_tail, split_file=str(tmp_path / "split.json"))


@pytest.mark.parametrize("seed", range(3))
def test_first_class_gives_every_class_its_share(long_tail, seed):
    labelled = split_of(long_tail, split_rule="first_class", label_ratio=0.4, split_seed=seed).labelled
    counts = Counter(int(video[1]) for video in labelled)
    # 0.6 n rounds to 60, 30, 15, 7, 3, 2, 2, 1 unlabelled videos
    assert [counts[c] for c in range(8)] == [40, 20, 10, 5, 2, 1, 1, 1]
    assert labelled != split_of(long_tail, split_rule="first_class", label_ratio=0.4, split_seed=seed + 1).labelled


def test_first_class_is_that_of_the_file_also_when_its_annotation_was_dropped():
    videos = {f"v{i}": record(f"v{i}", [0, 1]) for i in range(8)} | {"test": record("test", [0], "test")}
    first = {f"v{i}": int(i >= 4) for i in range(8)}
    data = Annotations("", ("c0", "c1"), videos, first_classes=first)
    for seed in range(5):
        labelled = split_of(data, split_rule="first_class", label_ratio=0.5, split_seed=seed).labelled
        assert Counter(first[video] for video in labelled) == {0: 2, 1: 2}


def test_first_class_refusals(long_tail):
    with pytest.raises(DataError, match=r"leave uncovered.*`data.split_rule=cover`, or"):
        split_of(long_tail, split_rule="first_class", label_ratio=0.1)
    with pytest.raises(
        DataError, match=r"`data.label_ratio=0.001`: found a share that rounds to no video in any of 8 classes"
    ):
        split_of(long_tail, split_rule="first_class", label_ratio=0.001, allow_uncovered=True)
    with pytest.raises(ValueError, match="`split_rule`: found 'other'"):
        DataSettings(split_rule="other")


@pytest.mark.skipif(not ACTIVITYNET.is_file(), reason=f"{ACTIVITYNET} is absent")
def test_published_counts_of_activitynet():
    """The numbers of labelled videos in SPOT's and SSTAP's files (spec 3.8)."""
    data = read_annotations(ACTIVITYNET, strict=False)
    for ratio, count in [(0.1, 966), (0.2, 1925), (0.4, 3867), (0.6, 5782)]:
        split = split_of(data, split_rule="first_class", label_ratio=ratio, test_subset="validation")
        assert (len(split.labelled), len(split.unlabelled), len(split.evaluation)) == (count, 9649 - count, 4728)
        if ratio == 0.1:
            per_class = Counter(data.first_classes[video] for video in split.labelled)
            assert len(per_class) == 200 and (min(per_class.values()), max(per_class.values())) == (3, 8)


def table(path, rows, header="video,numFrame,seconds,fps,rfps,subset,featureFrame"):
    """A split in SPOT's layout; rows are (video, subset)."""
    path.write_text("\n".join([header, *(f"{v},400,10.0,30.0,29.9,{s},400" for v, s in rows)]) + "\n")
    return str(path)


@pytest.fixture
def published(long_tail):
    """Rows of a published split of the long tail: two of each class labelled."""
    training = sorted(video for video, r in long_tail.videos.items() if r.subset == "training")
    rows = [(video, "training" if int(video[3:]) < 2 else "training_unlabel") for video in training]
    return [*rows, ("test", "Test"), ("of_no_interest", "testing")]


def test_published_split(tmp_path, long_tail, published):
    split = split_of(long_tail, split_file=table(tmp_path / "video_info_new_0.9.csv", published))
    assert split.labelled == tuple(f"v{c}_00{i}" for c in range(8) for i in range(2))
    assert (len(split.unlabelled), split.evaluation) == (184, ("test",))
    renamed = [(v, {"training_unlabel": "unlabelled"}.get(s, s)) for v, s in published]
    short = tmp_path / "short.CSV"
    short.write_text("\n".join(["Name,Subset", *(f"{v},{s}" for v, s in renamed)]))
    assert split_of(long_tail, split_file=str(short)) == split


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("nobody", "training"), ("no_one", "training_unlabel")],
            "2 of 203 videos that the annotations lack.*'no_one'",
        ),
        ([("test2", "training")], "1 of 202 videos"),
        ([("v0_000", "training")], "line 204, video 'v0_000': found it a second time"),
    ],
)
def test_published_split_of_other_videos(tmp_path, long_tail, published, rows, message):
    with pytest.raises(DataError, match=message) as caught:
        split_of(long_tail, split_file=table(tmp_path / "split.csv", [*published, *rows]))
    assert "split.csv" in str(caught.value) and "Try: " in str(caught.value)


def test_published_split_that_disagrees_about_subsets(tmp_path, long_tail, published):
    for old, new, message in [
        (("test", "Test"), ("test", "training"), "subset training: found 1 ids such as 'test'"),
        (("test", "Test"), ("test", "training_unlabel"), "subset unlabelled: found 1 ids such as 'test'"),
        (("v0_000", "training"), ("v0_000", "test"), "1 videos such as 'v0_000' that the annotations train on"),
    ]:
        rows = [new if row == old else row for row in published]
        with pytest.raises(DataError, match=message):
            split_of(long_tail, split_file=table(tmp_path / "split.csv", rows))
    rows = [(v, "training_unlabel" if s == "training" else s) for v, s in published]
    with pytest.raises(
        DataError, match="subsets 'test', 'testing', 'training_unlabel'; expected rows of subset 'train"
    ):
        split_of(long_tail, split_file=table(tmp_path / "split.csv", rows))


def test_split_table_with_other_columns(tmp_path, long_tail):
    for header in ("clip,a,b,c,d,subset,e", "video,a,b,c,d,split,e"):
        path = table(tmp_path / "split.csv", [("v0_000", "training")], header)
        with pytest.raises(
            DataError, match=r'found columns .*; expected a column "video" and a column "subset"'
        ) as caught:
            split_of(long_tail, split_file=path)
        assert all(repr(name) in str(caught.value) for name in header.split(","))
