"""``apl-jax inspect``: what a data folder holds, and all that is wrong with it."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from apl_jax.cli.configuration import declare_configuration, read_settings
from apl_jax.cli.parser import Command, Parser, path
from apl_jax.cli.words import in_flags
from apl_jax.text import say

if TYPE_CHECKING:
    from apl_jax.inspection.inspection import Inspection
    from apl_jax.inspection.survey import Finding


def _declare(parser: Parser) -> None:
    declare_configuration(parser, "; without one the default settings", required=False)
    parser.flag("workdir", "FOLDER", "folder for the page", path, shown="inspect_<name of the data>")


def _carry_out(arguments: Namespace) -> int:
    from tqdm import tqdm

    from apl_jax.inspection.inspection import inspect_dataset
    from apl_jax.report.inspection_page import default_folder, next_step, terminal_text, write_inspection

    settings = read_settings(arguments)
    hidden = not settings.runtime.progress
    follow = lambda videos: tqdm(videos, "reading features", unit="video", disable=hidden)
    found = inspect_dataset(settings.data, settings.detector, "semi_supervised" in settings.variants, follow)
    found = _in_flags(found, arguments.flags)
    say(terminal_text(found))
    folder = arguments.workdir or default_folder(found.name)
    say(f"\npage   {write_inspection(found, folder, arguments.command_line)}")
    say(in_flags(next_step(found), arguments.flags))
    return 1 if found.errors else 0


def _in_flags(found: Inspection, flags: Sequence[str]) -> Inspection:
    """What was found, with settings called by their flags."""

    def said(finding: Finding) -> Finding:
        examples = tuple(in_flags(example, flags) for example in finding.examples)
        return dataclasses.replace(finding, what=in_flags(finding.what, flags), examples=examples)

    return dataclasses.replace(found, errors=tuple(map(said, found.errors)), notes=tuple(map(said, found.notes)))


COMMAND = Command(
    "inspect",
    "tell what a data folder holds and what is wrong with it",
    "Reads all annotations and features that a run would use, tells what the data folder holds and all that is wrong "
    "with it, and draws a page. Ends with exit code 1 where a run would stop.",
    ("--config=spsw", "--config=thumos14:apl --config.data.root=data/thumos14 --workdir=pages/thumos14"),
    _declare,
    _carry_out,
    configured=True,
)
