"""The external protocol: fusion against a serial twin, classes by name, and every refusal."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_runs import make_run

from apl_jax.data.files import DataError, load_json, write_json
from apl_jax.declarations import from_dict
from apl_jax.evaluation.average_precision import Instances, average_precision, instances_from_videos
from apl_jax.evaluation.external import (
    check_protocol,
    check_unchanged,
    external_digest,
    fuse,
    protocol_words,
    read_class_scores,
)
from apl_jax.report import write_report
from apl_jax.report.tables import protocol
from apl_jax.runs.plans import plan_stages
from apl_jax.runs.settings import Settings
from apl_jax.runs.stages import stage_fingerprint
from apl_jax.settings import EvaluationSettings
from apl_jax.structs import DataFacts

CLASSES = ["CliffDiving", "Pole vault", "Shot_put"]
VIDEOS = ["v_one", "two", "three"]
SCORES = [[0.7, 0.2, 0.1], [0.0, 1.0, 0.5], [0.25, 0.25, 0.5]]


# Fusion


def fused_serially(
    instances: Instances, scores: np.ndarray, top_k: int, combination: str, count: int
) -> dict[tuple[int, int, float, float], float]:
    """(video, class, start, end) -> score, segment by segment."""
    result = {}
    for video in range(len(scores)):
        best: dict[tuple[float, float], float] = defaultdict(float)
        for v, segment, score in zip(instances.video, instances.segments_s.tolist(), instances.score, strict=True):
            if v == video:
                best[tuple(segment)] = max(best[tuple(segment)], score)
        for start, end in sorted(best, key=lambda s: -best[s])[:count]:
            for c in sorted(range(scores.shape[1]), key=lambda c: -scores[video, c])[:top_k]:
                value = scores[video, c] * best[start, end]
                result[video, c, start, end] = value**0.5 if combination == "sqrt" else value
    return result


@pytest.mark.parametrize("combination", ["sqrt", "product"])
@pytest.mark.parametrize(("top_k", "count"), [(2, 7), (1, 200), (9, 3)])
def test_fusion_is_that_of_a_serial_twin(combination: str, top_k: int, count: int) -> None:
    rng = np.random.default_rng(0)
    places = np.sort(rng.integers(0, 6, (300, 2)), -1) + [0, 0.5]  # few, so that many repeat under other classes
    score = rng.permutation(300) / 300  # no ties
    instances = Instances(rng.integers(0, 5, 300), rng.integers(0, 4, 300), places, score)
    instances = instances.select(instances.video != 2)  # a video without predictions
    scores = rng.random((5, 4))
    fused = fuse(instances, scores, top_k, combination, count)
    columns = fused.video.tolist(), fused.label.tolist(), *fused.segments_s.T.tolist()
    found = dict(zip(zip(*columns, strict=True), fused.score.tolist(), strict=True))
    assert len(found) == len(fused)
    assert found == pytest.approx(fused_serially(instances, scores, top_k, combination, count))


def test_fusion_of_nothing() -> None:
    assert len(fuse(instances_from_videos([], []), np.zeros((0, 3)), 2, "sqrt", 200)) == 0


def test_fusion_by_hand() -> None:
    instances = instances_from_videos([[[0, 4], [0, 4], [5, 9]]], [[0, 2, 1]], [[0.2, 0.64, 0.09]])
    fused = fuse(instances, np.array([[0.25, 0.0, 1.0]]), 2, "sqrt", 200)
    assert fused.label.tolist() == [2, 0, 2, 0]
    assert fused.segments_s.tolist() == [[0, 4], [0, 4], [5, 9], [5, 9]]
    np.testing.assert_allclose(fused.score, [0.8, 0.4, 0.3, 0.15])


def test_negative_segment_scores_are_refused() -> None:
    with pytest.raises(DataError, match=r"score -0\.5; expected scores of at least 0"):
        fuse(instances_from_videos([[[0, 4]]], [[0]], [[-0.5]]), np.ones((1, 1)), 1, "sqrt", 200)


def test_true_classes_raise_class_blind_predictions() -> None:
    truth = instances_from_videos([[[0, 4], [6, 9]], [[1, 5]], [[2, 3]]], [[0, 0], [1], [2]])
    blind = dataclasses.replace(truth, label=np.zeros_like(truth.label), score=np.full(len(truth), 0.9))
    fused = fuse(blind, np.eye(3), 1, "product", 200)
    before, after = (average_precision(truth, p, (0.5,), 3).average for p in (blind, fused))
    assert before < 0.34 and after == 1


# The file


def write_scores(path: Path, names: list[str], rows: dict[str, list[Any]], key: str = "class") -> Path:
    if path.suffix.lower() == ".csv":
        lines = [["video", *names], *([video, *row] for video, row in rows.items())]
        path.write_text("\n".join(",".join(map(str, line)) for line in lines))
    else:
        path.write_text(json.dumps({key: names, "results": rows}))
    return path


@pytest.mark.parametrize(("name", "key"), [("cuhk.json", "class"), ("mine.json", "classes"), ("mine.CSV", "")])
def test_classes_go_by_name_and_videos_with_or_without_prefix(tmp_path: Path, name: str, key: str) -> None:
    order = [2, 0, 1]
    names = ["Archery", *(CLASSES[c] for c in order)]
    rows = {v: [0.9, *(row[c] for c in order)] for v, row in zip(VIDEOS, SCORES, strict=True)}
    stored = {"one": rows["v_one"], "v_two": rows["two"], "three": rows["three"], "four": [0, 0, 0, 0]}
    path = write_scores(tmp_path / name, names, stored, key)
    found = read_class_scores(path, VIDEOS, CLASSES)
    np.testing.assert_array_equal(found.scores, SCORES)
    assert len(found.notes) == 1 and "1 classes that the data set lacks left out: 'Archery'" in found.notes[0]


def test_own_name_comes_before_the_other_spelling_of_an_id(tmp_path: Path) -> None:
    path = write_scores(tmp_path / "s.json", ["a"], {"v_x": [0.1], "x": [0.2]})
    assert read_class_scores(path, ["x", "v_x"], ["a"]).scores.tolist() == [[0.2], [0.1]]


def test_spelling_is_forgiven_and_told(tmp_path: Path) -> None:
    names = ["shot put", "Cliff Diving", "Pole vault"]
    path = write_scores(tmp_path / "s.json", names, {v: [0.3, 0.1, 0.2] for v in VIDEOS})
    found = read_class_scores(path, VIDEOS, CLASSES)
    np.testing.assert_array_equal(found.scores[0], [0.1, 0.2, 0.3])
    (note,) = found.notes
    assert "2 classes in another spelling: 'Cliff Diving' for 'CliffDiving', 'shot put' for 'Shot_put'" in note


@pytest.mark.parametrize(
    ("names", "classes", "words"),
    [
        (["run", "Run"], ["RUN"], "'RUN' (nearest: 'run', 'Run')"),  # two could be meant
        (["run"], ["RUN", "Run"], "without 2 of the data set's: 'RUN' (nearest: 'run')"),  # meant by two
        (["run"], ["run", "Run"], "without 1 of the data set's: 'Run' (nearest: 'run')"),  # taken by its own
        (["walk"], ["walk", "walks"], "'walks' (nearest: 'walk')"),
        (["0", "1"], ["walk"], "2 classes without 1 of the data set's: 'walk';"),
    ],
)
def test_ambiguous_and_missing_classes_are_refused(
    tmp_path: Path, names: list[str], classes: list[str], words: str
) -> None:
    path = write_scores(tmp_path / "s.json", names, {"v": [0.5] * len(names)})
    with pytest.raises(DataError) as refused:
        read_class_scores(path, ["v"], classes)
    assert f"{path}: class: found" in str(refused.value) and words in str(refused.value)


def test_videos_without_scores_are_counted_and_named(tmp_path: Path) -> None:
    path = write_scores(tmp_path / "s.json", CLASSES, {"video_1": SCORES[0]})
    videos = ["video_1", *(f"clip_{i}" for i in range(8))]
    with pytest.raises(DataError, match=r"no scores of 8 of 9 evaluated videos: 'clip_0', .*and 3 more .*'video_1'"):
        read_class_scores(path, videos, CLASSES)


@pytest.mark.parametrize("name", ["s.json", "s.csv"])
@pytest.mark.parametrize("value", [-3.2, 1.01, float("nan"), float("inf"), "high", 10**400, True, None])
def test_a_score_that_is_no_probability_names_video_and_class(tmp_path: Path, name: str, value: Any) -> None:
    path = write_scores(tmp_path / name, CLASSES, {v: [0.5, value, 0.5] for v in VIDEOS})
    with pytest.raises(DataError, match=r"s\.(json|csv): video 'v_one', class 'Pole vault': found"):
        read_class_scores(path, VIDEOS, CLASSES)


def test_float32_rounding_of_one_is_one(tmp_path: Path) -> None:
    path = write_scores(tmp_path / "s.json", ["a"], {"x": [1 + 1e-7]})
    assert read_class_scores(path, ["x"], ["a"]).scores.item() == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"results": {"v": [1]}}', "class: found only the keys 'results'"),
        ('{"class": ["a"], "classes": ["a"], "results": {}}', "found 'class' and 'classes'"),
        ('{"class": ["a", "a"], "results": {"v": [1, 0]}}', "found 'a' twice"),
        ('{"class": [1], "results": {"v": [1]}}', "a list of class names"),
        ('{"class": ["a"], "results": [[1]]}', "maps each video to a list"),
        ('{"class": ["a"], "results": {"v": 1}}', "maps each video to a list"),
        ('{"class": ["a"], "results": {"v": [1, 0]}}', "video 'v': found 2 scores; expected 1"),
        ('{"class": ["a"], "results": {}}', "no scores of 1 of 1"),
        ("[]", "a JSON list"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(DataError) as refused:
        read_class_scores(path, ["v"], ["a"])
    assert words in str(refused.value)


def test_a_video_twice_in_a_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("video,a\nv,1\nw,1\nv,0\n")
    with pytest.raises(DataError, match="line 4: found video 'v' again"):
        read_class_scores(path, ["v"], ["a"])


# Settings, words and digests


def test_protocol_and_file_come_together() -> None:
    for alone, words in (
        (EvaluationSettings(protocol="external"), "`evaluation.external_scores`: found '' with protocol external"),
        (
            EvaluationSettings(external_scores="a.json"),
            "`evaluation.external_scores`: found 'a.json' with protocol strict",
        ),
    ):
        with pytest.raises(DataError, match=words):
            check_protocol(alone)
    check_protocol(EvaluationSettings())
    check_protocol(external(Path("a.json")))


def test_impossible_values_are_refused() -> None:
    for values, words in (
        ({"external_top_k": 0}, "`external_top_k`: found 0"),
        ({"external_combination": "mean"}, "`external_combination`: found 'mean'"),
    ):
        with pytest.raises(ValueError) as refused:
            from_dict(EvaluationSettings, values)
        assert words in str(refused.value)


def external(path: Path) -> EvaluationSettings:
    return EvaluationSettings(protocol="external", external_scores=str(path))


def test_words(tmp_path: Path) -> None:
    assert protocol_words(EvaluationSettings()) == "strict"
    assert protocol_words(external(tmp_path / "cuhk.json")) == "external (top 2, sqrt, cuhk.json)"
    assert "the model's own" in protocol({"protocol": "strict"})
    assert "external (top 2, sqrt, cuhk.json)" in protocol({"protocol": "external (top 2, sqrt, cuhk.json)"})


def test_every_variant_depends_on_the_content_of_the_file(tmp_path: Path) -> None:
    path, moved = tmp_path / "a.json", tmp_path / "b.json"
    context: Any = SimpleNamespace(digest=lambda read: f"digest of {read}")

    def depends(file: Path) -> dict[str, str]:
        stages = plan_stages(dataclasses.replace(Settings(), evaluation=external(file)), DataFacts(8, 3, 64))
        found = {s.name: s for s in stages if s.name.endswith("_evaluation")}
        assert len(found) == 4 and {s.handed.external_digest for s in found.values()} == {
            external_digest(external(file))
        }
        earlier = {need: "" for stage in found.values() for need in stage.needs}
        return {name: stage_fingerprint(stage, context.digest, earlier) for name, stage in found.items()}

    path.write_text("one")
    first, digest = depends(path), external_digest(external(path))
    shutil.copy(path, moved)
    assert depends(moved) == first
    path.write_text("two")
    assert all(mark != first[name] for name, mark in depends(path).items())
    with pytest.raises(DataError, match="another content"):
        check_unchanged(external(path), digest)
    check_unchanged(external(moved), digest)
    with pytest.raises(DataError, match="no such file"):
        depends(tmp_path / "c.json")


# The report


def test_report_tells_the_protocol_and_refuses_results_of_another(tmp_path: Path) -> None:
    folder = make_run(tmp_path, ["walk", "run"], 40.0, 2.0, variants=("supervised",))
    assert "Protocol: strict. All classes are the model" in write_report(folder).read_text()
    settings = load_json(folder / "settings.json")
    settings["evaluation"] |= {"protocol": "external", "external_scores": "data/cuhk.json"}
    write_json(folder / "settings.json", settings)
    with pytest.raises(DataError, match=r"protocol: found 'strict'; expected 'external \(top 2, sqrt, cuhk.json\)'"):
        write_report(folder)
    results = load_json(folder / "results.json") | {"protocol": "external (top 2, sqrt, cuhk.json)"}
    write_json(folder / "results.json", results)
    assert "compare with numbers of this protocol only" in write_report(folder).read_text()
