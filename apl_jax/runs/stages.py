"""What a stage is, and how its fingerprint follows from what it is handed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from apl_jax import __version__
from apl_jax.declarations import fingerprint, to_dict
from apl_jax.runs.context import StageInputs


class Stage(NamedTuple):
    """One step of a run.

    ``work(handed, inputs, folder)`` reads what earlier stages wrote, writes into its own folder, and returns JSON
    types. It sees nothing else of the run's settings than ``handed``, and of the data what ``reads`` names: its
    fingerprint is the hash of both, of the stages that it needs and of the package's version.
    """

    name: str
    needs: tuple[str, ...]  # names of earlier stages
    reads: tuple[str, ...]  # of context.READABLE
    handed: Any  # a dataclass of settings
    work: Callable[[Any, StageInputs, Path], dict[str, Any]]


def stage_fingerprint(stage: Stage, digest: Callable[[str], str], earlier: Mapping[str, str]) -> str:
    """The hash of all that the stage's result depends on: ``digest`` says that of what it reads, ``earlier`` holds the
    fingerprints of the stages before."""
    digests = {read: digest(read) for read in stage.reads}
    needs = [earlier[name] for name in stage.needs]
    return fingerprint(stage.name, stage.work.__qualname__, to_dict(stage.handed), digests, needs, __version__)
