"""``evaluate``, ``thresholds`` and ``predict`` read what ``run`` reads; a test set without annotations is predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures import smoke_settings

import apl_jax as apl
from apl_jax.cli import main
from apl_jax.data.features.sources import embedded_root

SEGMENTS = {"a": [[1.0, 4.0], [6.0, 9.0]], "b": [[2.0, 3.0]]}


def write(path: Path, document: Any) -> str:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


def truth(path: Path, **changes: Any) -> str:
    database = {
        name: {"duration": 10.0, "annotations": [{"segment": s, "label": "walk"} for s in segments]} | changes
        for name, segments in SEGMENTS.items()
    }
    return write(path, {"database": database})


def found(path: Path, **changes: Any) -> str:
    rows = lambda segments: [{"segment": s, "label": "walk", "score": 0.5} | changes for s in segments]
    return write(path, {"results": {name: rows(segments) for name, segments in SEGMENTS.items()}})


def evaluate(capsys: pytest.CaptureFixture[str], annotations: str, predictions: str, *flags: str) -> str:
    code = main(["evaluate", f"--annotations={annotations}", f"--predictions={predictions}", *flags])
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out + said.err


def map_of(said: str) -> float:
    return float(next(line for line in said.splitlines() if line.startswith("mAP")).split()[-1])


def test_point_13_truth_without_durations_and_times_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = json.loads(Path(truth(tmp_path / "truth.json")).read_text())
    for entry in bare["database"].values():
        del entry["duration"]
    bare["database"]["a"]["annotations"][0]["segment"] = ["0:00:01", "00:04.0"]
    assert map_of(evaluate(capsys, write(tmp_path / "bare.json", bare), found(tmp_path / "found.json"))) == 100.0


def test_point_13_the_table_that_predict_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{name},walk,{s},{e},0.5" for name, segments in SEGMENTS.items() for s, e in segments]
    table = write(tmp_path / "found.csv", "\n".join(["video,label,start_s,end_s,score", *rows]) + "\n")
    assert map_of(evaluate(capsys, truth(tmp_path / "truth.json"), table)) == 100.0
    assert apl.evaluate(predictions=table, annotations=tmp_path / "truth.json").average_map == 1.0
    write(tmp_path / "found.csv", "\n".join(["video,label,start_s,end_s,score", "a,walk,1_0,4,0.5"]))
    assert main(["evaluate", f"--annotations={tmp_path}/truth.json", f"--predictions={table}"]) == 1
    assert "'1_0'" in capsys.readouterr().err


def test_point_13_proposals_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {name: [{"segment": s, "score": 0.5} for s in segments] for name, segments in SEGMENTS.items()}
    proposals = write(tmp_path / "found.json", {"results": rows})
    scores = write(tmp_path / "classes.json", {"class": ["walk"], "results": {"a": [0.9], "b": [0.9]}})
    table = write(tmp_path / "found.csv", "video,start_s,end_s,score\na,1,4,0.5\na,6,9,0.5\nb,2,3,0.5\n")
    for predictions in (proposals, table):
        said = evaluate(capsys, truth(tmp_path / "truth.json"), predictions, f"--external_scores={scores}")
        assert map_of(said) == 100.0
    assert main(["evaluate", f"--annotations={tmp_path}/truth.json", f"--predictions={table}"]) == 1
    assert "name of a class" in capsys.readouterr().err


def test_proposals_with_labels_and_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both files have the same average recall; a class that the truth lacks is no reason to leave a segment out."""
    rows = {name: [{"segment": s, "score": 0.5} for s in segments] for name, segments in SEGMENTS.items()}
    bare = write(tmp_path / "bare.json", {"results": rows | {"stranger": [{"segment": [0, 1], "score": 1.0}]}})
    table = write(tmp_path / "found.csv", "video,start_s,end_s,score\na,1,4,0.5\na,6,9,0.5\nb,2,3,0.5\n")
    for predictions in (bare, table, found(tmp_path / "found.json", label="swim")):
        said = evaluate(capsys, truth(tmp_path / "truth.json"), predictions, "--proposals")
        lines = said.splitlines()
        assert lines[0].split() == ["%", "AR@1", "AR@5", "AR@10", "AR@100", "AUC"]
        for row in ("tIoU 0.95", "average"):
            line = next(line for line in lines if line.startswith(row)).removeprefix(row)
            assert line.split() == ["33.3", "100.0", "100.0", "100.0", "98.7"]
        assert "3 instances in 2 videos, 1.5 proposals per video" in said
        assert ("'stranger'" in said) == (predictions == bare)
    said = evaluate(capsys, truth(tmp_path / "truth.json"), table, "--proposals", "--tiou=0.5,0.7")
    assert "tIoU 0.7" in said and "tIoU 0.95" not in said
    classes = write(tmp_path / "classes.json", {"class": ["walk"], "results": {"a": [0.9], "b": [0.9]}})
    both = ["--proposals", f"--external_scores={classes}"]
    assert main(["evaluate", f"--annotations={tmp_path}/truth.json", f"--predictions={table}", *both]) == 2
    assert "found --proposals and --external_scores" in capsys.readouterr().err


def test_point_13_ambiguous_is_no_class_of_thumos14(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(Path(truth(tmp_path / "truth.json")).read_text())
    document["database"]["a"]["annotations"].append({"segment": [4.5, 5.5], "label": "Ambiguous"})
    said = evaluate(capsys, write(tmp_path / "thumos14.json", document), found(tmp_path / "found.json"))
    assert map_of(said) == 100.0 and "1 segments of the class 'Ambiguous' left out" in said


def test_point_13_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth(tmp_path / "annotations.json")
    assert map_of(evaluate(capsys, str(tmp_path), found(tmp_path / "found.json"))) == 100.0


def test_point_1_and_12_nobody_annotated_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = truth(tmp_path / "truth.json", annotations=None)
    code = main(["evaluate", f"--annotations={bare}", f"--predictions={found(tmp_path / 'found.json')}"])
    assert code == 1 and "none of the 2 evaluated videos is annotated" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_point_12_a_run_on_a_test_set_without_labels(tmp_path: Path) -> None:
    """It trains, predicts and leaves a model; what it cannot do is score, and it says so."""
    root = tmp_path / "data"
    root.mkdir()
    document = json.loads((embedded_root() / "annotations.json").read_text())
    seen: dict[str, int] = {}
    for entry in document["database"].values():  # nobody annotated the test set, and half of the training recordings
        seen[entry["subset"]] = seen.get(entry["subset"], 0) + 1
        if entry["subset"] == "test" or seen["training"] % 2:
            del entry["annotations"]
    write(root / "annotations.json", document)
    for archive in embedded_root().glob("signals_*.npz"):
        (root / archive.name).symlink_to(archive)
    settings = smoke_settings(
        {
            "data.root": str(root), "variants": ("semi_supervised",), "learning.pretrain.steps": 0,
            "learning.supervised.steps": 2, "learning.method.name": "nontarget",
            "learning.method.pseudo_labels": "online", "learning.self_train.steps": 2,
            "data.label_ratio": 1.0, "evaluation.label_space.enabled": True, "evaluation.label_space.frames": 50,
        }
    )  # fmt: skip
    run = apl.train(settings, workdir=tmp_path / "run")
    assert run.results["average_map"] is None and "none of the 70 evaluated videos is annotated" in run.table()
    data = run.results["data"]
    assert (data["labelled"], data["unlabelled"]) == (76, 77), "the ratio counts annotated recordings"
    spaces = run.results["label_space"].values()
    assert spaces and all(space["all"]["snippets"] == 0 for space in spaces), "there is no truth to look at"
    assert run.report().exists() and run.model.classes
    for variant in run.results["variants"]:
        path = tmp_path / "run" / "stages" / f"{variant}_evaluation" / "predictions.json"
        assert len(json.loads(path.read_text())["results"]) == 70
    assert main(["compare", str(tmp_path / "run"), str(tmp_path / "run")]) in (0, 1)
