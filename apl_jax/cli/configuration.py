"""The flags of configurations and plug-ins, and the settings that they mean."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from apl_jax.cli.parser import OVERRIDE, Parser

if TYPE_CHECKING:
    from apl_jax.runs.settings import Settings


def declare_configuration(parser: Parser, words: str = "", required: bool = True) -> None:
    """``--config``, the settings that override it, and ``--plugin``."""
    about = f"configuration: its name in this package, or a Python file; a variant of it behind a colon{words}"
    parser.flag("config", "NAME[:VARIANT]", about, required=required)
    words = f"another value for one setting, any number of them, such as {OVERRIDE}learning.rounds=2"
    parser.add_argument(f"{OVERRIDE}PATH", metavar="VALUE", help=words)  # for the help; see parser.parse
    declare_plugin(parser)


def declare_plugin(parser: Parser) -> None:
    """``--plugin``."""
    words = "Python file, or module, that registers detectors, methods or selection rules; may be given several times"
    parser.flag("plugin", "FILE|MODULE", words, repeated=True)


def load_plugins(arguments: Namespace) -> None:
    """Imports the plug-ins of installed packages, then those of ``--plugin``."""
    from apl_jax.runs.plugins import load_entry_points, load_plugin

    load_entry_points()
    for name in arguments.plugin or ():
        load_plugin(name)


def read_settings(arguments: Namespace) -> Settings:
    """The settings of ``--config``, or the defaults, changed as the other flags say; plug-ins are loaded first."""
    from apl_jax.declarations import override
    from apl_jax.runs.settings import Settings, read_config

    load_plugins(arguments)
    settings = Settings() if arguments.config is None else read_config(arguments.config)
    return override(settings, arguments.overrides, text=True)
