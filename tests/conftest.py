"""Settings of the test session, and the fixtures that all tests share.

Nearly all the time that these tests need goes into compiling, so programs are compiled without optimisation (a seventh
of the time) and kept from one session to the next in ``.cache/xla-tests``. Both are environment variables, so that the
processes which tests start inherit them, and neither overrides what the caller has set: ``XLA_FLAGS= pytest`` compiles
as in production, ``JAX_COMPILATION_CACHE_DIR=`` with a folder of your own, or empty, replaces the cache.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path

import jaxtyping
import pytest
from beartype import BeartypeConf, FrozenDict, beartype

REPOSITORY = Path(__file__).parents[1]

# XLA stops with "Unknown flag" at one that it does not know; jaxlib 0.12 has dropped the choice of emitters.
FLAGS = [
    "--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]  # fmt: skip
if tuple(int(part) for part in version("jaxlib").split(".")[:2]) < (0, 12):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")

# jax reads these when it is imported, hence before any import of it.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": " ".join(FLAGS),
    "JAX_COMPILATION_CACHE_DIR": str(REPOSITORY / ".cache" / "xla-tests"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

import jax  # noqa: E402
import numpy as np  # noqa: E402

# Shapes and types in the signatures of these modules are checked at every call of every test. As everywhere in jax,
# numpy's arrays may take the place of its own, and as everywhere in Python whole numbers that of floats.
SHAPES_CHECKED = "apl_jax.ops"
EITHER = jax.Array | np.ndarray
if SHAPES_CHECKED in sys.modules:
    raise RuntimeError(f"{SHAPES_CHECKED} was imported before its shapes could be checked")
check_types = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({jax.Array: EITHER})))
jaxtyping.Array = EITHER  # what signatures with shapes import
jaxtyping.install_import_hook(SHAPES_CHECKED, f"{__name__}.check_types")


# A shell that is no terminal starts background jobs with SIGINT ignored, and so would be the processes of tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# What starts processes or trains, and what compiles for more than ten seconds. `pytest -m "not slow"` leaves it out.
SLOW = (
    "tests/distributed", "tests/end_to_end", "tests/fuzz",
    "tests/laws/test_devices.py", "tests/laws/test_every_pair.py", "tests/laws/test_gradients.py",
    "tests/laws/test_held_back_labels.py", "tests/laws/test_outputs.py", "tests/laws/test_padding.py",
    "tests/laws/test_perfect_targets.py", "tests/laws/test_permutation.py", "tests/laws/test_traces.py",
    "tests/unit/data/test_synthetic.py", "tests/unit/detectors/test_flip.py", "tests/unit/detectors/test_spot.py",
    "tests/unit/detectors/test_spot_losses.py", "tests/unit/inference/test_export.py",
    "tests/unit/learning/test_methods.py", "tests/unit/report/test_report.py", "tests/unit/runs/test_configs.py",
    "tests/unit/runs/test_selection_state.py", "tests/unit/training/test_fold_training.py",
)  # fmt: skip
# Of those, what looks again, on more pairs or at more length, at what others look at: `make exhaustive` adds it.
EXHAUSTIVE = (
    "tests/laws/test_every_pair.py", "tests/end_to_end/test_external_protocol.py", "tests/end_to_end/test_notebook.py",
    "tests/end_to_end/test_streamed.py", "tests/end_to_end/test_kills.py", "tests/end_to_end/test_own_data.py",
    "tests/end_to_end/test_storage_faults.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [place for place in SLOW + EXHAUSTIVE if not (REPOSITORY / place).exists()]
    if missing:
        raise pytest.UsageError(f"tests/conftest.py: SLOW or EXHAUSTIVE names {', '.join(missing)}, which is not there")
    for item in items:
        place = item.path.relative_to(REPOSITORY).as_posix()
        for mark, places in (("slow", SLOW), ("exhaustive", EXHAUSTIVE)):
            if place.startswith(places):
                item.add_marker(mark)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the repository with further data sets and papers; tests that need it are skipped without it."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the shared folder, which is not at {folder}")
    return folder


# ---- fixtures of finished runs (small_run) go below this line ----


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run: ``spsw:smoke``, all variants, pre-training and one round. Read only.

    Test workers share one: whoever comes first runs it, the others wait for its lock and find every stage done.
    """
    import fcntl

    from fixtures import smoke_settings

    from apl_jax.report import write_report
    from apl_jax.runs.run import run

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small_run"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "report.html").exists():
            run(smoke_settings(), folder)
            write_report(folder)
    return folder
