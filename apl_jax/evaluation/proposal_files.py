"""Proposals from a file, for detectors that refine segments: those of another program, or of another run.

The file has the layout of predictions (evaluation/submission.py): ActivityNet's JSON, or a table (.csv), with times in
seconds and scores in [0, 1]. Labels may be missing and are not looked at: a segment that is given for several classes
is one proposal, with its best score. Recordings of the file that are not asked for are left out.

Every recording that is asked for must have an entry. A missing one is nearly always another subset, or another spelling
of the names, and a detector that only refines would find nothing in it without a word. An empty list, which JSON can
hold, says that nothing was found; then nothing is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from apl_jax.data.files import expanded, file_digest, refusal
from apl_jax.data.names import clean_name
from apl_jax.evaluation.average_precision import Instances
from apl_jax.evaluation.external import surest_segments
from apl_jax.evaluation.submission import read_submission
from apl_jax.structs import Detections, TimeGrid
from apl_jax.text import counted, shown, some

WHAT = "a file of proposals (`learning.proposals`)"


@dataclass(frozen=True, eq=False)
class GivenProposals:
    """The proposals of V recordings; of each the surest ones, by recording and falling score."""

    path: Path
    instances: Instances  # labels are 0
    notes: tuple[str, ...]  # in which recordings nothing was found, in words

    @property
    def most(self) -> int:
        """K, the most proposals of a recording, at least 1."""
        return max(int(np.bincount(self.instances.video, minlength=1).max()), 1)

    def on_grids(self, rows: Sequence[int], grids: Sequence[TimeGrid], durations_s: Sequence[float]) -> Detections:
        """The proposals of the recordings ``rows`` on their grids, ``[len(rows), K]`` (numpy), cut off at either end.

        Those that lie outside their recording are left out. Raises :class:`~apl_jax.data.files.DataError` where these
        are more than half of all.
        """
        shape, counts, total = (len(rows), self.most), np.zeros(len(rows), int), 0
        segments_t, confidence = np.zeros((*shape, 2), np.float32), np.zeros(shape, np.float32)
        for place, (row, grid, duration_s) in enumerate(zip(rows, grids, durations_s, strict=True)):
            own = self.instances.select(slice(*np.searchsorted(self.instances.video, (row, row + 1))))
            cut_s = np.clip(own.segments_s, 0.0, duration_s)
            inside = cut_s[:, 1] > cut_s[:, 0]
            counts[place], total = inside.sum(), total + len(own)
            segments_t[place, : counts[place]] = grid.to_t(cut_s[inside])
            confidence[place, : counts[place]] = own.score[inside]
        outside = total - int(counts.sum())
        if 2 * outside > total:
            found = f"{outside:,} of {total:,} proposals outside of their recording, or without length"
            raise refusal(f"{self.path}: results", found, "segments in seconds", "convert frames or shares")
        mask, one = np.arange(self.most) < counts[:, None], np.ones(shape, np.float32)
        label = np.zeros(shape, np.int32)
        columns = segments_t, label, confidence, one, one, np.zeros_like(one), mask
        return Detections(*cast(Any, columns))


def proposals_digest(path: str | Path) -> str:
    """A hash of all bytes of a file of proposals. Raises :class:`~apl_jax.data.files.DataError`."""
    return file_digest(expanded(path), WHAT)[:16]


def read_given_proposals(path: str | Path, ids: Sequence[str], most: int) -> GivenProposals:
    """The ``most`` surest proposals of each of the recordings ``ids``.

    Raises :class:`~apl_jax.data.files.DataError` for what is no such file, for recordings that it lacks, by name, and
    for scores outside [0, 1].
    """
    path = expanded(path)
    submission = read_submission(path, ids, None)
    found = submission.instances
    empty = [name for name in ids if clean_name(name) in submission.empty]
    there = {ids[v] for v in np.unique(found.video)} | set(empty)
    missing = [name for name in ids if name not in there]
    if missing:
        words = f"no entry for {len(missing):,} of {counted(len(ids), 'recording')}: {some([*map(shown, missing)])}"
        remedy = "add them; where nothing was found, an empty list in a JSON file says so"
        raise refusal(f"{path}: results", words, "proposals of every recording that is used", remedy)
    wrong = (found.score < 0) | (found.score > 1)
    if wrong.any():
        words = f"a score of {found.score[wrong][0]:g} ({int(wrong.sum()):,} such scores)"
        raise refusal(f"{path}: results", words, "scores in [0, 1]", "apply a sigmoid to the scores")
    chosen = surest_segments(found, most)
    what = "with an empty list of proposals, in which nothing will be found"
    note = f"{path}: {counted(len(empty), 'recording')} {what}: {some([*map(shown, empty)])}"
    return GivenProposals(path, chosen, (note,) if empty else ())
