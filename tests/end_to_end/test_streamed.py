"""A run whose data does not fit: features are streamed from their files, and the results stay the same.

All stages, streamed, in two processes: tests/distributed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from fixtures import smoke_settings
from run_folders import final_state

from apl_jax.runs.run import open_run, run

FROM_FILES = {"runtime.feed": "stream", "runtime.host_share": 0.0, "runtime.portion_mib": 0.5}


def test_a_streamed_run_ends_as_one_on_the_devices(small_run: Path, tmp_path: Path) -> None:
    streamed = run(smoke_settings(**FROM_FILES, variants=("supervised",)), tmp_path)["variants"]["supervised"]
    resident = json.loads((small_run / "results.json").read_text())["variants"]["supervised"]
    one, other = final_state(tmp_path, "supervised"), final_state(small_run, "supervised")
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-2, atol=1e-3, err_msg=name)
    assert abs(streamed["average_map"] - resident["average_map"]) < 0.02


def test_auto_asks_how_much_memory_there_is(tmp_path: Path) -> None:
    roomy = open_run(smoke_settings(), tmp_path)
    assert not roomy.streamed and "all features on the devices (runtime.device_share grants" in roomy.describe_feed()
    narrow = open_run(smoke_settings(**{"runtime.device_share": 1e-6, "runtime.host_share": 1e-6}), tmp_path)
    assert narrow.streamed and not narrow.dataset.held
    assert "streamed from their files, which is slower" in narrow.describe_feed()
    held = open_run(smoke_settings(**{"runtime.feed": "stream"}), tmp_path)
    assert held.streamed and "streamed from memory (as runtime.feed asks, they take" in held.describe_feed()
