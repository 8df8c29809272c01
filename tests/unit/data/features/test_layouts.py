"""Every published layout of features gives the same array or one refusal, whatever happened to its bytes."""

import dataclasses
import io
import math
import os
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest

from apl_jax.data.annotations import unannotated
from apl_jax.data.batching import RowStore
from apl_jax.data.features.folder import open_folder
from apl_jax.data.features.layouts import READERS
from apl_jax.data.files import DataError
from apl_jax.settings import DataSettings

ROWS = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
NAMES = ["plain", "with.dots.mp4", "-K4wrtCz", "Zürich naïve 日本語", "'quoted'"]
FOLDERS = [suffix for suffix in READERS if suffix != ".hdf5"]
LAYOUTS = [*FOLDERS, "features.h5", "grouped.h5", "streams", "signals"]
CSV = "\n".join(",".join(f"{value:.9g}" for value in row) for row in ROWS)


def write(path, rows=ROWS):
    """One file in the layout of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, rows)
    elif path.suffix == ".npz":
        np.savez_compressed(path, feats=rows)
    elif path.suffix == ".csv":
        np.savetxt(path, rows, fmt="%.9g", delimiter=",", header="f0,f1,f2", comments="")
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("anything", data=rows, compression="gzip")
    return path


def build(root, layout, names=("a",), rows=ROWS):
    """A data folder of one layout; returns the settings it needs and a file to damage."""
    if layout in READERS:
        paths = [write(root / "features" / f"{name}{layout}", rows) for name in names]
        return DataSettings(), paths[0]
    if layout == "streams":
        for name in names:
            write(root / "rgb" / f"{name}.npy", rows[:, :2])
            write(root / "flow" / f"{name}.npz", rows[:, 2:])
        return DataSettings(streams=("rgb", "flow")), root / "flow" / f"{names[0]}.npz"
    if layout == "signals":
        np.savez(root / "signals_10hz.npz", allow_pickle=False, **dict.fromkeys(names, rows))
        return DataSettings(), root / "signals_10hz.npz"
    with h5py.File(root / "features.h5", "w") as file:
        for name in names:
            file[os.fsencode(f"{name}/feats" if layout == "grouped.h5" else name)] = rows
    return DataSettings(), root / "features.h5"


def refused(act, *words):
    """Acting fails with a single message for people that holds all the words."""
    with pytest.raises(DataError) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message and "found" in message and "expected" in message and "Try: " in message, message
    for word in words:
        assert word in message, message
    return message


@pytest.mark.parametrize("layout", [*LAYOUTS, ".hdf5"])
def test_every_layout_gives_the_same_rows_under_any_name(tmp_path, layout):
    settings, _ = build(tmp_path, layout, NAMES)
    source = open_folder(tmp_path, settings)
    assert set(source.ids) == set(NAMES) and source.windowed == (layout != "signals")
    for name in NAMES:
        found = source.read(name)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, ROWS, rtol=1e-7)
        assert source.place(name).is_file()


def digest_of(root, settings, name="a"):
    """What a run knows of the rows of one video."""
    record = unannotated(name, math.nan, 10.0)
    settings = dataclasses.replace(settings, window=2, stride=1)
    (digest,) = RowStore([record], open_folder(root, settings), settings, math.inf).digests
    return digest


@pytest.mark.parametrize("layout", LAYOUTS)
def test_digest_follows_every_row_and_nothing_else(tmp_path, layout):
    """Not the layout, nor the file's name or age: the rows. One number in their middle is enough."""
    changed = ROWS.copy()
    changed[15, 1] = np.nextafter(changed[15, 1], np.inf)
    digests = []
    for i, (name, rows) in enumerate([("a", ROWS), ("a", ROWS), ("b", ROWS), ("a", changed)]):
        (tmp_path / str(i)).mkdir()
        settings, _ = build(tmp_path / str(i), layout, [name], rows)
        digests.append(digest_of(tmp_path / str(i), settings, name))
    assert digests[0] == digests[1] == digests[2] != digests[3]
    (tmp_path / "plain").mkdir()
    settings, _ = build(tmp_path / "plain", ".npy")
    assert (digests[0] == digest_of(tmp_path / "plain", settings)) == (layout != "signals")  # these are windowed first


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_video_without_features(tmp_path, layout):
    settings, _ = build(tmp_path, layout, ["video_test_0000004", "video_test_0000005"])
    message = refused(lambda: open_folder(tmp_path, settings).read("video_test_0000006"), "'video_test_0000006'")
    assert "found no features (2 videos have some, the nearest name is 'video_test_000000" in message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_prefix_of_activitynet_and_no_other(tmp_path, layout):
    settings, _ = build(tmp_path, layout, ["v_abcdef", "ghijkl-rgb", "mnopqr_feat"])
    source = open_folder(tmp_path, settings)
    np.testing.assert_allclose(source.read("abcdef"), source.read("v_abcdef"))
    assert source.find("v_ghijkl-rgb") == source.find(" ghijkl-rgb ") == "ghijkl-rgb"
    for name, near in (("ghijkl", "ghijkl-rgb"), ("mnopqr", "mnopqr_feat"), ("ABCDEF.mp4", "v_abcdef")):
        refused(lambda name=name: source.read(name), repr(name), f"the nearest name is {near!r}")


def test_the_exact_name_comes_before_the_prefixed_one(tmp_path):
    write(tmp_path / "features" / "a.npy", ROWS[:4])
    write(tmp_path / "features" / "v_a.npy", ROWS[:7])
    assert len(open_folder(tmp_path, DataSettings()).read("a")) == 4


def test_accents_however_the_file_system_composes_them(tmp_path):
    write(tmp_path / "features" / "cafe\u0301.npy")  # as macOS stores it
    assert open_folder(tmp_path, DataSettings()).read("caf\u00e9").shape == (30, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps names that are no text")
@pytest.mark.parametrize("layout", [".npy", "features.h5", "grouped.h5", "streams"])
def test_names_that_are_no_text(tmp_path, layout):
    name = os.fsdecode(b"caf\xe9")  # Latin-1, as old archives unpack
    settings, _ = build(tmp_path, layout, [name])
    source = open_folder(tmp_path, settings)
    assert source.ids == (name,)
    np.testing.assert_array_equal(source.read(name), ROWS)
    refused(lambda: source.read("caf\u00e9"), "'caf\u00e9'", "the nearest name is 'caf\\udce9'")


def test_notes_and_hidden_files_are_passed_over(tmp_path):
    write(tmp_path / "features" / "a.npy")
    write(tmp_path / "features" / "._a.csv")
    (tmp_path / "features" / "README.txt").write_text("how they were made")
    (tmp_path / "features" / "old.npz").mkdir()
    assert open_folder(tmp_path, DataSettings()).ids == ("a",)


def test_two_suffixes(tmp_path):
    write(tmp_path / "features" / "a.npy")
    write(tmp_path / "features" / "b.csv")
    refused(lambda: open_folder(tmp_path, DataSettings()), "features: found a.npy and b.csv; expected files of one")
    write(tmp_path / "features" / "a.h5")
    refused(lambda: open_folder(tmp_path, DataSettings()), "video 'a': found a.h5 and a.npy; expected one file per")


@pytest.mark.parametrize("second", ["signals_x.npz", "features.h5", "features.hdf5"])
def test_two_layouts(tmp_path, second):
    write(tmp_path / "features" / "a.npy")
    write(tmp_path / second)
    refused(lambda: open_folder(tmp_path, DataSettings()), f"{second}", "features/", "expected one of them")


def test_a_folder_without_features_says_what_it_holds(tmp_path):
    write(tmp_path / "features" / "rgb" / "a.npy")
    write(tmp_path / "features" / "flow" / "a.npy")
    (tmp_path / "features" / "a.mat").touch()
    words = "no feature files (but .mat, flow/, rgb/)", "`data.streams=\"('features/rgb', 'features/flow')\"`"
    refused(lambda: open_folder(tmp_path, DataSettings()), *words)
    settings = DataSettings(streams=("features/rgb", "features/flow"))
    assert open_folder(tmp_path, settings).read("a").shape == (30, 6)


# streams


def test_streams_are_joined_in_the_declared_order(tmp_path):
    build(tmp_path, "streams")
    found = [open_folder(tmp_path, DataSettings(streams=s)).read("a") for s in (("rgb", "flow"), ("flow", "rgb"))]
    np.testing.assert_array_equal(found[0], ROWS)
    np.testing.assert_array_equal(found[1], ROWS[:, [2, 0, 1]])
    digests = {digest_of(tmp_path, DataSettings(streams=s)) for s in (("rgb", "flow"), ("flow", "rgb"))}
    assert len(digests) == 2


@pytest.mark.parametrize("missing", [1, 2])
def test_streams_may_differ_by_one_row(tmp_path, missing):
    settings, _ = build(tmp_path, "streams")
    write(tmp_path / "rgb" / "a.npy", ROWS[:-missing, :2])
    source = open_folder(tmp_path, settings)
    if missing == 1:
        np.testing.assert_array_equal(source.read("a"), ROWS[:-1])
    else:
        refused(lambda: source.read("a"), "'a'", "28 rows in rgb and 30 rows in flow", "differ by one row at most")


def test_a_video_that_one_stream_lacks(tmp_path):
    settings, _ = build(tmp_path, "streams", ["a", "b"])
    (tmp_path / "flow" / "b.npz").unlink()
    source = open_folder(tmp_path, settings)
    assert source.ids == ("a",)
    refused(lambda: source.read("b"), str(tmp_path / "flow" / "b.npz"), "'b'", "no features")


@pytest.mark.parametrize("names", [("rgb", "flow"), ("rgb",)])
def test_streams_that_nobody_declared(tmp_path, names):
    for name in names:
        write(tmp_path / name / "a.npy")
    refused(lambda: open_folder(tmp_path, DataSettings()), "rgb/", f'`data.streams="{names}"`')
    write(tmp_path / "features" / "a.npy")
    refused(lambda: open_folder(tmp_path, DataSettings()), "rgb/", f'`data.streams="{names}"`')


@pytest.mark.parametrize("names", [("rgb", "rgb"), ("../rgb",), ("/rgb",), ("",), (3,), ("rgb", "folw")])
def test_impossible_streams(tmp_path, names):
    build(tmp_path, "streams")
    refused(lambda: open_folder(tmp_path, DataSettings(streams=names)), "`data.streams`")


# pickles


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".pt", ".pth", ".PT"])
def test_pickles_are_refused_with_a_command(tmp_path, suffix):
    write(tmp_path / "features" / "a.npy")
    (tmp_path / "features" / f"b{suffix}").write_bytes(b"\x80\x04N.")
    loader = "torch.load(p, map_location='cpu', weights_only=True)" if "t" in suffix.lower() else "pickle.load"
    message = refused(
        lambda: open_folder(tmp_path, DataSettings()), f"b{suffix}: video 'b'", "never loaded", "python -c"
    )
    assert loader.replace("'", "'\"'\"'") in message


def test_the_command_for_pickles_does_what_it_promises(tmp_path):
    root = tmp_path / "it's mine"
    (root / "features").mkdir(parents=True)
    code = "import pickle, sys, numpy; pickle.dump(numpy.ones((4, 2)), open(sys.argv[1], 'wb'))"
    subprocess.run([sys.executable, "-c", code, root / "features" / "a.b.pkl"], check=True)
    message = refused(lambda: open_folder(root, DataSettings()), "a.b.pkl")
    command = message.split(", run ")[1].split(" and move the ")[0]
    subprocess.run(["bash", "-c", command.replace("python", sys.executable, 1)], check=True)
    (root / "features" / "a.b.pkl").unlink()
    np.testing.assert_array_equal(open_folder(root, DataSettings()).read("a.b"), np.ones((4, 2)))


def test_objects_are_never_loaded(tmp_path):
    (tmp_path / "features").mkdir()
    np.savez(tmp_path / "features" / "a.npz", feats=np.array([[{}]], object))
    refused(lambda: open_folder(tmp_path, DataSettings()).read("a"), "'a'", "Python objects, which is never loaded")


# several arrays in a file


def test_npz_with_several_arrays(tmp_path):
    path = tmp_path / "features" / "a.npz"
    path.parent.mkdir()
    np.savez(path, features=ROWS, stride=np.array(4))
    np.testing.assert_array_equal(open_folder(tmp_path, DataSettings()).read("a"), ROWS)
    np.savez(path, x=ROWS, y=ROWS)
    refused(lambda: open_folder(tmp_path, DataSettings()).read("a"), "'a'", "2 of them ('x', 'y')", "feats or features")
    np.savez(path, feats=ROWS, features=ROWS)
    refused(lambda: open_folder(tmp_path, DataSettings()).read("a"), "2 of them ('feats', 'features')")
    np.savez(path)
    refused(lambda: open_folder(tmp_path, DataSettings()).read("a"), "a.npz: video 'a'", "found none")


def save_h5(path, **items):
    """An HDF5 file of arrays and links."""
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, item in items.items():
            file[name] = item


def test_h5_with_several_datasets(tmp_path):
    path = tmp_path / "features" / "a.h5"
    read = lambda: open_folder(tmp_path, DataSettings()).read("a")
    save_h5(path, feats=ROWS, stride=4)
    np.testing.assert_array_equal(read(), ROWS)
    save_h5(path, **{"deep/in/it": ROWS.astype(">f8")})
    np.testing.assert_array_equal(read(), ROWS)
    save_h5(path, x=ROWS, y=ROWS)
    refused(read, "a.h5: video 'a'", "2 of them ('x', 'y')")
    save_h5(path, x=h5py.SoftLink("/y"))
    refused(read, "a.h5: video 'a'", "found none")
    save_h5(path, x="text")
    refused(read, "'a'", "Python objects")
    save_h5(path, x=np.zeros((3, 2), [("t", "f4")]))
    refused(read, "'a'", "shape [3, 2]")


def test_groups_of_one_h5_file(tmp_path):
    save_h5(
        tmp_path / "features.h5",
        **{"a/c3d_features": ROWS, "b/feats": ROWS, "b/times": ROWS, "c/x": ROWS, "c/y": ROWS, "d/e/feats": ROWS},
        f=ROWS,
        g=h5py.ExternalLink("/etc/passwd", "x"),
        h=h5py.SoftLink("/f"),
    )
    source = open_folder(tmp_path, DataSettings())
    for video in "abf":
        np.testing.assert_array_equal(source.read(video), ROWS)
    refused(lambda: source.read("c"), "features.h5: video 'c'", "2 of them ('x', 'y')")
    refused(lambda: source.read("d"), "video 'd'", "found none")
    refused(lambda: source.read("g"), "video 'g'", "a link at 'g'")
    refused(lambda: source.read("h"), "video 'h'", "a link at 'h'")


def test_h5_that_was_never_finished(tmp_path):
    """HDF5 reads what was not written as zeros."""
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file.create_dataset("contiguous", (8, 3), "f4")
        file.create_dataset("chunked", (80, 3), "f4", chunks=(10, 3))[:60] = 1
        file.create_dataset("huge", (2**40, 2**10), "f4", chunks=(2**18, 2**10))
        file.create_dataset("elsewhere", (8, 3), "f4", external=[(str(tmp_path / "other.bin"), 0, 96)])
        layout = h5py.VirtualLayout((30, 3), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "a", (30, 3))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("empty", data=h5py.Empty("f4"))
    source = open_folder(tmp_path, DataSettings())
    refused(lambda: source.read("contiguous"), "'contiguous'", "incomplete dataset (0 of 96 bytes written)")
    refused(lambda: source.read("chunked"), "'chunked'", "incomplete dataset (6 of 8 chunks")
    refused(lambda: source.read("huge"), "'huge'", "incomplete dataset (0 of ")
    refused(lambda: source.read("elsewhere"), "'elsewhere'", "numbers that lie in other files")
    refused(lambda: source.read("virtual"), "'virtual'", "numbers that lie in other files")
    refused(lambda: source.read("empty"), "'empty'", "shape []")


# csv


@pytest.mark.parametrize(
    "text",
    [
        CSV,
        CSV + "\n\n",
        "f0,f1,f2\n" + CSV,
        '\ufeff"f 0", "f 1", "f 2"\r\n' + CSV.replace("\n", "\r\n"),
        CSV.replace(",", " , "),
    ],
)
def test_csv_with_and_without_a_header(tmp_path, text):
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "a.csv").write_bytes(text.encode())
    np.testing.assert_allclose(open_folder(tmp_path, DataSettings()).read("a"), ROWS, rtol=1e-7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "an empty file"),
        ("\n\n", "an empty file"),
        ("f0,f1\n", "a header without rows"),
        ("1,2\n3\n", "1 cells on line 2; expected 2 as on line 1"),
        ("f0,f1\n1,2,3\n", "3 cells on line 2"),
        ("1,2\n\n3,4\n", "an empty line 2"),
        ("1\n\n3\n", "an empty line 2"),
        ("1\n2\n \n3\n\n", "an empty line 3"),
        ("f0,f1\n1,\n", "'' on line 2, column 2"),
        (",0,1\n0,1.5,2.5\n", "'' on line 1, column 1"),
        ("f0,f1\nf0,f1\n1,2\n", "'f0' on line 2, column 1"),
        ("1.5,2.5\nx,4.5\n", "'x' on line 2, column 1"),
        ("1_0,2\n", "'1_0' on line 1, column 1"),
        ("1x,-x\n1,2\n", "'1x' on line 1, column 1"),
        ("1.5.2,2\n1,2\n", "'1.5.2' on line 1, column 1"),
        ("x;y\n1;2\n", "'1;2' on line 2, column 1"),
        ("1.5\n#2.5\n", "'#2.5' on line 2"),
        ("0,1,2,3\n.1,.2,.3,.4\n", "a first line that counts the columns"),
        ("1,2,3\n.1,.2,.3\n", "a first line that counts the columns"),
        ("1,nan\n", "nan at row 0, channel 1"),
        ("1,1e999\n", "inf at row 0, channel 1"),
        ("a\0b,c\n1,2\0\n", "on line 2, column 2"),
    ],
)
def test_point_9_unusable_csv(tmp_path, text, words):
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "a.csv").write_text(text)
    refused(lambda: open_folder(tmp_path, DataSettings()).read("a"), "a.csv: video 'a'", words)


def test_csv_in_no_known_text(tmp_path):
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "a.csv").write_bytes(CSV.encode("utf-16"))
    refused(lambda: open_folder(tmp_path, DataSettings()).read("a"), "a.csv", "bytes that are no UTF-8")


# damage


def read_all(root, settings):
    """What opening and reading gives: the array, or the message of a refusal."""
    try:
        return open_folder(root, settings).read("a")
    except DataError as error:
        message = str(error)
        assert str(root) in message and "found" in message and "expected" in message and "Try: " in message, message
        assert "\n" not in message, message
        return message


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.98])
def test_zero_bytes_and_truncated_files(tmp_path, layout, share):
    settings, path = build(tmp_path, layout)
    content = path.read_bytes().rstrip(b"\n")
    path.write_bytes(content[: int(share * len(content))])
    found = read_all(tmp_path, settings)
    if layout == ".csv" and share > 0.1:  # a text that ends early can only be missed by its last cell or by its length
        assert isinstance(found, str) or len(found) < len(ROWS) or (found != ROWS).any()
    else:
        assert isinstance(found, str) and path.name in found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_that_cannot_be_opened(tmp_path, layout):
    settings, path = build(tmp_path, layout)
    path.unlink()
    path.symlink_to(tmp_path / "gone")
    assert isinstance(read_all(tmp_path, settings), str)


def test_a_file_that_goes_on_after_its_array(tmp_path):
    settings, path = build(tmp_path, ".npy")
    path.write_bytes(path.read_bytes() + b"\0" * 12)
    assert "372 bytes of numbers, 360 promised" in read_all(tmp_path, settings)


def damage(content, random):
    """One mutation: cut off, bits flipped, bytes from elsewhere spliced in, bytes taken out."""
    kind, at = random.integers(4), int(random.integers(len(content)))
    length = int(random.integers(1, 40))
    if kind == 0:
        return content[:at]
    if kind == 1:
        changed = bytearray(content)
        for i in random.integers(len(content), size=int(random.integers(1, 6))):
            changed[i] ^= 1 << int(random.integers(8))
        return bytes(changed)
    if kind == 2:
        source = int(random.integers(len(content)))
        return content[:at] + content[source : source + length] + content[at:]
    return content[:at] + content[at + length :]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_300_mutations_are_read_or_refused(tmp_path, layout):
    (tmp_path / "good").mkdir()
    settings, path = build(tmp_path / "good", layout)
    place, content = path.relative_to(tmp_path / "good"), path.read_bytes()
    original = read_all(tmp_path / "good", settings)
    random = np.random.default_rng(LAYOUTS.index(layout))
    outcomes = {"refused": 0, "same": 0, "other": 0}
    for i in range(300):
        root = tmp_path / str(i)  # a folder for each: HDF5 knows open files by their inode
        root.mkdir()
        build(root, layout)
        (root / place).write_bytes(damage(content, random))
        found = read_all(root, settings)
        if isinstance(found, str):
            outcomes["refused"] += 1
            continue
        assert found.dtype == np.float32 and found.ndim == 2 and min(found.shape) > 0 and np.isfinite(found).all()
        same = found.shape == original.shape and (found == original).all()
        outcomes["same" if same else "other"] += 1
        if layout == ".npy":
            assert found.shape == np.load(root / place).shape
        if layout in (".npz", "streams", "signals"):  # their checksums see every change
            assert same, i
    assert outcomes["refused"] > 100, outcomes


def test_headers_of_zip_members_that_lie(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**45, 8)})
    (tmp_path / "features").mkdir()
    with zipfile.ZipFile(tmp_path / "features" / "a.npz", "w") as archive:
        archive.writestr("feats.npy", header.getvalue())
    assert "0 bytes of numbers, 1125899906842624 promised" in read_all(tmp_path, DataSettings())
