"""``apl-jax configure``: a configuration that follows from one's own data."""

from __future__ import annotations

from argparse import Namespace

from apl_jax.cli.parser import OVERRIDE, Command, Parser, path
from apl_jax.text import say


def _declare(parser: Parser) -> None:
    parser.flag("root", "FOLDER", "data folder", path, shown="the embedded data set")
    parser.flag("out", "FILE", "Python file to write; one that is there keeps the lines that were edited", path,
                required=True)  # fmt: skip
    parser.flag("name", "NAME", "name of the data set", shown="that of the folder")
    words = "a setting that is known already, any number of them, such as --config.data.label_ratio=0.2"
    parser.add_argument(f"{OVERRIDE}PATH", metavar="VALUE", help=words)


def _carry_out(arguments: Namespace) -> None:
    from tqdm import tqdm

    from apl_jax.configuration.configure import configure

    follow = lambda videos: tqdm(videos, "reading features", unit="video", disable=None)
    found = configure(arguments.root, arguments.out, arguments.name, arguments.overrides, text=True, follow=follow)
    say(found.words())
    say(f"\nwritten   {arguments.out}\nnext      apl-jax run --config={arguments.out} --workdir=runs/{found.folder}")


COMMAND = Command(
    "configure",
    "write a configuration that follows from your data",
    "Reads the recordings of a data folder and the annotations of its labelled ones, and writes a configuration of "
    "which every line says what it follows from. Written again, lines that were edited keep their value.",
    (
        "--root=my_data --out=mine.py",
        "--root=my_data --out=mine.py --config.data.label_ratio=0.2 --config.data.split_seed=1",
    ),
    _declare,
    _carry_out,
    configured=True,
)
