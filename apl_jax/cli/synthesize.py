"""``apl-jax synthesize``: synthetic features of a data set whose annotations are there."""

from __future__ import annotations

from argparse import Namespace

from apl_jax.cli.configuration import declare_configuration, read_settings
from apl_jax.cli.parser import OVERRIDE, Command, Parser, count, path
from apl_jax.text import say


def _declare(parser: Parser) -> None:
    declare_configuration(parser)
    parser.flag("out", "FOLDER", "data folder to write", path, required=True)
    parser.flag("videos", "N", "features of so many videos only", count, shown="all videos")


def _carry_out(arguments: Namespace) -> None:
    from tqdm import tqdm

    from apl_jax.data.synthetic import write_synthetic

    settings, out = read_settings(arguments), arguments.out
    follow = lambda videos: tqdm(videos, "making features", unit="video", disable=not settings.runtime.progress)
    written = write_synthetic(settings.data, out, arguments.videos, follow)
    say(f"synthetic  {out}  ({written:,} videos)")
    say(f"next       a run with {OVERRIDE}data.root={out} {OVERRIDE}data.synthetic.enabled=False")


COMMAND = Command(
    "synthesize",
    "write synthetic features of annotated videos",
    "Writes features made from the annotations of a data folder, to try out complete runs before there are real ones.",
    ("--config=thumos14:synthetic --config.data.root=annotations --out=data/synthetic --videos=20",),
    _declare,
    _carry_out,
    configured=True,
)
