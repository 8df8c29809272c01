"""What features.json may say, what it is held against, and that none of it can be wrong without a refusal."""

import dataclasses
import json

import numpy as np
import pytest

from apl_jax.data.annotations import VideoRecord
from apl_jax.data.batching import read_rows
from apl_jax.data.features.folder import open_folder
from apl_jax.data.features.manifest import Manifest, check_clock, check_settings, read_manifest, write_manifest
from apl_jax.data.features.sources import transposed_note
from apl_jax.data.files import DataError
from apl_jax.settings import DataSettings

THUMOS = Manifest(stride=4, window=16, width=6, order=("rgb", "flow"), source="I3D, Kinetics")
SETTINGS = DataSettings(stride=4, window=16)


def recording(fps=30.0, duration_s=10.0, name="a"):
    """A video without annotations."""
    blank = np.zeros((0, 2)), np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, bool)
    return VideoRecord(name, "training", duration_s, fps, None, *blank)


def folder(root, manifest=THUMOS, rows=72, width=6):
    """A data folder of one video with a manifest."""
    (root / "features").mkdir(exist_ok=True)
    np.save(root / "features" / "a.npy", np.ones((rows, width), np.float32))
    write_manifest(root, manifest)
    return root


@pytest.mark.parametrize("manifest", [THUMOS, Manifest(16, 32, 2304, fps=29.97), Manifest(1, 1, 1)])
def test_there_and_back(tmp_path, manifest):
    path = write_manifest(tmp_path, manifest)
    assert path == tmp_path / "features.json"
    assert read_manifest(tmp_path) == manifest
    assert [entry.name for entry in tmp_path.iterdir()] == ["features.json"]


def test_none_is_none(tmp_path):
    assert read_manifest(tmp_path) is None
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features" / "a.npy", np.ones((3, 2)))
    assert open_folder(tmp_path, SETTINGS).manifest is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strid": 4}, r"features.json: strid: found an unknown key 'strid'.* Try: rename it to 'stride'"),
        ({"colour": 1}, r"unknown key 'colour'; expected keys of stride, window.* Try: remove it"),
        ({"stride": None}, r"features.json: stride: found None; expected a whole number"),
        ({"stride": 4.0}, r"stride: found 4.0; expected a whole number"),
        ({"window": 0}, r"window: found 0"),
        ({"window": True}, r"window: found True"),
        ({"width": "2048"}, r"width: found '2048'"),
        ({"width": 10**400}, r"width: found 1000"),
        ({"fps": 0}, r"fps: found 0; expected a positive number, or null"),
        ({"fps": "per video"}, r"fps: found 'per video'"),
        ({"fps": float("nan")}, r"fps: found nan"),
        ({"fps": 10**400}, r"fps: found 1000"),
        ({"fps": False}, r"fps: found False"),
        ({"order": "rgb"}, r"order: found 'rgb'; expected streams"),
        ({"order": ["rgb", "rgb"]}, r"order: found \['rgb', 'rgb'\]"),
        ({"order": [1]}, r"order: found \[1\]"),
        ({"source": {}}, r"source: found \{\}; expected text"),
    ],
)
def test_impossible_manifests(tmp_path, change, message):
    document = {"stride": 4, "window": 16, "width": 6, **change}
    (tmp_path / "features.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(tmp_path)
    assert str(tmp_path) in str(caught.value) and "Try: " in str(caught.value)


@pytest.mark.parametrize("key", ["stride", "window", "width"])
def test_keys_that_must_be_there(tmp_path, key):
    document = {"stride": 4, "window": 16, "width": 6}
    del document[key]
    (tmp_path / "features.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=f"{key}: found no value"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"fps": 1, "fps": 2}', b"[" * 100000])
def test_broken_files(tmp_path, content):
    (tmp_path / "features.json").write_bytes(content)
    with pytest.raises(DataError, match=r"features\.json"):
        read_manifest(tmp_path)


def test_a_dangling_link_is_no_absence(tmp_path):
    (tmp_path / "features.json").symlink_to(tmp_path / "gone.json")
    with pytest.raises(DataError, match="no such file"):
        read_manifest(tmp_path)


def test_window_and_stride_of_the_settings(tmp_path):
    source = open_folder(folder(tmp_path), SETTINGS)
    assert source.manifest == THUMOS and source.read("a").shape == (72, 6)
    with pytest.raises(DataError) as caught:
        open_folder(tmp_path, DataSettings(stride=8, window=16))
    for words in (
        "features.json: stride, window: found stride 4, window 16 frames",
        "expected stride 8, window 16",
        "`data.stride=4` `data.window=16`",
    ):
        assert words in str(caught.value)


def test_width_of_every_file(tmp_path):
    np.save(folder(tmp_path) / "features" / "b.npy", np.ones((9, 5)))
    source = open_folder(tmp_path, SETTINGS)
    with pytest.raises(DataError, match=r"b\.npy: video 'b': found 5 values per row; expected width 6 as in .*\.json"):
        source.read("b")  # the first that is read: not compared with another file


def test_order_of_streams():
    check_settings(THUMOS, dataclasses.replace(SETTINGS, streams=("rgb", "flow")))
    check_settings(THUMOS, SETTINGS)  # already joined: order says what the channels are
    check_settings(dataclasses.replace(THUMOS, order=()), dataclasses.replace(SETTINGS, streams=("flow", "rgb")))
    with pytest.raises(DataError, match=r"order: found \['rgb', 'flow'\]; expected \['flow', 'rgb'\]") as caught:
        check_settings(THUMOS, dataclasses.replace(SETTINGS, streams=("flow", "rgb")))
    assert "`data.streams=\"('rgb', 'flow')\"`" in str(caught.value)


@pytest.mark.parametrize(
    ("stated", "annotated", "fine"),
    [(None, 25.0, True), (30.0, 0.0, True), (29.97, 30000 / 1001, True), (30.0, 29.97, False), (25.0, 30.0, False)],
)
def test_clocks(stated, annotated, fine):
    manifest = Manifest(4, 16, 6, fps=stated)
    if fine:
        check_clock(manifest, recording(annotated))
        return
    with pytest.raises(
        DataError, match=rf"video 'a', fps: found {stated:g} frames .* expected {annotated:g} as in the"
    ):
        check_clock(manifest, recording(annotated))


def test_rows_are_read_only_with_an_agreeing_clock(tmp_path):
    """72 rows of stride 4, window 16 are 300 frames: 10 s at 30 per second."""
    root = folder(tmp_path, dataclasses.replace(THUMOS, fps=30.0))
    source = open_folder(root, SETTINGS)
    grid, rows = read_rows(recording(), source, SETTINGS)
    assert (grid.length, len(rows)) == (72, 72)
    with pytest.raises(DataError, match=r"'a', fps: found 30 frames per second .* expected 25"):
        read_rows(recording(fps=25.0), source, SETTINGS)


def test_length_and_duration_disagree_by_more_than_a_twentieth(tmp_path):
    source = open_folder(folder(tmp_path), SETTINGS)
    read_rows(recording(duration_s=10.5), source, SETTINGS)
    with pytest.raises(DataError) as caught:
        read_rows(recording(duration_s=10.6), source, SETTINGS)
    assert "300 samples at 30 per second = 10.00 s" in str(caught.value) and "10.60 s, within 5 %" in str(caught.value)
    with pytest.raises(DataError, match=r"= 12.00 s of features; expected its annotated duration, 10.00 s"):
        read_rows(recording(fps=25.0), source, SETTINGS)


def test_raw_signals_have_no_manifest(tmp_path):
    np.savez(tmp_path / "signals_a.npz", a=np.ones((50, 6)))
    write_manifest(tmp_path, THUMOS)
    with pytest.raises(DataError, match="a manifest of feature rows beside raw signals"):
        open_folder(tmp_path, SETTINGS)


def test_point_15_transposed_features_are_called_so_also_for_stride_0(tmp_path):
    source = open_folder(folder(tmp_path, Manifest(0, 1, 72), rows=72, width=6), DataSettings(stride=0, window=1))
    with pytest.raises(DataError, match=r"6 values per row, which look transposed, \[D, T\]; expected width 72"):
        source.read("a")
    settings = DataSettings(stride=0, window=1, grid="resize", fixed_length_t=6)
    source = open_folder(folder(tmp_path, Manifest(0, 1, 6), rows=72, width=6), settings)
    assert transposed_note(source, settings) == ()
    source.read("a")
    (note,) = transposed_note(source, settings)
    assert "72 rows and 6 channels" in note and "transposed" in note
    assert transposed_note(source, dataclasses.replace(settings, fixed_length_t=7)) == ()
