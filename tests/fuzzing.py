"""Fuzzing: a small world of valid files, seeded changes of them, and a command carried out under watch."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from safetensors.numpy import save_file
from small_models import make_run, small_card
from torch_archive import write_checkpoint

from apl_jax.cli.dispatch import main

LONGEST_S = 20  # of one command
MOST_MEMORY_MIB = 1536  # that a series may add
SUBSETS = ("training", "training", "training", "test")
NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1, 1.5, 1e308, -1e308, float("nan"), float("inf"), 10**400, "", " ", "1", "nan", "x" * 100_000,
    "\x1b[2J\x1b[31m", "a\r\nb", "=1+1", "../../x", "\x00", "\ud800", "é", [], {}, [[]], {"": {}}, [0, 1], [1, 0],
    ["a"], [None], [float("nan"), 1],
)  # fmt: skip

# What a person, or a script, may have typed.
TEXTS = (
    "", " ", "nan", "inf", "-inf", "1e400", "-1e300", "1e300", "0x" + "f" * 5000, "1" * 5000, "1_0", "-1", "None",
    "True", "[", "(" * 500, "{'a': 1}", "[[]]", "(1,", "'", "\x1b[31m", "a\nb", "=1+1", "--", "-", "é", "x" * 100_000,
    "/dev/zero", "/dev/null", "/", ".", "~nobody_there/x", "gs://x/y", "\ud800", "\x00", "a[1]", "%s", "{x}",
)  # fmt: skip


class World(NamedTuple):
    """Files by what they are."""

    root: Path
    annotations: Path
    predictions: Path
    table: Path
    thresholds: Path
    scores: Path
    split: Path
    manifest: Path
    model: Path
    checkpoint: Path


class TooLong(BaseException):
    """A command that does not end; no ``except Exception`` catches it."""


def make_world(root: Path) -> World:
    """A data folder, a model that fits it, and what belongs to them."""
    draws = np.random.default_rng(0)
    card = small_card()
    classes = card.classes
    videos = [f"video_{i}" for i in range(4)]
    (root / "features").mkdir(parents=True)
    database = {}
    for i, video in enumerate(videos):
        np.save(root / "features" / f"{video}.npy", draws.normal(size=(40, card.feature_width)).astype(np.float32))
        found = [{"segment": [0.5 + c, 1.2 + c], "label": label, "label_id": c} for c, label in enumerate(classes)]
        database[video] = {"subset": SUBSETS[i], "duration": 40 * 3 / 30, "fps": 30.0, "annotations": found}
    document = {"version": "1", "database": database}
    results = {v: [{"label": classes[0], "segment": [0.4, 1.3], "score": 0.9}] for v in videos}
    rows = "".join(f"{v},{classes[0]},0.4,1.3,0.9\n" for v in videos)
    world = World(
        root, root / "annotations.json", root / "predictions.json", root / "predictions.csv", root / "thresholds.json",
        root / "scores.json", root / "split.json", root / "features.json", root / "run", root / "checkpoint.pth",
    )  # fmt: skip
    _dump(world.annotations, document)
    _dump(world.predictions, {"version": "1", "results": results, "external_data": {}})
    world.table.write_text(f"video,label,start_s,end_s,score\n{rows}")
    _dump(world.thresholds, dict.fromkeys(classes, 0.5))
    _dump(world.scores, {"class": list(classes), "results": {v: [0.5, 0.3, 0.2] for v in videos}})
    _dump(world.split, {"labelled": videos[:2]})
    _dump(world.manifest, {"width": card.feature_width, "stride": 3, "window": 4, "fps": 30.0, "source": "made"})
    make_run(world.model, card)
    write_checkpoint(world.checkpoint, {"state_dict": {"a.weight": np.ones((3, 2), np.float32)}})
    array = np.load(root / "features" / "video_0.npy")
    (root / "layouts").mkdir()
    np.save(root / "layouts" / "a.npy", array)
    np.savez_compressed(root / "layouts" / "b.npz", feats=array)
    np.savetxt(root / "layouts" / "c.csv", array, delimiter=",")
    with h5py.File(root / "layouts" / "d.h5", "w") as file:
        file.create_dataset("feats", data=array, chunks=(8, array.shape[1]), compression="gzip")
    save_file({"a": array}, root / "checkpoint.safetensors")
    np.savez(root / "checkpoint.npz", a=array)
    return world


def _dump(path: Path, document: Any) -> None:
    path.write_bytes(json.dumps(document).encode(errors="surrogatepass"))


# Changes


def damaged(content: bytes, draws: random.Random) -> bytes:
    """Bytes with one fault of storage or transport."""
    if not content:
        return b"\x00"
    place, length = draws.randrange(len(content)), draws.choice((1, 2, 8, 64))
    changed = bytearray(content)
    match draws.randrange(7):
        case 0:
            return content[:place]
        case 1:
            for _ in range(length):
                changed[draws.randrange(len(changed))] ^= 1 << draws.randrange(8)
        case 2:
            changed[place : place + length] = draws.randbytes(length)
        case 3:
            changed[place:place] = changed[place : place + length] * draws.choice((1, 50))
        case 4:
            del changed[place : place + length]
        case 5:
            changed[place : place + length] = bytes(length)
        case 6:
            changed = bytearray(
                draws.choice((b"", b"\x00" * 512, b"[" * 5000, b"\xff\xfe{", b'{"a":' * 3000, b"PK\x05\x06"))
            )
    return bytes(changed)


def with_a_nasty_value(document: Any, draws: random.Random) -> Any:
    """A JSON document with one value, or one key, that is another."""
    changed = copy.deepcopy(document)
    places = list(_places(changed))
    holder, key = draws.choice(places)
    change = draws.randrange(4)
    if change == 0 and isinstance(holder, dict):
        del holder[key]
    elif change == 1 and isinstance(holder, dict):
        holder[draws.choice([name for name in NASTY if isinstance(name, str)])] = holder.pop(key)
    else:
        holder[key] = copy.deepcopy(draws.choice(NASTY))
    return changed


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in list(entries):
        yield value, key
        yield from _places(entry)


@contextlib.contextmanager
def changed(path: Path, draws: random.Random) -> Iterator[None]:
    """The file as it is after one change, for the time of the block."""
    before = path.read_bytes()
    if path.suffix == ".json" and draws.random() < 0.7:
        with contextlib.suppress(ValueError):  # a whole number that is too long to be written
            _dump(path, with_a_nasty_value(json.loads(before), draws))
    else:
        path.write_bytes(damaged(before, draws))
    try:
        yield
    finally:
        path.write_bytes(before)


# Commands


class Outcome(NamedTuple):
    """What a command gave."""

    code: int
    out: str
    err: str


def carried_out(arguments: list[str]) -> Outcome:
    """A command, in this process. Raises :class:`TooLong` after :data:`LONGEST_S` seconds."""

    def stop(*_: Any) -> None:
        raise TooLong(f"no end after {LONGEST_S} s: {arguments}")

    out, err = io.StringIO(), io.StringIO()
    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST_S)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(arguments)
            except SystemExit as end:  # after a help
                code = int(end.code or 0)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
    return Outcome(code, out.getvalue(), err.getvalue())


def faults(arguments: list[str], log: Path, codes: tuple[int, ...] = (0, 1, 2), said: str = "") -> list[str]:
    """Carries a command out and tells what it did that no command may; ``log`` tells what a fault was, ``said`` is what
    its messages must hold."""
    found = carried_out(arguments)
    kept = log.read_text()[-3000:] if found.code == 70 and log.exists() else ""
    wrong = {
        f"code {found.code}, expected one of {codes}\n{kept}": found.code not in codes,
        "a traceback": "Traceback" in found.err,
        "what a terminal obeys": bool(set(found.out + found.err) & set("\x1b\x00\x07")),
        "a line of more than 2000 characters": max(map(len, found.err.split("\n"))) > 2000,
        "no message": found.code != 0 and not found.err and not found.out,
        f"no word of {said}": said not in found.err,
    }
    return [f"{str(arguments)[:500]}: {words}\n{found.err[-2000:]}" for words, is_so in wrong.items() if is_so]


def largest_mib() -> int:
    """The most memory that this process has had at any moment."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
