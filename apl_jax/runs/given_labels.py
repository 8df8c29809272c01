"""Labels from a file in place of the first round's pseudo labels: corrected by a person, or another model's.

The file is in the layout that a labelling stage writes, or any annotation JSON with times in seconds. It is checked
against the split, and becomes ``pseudo_labels.json`` of the stage, from where everything goes on as ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apl_jax.data.annotations import parse_annotations
from apl_jax.data.files import DataError, expanded, file_digest, load_json, refusal
from apl_jax.data.names import clean_name, cleaned_keys, find_recording
from apl_jax.data.values import is_number
from apl_jax.declarations import Unhashed
from apl_jax.evaluation.label_quality import CERTAIN, SELECTED, WRITTEN
from apl_jax.runs.context import StageInputs
from apl_jax.runs.training_stage import PSEUDO_LABELS
from apl_jax.structs import Reason
from apl_jax.text import shown


@dataclass(frozen=True)
class GivenLabelsPart:
    """What a stage is handed that takes its labels from a file."""

    digest: str  # of the file
    file: Unhashed  # where it is


def labels_digest(file: str) -> str:
    """A hash of all bytes of a file of labels. Raises :class:`~apl_jax.data.files.DataError`."""
    return file_digest(expanded(file), "a JSON file of labels (`learning.labels`)")[:16]


def take_labels(part: GivenLabelsPart, inputs: StageInputs, folder: Path) -> dict[str, Any]:
    """Checks the file and writes its labels as a labelling stage would; recordings that are not in it have none.

    Raises :class:`~apl_jax.data.files.DataError`: for what is no annotation file, for recordings that are not among the
    unlabelled ones, for unknown classes, and for segments outside their recording.
    """
    path = expanded(part.file.value)
    document = load_json(path)
    if labels_digest(part.file.value) != part.digest:
        remedy = "run the same command again: it begins with the new labels"
        raise refusal(str(path), "another content", "the content that it had when the run began", remedy)
    entries = _by_recording(path, document, inputs)
    database = {}
    for record in inputs.table("unlabelled").records:
        clock = {"subset": record.subset, "duration": record.duration_s, "fps": record.fps}
        database[record.id] = clock | _labels(path, record.id, entries.get(record.id, {}), inputs.classes)
    labels = {"version": "pseudo labels", "provenance": f"{path}, digest {part.digest}", "database": database}
    try:
        parse_annotations(labels, path, inputs.classes)  # against the clocks of this data set
    except DataError as error:  # what it advises concerns the data set
        raise DataError(f"{str(error).partition(' Try: ')[0]} Try: correct the entry.") from None
    inputs.write(folder / PSEUDO_LABELS, labels)
    rows = [row for entry in database.values() for kind in WRITTEN for row in entry.get(kind, ())]
    counts = {r.name.lower(): 0 for r in Reason if r is not Reason.BELOW_THRESHOLD}
    for row in rows:
        counts[row["reason"]] += 1
    source = {"file": str(path), "digest": part.digest, "recordings": len(entries), "of": len(database)}
    return {"tau_pos": None, "counts": counts, "source": source}


def _by_recording(path: Path, document: Mapping[str, Any], inputs: StageInputs) -> dict[str, Any]:
    """The entries of the file by the unlabelled recordings of the split."""
    remedy = "give labels of the recordings that split.json lists as unlabelled"
    listed = document.get("database")
    if not isinstance(listed, dict):
        raise refusal(f"{path}: database", "none", "annotations: database[recording] = {annotations}", remedy)
    known = frozenset(inputs.table("unlabelled").ids)
    found: dict[str, Any] = {}
    for name, entry in cleaned_keys(listed, f"{path}: database", "the name of a recording").items():
        own = find_recording(name, known)
        if own is None:
            labelled = find_recording(name, frozenset(inputs.table("labelled").ids))
            what = "a labelled recording" if labelled else "which is not one of them"
            raise refusal(f"{path}: recording {shown(name)}", what, "unlabelled recordings of the split only", remedy)
        if own in found:
            raise refusal(f"{path}: recording {shown(name)}", "a second entry for it", "one for each", remedy)
        if not isinstance(entry, dict):
            raise refusal(f"{path}: recording {shown(name)}", shown(entry), "an object {annotations}", remedy)
        found[own] = entry
    return found


def _labels(path: Path, video: str, entry: Mapping[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """The rows of one recording; what a label made by hand lacks are the values of certainty."""
    found: dict[str, Any] = {"annotations": [], "ignored": []}
    for kind in (kind for kind in WRITTEN if entry.get(kind)):
        where = f"{path}: recording {shown(video)}, {kind}"
        if not isinstance(entry[kind], list):
            raise refusal(where, shown(entry[kind]), "a list", "correct the entry")
        found[kind] = [_row(f"{where}[{i}]", row, kind, classes) for i, row in enumerate(entry[kind])]
    return found


def _row(where: str, row: Any, kind: str, classes: tuple[str, ...]) -> dict[str, Any]:
    """One label with every field that a labelling stage writes."""
    label = clean_name(row["label"]) if isinstance(row, dict) and isinstance(row.get("label"), str) else None
    if label not in classes:
        found = shown(row) if label is None else f"unknown class {shown(label)}"
        raise refusal(where, found, f"a segment and a label, one of {', '.join(classes)}", "correct the label")
    usual = {"reason": "kept" if kind == SELECTED else "candidate", "weight": 1.0, **CERTAIN}
    fields = {name: row.get(name, value) for name, value in usual.items()}
    if fields["reason"] not in [r.name.lower() for r in Reason if r is not Reason.BELOW_THRESHOLD]:
        raise refusal(
            f"{where}.reason", shown(fields["reason"]), "kept, promoted, dropped or candidate", "leave it out"
        )
    for name in CERTAIN:
        if not is_number(fields[name]):
            raise refusal(f"{where}.{name}", shown(fields[name]), "a number", "correct it, or leave it out")
    return {"label": label, "label_id": classes.index(label), "segment": row.get("segment"), **fields}
