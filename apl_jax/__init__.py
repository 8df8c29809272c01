"""Semi-supervised temporal action localisation by adaptive pseudo-label learning, in JAX and Flax.

    import apl_jax as apl

    data = apl.load_dataset("spsw", label_ratio=0.1)
    run = apl.train("spsw:apl", data=data, workdir="runs/spsw")
    print(run.table())
    model = apl.load_model("runs/spsw")

Names are imported when they are first used: ``import apl_jax`` itself is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from apl_jax import detectors, ops
    from apl_jax.api import (
        Data,
        Evaluation,
        PseudoLabel,
        Run,
        evaluate,
        load_dataset,
        load_model,
        load_run,
        train,
    )
    from apl_jax.configuration.configure import configure
    from apl_jax.data.files import DataError
    from apl_jax.declarations import Checked, SettingsError, number, numbers, one_of
    from apl_jax.detectors import register_detector
    from apl_jax.evaluation.average_precision import Instances, average_precision
    from apl_jax.inference.arrays import Detection
    from apl_jax.inference.model import Model
    from apl_jax.learning import register_method, register_selection
    from apl_jax.runs.plugins import load_plugin
    from apl_jax.runs.settings import choose, choose_selection, default_config, read_config

_WHERE = {
    "api": (
        "Data", "Evaluation", "PseudoLabel", "Run", "evaluate", "load_dataset", "load_model", "load_run", "train",
    ),
    "configuration.configure": ("configure",),
    "data.files": ("DataError",),
    "declarations": ("Checked", "SettingsError", "number", "numbers", "one_of"),
    "detectors": ("register_detector",),
    "evaluation.average_precision": ("Instances", "average_precision"),
    "inference.arrays": ("Detection",),
    "inference.model": ("Model",),
    "learning": ("register_method", "register_selection"),
    "runs.plugins": ("load_plugin",),
    "runs.settings": ("choose", "choose_selection", "default_config", "read_config"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}
_ROOMS = ("detectors", "ops")

__all__ = [
    "Checked",
    "Data",
    "DataError",
    "Detection",
    "Evaluation",
    "Instances",
    "Model",
    "PseudoLabel",
    "Run",
    "SettingsError",
    "__version__",
    "average_precision",
    "choose",
    "choose_selection",
    "configure",
    "default_config",
    "detectors",
    "evaluate",
    "load_dataset",
    "load_model",
    "load_plugin",
    "load_run",
    "number",
    "numbers",
    "one_of",
    "ops",
    "read_config",
    "register_detector",
    "register_method",
    "register_selection",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"apl_jax.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'apl_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"apl_jax.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
