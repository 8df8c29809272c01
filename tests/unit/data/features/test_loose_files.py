"""Which recordings a file or folder holds when nobody says so: names, kinds, and the refusals."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from apl_jax.data.features.loose_files import open_loose
from apl_jax.data.files import DataError
from apl_jax.settings import DataSettings

SETTINGS = DataSettings(window=4, stride=2)
ROWS = np.arange(12, dtype=np.float32).reshape(6, 2)


def write(path: Path, **arrays: np.ndarray) -> Path:
    """One feature file of any suffix; ``arrays`` by name where the suffix can hold several."""
    arrays = arrays or {"feats": ROWS}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, ROWS)
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".csv":
        np.savetxt(path, ROWS, delimiter=",")
    else:
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file[name] = values
    return path


@pytest.mark.parametrize("windowed", (True, False))
@pytest.mark.parametrize("suffix", (".npy", ".npz", ".csv", ".h5"))
def test_one_file_is_one_recording_of_its_name(suffix: str, windowed: bool, tmp_path: Path) -> None:
    write(tmp_path / f"other{suffix}")
    source = open_loose(write(tmp_path / f"größe 测试{suffix}"), SETTINGS, windowed)
    assert source.ids == ("größe 测试",) and source.windowed == windowed
    np.testing.assert_array_equal(source.read("größe 测试"), ROWS)


@pytest.mark.parametrize("suffix", (".npy", ".npz", ".csv", ".h5"))
def test_folder_holds_one_recording_per_file(suffix: str, tmp_path: Path) -> None:
    for name in ("b", "v_a"):
        write(tmp_path / f"{name}{suffix}")
    (tmp_path / "notes.txt").write_text("not features")
    source = open_loose(tmp_path, SETTINGS, True)
    assert source.ids == ("b", "v_a")
    np.testing.assert_array_equal(source.read("a"), ROWS)
    assert source.place("a") == tmp_path / f"v_a{suffix}"


@pytest.mark.parametrize(
    ("arrays", "windowed", "expected"),
    [
        (("walk", "run"), True, ("run", "walk")),
        (("walk", "run"), False, ("run", "walk")),
        (("feats", "times"), True, ("file",)),
        (("walk",), False, ("walk",)),
        (("walk",), True, ("file",)),
        (("arr_0",), False, ("file",)),
    ],
)
def test_arrays_of_an_archive(arrays: tuple[str, ...], windowed: bool, expected: tuple[str, ...], tmp_path: Path):
    path = write(tmp_path / "file.npz", **{name: ROWS + i for i, name in enumerate(arrays)})
    source = open_loose(path, SETTINGS, windowed)
    assert source.ids == expected
    for i, name in enumerate(arrays):
        if name in source.ids:
            np.testing.assert_array_equal(source.read(name), ROWS + i)


def test_hdf5_of_many_videos(tmp_path: Path) -> None:
    path = write(tmp_path / "validation.h5", walk=ROWS, run=ROWS + 1)
    source = open_loose(path, SETTINGS, True)
    assert source.ids == ("run", "walk")
    np.testing.assert_array_equal(source.read("run"), ROWS + 1)


def test_data_folders_are_read_as_in_training(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "features" / "walk.npy")
    assert open_loose(tmp_path / "rows", SETTINGS, True).ids == ("walk",)
    write(tmp_path / "signals" / "signals_10hz.npz", walk=ROWS)
    assert open_loose(tmp_path / "signals", SETTINGS, False).ids == ("walk",)
    for name in ("rgb", "flow"):
        write(tmp_path / "streams" / name / "walk.npy")
    joined = open_loose(tmp_path / "streams", DataSettings(window=4, stride=2, streams=("rgb", "flow")), True)
    assert joined.read("walk").shape == (6, 4)
    with pytest.raises(DataError, match="found raw signals; expected ready-made feature rows, as in training"):
        open_loose(tmp_path / "signals", SETTINGS, True)


@pytest.mark.parametrize("inside", ("features", "."))
def test_manifest_of_another_stride_is_refused(inside: str, tmp_path: Path) -> None:
    path = write(tmp_path / inside / "walk.npy")
    (tmp_path / "features.json").write_text(json.dumps({"stride": 8, "window": 16, "width": 2}))
    with pytest.raises(DataError, match="stride 8, window 16 frames; expected stride 2, window 4"):
        open_loose(path, SETTINGS, True)


def test_what_holds_no_features_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "walk.txt").write_text("1 2 3")
    (tmp_path / "walk.pkl").write_bytes(b"")
    np.savez(tmp_path / "none.npz")
    twice = tmp_path / "twice"
    for name in ("a", "b"):
        write(twice / f"{name}.npz", walk=ROWS, run=ROWS)
    for path, words in {
        empty: "no feature files",
        tmp_path / "gone": "no such file or folder",
        tmp_path / "broken.npz": "unreadable archive",
        tmp_path / "none.npz": "archive without arrays",
        tmp_path / "walk.txt": "ends in '.txt'",
        tmp_path / "walk.pkl": "a pickle",
        twice: "it also in .*a.npz",
    }.items():
        with pytest.raises(DataError, match=words):
            open_loose(path, SETTINGS, False)
