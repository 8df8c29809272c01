"""The command line ``apl-jax <command>``, and the only place that speaks of flags: one file for each command."""

from apl_jax.cli.dispatch import main

__all__ = ["main"]
