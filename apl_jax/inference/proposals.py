"""Proposals of new recordings, for a model that refines them and has no generator."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from apl_jax.data.annotations import VideoRecord
from apl_jax.data.files import refusal
from apl_jax.evaluation.proposal_files import GivenProposals, read_given_proposals
from apl_jax.inference.model import Model

log = logging.getLogger(__name__)


def read_wanted(model: Model, path: Path, records: Sequence[VideoRecord]) -> GivenProposals:
    """The proposals of a file for the records, of each at most as many as in training.

    Raises :class:`~apl_jax.data.files.DataError` for a model that takes none, and as
    :func:`~apl_jax.evaluation.proposal_files.read_given_proposals`.
    """
    if not model.wants_proposals:
        generator = model.card.generator
        why = f"has the generator {generator.name!r}" if generator else "finds segments by itself"
        raise refusal("`proposals`", f"{path}, for a model that {why}", "none", "leave it out")
    given = read_given_proposals(path, [record.id for record in records], model.card.max_proposals or sys.maxsize)
    for note in given.notes:
        log.info("note: %s", note)
    return given


def refuse_without(model: Model, proposals: GivenProposals | None) -> None:
    """Raises :class:`~apl_jax.data.files.DataError` for a model that wants proposals where there are none."""
    if proposals is None and model.wants_proposals:
        found = f"none, and this {model.card.detector.name} has no generator: its run took proposals from a file"
        expected = "proposals of the recordings, by what made those of training"
        remedy = "apl-jax predict with `proposals=<json or csv>`, or a model that was trained with a generator"
        raise refusal("`proposals`", found, expected, remedy)
