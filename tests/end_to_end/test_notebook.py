"""The notebook runs from top to bottom on a finished run, and is the one that its paired script describes."""

from __future__ import annotations

import json
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from apl_jax.report.tables import stage_name

FOLDER = Path(__file__).parents[2] / "notebooks"
TIMEOUT_S = 300  # of one cell, on a machine that compiles slowly


def _cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def _outputs(notebook: nbformat.NotebookNode) -> tuple[str, list[str]]:
    """All that was printed, and the drawings."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    pages = [output.data.get("text/html", "") for output in outputs if output.output_type == "execute_result"]
    return text, [page for page in pages if page.startswith("<svg")]


@pytest.mark.parametrize("name", ("pseudo_labels", "non_target_classes"))
def test_notebook_and_script_are_one(name: str) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert _cells(notebook) == _cells(jupytext.read(FOLDER / f"{name}.py"))
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code"), "commit it without outputs"


def _executed(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    """Printed text and drawings of a notebook, run on a folder that it must leave as it is."""
    monkeypatch.setenv("APL_RUN", str(run))
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    resources = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=TIMEOUT_S, kernel_name="python3", resources=resources).execute()
    assert files == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}, "read only"
    return _outputs(notebook)


def test_notebook_explores_pseudo_labels(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, drawings = _executed("pseudo_labels", small_run, monkeypatch)

    results = json.loads((small_run / "results.json").read_text("utf-8"))
    name, labels = next(iter(results["pseudo_labels"].items()))
    assert stage_name(name) in text and f"{labels['counts']['kept']:,} kept" in text
    tau = f"{labels['tau_pos']:.4f}"
    assert f"tau_pos of the run {tau}, mean + deviation {tau}" in text  # Eq. 6, from the written labels alone
    assert all(
        f"{kind} {labels['counts'][k]}," in text
        for kind, k in (("EAP dropped", "dropped"), ("MPP promoted", "promoted"))
    )
    assert len(drawings) == 10
    assert any("unlabelled, error" in drawing for drawing in drawings)
    embeddings = drawings[-2:]
    assert all(word in drawing for drawing in embeddings for word in ("as initialised", "after ACP", "teacher"))
    assert all(word in embeddings[1] for word in results["data"]["classes"])
    assert "linear classifier, %" in text


def test_notebook_explores_non_target_classes(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, drawings = _executed("non_target_classes", small_run, monkeypatch)
    results = json.loads((small_run / "results.json").read_text("utf-8"))
    wrong = results["label_space"]["self_train_1"]["foreground"]["when_wrong"]
    assert f"{100 * wrong['negative']:.1f}" in text and f"{wrong['snippets']:,} of " in text
    assert len(drawings) == 4
    networks = stage_name("teacher"), stage_name("self_train_1")
    assert all(name in drawing for drawing in drawings[-2:] for name in networks)
