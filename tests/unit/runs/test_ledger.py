"""What a run folder's ledger believes, and what it has done again."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from apl_jax.data.files import DataError, write_json
from apl_jax.runs.artefacts import sealed_file
from apl_jax.runs.ledger import Ledger, check_workdir

RESULT = {"counts": {"kept": 2}, "average_map": 0.5}


def finished(workdir: Path, checkpoints: bool = False) -> tuple[Ledger, Path]:
    """A ledger with one stage that is done, and the stage's folder."""
    ledger = Ledger(workdir)
    folder = ledger.begin("stage", "mark")
    write_json(folder / "labels.json", {"labels": [1, 2]})
    write_json(folder / "model" / "params.safetensors", {"weights": 3})
    (folder / "metrics.jsonl").write_text("{}")
    if checkpoints:
        write_json(folder / "checkpoints" / "10" / "state", {})
    ledger.finish("stage", "mark", RESULT)
    return ledger, folder


def test_what_was_done_is_done(tmp_path: Path) -> None:
    ledger, folder = finished(tmp_path)
    (folder / "metrics.jsonl").write_text("a log may change")
    write_json(folder / "model" / "model.json", {"every run": "writes it"})
    assert ledger.result("stage", "mark") == RESULT
    assert ledger.result("stage", "another mark") is None
    assert sealed_file(folder, "labels.json").is_file()


@pytest.mark.parametrize("content", [b"", bytes(40), b"{", b"[]", b"{}", None])
@pytest.mark.parametrize("name", ["done.json", "labels.json", "model/params.safetensors"])
def test_a_damaged_or_lost_file_has_the_stage_done_again(
    name: str, content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("apl_jax"), "propagate", True)
    ledger, folder = finished(tmp_path)
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=name if content is not None else ".json|params"):
        for file in ("labels.json", "model/params.safetensors"):
            sealed_file(folder, file)
    with caplog.at_level(logging.INFO, "apl_jax"):
        assert ledger.result("stage", "mark") is None
    if (name, content) != ("done.json", None):
        assert name in caplog.text and "`learning.labels=<file>`" in caplog.text
        assert (tmp_path / "superseded" / "stage-0").is_dir() and not folder.exists()


def test_point_10_an_edited_result_is_not_believed(tmp_path: Path) -> None:
    ledger, folder = finished(tmp_path)
    record = json.loads((folder / "done.json").read_text())
    record["result"]["average_map"] = 0.9
    write_json(folder / "done.json", record)
    assert ledger.result("stage", "mark") is None


def test_a_stage_with_checkpoints_goes_on_in_its_own_folder(tmp_path: Path) -> None:
    ledger, folder = finished(tmp_path, checkpoints=True)
    (folder / "labels.json").write_text("edited")
    assert ledger.result("stage", "mark") is None
    left = {path.name for path in folder.iterdir()}
    assert left == {"checkpoints", "metrics.jsonl", "started.json"}
    assert (tmp_path / "superseded" / "stage-0" / "labels.json").read_text() == "edited"
    assert ledger.begin("stage", "mark") == folder and (folder / "checkpoints").is_dir()


@pytest.mark.parametrize("content", [b"", bytes(9), b"[1]", b"{"])
def test_a_damaged_start_supersedes_the_stage(content: bytes, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    folder = ledger.begin("stage", "mark")
    (folder / "started.json").write_bytes(content)
    assert ledger.begin("stage", "mark") == folder
    assert json.loads((folder / "started.json").read_text()) == {"fingerprint": "mark"}
    assert (tmp_path / "superseded" / "stage-0" / "started.json").read_bytes() == content


@pytest.mark.parametrize("name", ["gs://bucket/run", "s3://bucket/run", "hdfs://host/run"])
def test_an_address_is_no_folder(name: str) -> None:
    with pytest.raises(DataError, match=r"`workdir`.*address.*Try: mount it"):
        check_workdir(Path(name))
    check_workdir(Path("runs/a: b"))
    check_workdir(Path("/data/a:/b"))


# Stages that runs have in common


def test_a_stage_that_another_run_has_done_is_copied(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    first = Ledger(tmp_path / "first", shared)
    folder = first.begin("stage", "mark")
    write_json(folder / "labels.json", {"labels": [1, 2]})
    write_json(folder / "checkpoints" / "10" / "state", {})
    (folder / "metrics.jsonl").write_text("{}")
    first.finish("stage", "mark", RESULT)

    second = Ledger(tmp_path / "second", shared)
    assert second.result("stage", "another mark") is None
    assert second.result("stage", "mark") == RESULT
    copied = second.folder("stage")
    assert sealed_file(copied, "labels.json").is_file() and (copied / "metrics.jsonl").is_file()
    assert not (copied / "checkpoints").exists() and not list((tmp_path / "second" / "stages").glob(".*"))
    assert Ledger(tmp_path / "alone").result("stage", "mark") is None


def test_a_damaged_copy_is_done_again_and_not_copied_again(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    first = Ledger(tmp_path / "first", shared)
    write_json(first.begin("stage", "mark") / "labels.json", {})
    first.finish("stage", "mark", RESULT)
    (shared / "mark" / "labels.json").write_text("damaged")
    assert Ledger(tmp_path / "second", shared).result("stage", "mark") is None
    assert first.result("stage", "mark") == RESULT


def test_what_a_run_has_begun_itself_is_not_replaced(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    second = Ledger(tmp_path / "second", shared)
    write_json(second.begin("stage", "mark") / "checkpoints" / "10" / "state", {})
    first = Ledger(tmp_path / "first", shared)
    first.begin("stage", "mark")
    first.finish("stage", "mark", RESULT)
    assert second.result("stage", "mark") is None
    assert (second.folder("stage") / "checkpoints" / "10" / "state").is_file()


def test_two_runs_do_not_do_one_stage_at_once(tmp_path: Path) -> None:
    import threading

    ledger, order = Ledger(tmp_path / "first", tmp_path / "shared"), []

    def wait_for_it() -> None:
        with Ledger(tmp_path / "second", tmp_path / "shared").claimed("mark"):
            order.append("second")

    with ledger.claimed("mark"):
        other = threading.Thread(target=wait_for_it)
        other.start()
        other.join(0.2)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]
