"""The whole tree of settings that a run is given, and how configuration files become one.

Only ``runs`` and the entrances (``cli``, the Python API) see the whole; stages and builders are handed their own part.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from apl_jax.data.files import check_regular, expanded
from apl_jax.declarations import (
    Chain,
    Checked,
    Choice,
    SettingsError,
    chain,
    choice,
    from_dict,
    number,
    one_of,
    to_dict,
)
from apl_jax.detectors import without_decoding
from apl_jax.learning.methods import plain_supervised
from apl_jax.registry import DETECTORS, METHODS, SELECTION
from apl_jax.settings import LARGEST_SEED, DataSettings, EvaluationSettings, RuntimeSettings, StageSettings
from apl_jax.text import Refusal, shown

_LARGEST_FILE = 1 << 22  # bytes of a Python file that is a configuration or a plug-in
VARIANTS = ("supervised", "supervised_matched", "semi_supervised")


@dataclass(frozen=True)
class LearningSettings(Checked):
    """The semi-supervised scheme: what each kind of stage minimises and how long, and what becomes a pseudo label."""

    rounds: int = number(1, at_least=1, at_most=1000)  # (pseudo_label -> self_train) repetitions
    pretext: Choice = choice(METHODS, "contrast")  # of pre-training: contrast (ACP) | foreground (SPOT)
    teacher: Choice = choice(METHODS, "supervised")  # of the network that labels
    method: Choice = choice(METHODS, "apl")  # of self-training
    pretrain: StageSettings = field(default_factory=lambda: StageSettings(labelled_batch=0, unlabelled_batch=2))
    supervised: StageSettings = field(default_factory=StageSettings)
    self_train: StageSettings = field(default_factory=lambda: StageSettings(unlabelled_batch=2))
    selection: Chain = chain(SELECTION, "dynamic", "icd")
    labels: str = ""  # JSON with labels of unlabelled recordings, in place of the first round's pseudo labels
    proposals: str = ""  # JSON or CSV with proposals of every recording, in place of those of the detector's generator
    max_proposals: int = number(800, at_least=1, at_most=100_000)  # K, of a recording in that file, the surest
    candidates: str = one_of("ignore", "background")  # what unselected candidates are in training (A14)


@dataclass(frozen=True)
class Settings(Checked):
    """One run, whole."""

    seed: int = number(0, at_least=0, at_most=LARGEST_SEED)  # initialisation, data order, perturbation
    variants: tuple[str, ...] = VARIANTS  # rows of the final table
    detector: Choice = choice(DETECTORS, "actionformer")
    data: DataSettings = field(default_factory=DataSettings)
    learning: LearningSettings = field(default_factory=LearningSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)

    def __post_init__(self) -> None:
        """Refuses, besides what fields declare, unknown variants and none."""
        super().__post_init__()
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown or not self.variants:
            raise SettingsError(f"`variants`: found {shown(self.variants)}, expected some of {', '.join(VARIANTS)}")


def default_settings(settings: Settings) -> Settings:
    """The defaults of the detector, the methods and the selection rules that ``settings`` has chosen."""
    fresh, learning = Settings(), settings.learning
    renew = lambda registry, chosen: Choice(chosen.name, registry[chosen.name].settings())
    selection = Chain(tuple(renew(SELECTION, link) for link in learning.selection.links))
    chosen = {name: renew(METHODS, getattr(learning, name)) for name in ("pretext", "teacher", "method")}
    defaults = dataclasses.replace(fresh.learning, selection=selection, **chosen)
    return dataclasses.replace(fresh, detector=renew(DETECTORS, settings.detector), learning=defaults)


def plain_detector(detector: Choice) -> Choice:
    """The detector of the supervised baselines: as it was published, without what a semi-supervised method adds."""
    return dataclasses.replace(detector, settings=DETECTORS[detector.name].plain(detector.settings))


def plain_method() -> Choice:
    """What the supervised baselines minimise."""
    return Choice("supervised", plain_supervised())


def matched_steps(learning: LearningSettings, with_teacher: bool = True) -> int:
    """Optimiser steps that the semi-supervised variant takes altogether, pre-training included."""
    teacher = learning.supervised.steps if with_teacher else 0
    return learning.pretrain.steps + teacher + learning.rounds * learning.self_train.steps


# Configuration files


def default_config(
    *, detector: str = "actionformer", pretext: str = "contrast", method: str = "apl", selection: tuple[str, ...] = (),
) -> ConfigDict:  # fmt: skip
    """The default settings as a ConfigDict, for configuration files to change; chosen entries bring their defaults."""
    settings = Settings()
    chosen = lambda registry, name: Choice(name, registry[name].settings())
    links = tuple(chosen(SELECTION, name) for name in selection) or settings.learning.selection.links
    learning = dataclasses.replace(
        settings.learning, pretext=chosen(METHODS, pretext), method=chosen(METHODS, method), selection=Chain(links)
    )
    settings = dataclasses.replace(settings, detector=chosen(DETECTORS, detector), learning=learning)
    return to_config(settings)


def to_config(settings: Any) -> ConfigDict:
    """Settings, or a part of them, as a ConfigDict."""
    return ConfigDict(_with_tuples(to_dict(settings)))


def _with_tuples(value: Any) -> Any:
    """JSON types with tuples for lists: a ConfigDict checks the types of what replaces its values."""
    if isinstance(value, dict):
        return {name: _with_tuples(entry) for name, entry in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def to_settings(config: ConfigDict | Mapping[str, Any]) -> Settings:
    """A ConfigDict as settings. Raises :class:`~apl_jax.declarations.SettingsError` for unknown or impossible
    entries."""
    return from_dict(Settings, config.to_dict() if isinstance(config, ConfigDict) else config)


def choose(config: ConfigDict, path: str, name: str) -> ConfigDict:
    """Puts another entry in place of ``config.<path>``, with its defaults, and returns its part of the configuration.

    For configuration files: ``choose(config, "learning.method", "nontarget").positive_weight = 0.5``.
    """
    registry = DETECTORS if path == "detector" else METHODS
    parent, _, last = path.rpartition(".")
    holder: Any = config[parent] if parent else config
    holder[last] = to_config(Choice(name, registry.get(name, f"{path}.name").settings()))
    return holder[last]


def choose_selection(config: ConfigDict, *names: str) -> ConfigDict:
    """Puts another selection chain in place, and returns its part; links that were there keep their settings."""
    old = config.learning.selection
    fresh = to_config(Chain(tuple(Choice(name, SELECTION.get(name).settings()) for name in names)))
    for name in set(names) & set(old):
        fresh[name] = old[name]
    config.learning.selection = fresh
    return fresh


def read_config(name: str) -> Settings:
    """The settings of a configuration: ``spsw:apl`` (one of this package's), or the path of a file with ``get_config``.

    What stands behind the colon is the variant that ``get_config(variant)`` is given; without one it takes its default.
    Raises :class:`~apl_jax.declarations.SettingsError` for a file that is not there or has no ``get_config``.
    """
    file, _, variant = name.rpartition(":") if ":" in name and not Path(name).is_file() else (name, "", "")
    module = _load(_find(file))
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise SettingsError(f"`config`: found {file!r} without a function get_config, expected a configuration file")
    try:
        config = get_config(variant) if variant else get_config()
    except Refusal:
        raise
    except Exception as error:  # whatever the file's own code raises
        raise SettingsError(f"`config`: {file!r} failed with {type(error).__name__}: {error}") from error
    return to_settings(config)


def configurations() -> list[str]:
    """The names of the configurations that this package brings."""
    folder = importlib.resources.files("apl_jax.configs")
    return sorted(p.name.removesuffix(".py") for p in folder.iterdir() if p.name.endswith(".py") and p.name[0] != "_")


def _find(name: str) -> str | Path:
    """The module, or the file, that a configuration's name means."""
    path = expanded(name)
    if path.is_file():
        return path
    if name in configurations():
        return f"apl_jax.configs.{name}"
    known = ", ".join(configurations())
    raise SettingsError(
        f"`config`: found no file {name!r}, expected a path, or one of {known}, with :variant behind it"
    )


def _load(where: str | Path) -> ModuleType:
    if isinstance(where, str):
        return importlib.import_module(where)
    return load_file(where, "configuration")


def load_file(path: Path, what: str) -> ModuleType:
    """A Python file as a module. Raises :class:`~apl_jax.declarations.SettingsError` when it cannot be read."""
    check_regular(path, f"a Python file (`{what}`)", _LARGEST_FILE)
    name = f"apl_jax_{what}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SettingsError(f"`{what}`: found {str(path)!r}, expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Refusal:
        raise
    except Exception as error:  # whatever the file's own code raises
        found = f"{type(error).__name__}: {error}"
        raise SettingsError(f"`{what}`: could not import {str(path)!r} ({found})") from error
    return module


__all__ = [
    "LearningSettings",
    "Settings",
    "choose",
    "choose_selection",
    "configurations",
    "default_config",
    "default_settings",
    "load_file",
    "matched_steps",
    "plain_detector",
    "plain_method",
    "read_config",
    "to_config",
    "to_settings",
    "without_decoding",
]
