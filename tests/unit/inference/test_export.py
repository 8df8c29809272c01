"""An exported model runs without this package and finds what ``predict`` finds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from fixtures import FEATURE_WIDTH, rarely, variants
from jax import export
from small_models import FPS, STRIDE, WINDOW, make_run, small_card

from apl_jax.data.files import DataError, load_json
from apl_jax.data.grids import place_rows
from apl_jax.inference import export_example
from apl_jax.inference.export import export_model
from apl_jax.inference.prediction import Predictions, Request, predict
from apl_jax.settings import DataSettings, GridSettings

TOLERANCE = 1e-4
# What must not be there when the example runs.
BLOCKER = """
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("apl_jax", "flax", "optax", "orbax", "ml_collections", "absl"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
CASES = [
    ("actionformer", "identity"), ("spot", "windows"), ("actionformer", "fpn"), ("spot", "resize"),
    ("ensemble", "conv"),
]  # fmt: skip


def record(folder: Path, samples: int, channels: int, seed: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"recording_{seed}.npy"
    np.save(path, np.random.default_rng(seed).normal(size=(samples, channels)).astype(np.float32))
    return path


def run_example(
    out: Path, recording: Path, rate: str = "0", duration_s: str = "0", least: str = "0"
) -> list[list[str]]:
    """What the example prints in a process that cannot import this package, nor from its folder."""
    words = str(out / "example.py"), str(recording), rate, duration_s, least
    result = subprocess.run(
        [sys.executable, "-I", "-c", BLOCKER, *words],
        cwd=out, capture_output=True, text=True, encoding="utf-8", timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return [line.split(",") for line in result.stdout.splitlines()]


def assert_same(rows: list[list[str]], found: Predictions) -> None:
    instances = found.instances
    assert len(rows) == len(instances) > 3
    assert [label for _, _, label, _ in rows] == [found.classes[c] for c in instances.label]
    numbers = np.array([[float(start), float(end), float(score)] for start, end, _, score in rows])
    np.testing.assert_allclose(numbers[:, :2], instances.segments_s, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(numbers[:, 2], instances.score, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", rarely(CASES, CASES[:1].__contains__), ids="-".join)
def test_example_finds_what_predict_finds(case: tuple[str, str], tmp_path: Path) -> None:
    detector, variant = case
    run = make_run(tmp_path / "run", small_card(variants(detector)[variant]))
    card = export_model(run, tmp_path / "out", length_t=33)
    assert card == load_json(tmp_path / "out" / "model.json")
    assert card["length"] == 40 and card["platforms"] == ["cpu", "cuda", "tpu"] and card["detector"] == detector
    recording = record(tmp_path / "in", 27, FEATURE_WIDTH)
    expected = predict(run, Request(recording, fps=FPS, min_score=0.0))
    assert_same(run_example(tmp_path / "out", recording, str(FPS)), expected)


def test_raw_signals_and_the_rate_of_training(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small_card(windowed=False, fps=FPS))
    export_model(run, tmp_path / "out")
    recording = record(tmp_path / "in", 84, FEATURE_WIDTH // 2)
    assert_same(run_example(tmp_path / "out", recording), predict(run, Request(recording, min_score=0.0)))


GRIDS = [("resize", STRIDE), ("pool", STRIDE), ("resize", 0), ("rows", 0)]


@pytest.mark.parametrize(
    ("grid", "stride"),
    [pytest.param(*case, marks=() if case in (GRIDS[0], GRIDS[-1]) else pytest.mark.exhaustive) for case in GRIDS],
)
def test_grids_of_one_length(grid: str, stride: int, tmp_path: Path) -> None:
    placed = GridSettings(window=WINDOW, stride=stride, grid=grid, fixed_length_t=20, length_multiple=8)
    run = make_run(tmp_path / "run", small_card(grid=placed, longest_t=40 if grid == "rows" else 20))
    card = export_model(run, tmp_path / "out")
    assert card["length"] == (40 if grid == "rows" else 24)
    recording, duration_s = record(tmp_path / "in", 33, FEATURE_WIDTH), (32 * STRIDE + WINDOW) / FPS
    expected = predict(run, Request(recording, fps=FPS, duration_s=duration_s, min_score=0.0))
    assert_same(run_example(tmp_path / "out", recording, str(FPS), str(duration_s)), expected)


@pytest.mark.parametrize("length", [1, 2, 7, 20, 33])
@pytest.mark.parametrize("grid", ["resize", "pool"])
def test_the_example_places_rows_as_the_package_does(grid: str, length: int) -> None:
    settings = DataSettings(window=WINDOW, stride=STRIDE, grid=grid, fixed_length_t=20)
    rows = np.random.default_rng(0).normal(size=(length, 3)).astype(np.float32)
    placed, expected = place_rows(rows, True, FPS, None, settings, "video")
    card = {"window": WINDOW, "stride": STRIDE, "fixed_length": 20, "features": "rows", "grid": grid}
    found, (first_s, step_s, duration_s) = export_example.place(rows, card, FPS, 0.0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose([first_s, first_s + 5 * step_s], placed.to_s(np.array([0, 5])), rtol=1e-12)
    np.testing.assert_allclose(duration_s, ((length - 1) * STRIDE + WINDOW) / FPS)


@pytest.mark.parametrize(("detector", "variant"), CASES[1:2])
def test_batches_of_any_size_and_whatever_stands_in_padding(detector: str, variant: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small_card(variants(detector)[variant]))
    card = export_model(run, tmp_path / "out")
    program = export.deserialize(bytearray((tmp_path / "out" / "model.stablehlo").read_bytes()))
    recordings = [record(tmp_path / "in", n, FEATURE_WIDTH, n) for n in (9, 40, 23)]
    features, length = np.full((3, card["length"], FEATURE_WIDTH), np.nan, np.float32), np.zeros(3, np.int32)
    for i, path in enumerate(recordings):
        rows = np.load(path)
        features[i, : len(rows)], length[i] = rows, len(rows)
    fps = np.array([FPS, 2 * FPS, FPS], np.float32)
    clocks = 0.5 * WINDOW / fps, STRIDE / fps, ((length - 1) * STRIDE + WINDOW) / fps
    found = jax.device_get(program.call(features, length, *clocks))
    for entry in card["outputs"]:
        shape = [3 if n == "batch" else n for n in entry["shape"]]
        assert list(found[entry["name"]].shape) == shape and found[entry["name"]].dtype == entry["dtype"]
    assert found.keys() == {entry["name"] for entry in card["outputs"]}
    for i, path in enumerate(recordings):
        expected = predict(run, Request(path, fps=float(fps[i]), min_score=0.0)).instances
        mask = found["mask"][i]
        assert mask.sum() == len(expected) > 3
        np.testing.assert_array_equal(found["labels"][i][mask], expected.label)
        np.testing.assert_allclose(found["segments_s"][i][mask], expected.segments_s, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(found["confidence"][i][mask], expected.score, atol=TOLERANCE, rtol=0)


def test_refusals(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small_card())
    before = (run / "model" / "model.json").read_bytes()
    with pytest.raises(DataError, match=r"whose model\.json would be lost"):
        export_model(run, run / "model")
    assert (run / "model" / "model.json").read_bytes() == before and not (run / "model" / "example.py").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "settings.json").write_text("{}")
    with pytest.raises(DataError, match=r"whose model\.json would be lost"):
        export_model(run, tmp_path / "other")
    with pytest.raises(DataError, match="`length`: found 0"):
        export_model(run, tmp_path / "out", length_t=0)
    with pytest.raises(DataError, match="`stage`: found no model of a stage 'teacher'"):
        export_model(run, tmp_path / "out", stage="teacher")
    with pytest.raises(DataError, match="a finished run"):
        export_model(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_recording_longer_than_the_export(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small_card())
    export_model(run, tmp_path / "out", length_t=8)
    recording = record(tmp_path / "in", 9, FEATURE_WIDTH)
    result = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "out" / "example.py"), str(recording), "12.5"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode != 0 and "9 rows" in result.stderr and "--length=9" in result.stderr
