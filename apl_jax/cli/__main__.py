"""``python -m apl_jax.cli`` is ``apl-jax``."""

from apl_jax.cli import program

if __name__ == "__main__":
    program()
