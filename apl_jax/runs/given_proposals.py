"""Proposals from a file in place of those of a generator that the run trains: another program's, or another run's.

The file is read as :mod:`apl_jax.evaluation.proposal_files` says. Whatever made it may have learnt from labels that
this run must not see; results name the file, so that a reader knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apl_jax.data.files import refusal
from apl_jax.declarations import Unhashed
from apl_jax.evaluation.proposal_files import proposals_digest, read_given_proposals
from apl_jax.runs.context import StageInputs, write_proposals


@dataclass(frozen=True)
class GivenProposalsPart:
    """What a stage is handed that takes proposals from a file."""

    digest: str  # of the file
    file: Unhashed  # where it is
    most: int  # of a recording, the surest
    videos: str  # table whose videos are given proposals: training | evaluation


def take_proposals(part: GivenProposalsPart, inputs: StageInputs, folder: Path) -> dict[str, Any]:
    """Puts the proposals of the file on the grids of a table, as a stage with a generator would leave them.

    Raises :class:`~apl_jax.data.files.DataError` as
    :func:`~apl_jax.evaluation.proposal_files.read_given_proposals`, and for a file that was changed during the run.
    """
    if proposals_digest(part.file.value) != part.digest:
        remedy = "run the same command again: it begins with the new proposals"
        raise refusal(part.file.value, "another content", "the content that it had when the run began", remedy)
    table = inputs.table(part.videos)
    given = read_given_proposals(part.file.value, table.ids, part.most)
    durations_s = [record.duration_s for record in table.records]
    found = given.on_grids(range(len(table.ids)), table.grids, durations_s)
    if inputs.first_process:
        write_proposals(folder, part.videos, found)
    source = {"file": str(given.path), "digest": part.digest}
    return {"proposals": int(found.mask.sum()), "source": source, "warnings": list(given.notes)}
