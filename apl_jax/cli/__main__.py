"""``python -m apl_jax.cli`` is ``apl-jax``."""

import sys

from apl_jax.cli.dispatch import main

if __name__ == "__main__":
    sys.exit(main())
