"""Feature files of both layouts, and every way in which one can be unusable."""

import io
import zipfile

import numpy as np
import pytest

from apl_jax.data.features.folder import open_features, open_folder
from apl_jax.data.files import DataError
from apl_jax.settings import DataSettings

SETTINGS = DataSettings()
SIGNAL = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float16)


def save(root, layout, **arrays):
    """A data folder of one of the layouts."""
    if layout == "archive":
        np.savez_compressed(root / "signals_10hz.npz", **arrays)
    else:
        (root / "features").mkdir(exist_ok=True)
        for name, array in arrays.items():
            np.save(root / "features" / f"{name}.npy", array, allow_pickle=True)
    return root


def test_embedded_signals():
    source = open_features(SETTINGS)
    assert len(source.ids) == 223 and not source.windowed
    signal = source.read("s01_01_sp")
    assert signal.shape == (1351, 6) and signal.dtype == np.float32
    assert np.linalg.norm(signal[:, :3], axis=1).mean() == pytest.approx(9.8, abs=1.0)  # gravity, in m/s^2


@pytest.mark.parametrize("layout", ["archive", "folder"])
def test_both_layouts_give_the_same_array(tmp_path, layout):
    source = open_folder(save(tmp_path, layout, b=SIGNAL, a=SIGNAL[:20]), SETTINGS)
    assert source.ids == ("a", "b") and source.windowed == (layout == "folder")
    np.testing.assert_array_equal(source.read("b"), SIGNAL.astype(np.float32))
    assert source.read("a").dtype == np.float32


def test_several_archives_are_one_source(tmp_path):
    np.savez(tmp_path / "signals_a.npz", a=SIGNAL)
    np.savez(tmp_path / "signals_b.npz", b=SIGNAL)
    assert open_folder(tmp_path, SETTINGS).ids == ("a", "b")
    np.savez(tmp_path / "signals_c.npz", a=SIGNAL)
    with pytest.raises(DataError, match=r"signals_c.npz: video 'a': found it also in .*signals_a.npz"):
        open_folder(tmp_path, SETTINGS)


@pytest.mark.parametrize("layout", ["archive", "folder"])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[1, None]], object), "Python objects, which is never loaded"),
        (np.zeros(7, np.float32), r"shape \[7\], float32"),
        (np.zeros((0, 3), np.float32), r"shape \[0, 3\]"),
        (np.zeros((7, 0), np.float32), r"shape \[7, 0\]"),
        (np.zeros((7, 3), complex), "complex128"),
        (np.array([["a", "b"]]), "<U1"),
        (np.where(np.arange(150).reshape(50, 3) == 37, np.nan, 0.5), r"found nan at row 12, channel 1 \(1 such"),
        (np.where(np.arange(150).reshape(50, 3) >= 149, -np.inf, 0.5), r"found -inf at row 49, channel 2"),
        (np.full((2, 3), 1e300), "found inf at row 0, channel 0"),
    ],
)
def test_unusable_arrays(tmp_path, layout, array, message):
    source = open_folder(save(tmp_path, layout, bad=array), SETTINGS)
    with pytest.raises(DataError, match=message) as caught:
        source.read("bad")
    assert "video 'bad'" in str(caught.value) and str(tmp_path) in str(caught.value) and "Try: " in str(caught.value)


@pytest.mark.parametrize("layout", ["archive", "folder"])
def test_missing_video_and_differing_channels(tmp_path, layout):
    source = open_folder(save(tmp_path, layout, walk_1=SIGNAL, walk_2=SIGNAL[:, :2]), SETTINGS)
    with pytest.raises(DataError, match=r"video 'walk_3': found no features \(2 videos have some, the nearest name is"):
        source.read("walk_3")
    source.read("walk_1")
    with pytest.raises(DataError, match="video 'walk_2': found 2 channels; expected 3 as in video 'walk_1'"):
        source.read("walk_2")


def test_names_do_not_leave_the_folder(tmp_path):
    np.save(tmp_path / "secret.npy", SIGNAL)
    source = open_folder(save(tmp_path, "folder", a=SIGNAL), SETTINGS)
    with pytest.raises(DataError, match="no features"):
        source.read("../secret")


@pytest.mark.parametrize("keep", [0, 5, 60, 200])
def test_truncated_npy(tmp_path, keep):
    root = save(tmp_path, "folder", cut=SIGNAL)
    path = root / "features" / "cut.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cut.npy: video 'cut': found an unreadable array"):
        open_folder(root, SETTINGS).read("cut")


def test_foreign_npy(tmp_path):
    root = save(tmp_path, "folder", foreign=SIGNAL)
    (root / "features" / "foreign.npy").write_text("time,x,y\n0,1,2\n")
    with pytest.raises(DataError, match="unreadable array"):
        open_folder(root, SETTINGS).read("foreign")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_archive(tmp_path, share):
    path = save(tmp_path, "archive", a=SIGNAL, b=SIGNAL) / "signals_10hz.npz"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"signals_10hz.npz: found an unreadable archive"):
        open_folder(tmp_path, SETTINGS)


def test_damaged_member_of_an_archive(tmp_path):
    """Bytes flipped inside one compressed array: its checksum or its stream breaks, the others stay readable."""
    path = save(tmp_path, "archive", a=SIGNAL, b=SIGNAL) / "signals_10hz.npz"
    content = bytearray(path.read_bytes())
    content[120:150] = bytes(x ^ 0xFF for x in content[120:150])
    path.write_bytes(content)
    source = open_folder(tmp_path, SETTINGS)
    with pytest.raises(DataError, match=r"video 'a': found an unreadable array"):
        source.read("a")
    assert source.read("b").shape == (50, 3)


def test_header_that_promises_more_than_memory(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**45, 8)})
    with zipfile.ZipFile(tmp_path / "signals_x.npz", "w") as archive:
        archive.writestr("a.npy", header.getvalue())
        archive.writestr("readme.txt", "not an array")
    source = open_folder(tmp_path, SETTINGS)
    assert source.ids == ("a",)
    with pytest.raises(DataError, match="unreadable array"):
        source.read("a")


def test_folders_without_features(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        open_folder(tmp_path / "none", SETTINGS)
    with pytest.raises(DataError, match=r"found no features; expected signals_\*.npz"):
        open_folder(tmp_path, SETTINGS)
    save(save(tmp_path, "archive", a=SIGNAL), "folder", a=SIGNAL)
    with pytest.raises(DataError, match=r"found signals_10hz.npz and features/; expected one of them"):
        open_folder(tmp_path, SETTINGS)
