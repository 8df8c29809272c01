"""What a table of a paper is made of: rows, each a change of one configuration, and what is read off a finished run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apl_jax.runs.settings import Settings

THUMOS14, ACTIVITYNET, EPIC = "thumos14", "activitynet", "epic"  # data sets that the papers have numbers of
# Configurations of a data set by detector; of any detector: its main one, or a file of one's own.
ANY = ("{data}:apl", "{data}")
TRIDET = ("{data}:apl-tridet",)
BMN, PGCN = ("{data}:apl-bmn",), ("{data}:apl-pgcn",)
SPOT = ("{data}_nontarget:spot-target", "{data}:spot")
PLAIN_ACTIONFORMER = ("{data}_nontarget:actionformer-hybrid", "{data}:nontarget")
FOUR = ("0.3", "0.5", "0.7", "average")  # columns of most tables
# What the paper has on THUMOS14 with 10 and 40 % of the labels, of systems that stand in several tables.
ALQA = (31.9, 22.9, 8.1, 21.3), (71.0, 56.7, 26.8, 52.6)
ICD = (33.6, 24.6, 10.2, 23.3), (72.0, 58.1, 27.7, 53.9)
APL = (35.1, 25.6, 11.0, 24.5), (73.2, 59.1, 28.7, 54.8)

# Settings by dotted path, and their values, as a command line could give them.
Changes = Mapping[str, Any]
Number = float | None


@dataclass(frozen=True)
class Row:
    """One row: a run for each seed, and where its numbers stand in it.

    ``bases`` are names of configurations with ``{data}`` for the data set, of which the first that exists is taken;
    ``changes`` says what is changed in it. ``read`` names the part of the run that is looked at: a variant
    (``supervised``, ``supervised_matched``, ``teacher``, ``final``), a set of pseudo labels or a representation.
    ``published`` holds the paper's numbers by data set, in the order of the table's ``published_columns``.
    """

    name: str
    changes: Callable[[Settings], Changes]
    read: str = "final"
    bases: tuple[str, ...] = ANY
    label_ratio: float | None = None  # share of annotated recordings; None: the configuration's
    published: Mapping[str, Sequence[Number]] = field(default_factory=dict)
    least_classes: int = 1  # below which the row means nothing
    only_on: tuple[str, ...] = ()  # data sets that the row is about; none: any


@dataclass(frozen=True)
class Table:
    """One table, or figure, of a paper."""

    name: str  # such as "apl:2"
    title: str
    rows: tuple[Row, ...]
    published_columns: tuple[str, ...] = ()
    measure: str = "map"  # what its numbers are: an entry of measures.MEASURES
    note: str = ""  # what a reader must know of our rows


def two_ratios(*rows: tuple[str, Callable[[Settings], Changes], Sequence[Number], Sequence[Number]]) -> tuple[Row, ...]:
    """Rows of an ablation with 10 and 40 % of the labels: name, changes, the paper's numbers on THUMOS14 for both."""
    return tuple(
        Row(f"{ratio:.0%}: {name}", changes, label_ratio=ratio, published={THUMOS14: numbers[place]})
        for place, ratio in enumerate((0.1, 0.4))
        for name, changes, *numbers in rows
    )
