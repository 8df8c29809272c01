"""The external protocol in whole commands: a run whose scoring alone is done again, and a prediction file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fixtures import smoke_settings

from apl_jax.data.annotations import AGNOSTIC
from apl_jax.data.dataset import open_truth
from apl_jax.data.files import DataError, load_json, write_json
from apl_jax.inference.prediction import Request, choose_thresholds, predict, write_predictions
from apl_jax.report import write_report
from apl_jax.runs.run import open_run, run
from apl_jax.runs.settings import Settings


def test_a_run_under_the_external_protocol(small_run: Path, tmp_path: Path) -> None:
    strict, copy = load_json(small_run / "results.json"), tmp_path / "run"
    shutil.copytree(small_run, copy)
    truth, split = open_truth(smoke_settings().data), load_json(small_run / "split.json")
    true = {v: np.bincount(truth.videos[v].labels, minlength=len(truth.classes)) for v in split["evaluation"]}
    rows = {video: (count / count.max()).tolist() for video, count in true.items()}

    def under(names: list[str]) -> Settings:
        path = tmp_path / "true.json"
        write_json(path, {"class": names, "results": rows})
        chosen = {"evaluation.protocol": "external", "evaluation.external_scores": str(path)}
        return smoke_settings(variants=("supervised",), **chosen)

    with pytest.raises(DataError, match=r"true\.json: class: found"):
        open_run(under([f"class {i}" for i in range(len(truth.classes))]), copy)
    trained = copy / "stages" / "supervised" / "done.json"
    before = trained.stat().st_mtime_ns
    external = run(under(list(truth.classes)), copy)
    assert trained.stat().st_mtime_ns == before  # only the scoring is done again
    assert external["protocol"] == "external (top 2, sqrt, true.json)" and external["external_digest"]
    predicted = load_json(copy / "stages" / "supervised_evaluation" / "predictions.json")["results"]
    for video, found in predicted.items():
        likely = set(np.array(truth.classes)[np.argsort(-true[video], kind="stable")[:2]])
        assert found and {row["label"] for row in found} == likely
    assert external["variants"]["supervised"] != strict["variants"]["supervised"]
    assert "true.json" in write_report(copy).read_text()


def test_a_class_agnostic_detector_has_its_names_from_the_file(tmp_path: Path) -> None:
    """What ActivityNet's published numbers do: segments of one class, names from a classifier."""
    named = open_truth(smoke_settings().data, named=True)
    rows = {v: (np.bincount(r.labels, minlength=len(named.classes)) > 0).tolist() for v, r in named.videos.items()}
    path = tmp_path / "true.json"
    write_json(path, {"class": list(named.classes), "results": {v: [float(x) for x in row] for v, row in rows.items()}})
    chosen = {"evaluation.protocol": "external", "evaluation.external_scores": str(path), "data.class_agnostic": True}
    workdir = tmp_path / "run"
    results = run(smoke_settings(variants=("supervised",), **chosen), workdir)
    assert results["data"]["classes"] == [AGNOSTIC] and results["protocol"].startswith("external (top 2")
    assert set(results["variants"]["supervised"]["ap"]) == set(named.classes)
    predicted = load_json(workdir / "stages" / "supervised_evaluation" / "predictions.json")["results"]
    assert {row["label"] for found in predicted.values() for row in found} <= set(named.classes)
    page = write_report(workdir).read_text()
    assert all(name in page for name in named.classes)

    features, labels, out = tmp_path / "new", tmp_path / "new.json", tmp_path / "found.json"
    features.mkdir()
    draws = np.random.default_rng(0)
    np.save(features / "walk.npy", draws.normal(size=(900, 6)).astype(np.float32))
    annotation = [{"segment": [1.0, 4.0], "label": name} for name in named.classes[:2]]
    write_json(labels, {"database": {"walk": {"subset": "test", "duration": 9, "fps": 100, "annotations": annotation}}})
    found = predict(workdir, Request(features, annotations=labels, out=out))
    assert found.classes == (AGNOSTIC,) and found.records[0].labels.tolist() == [0]  # two names of one segment
    write_predictions(out, found)
    thresholds, classes = choose_thresholds(workdir, labels, out, "", 0.5)
    assert classes == (AGNOSTIC,) and thresholds.truth.tolist() == [1]


@pytest.mark.parametrize("label", ["run", AGNOSTIC])
def test_evaluate_gives_class_blind_predictions_the_classes_of_a_file(label: str, tmp_path: Path) -> None:
    classes, database = ["jump", "run", "walk"], {}
    for v in range(6):
        annotations = [{"segment": [at, at + 4 + v], "label": classes[v % 3]} for at in (1, 20)]
        database[f"video_{v}"] = {"subset": "test", "duration": 40, "annotations": annotations}
    blind = {v: [{**a, "label": label, "score": 0.5} for a in entry["annotations"]] for v, entry in database.items()}
    own = {v: [float(entry["annotations"][0]["label"] == c) for c in classes] for v, entry in database.items()}
    names = "annotations", "predictions", "external_scores", "out"
    paths = {name: tmp_path / f"{name}.json" for name in names}
    write_json(paths["annotations"], {"version": "test", "database": database})
    write_json(paths["predictions"], {"results": blind})
    write_json(paths["external_scores"], {"class": classes, "results": own})

    def evaluate(*flags: str, **files: Path) -> list[str]:
        given = [f"--{name}={path}" for name, path in files.items()]
        command = [sys.executable, "-m", "apl_jax.cli", "evaluate", "--tiou=0.5", *given, *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        return done.stdout.splitlines()

    out = paths.pop("out")
    score = lambda lines: next(line.split()[-1] for line in lines if line.startswith("mAP"))
    if label in classes:
        assert float(score(evaluate(annotations=paths["annotations"], predictions=paths["predictions"]))) < 33.4
    external = evaluate("--external_top_k=1", **paths, out=out)
    assert score(external) == "100.0"
    assert "protocol  external (top 1, sqrt, external_scores.json)" in external
    fused = load_json(out)["results"]
    assert {v: {row["label"] for row in rows} for v, rows in fused.items()} == {
        v: {entry["annotations"][0]["label"]} for v, entry in database.items()
    }
