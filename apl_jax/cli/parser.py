"""What a command is, how its flags are declared, and how a command line is read. Imports nothing that takes long."""

from __future__ import annotations

import argparse
import difflib
import functools
import math
import re
import shlex
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from apl_jax import __version__
from apl_jax.text import Refusal, address_scheme, numbers_of
from apl_jax.text import shown as quoted

PROGRAM = "apl-jax"
OVERRIDE = "--config."
_COMMON = ("-h", "--help", "--debug")  # flags of every command
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)  # float also takes 1_000, nan and inf
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
_LARGEST = 2**31 - 1  # of whole numbers
_FLAG = re.compile(r"--?[A-Za-z]|--")  # what cannot be a value: unlike -5, these begin with a letter


class UsageError(Refusal):
    """A command line that cannot be understood; the message says why, and what there is instead."""


class Parser(argparse.ArgumentParser):
    """A parser that raises :class:`UsageError`, and knows the names of its own flags."""

    def __init__(self, **options: Any) -> None:
        self.flags: list[str] = []
        form = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=30, width=_width())
        super().__init__(allow_abbrev=False, formatter_class=form, **options)  # pyright: ignore[reportArgumentType]

    def flag(
        self, name: str, metavar: str, words: str, kind: Callable[[str], Any] = str, *, default: Any = None,
        shown: str = "", required: bool = False, repeated: bool = False,
    ) -> None:  # fmt: skip
        """Declares ``--name``; ``shown`` is its default in words, where the value does not say it itself."""
        shown = shown or (f"{default}" if default not in (None, "") else "")
        note = " (required)" if required else f" (default: {shown})" if shown else ""
        action = "append" if repeated else "store"
        self.add_argument(
            f"--{name}",
            metavar=metavar,
            help=words + note,
            type=kind,
            default=default,
            required=required,
            action=action,
        )
        self.flags.append(name)

    def switch(self, name: str, words: str) -> None:
        """Declares ``--name``, which takes no value and is off without it."""
        self.add_argument(f"--{name}", help=words, action="store_true")
        self.flags.append(name)

    def error(self, message: str) -> NoReturn:
        """Raises :class:`UsageError`."""
        raise UsageError(f"{self.prog}: {message.removeprefix('argument ')}. See {self.prog} --help.")


class Command(NamedTuple):
    """One command."""

    name: str
    summary: str  # a line of the overview
    description: str
    examples: tuple[str, ...]
    declare: Callable[[Parser], None]  # adds its flags
    carry_out: Callable[[argparse.Namespace], int | None]  # returns an exit code, None for 0; imports what it needs
    configured: bool = False  # it takes --config and settings that override it


def _width() -> int:
    """Characters of a line of help."""
    return min(100, shutil.get_terminal_size().columns - 2)


# What the text behind a flag may be


def path(text: str) -> Path:
    """A file or a folder, with ``~`` for the home folder."""
    if not text:
        raise argparse.ArgumentTypeError("found nothing, expected a path")
    if address_scheme(text):
        advice = "Mount the file system, or copy the files to this machine"
        raise argparse.ArgumentTypeError(f"found {quoted(text)}, an address; expected a path on this machine. {advice}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"found {quoted(text)}, expected a path ({error})") from None


def number(text: str) -> float:
    """A number."""
    if not _NUMBER.fullmatch(text.strip()) or math.isinf(float(text)):
        raise argparse.ArgumentTypeError(f"found {quoted(text)}, expected a number")
    return float(text)


def numbers(text: str) -> tuple[float, ...]:
    """One number, or several with commas between them, or a range, ``first:step:last``."""
    try:
        found = numbers_of(text)
    except ValueError:
        found = ()
    if not found:
        expected = "numbers with commas between them, or first:step:last, such as 0.5:0.05:0.95"
        raise argparse.ArgumentTypeError(f"found {quoted(text)}, expected {expected}")
    return found


def whole_number(text: str) -> int:
    """A whole number."""
    if not _WHOLE.fullmatch(text.strip()) or len(text) > 20 or abs(int(text)) > _LARGEST:
        raise argparse.ArgumentTypeError(f"found {quoted(text)}, expected a whole number of at most {_LARGEST:,}")
    return int(text)


def count(text: str) -> int:
    """A whole number of at least 1."""
    if (value := whole_number(text)) < 1:
        raise argparse.ArgumentTypeError(f"found {quoted(text)}, expected a whole number of at least 1")
    return value


# Command lines


def build_parser(commands: Mapping[str, Command]) -> tuple[Parser, dict[str, Parser]]:
    """The parser of all commands, whose help is the overview, and those of each."""
    overview = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND [--FLAG=VALUE ...]",
        description="Semi-supervised temporal action localisation. Each command has a --help of its own.",
    )
    overview.add_argument("--version", action="version", version=f"apl_jax {__version__}")
    places = overview.add_subparsers(dest="command", metavar="COMMAND", title="commands", prog=PROGRAM)
    parsers: dict[str, Parser] = {}
    for command in commands.values():
        description = textwrap.fill(command.description, _width())
        parser = places.add_parser(
            command.name, help=command.summary, description=description, epilog=_examples(command)
        )
        command.declare(parser)
        words = "where a command fails, print the traceback too"
        parser.add_argument("--debug", action="store_true", help=words)
        parsers[command.name] = parser
    return overview, parsers


def _examples(command: Command) -> str:
    lines = "\n".join(f"  {PROGRAM} {command.name} {example}" for example in command.examples)
    return f"example{'s' if len(command.examples) > 1 else ''}:\n{lines}"


def parse(commands: Mapping[str, Command], arguments: Sequence[str]) -> argparse.Namespace:
    """The command and its flags.

    Beside these, the result holds ``overrides`` (settings by path, as text), ``flags`` (the names of all flags of the
    command) and ``command_line`` (the whole, as one could type it). Raises :class:`UsageError`, and ``SystemExit``
    after printing a help.
    """
    overview, parsers = build_parser(commands)
    if not arguments:
        raise UsageError(overview.format_help().rstrip())
    name, rest = arguments[0], arguments[1:]
    if name in ("help", "-h", "--help", "--version"):
        overview.parse_args(["--help" if name == "help" else name])
    if name.startswith("-"):
        raise UsageError(f"{PROGRAM}: found {quoted(name)}, expected a command first: {', '.join(commands)}")
    if name not in commands:
        there = ", ".join(commands)
        raise UsageError(f"{PROGRAM}: no command {quoted(name)}; there are {there}.{_nearest(name, list(commands))}")
    foreign = [argument for argument in arguments if any("\ud800" <= c <= "\udfff" for c in argument)]
    if foreign:  # settings, pages and logs are UTF-8
        raise UsageError(f"{PROGRAM} {name}: found {quoted(foreign[0])}, expected text in UTF-8")
    known, overrides = _take_overrides(commands[name], parsers, rest)
    found, strangers = overview.parse_known_args([name, *known])
    if strangers:
        raise UsageError(f"{PROGRAM} {name}: found the stray argument {strangers[0]!r}; flags begin with --")
    found.overrides, found.flags = overrides, tuple(parsers[name].flags)
    found.command_line = shlex.join([PROGRAM, *arguments])
    return found


def _take_overrides(
    command: Command, parsers: Mapping[str, Parser], arguments: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """The arguments without the settings among them, and these by path; a flag that the command lacks is refused."""
    known: list[str] = []
    overrides: dict[str, str] = {}
    waiting = iter(arguments)
    for argument in waiting:
        flag, equals, value = argument.partition("=")
        if command.configured and flag.startswith(OVERRIDE) and flag != OVERRIDE:
            text = value if equals else next(waiting, None)
            if text is None or (_FLAG.match(text) and not equals):
                raise UsageError(f"{PROGRAM} {command.name}: found {flag} without a value, expected {flag}=<value>")
            overrides[flag.removeprefix(OVERRIDE)] = text
            continue
        own = flag.removeprefix("--") in parsers[command.name].flags or flag in _COMMON
        if _FLAG.match(flag) and not own:
            raise UsageError(_unknown_flag(command, parsers, flag))
        if value == "--":  # which argparse takes for the end of the flags, and leaves the flag without a value
            raise UsageError(
                f"{PROGRAM} {command.name}: found {quoted(argument)}, expected {quoted(flag)[1:-1]}=<value>"
            )
        known.append(argument)
    return known, overrides


def _unknown_flag(command: Command, parsers: Mapping[str, Parser], flag: str) -> str:
    """The refusal of a flag: which there are, whose it is, and the nearest one."""
    own = [f"--{name}" for name in parsers[command.name].flags]
    others = [name for name, parser in parsers.items() if flag.removeprefix("--") in parser.flags]
    words = f"{PROGRAM} {command.name}: no flag {quoted(flag)[1:-1]}"
    if others:
        words += f", which is a flag of {', '.join(others)}"
    elif flag.startswith(OVERRIDE):
        words += ", since this command takes no configuration"
    words += f"; there {'are' if len(own) > 1 else 'is'} {', '.join(own)}" if own else "; this command has none"
    return f"{words}.{_nearest('--' + flag[:200].lstrip('-').replace('-', '_'), own)}"


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f" Did you mean {near[0]}?" if near else ""
