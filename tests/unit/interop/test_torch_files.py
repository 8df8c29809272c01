"""Checkpoints are read to the bit and never run; damaged and hostile ones are refused in words."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from torch_archive import write_archive, write_checkpoint

from apl_jax.data.files import DataError
from apl_jax.interop.torch_files import read_state_dict

BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
TENSORS = {
    "whole": BASE, "transposed": BASE.T, "slice": BASE[1:3, ::2], "half": BASE.astype(np.float16),
    "bfloat": BASE.astype(ml_dtypes.bfloat16), "double": BASE.astype(np.float64), "long": np.arange(-2, 3),
    "int": np.arange(3, dtype=np.int32), "flags": BASE > 3, "scalar": np.array(2.5, np.float64),
    "empty": np.zeros((0, 3), np.float32),
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "epoch_034.pth.tar"


def refusal_of(file: Path) -> str:
    with pytest.raises(DataError) as refused:
        read_state_dict(file)
    assert str(file) in str(refused.value) and "Try: " in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_tensors_come_back_as_they_were(protocol: int, byteorder: str, file: Path) -> None:
    document = {
        "epoch": 35, "best": 0.5, "note": "größe", "none": None, "flag": True, "big": 1 << 40, "negative": -3,
        "state_dict_ema": OrderedDict(TENSORS), "optimizer": {"state": {0: {"step": TENSORS["scalar"]}},
        "param_groups": [{"params": [0, 1], "betas": (0.9, 0.999), "first": BASE}]},
    }  # fmt: skip
    write_checkpoint(file, document, protocol=protocol, byteorder=byteorder)
    found = read_state_dict(file)
    expected = {f"state_dict_ema/{name}": value for name, value in TENSORS.items()}
    expected |= {"optimizer/state/0/step": TENSORS["scalar"], "optimizer/param_groups/0/first": BASE}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)
        assert not found[name].flags.writeable or not found[name].size


def test_real_torch_agrees(file: Path) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's own files")
    parameter = torch.nn.Parameter(torch.from_numpy(BASE.copy()))
    module = torch.nn.Sequential(torch.nn.Conv1d(3, 4, 3), torch.nn.LayerNorm(4))
    torch.save({"p": parameter, "t": parameter.detach().t(), "state_dict": module.state_dict()}, file)
    found = read_state_dict(file)
    np.testing.assert_array_equal(found["p"], BASE)
    np.testing.assert_array_equal(found["t"], BASE.T)
    for name, value in module.state_dict().items():
        np.testing.assert_array_equal(found[f"state_dict/{name}"], value.numpy())
    torch.save(module, file)
    assert "'torch.nn.modules.container.Sequential'" in refusal_of(file)


def test_other_formats(tmp_path: Path) -> None:
    plain = {name: value for name, value in TENSORS.items() if value.dtype != ml_dtypes.bfloat16}
    np.savez(tmp_path / "weights.npz", **plain)
    contiguous = {name: np.array(value, order="C") for name, value in TENSORS.items()}
    save_file(contiguous, tmp_path / "weights.safetensors", {"format": "pt"})
    for file, count in (("weights.npz", len(plain)), ("weights.safetensors", len(TENSORS))):
        found = read_state_dict(tmp_path / file)
        assert len(found) == count
        for name, value in found.items():
            assert value.dtype == TENSORS[name].dtype
            np.testing.assert_array_equal(value, TENSORS[name], err_msg=f"{file}: {name}", strict=True)
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    assert "object" in refusal_of(tmp_path / "objects.npz")


class Calls:
    """A pickle that calls a function when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(("function", "name"), [(os.system, "system"), (eval, "eval"), (subprocess.call, "call")])
def test_code_is_refused_by_name_and_not_run(
    function: Any, name: str, protocol: int, file: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    argument = f"open({str(trace)!r}, 'w').close()" if function is eval else f"touch {trace}"
    arguments = (["touch", str(trace)],) if function is subprocess.call else (argument,)
    evil = Calls(function, *arguments)
    pickle.loads(pickle.dumps(evil, protocol))  # noqa: S301  # it would run
    assert trace.exists()
    trace.unlink()
    write_checkpoint(file, {"state_dict": {"weight": BASE}, "evil": evil}, protocol=protocol)
    assert f".{name}' in the file, which might run code" in refusal_of(file)
    assert not trace.exists()


def program(*parts: bytes) -> dict[str, bytes]:
    return {"data.pkl": b"\x80\x02" + b"".join(parts) + b".", "data/0": bytes(16)}


# Storage "0", of four float32.
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"


ATTRIBUTES = b"N}X\x0c\x00\x00\x00__defaults__)s\x86"  # what BUILD would set on a function: __defaults__ = ()
DEEP = 300_000  # levels; Python's own hash of a tuple so deep ends the process


def tensor(offset: bytes, shape: bytes, strides: bytes, storage: bytes = STORAGE) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + shape + strides + b"\x89Nt" + b"R"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([b"cos\nsystem\n"], "'os.system'"),
        ([b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93"], "'os.system'"),
        ([b"(X\x02\x00\x00\x00idios\nsystem\n"], "pickle operation INST"),
        ([b"(ccollections\nOrderedDict\no"], "pickle operation OBJ"),
        ([b"ccollections\nOrderedDict\n)\x81"], "pickle operation NEWOBJ"),
        ([b"\x82\x01"], "pickle operation EXT1"),
        ([b"\xff"], "pickle operation 0xff"),
        ([b"ctorch\nload\n"], "'torch.load'"),
        ([b"ctorch\nFloatStorage\n)R"], "not callable"),
        ([b"K\x01)R"], "not callable"),
        ([b"ccollections\nOrderedDict\n]\x85R"], "an unreadable file"),
        ([b"ccollections\nOrderedDict\n" + ATTRIBUTES + b"b"], "attributes of a function"),
        ([b"ctorch\nFloatStorage\n" + ATTRIBUTES + b"b"], "attributes of a"),
        ([STORAGE + ATTRIBUTES + b"b"], "attributes of a _Storage"),
        ([tensor(b"K\x00", b"K\x04\x85", b"K\x01\x85") + ATTRIBUTES + b"b"], "attributes of a ndarray"),
        ([tensor(b"K\x00", b"K\x05\x85", b"K\x01\x85")], "a tensor [5] from 0"),
        ([tensor(b"K\x01", b"K\x04\x85", b"K\x01\x85")], "a tensor [4] from 1"),
        ([tensor(b"K\x00", b"K\x03\x85", b"K\x02\x85")], "strides [2]"),
        ([tensor(b"K\x00", b"J\xff\xff\xff\x7f\x85", b"K\x00\x85")], "inside its storage of 4 values"),
        ([tensor(b"K\x00", b"J\xff\xff\xff\xff\x85", b"K\x01\x85")], "a damaged tensor"),
        ([tensor(b"K\x00", b"K\x04\x85", b"K\x01K\x01\x86")], "a damaged tensor"),
        ([tensor(b"K\x00", b"K\x04\x85", b"K\x01\x85", STORAGE.replace(b"K\x04t", b"J\xff\xff\xff\x7ft"))], "16 bytes"),
        ([tensor(b"K\x00", b"K\x04\x85", b"K\x01\x85", STORAGE.replace(b"0X", b"1X"))], "an unreadable file"),
        ([tensor(b"K\x00", b"K\x04\x85", b"K\x01\x85", STORAGE.replace(b"X\x01\x00\x00\x000", b"\x8c\x05../pw"))],
         "an unreadable file"),
        ([b"}", b")K\x01s"], "a dict key of type tuple"),
        ([b"]q\x00h\x00a"], "containers without end"),
        ([b"}q\x00K\x01h\x00s"], "containers without end"),
        ([b"]q\x00"] + [b"](" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60)],
         "containers without end"),
        ([b"})" + b"\x85" * DEEP + b"Ns"], "a dict key of type tuple"),
        ([b"]" * DEEP + b"a" * (DEEP - 1)], "containers without end"),
        ([b"}K\x00" * DEEP + b"N" + b"s" * DEEP], "containers without end"),
        ([b")" + b"\x85" * DEEP + b"Q"], "a reference to something unknown"),
        ([b"(" * DEEP], "an unreadable file"),
        ([b"\x86"], "an unreadable file"),
        ([b"h\x07"], "an unreadable file"),
    ],
)  # fmt: skip
def test_programs_that_are_no_state_dict(parts: list[bytes], words: str, file: Path) -> None:
    write_archive(file, program(*parts))
    assert words in refusal_of(file)


def test_sizes_that_a_pickle_promises_take_no_memory(file: Path) -> None:
    tracemalloc.start()
    for part in (b"Nr\xff\xff\xff\xff", b"\x8d" + bytes(7) + b"\x10", b"\x95" + bytes(7) + b"\x10N"):
        write_archive(file, program(part))
        with contextlib.suppress(DataError):
            assert read_state_dict(file) == {}
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_damaged_safetensors_give_words_or_arrays(tmp_path: Path) -> None:
    """Every fifth cut, 300 mutations of one to three bytes of the header, and a dtype that PyTorch's format lacks."""
    file = tmp_path / "weights.safetensors"
    save_file({"a": BASE, "b": BASE.astype(ml_dtypes.bfloat16)}, file)
    whole = file.read_bytes()
    draws = np.random.default_rng(2)
    cases = [whole[:cut] for cut in range(0, len(whole), 5)]
    for _ in range(300):
        spoiled = bytearray(whole)
        for place in draws.integers(0, len(whole) - BASE.nbytes * 3 // 2, draws.integers(1, 4)):
            spoiled[place] = draws.choice(list(b'0189BFI[]{}",:'))
        cases.append(bytes(spoiled))
    outcomes = set()
    for case in cases:
        file.write_bytes(case)
        try:
            assert all(isinstance(value, np.ndarray) for value in read_state_dict(file).values())
            outcomes.add("read")
        except DataError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
    save_file({"c": BASE.astype(np.uint16)}, file)
    assert "'c' of dtype U16" in refusal_of(file)


def test_archives_that_are_no_checkpoint(file: Path, tmp_path: Path) -> None:
    assert "no such file" in refusal_of(tmp_path / "gone.pth")
    assert "found a folder; expected a checkpoint" in refusal_of(tmp_path)
    file.write_bytes(b"")
    assert "begins with b''" in refusal_of(file)
    file.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"more")
    assert "before version 1.6" in refusal_of(file) and "torch.save(torch.load" in refusal_of(file)
    write_archive(file, {"readme.txt": b"hello"})
    assert "archive/readme.txt" in refusal_of(file)
    write_archive(file, program(b"N") | {"byteorder": b"middle"})
    assert "byteorder b'middle'" in refusal_of(file)
    import zipfile

    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1_000_000))
    assert "compressed, or longer than the file" in refusal_of(file)


def test_truncated_and_mutated_files_give_words_or_arrays(file: Path) -> None:
    """200 mutations of one to four bytes, in the pickle, its storages and the directory, and every tenth cut."""
    write_checkpoint(file, {"epoch": 3, "state_dict": OrderedDict(TENSORS)})
    whole = file.read_bytes()
    draws, read = np.random.default_rng(0), 0
    cases = [whole[:cut] for cut in range(0, len(whole), 10)]
    for _ in range(200):
        spoiled = bytearray(whole)
        for place in draws.integers(0, len(whole), draws.integers(1, 5)):
            spoiled[place] = draws.integers(0, 256)
        cases.append(bytes(spoiled))
    tracemalloc.start()
    for case in cases:
        file.write_bytes(case)
        try:
            found = read_state_dict(file)
        except DataError:
            continue
        read += 1
        assert all(isinstance(value, np.ndarray) for value in found.values())
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
    assert read < len(cases) / 2


def test_mutated_pickles_give_words_or_arrays(file: Path) -> None:
    """The same inside the pickle, where no checksum helps."""
    import zipfile

    write_checkpoint(file, {"epoch": 3, "state_dict": OrderedDict(TENSORS)})
    with zipfile.ZipFile(file) as archive:
        members = {name.removeprefix("archive/"): archive.read(name) for name in archive.namelist()}
    draws, outcomes = np.random.default_rng(1), set()
    tracemalloc.start()
    for _ in range(400):
        spoiled = bytearray(members["data.pkl"])
        for place in draws.integers(0, len(spoiled), draws.integers(1, 4)):
            spoiled[place] = draws.integers(0, 256)
        write_archive(file, members | {"data.pkl": bytes(spoiled)})
        try:
            found = read_state_dict(file)
            assert sum(value.size for value in found.values()) < 1000
            outcomes.add("read")
        except DataError:
            outcomes.add("refused")
    assert tracemalloc.get_traced_memory()[1] < 1 << 24 and outcomes == {"read", "refused"}
    tracemalloc.stop()


def test_reading_imports_nothing(file: Path) -> None:
    """In a fresh process: no module named by the file, torch least of all."""
    write_checkpoint(file, {"state_dict": OrderedDict(TENSORS)})
    code = (
        f"import sys; from apl_jax.interop.torch_files import read_state_dict; before = set(sys.modules); "
        f"assert len(read_state_dict({str(file)!r})) == {len(TENSORS)}; "
        "assert not any(m.split('.')[0] in ('torch', 'pickle5') for m in set(sys.modules)), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3], timeout=120)
