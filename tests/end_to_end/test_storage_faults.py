"""Files of a run's folder that a disk, a program or a hand has changed: the same command makes the folder whole again,
byte for byte, or says which file is in the way; it never ends in a traceback."""

from __future__ import annotations

import errno
import logging
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest
from fixtures import REPOSITORY, smoke_settings

from apl_jax.cli.words import in_words
from apl_jax.data.files import DataError
from apl_jax.runs.artefacts import DONE, artefacts
from apl_jax.runs.run import run
from apl_jax.training.writers import whole_lines

# After a failed read, the storage library leaves tasks to an event loop that it has closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
SEED = 11
SETTINGS = smoke_settings(
    **{
        "variants": ("semi_supervised",), "evaluation.label_space.enabled": False, "runtime.progress": False,
        "learning.pretrain.steps": 0, "learning.supervised.steps": 10, "learning.self_train.steps": 20,
        "runtime.steps_per_dispatch": 10, "runtime.checkpoint_every": 10,
    }
)  # fmt: skip


def _truncate(path: Path, draws: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draws.randrange(path.stat().st_size)])


def _zero(path: Path, draws: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _flip(path: Path, draws: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    path.write_bytes(content)


def _empty(path: Path, draws: random.Random) -> None:
    path.write_bytes(b"")


def _remove(path: Path, draws: random.Random) -> None:
    path.unlink()


def _folder(path: Path, draws: random.Random) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (_truncate, _zero, _flip, _empty, _remove, _folder)
ARTEFACTS = (
    "stages/teacher/model/params.safetensors", "stages/pseudo_label_1/pseudo_labels.json",
    "stages/self_train_1_evaluation/predictions.json", "stages/teacher/done.json", "stages/pseudo_label_1/done.json",
    "stages/self_train_1/started.json", "stages/self_train_1/metrics.jsonl",
    "model/params.safetensors", "model/model.json", "stages/teacher/model/model.json",
    "settings.json", "split.json", "results.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(SETTINGS, folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logging.getLogger("apl_jax").propagate = True
    with caplog.at_level(logging.INFO, "apl_jax"):
        yield caplog


@pytest.fixture
def uncached() -> Iterator[None]:
    """Nothing is added to the cache of compiled programs, which all tests share: a limit would cut that too."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # as the command line does: each array would complain
    jax.config.update(name, 1e9)
    yield
    jax.config.update(name, before)


def contents(folder: Path) -> dict[str, bytes]:
    """What a run is for: the bytes of every artefact of its stages, and of its model."""
    files = [path for stage in sorted((folder / "stages").iterdir()) for path in artefacts(stage)]
    files += [folder / "model" / "params.safetensors", folder / "model" / "model.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_made_again_or_named(damage: Callable, whole: Path, copy: Path) -> None:
    draws = random.Random(f"{SEED} {damage.__name__}")
    chosen = draws.sample(ARTEFACTS, 5)
    for name in chosen:
        damage(copy / name, draws)
    for _ in chosen:  # what is in the way is named, one after the other; a person moves it
        try:
            run(SETTINGS, copy)
            break
        except (DataError, OSError) as error:
            name = next(name for name in chosen if name in in_words(error))
            (copy / name).rmdir()
    assert contents(copy) == contents(whole)


def unfinished(folder: Path, stage: str) -> Path:
    """The folder as if the run had been killed after the stage's last checkpoint."""
    for name in (DONE, "model/params.safetensors", "model/model.json"):
        (folder / "stages" / stage / name).unlink()
    return folder / "stages" / stage / "checkpoints"


def test_of_every_file_of_the_newest_checkpoint(whole: Path, copy: Path, said: pytest.LogCaptureFixture) -> None:
    """The older one takes its place; a flipped bit never loads."""
    draws = random.Random(SEED)
    for _ in range(3):
        newest = unfinished(copy, "self_train_1") / "20"
        files = sorted(path for path in newest.rglob("*") if path.is_file())  # names differ from write to write
        assert len(files) > 5 and (newest.parent / "10").is_dir()
        said.clear()
        name = draws.choice(files)
        draws.choice(DAMAGES)(name, draws)
        run(SETTINGS, copy)
        assert contents(copy) == contents(whole), name


def test_a_lost_state_and_none_whole(whole: Path, copy: Path, said: pytest.LogCaptureFixture) -> None:
    store = unfinished(copy, "self_train_1")
    shutil.rmtree(store / "20" / "state")
    run(SETTINGS, copy)
    assert str(store / "20") in said.text and "the checkpoint of step 20" in said.text
    assert "going on from the checkpoint of step 10" in said.text
    assert contents(copy) == contents(whole)
    unfinished(copy, "self_train_1")
    for step in ("10", "20"):
        (store / step / "state" / "_METADATA").write_text("")
    run(SETTINGS, copy)
    assert "no checkpoint is whole; the stage begins anew" in said.text
    assert contents(copy) == contents(whole)
    assert len(whole_lines(store.parent / "metrics.jsonl")) == len(
        whole_lines(whole / "stages/self_train_1/metrics.jsonl")
    )


def test_labels_edited_by_hand_are_kept_apart_and_not_used(
    whole: Path, copy: Path, said: pytest.LogCaptureFixture
) -> None:
    name = "stages/pseudo_label_1/pseudo_labels.json"
    edited = (copy / name).read_text().replace('"weight": 1.0', '"weight": 0.5')
    (copy / name).write_text(edited)
    run(SETTINGS, copy)
    assert name in said.text and "`learning.labels=<file>`" in said.text
    assert (copy / "superseded" / "pseudo_label_1-0" / "pseudo_labels.json").read_text() == edited
    assert contents(copy) == contents(whole)


def test_a_full_disk(whole: Path, copy: Path, uncached: None) -> None:
    """No file may be longer than so many bytes, as where the disk is full after them."""
    shutil.rmtree(copy / "stages" / "self_train_1")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 100, 4096, 20_000, 65_536):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises((OSError, RuntimeError)) as caught:
                run(SETTINGS, copy)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert str(copy) in in_words(caught.value) and "space" in in_words(caught.value)
    run(SETTINGS, copy)
    assert contents(copy) == contents(whole)


def test_a_folder_that_nobody_may_write_to(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError) as caught:
        run(SETTINGS, copy)
    assert str(copy) in in_words(caught.value) and "Try: check who may write there" in in_words(caught.value)


def test_the_command_line_says_it_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "apl_jax.cli", "run", "--config=spsw:smoke", f"--workdir={tmp_path}/file/run"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and f"{tmp_path}/file" in done.stderr and "Try: " in done.stderr
    assert "Traceback" not in done.stderr and "[Errno" not in done.stderr
