"""Learning from non-target classes on HAPT, 12 classes, 10 % labels.

    apl-jax run --config=configs/hapt_nontarget.py:spot-hybrid --config.data.root=<folder> --workdir=runs/hapt_spot

Variants as in configs/spsw_nontarget.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

# This file says what is unlike configs/hapt.py and configs/spsw_nontarget.py, which lie beside it.
HAPT, NONTARGET = (runpy.run_path(str(Path(__file__).with_name(name))) for name in ("hapt.py", "spsw_nontarget.py"))


def get_config(variant: str = "spot-hybrid") -> ConfigDict:
    config = NONTARGET["divided"](HAPT["get_config"], variant, f"configs/{Path(__file__).name}")
    # Recordings of 3 to 11 minutes hold transitions of 3 s: windows of 50 s show them, 100 snippets of a whole do not.
    config.spot.fit = "windows"
    return config
