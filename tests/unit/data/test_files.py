"""Files: regular ones only, of sizes that this machine can hold, refused before they are read."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from apl_jax.data import files
from apl_jax.data.features import limits
from apl_jax.data.features.layouts import READERS, Unusable
from apl_jax.data.files import DataError, expanded, load_csv, load_json, open_regular, read_bytes, read_lines, read_text
from apl_jax.data.tensors import read_tensors
from apl_jax.declarations import SettingsError
from apl_jax.devices import memory_limits
from apl_jax.evaluation.external import external_digest
from apl_jax.interop.torch_files import read_state_dict
from apl_jax.runs.settings import load_file
from apl_jax.settings import EvaluationSettings


def fifo(path: Path) -> str:
    os.mkfifo(path)
    return "a FIFO"


def device(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "a device"


def bound_socket(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    return "No such device or address"


def folder(path: Path) -> str:
    path.mkdir()
    return "a folder"


def class_scores(path: Path) -> object:
    return external_digest(EvaluationSettings(protocol="external", external_scores=str(path)))


OPENERS: dict[str, Callable[[Path], object]] = {
    "json": load_json,
    "csv": load_csv,
    "text": lambda path: read_text(path, "a text"),
    "class scores": class_scores,
    "checkpoint": read_state_dict,
    "parameters": lambda path: read_tensors(path, "copy it again"),
    "plug-in": lambda path: load_file(path, "plugin"),
    **READERS,
}


@pytest.mark.parametrize("make", [fifo, device, bound_socket, folder])
@pytest.mark.parametrize("opener", OPENERS)
def test_point_19_what_is_no_regular_file_is_refused_at_once(opener: str, make: Callable, tmp_path: Path) -> None:
    found = make(tmp_path / "x")
    with pytest.raises((DataError, SettingsError), match=found):
        OPENERS[opener](tmp_path / "x")


def test_files_and_links_to_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfwalk\nrun\n")
    (tmp_path / "b").symlink_to("a")
    assert read_text(tmp_path / "b", "a text") == "walk\nrun\n"
    assert read_lines(tmp_path / "a", "a text") == ["walk", "run"]
    assert read_bytes(tmp_path / "a", "a text", 12) == b"\xef\xbb\xbfwalk\nrun\n"
    for name, words in (("c", "no such file"), ("a\0", "null"), ("a" * 5000, "too long")):
        with pytest.raises(DataError, match=words):
            open_regular(tmp_path / name, "a text")


def test_home_folders_that_nobody_has() -> None:
    assert expanded("~/x") == Path.home() / "x" and expanded(Path("x~")) == Path("x~")
    with pytest.raises(DataError, match="a home folder that nobody has"):
        expanded("~nobody_there/x")


def test_sizes_are_looked_at_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(1 << 43)  # 8 TiB of nothing, which take no room on the disk
    with pytest.raises(DataError, match=r"found 8,388,608 MiB; expected a JSON file of at most"):
        load_json(tmp_path / "x.json")
    monkeypatch.setattr(files, "_LONGEST_LINE", 100)
    (tmp_path / "x.csv").write_text("a,b\n" + "1" * 101 + ",2\n")
    for reader in (load_csv, lambda path: read_lines(path, "a text")):
        with pytest.raises(DataError, match="a line of"):
            reader(tmp_path / "x.csv")


def npz(path: Path, rows: int) -> None:
    np.savez_compressed(path, feats=np.zeros((rows, 1000), np.float64))


def h5(path: Path, rows: int) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("feats", data=np.zeros((rows, 1000)), chunks=(100, 1000), compression="gzip")


@pytest.mark.parametrize(("name", "write"), [("x.npz", npz), ("x.h5", h5)])
def test_an_array_is_refused_that_the_memory_has_no_room_for(
    name: str, write: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / name, 1000)
    monkeypatch.setattr(limits, "most_array_bytes", lambda: 8_000_000)
    assert READERS[Path(name).suffix](tmp_path / name).shape == (1000, 1000)
    monkeypatch.setattr(limits, "most_array_bytes", lambda: 7_999_999)
    with pytest.raises(Unusable, match="as this machine's memory allows"):
        READERS[Path(name).suffix](tmp_path / name)
    if name.endswith("z"):
        with pytest.raises(DataError, match="as this machine's memory allows"):
            read_state_dict(tmp_path / name)


def test_headers_and_lists_of_members_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x02\x00" + (1 << 30).to_bytes(4, "little") + b" " * 100)
    with pytest.raises(Unusable, match="a header of 1,073,741,824 bytes"):
        READERS[".npy"](tmp_path / "x.npy")
    npz(tmp_path / "x.npz", 1)
    monkeypatch.setattr(limits, "_LONGEST_LIST", 10)
    with pytest.raises(Unusable, match="a list of members of"):
        READERS[".npz"](tmp_path / "x.npz")


def test_memory_is_that_of_the_control_group(tmp_path: Path) -> None:
    for place, limit in (("job", "max"), ("job/step", "1000"), (".", "5000"), ("memory/slurm", "700")):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        name = "memory.limit_in_bytes" if place.startswith("memory") else "memory.max"
        (tmp_path / place / name).write_text(f"{limit}\n")
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")
    assert min(memory_limits(tmp_path, own)) == 1000
    own.write_text("0::/outside/of/this/container\n")
    assert min(memory_limits(tmp_path, own)) == 5000
    own.write_text("9:cpu,cpuacct:/slurm\n8:memory:/slurm\n")
    assert memory_limits(tmp_path, own) == [700]
    assert memory_limits(tmp_path, tmp_path / "missing") == []
