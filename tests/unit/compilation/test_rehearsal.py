"""The programs that are compiled are those that a run runs, on this machine and, where libtpu is installed, on TPUs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from fixtures import smoke_settings

from apl_jax.compilation.programs import programs_of, surroundings
from apl_jax.compilation.rehearsal import rehearse
from apl_jax.compilation.shapes import shapes_of
from apl_jax.declarations import SettingsError, override
from apl_jax.devices import build_mesh
from apl_jax.runs.plans import plan_stages
from apl_jax.runs.run import open_run

STAGES = ("pretrain", "supervised", "supervised_matched", "teacher", "self_train_1")
SILENT = lambda text: None


def around(**changes: Any):
    settings = override(smoke_settings(), changes)
    return surroundings(settings, shapes_of(settings.data), build_mesh(1), 2**40)


def test_every_stage_of_a_run_is_among_the_programs() -> None:
    programs = programs_of(around())
    found = [name for program in programs for name in program.stages]
    compiled = [s.name for s in plan_stages(smoke_settings(), around().shapes.facts)]
    measured = ("_quality", "_label_space")
    assert sorted(found) == sorted(name for name in compiled if not name.endswith(measured))
    # Stages that differ in their length alone share a program, and so do evaluations of one detector.
    assert ("supervised", "supervised_matched") in [program.stages for program in programs]
    kinds = {program.stages[0]: program.kind for program in programs}
    assert kinds["supervised"] == "training" and kinds["pseudo_label_1"] == "labelling"


@pytest.mark.parametrize("feed", ["device", "stream"])
def test_the_program_is_the_very_one_of_the_stage(feed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apl_jax.runs import training_stage
    from apl_jax.runs.run import carry_out
    from apl_jax.training import step as step_module

    settings = override(smoke_settings(), {"runtime.feed": feed, "variants": ("supervised",)})
    ours = next(p for p in programs_of(surroundings(settings, shapes_of(settings.data), build_mesh(1), 2**40)))
    lowered = []
    real = step_module.build_dispatch

    def recording(*arguments: Any) -> Any:
        dispatch: Any = real(*arguments)

        def call(*values: Any) -> Any:
            lowered.append(dispatch.lower(*values).as_text())
            return dispatch(*values)

        return call

    monkeypatch.setattr(training_stage, "build_dispatch", recording)
    context = open_run(settings, tmp_path)
    stage = plan_stages(settings, context.facts)[0]
    short = dataclasses.replace(
        stage.handed, stage=dataclasses.replace(stage.handed.stage, steps=settings.runtime.steps_per_dispatch)
    )
    carry_out(stage._replace(handed=short), "mark", context, "1/1")
    assert ours.lower().as_text() == lowered[0]


def test_rehearsal_in_words() -> None:
    found = rehearse(smoke_settings(), "host", None, None, ("evaluation",), SILENT)
    assert found.fits and found.devices == len(jax.devices()) and found.chip is None
    assert "supervised_evaluation" in found.table() and "between devices" in "\n".join(found.notes())
    small = dataclasses.replace(found, memory=1000)
    assert not small.fits and "prediction_batch" in small.notes()[-1]


def test_a_detector_that_wants_proposals_is_refused() -> None:
    with pytest.raises(SettingsError, match="wants proposals"):
        programs_of(around(**{"detector.name": "pgcn"}))


_ON_TPU = """
import json
from fixtures import smoke_settings
from apl_jax.compilation.rehearsal import rehearse
from apl_jax.declarations import override
settings = override(smoke_settings(), {"detector.dtype": "bfloat16", "variants": ("supervised",)})
found = rehearse(settings, "v5e:2x4", 1, None, ("training",), print)
(program,) = found.compiled
types = [collective.dtype for collective in program.estimate.collectives]
print(json.dumps({"types": types, "fits": found.fits, "devices": found.devices}))
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'apl_jax[tpu]'")
def test_gradients_are_summed_over_tpus_in_float32() -> None:
    from apl_jax.compilation import ENVIRONMENT

    environment = {**os.environ, **ENVIRONMENT, "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", _ON_TPU], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["fits"] and found["devices"] == 8
    assert "f32" in found["types"] and "bf16" not in found["types"]


_CHIPS = """
from apl_jax.compilation.rehearsal import _devices
print([_devices(name)[0].size for name in ("v4:2x2x2", "v5e:2x4", "v5p:2x2x2", "v6e:2x4")])
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'apl_jax[tpu]'")
def test_a_chip_is_one_device() -> None:
    """Also where it has two cores: what is published is of chips."""
    from apl_jax.compilation import ENVIRONMENT

    environment = {**os.environ, **ENVIRONMENT, "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", _CHIPS], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[8, 8, 8, 8]", done.stderr


_TRAFFIC = """
import json
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from apl_jax.compilation.rehearsal import _devices
from apl_jax.compilation.traffic import memory_traffic
everywhere = NamedSharding(_devices("v5e:2x4")[0], PartitionSpec())
shape = lambda *sizes, dtype: jax.ShapeDtypeStruct(sizes, dtype, sharding=everywhere)
large, half = shape(8192, 8192, dtype=jnp.float32), shape(8192, 8192, dtype=jnp.bfloat16)
programs = {
    "elementwise": (lambda x: jnp.tanh(x) * 2 + 1, large),
    "product": (lambda a, b: a @ b, half, half),
    "gather": (lambda x, i: x[i] * 2, large, shape(64, dtype=jnp.int32)),
}
count = lambda f, *shapes: memory_traffic(jax.jit(f).lower(*shapes).compile().as_text())
print(json.dumps({name: count(*program) for name, program in programs.items()}))
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'apl_jax[tpu]'")
def test_memory_traffic_of_what_is_known() -> None:
    """Arrays larger than the chip's own memory are read and written once; of a table the rows that are taken."""
    from apl_jax.compilation import ENVIRONMENT

    environment = {**os.environ, **ENVIRONMENT, "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", _TRAFFIC], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, side = json.loads(done.stdout.splitlines()[-1]), 8192
    assert found["elementwise"] == 2 * 4 * side**2 and found["product"] == 3 * 2 * side**2
    assert found["gather"] == pytest.approx(2 * 4 * 64 * side, rel=0.01)
