"""A trained model as an artefact of its own: ``model.json`` and ``params.safetensors`` in one folder.

``model.json`` says what goes in and what comes out: the detector and its settings, the classes, the grid, the
standardisation, the version, the licence of the data. ``params.safetensors`` holds the averaged parameters by owner and
path. Prediction, export, import and publishing read these two files and nothing else: no optimiser, no run, no data.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save as save_tensors

from apl_jax import __version__
from apl_jax.data.batching import Standardizer
from apl_jax.data.files import DataError, load_json, most_array_bytes, read_bytes, refusal, write_bytes, write_json
from apl_jax.data.names import clean_name
from apl_jax.data.tensors import parse_tensors, read_tensors
from apl_jax.data.values import is_number, is_rate
from apl_jax.declarations import Choice, SettingsError, fingerprint, from_dict, override, to_dict
from apl_jax.detectors import build_detector
from apl_jax.detectors.base import Detector
from apl_jax.devices import build_mesh, enable_compile_cache, place, replicated
from apl_jax.evaluation.detections import predict_batch
from apl_jax.registry import DETECTORS
from apl_jax.settings import GridSettings
from apl_jax.structs import Array, Batch, DataFacts, Detections, PyTree, leaves_by_name, nested
from apl_jax.text import shown

FOLDER, CARD, PARAMETERS = "model", "model.json", "params.safetensors"
FORMAT = 2
OWNER, GENERATOR = "detector", "generator"  # whose parameters prediction needs: the second where proposals are wanted
_FORMER_CARD = "model.json"  # of version 0.1, in the run folder itself
_AGAIN = "copy the folder again, or train again"


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What ``model.json`` says."""

    stage: str  # that trained it
    detector: Choice
    classes: tuple[str, ...]
    feature_width: int  # D
    features: str  # rows (ready-made) | signal (raw, windowed at load)
    grid: GridSettings
    longest_t: int  # grid steps of the longest video that training or evaluation has seen, rounded up
    fps: float | None  # of all training videos, where it is one
    standardizer: Standardizer  # [D]
    prediction_batch: int = 16  # videos that are predicted together
    generator: Choice | None = None  # that makes the proposals which the detector wants
    max_proposals: int | None = None  # of a recording, the surest, where they come from a file in place of a generator
    data: str = ""  # name of the data set
    licence: str = ""  # of the data

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        document = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "standardizer"}
        scale = {"mean": self.standardizer.mean.tolist(), "std": self.standardizer.std.tolist()}
        return {"format": FORMAT, "version": __version__, **to_dict(document), **scale}


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained detector and all that turns recordings into its input; :func:`apl_jax.load_model` opens one."""

    card: ModelCard
    params: PyTree  # averaged, on every device: the detector's, or with a generator those of both by owner
    mesh: Mesh

    @functools.cached_property
    def detector(self) -> Detector:
        """Its pure functions; of a detector that wants proposals, together with the generator that makes them."""
        facts = DataFacts(self.card.feature_width, len(self.card.classes))
        detector = build_detector(self.card.detector, facts)
        if self.card.generator is None:
            return detector
        return with_generator(detector, build_detector(self.card.generator, facts))

    @property
    def wants_proposals(self) -> bool:
        """Whether proposals must be given with the recordings: they are wanted, and there is no generator."""
        return self.card.generator is None and self.detector.facts.wants_proposals

    @functools.cached_property
    def program(self) -> Callable[[PyTree, Batch], Detections]:
        """Detections ``[B, K]`` of whole videos, compiled once for each shape."""
        detector = self.detector
        return jax.jit(lambda params, videos: predict_batch(detector, params, videos))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by label."""
        return self.card.classes

    @property
    def windowed(self) -> bool:
        """Whether it takes ready-made rows; False: raw signals."""
        return self.card.features == "rows"

    def predict(self, recordings: Any, fps: float | None = None, duration_s: float | None = None) -> Any:
        """Detections in one recording ``[T, channels]``, a list or a dict of them; see
        :func:`~apl_jax.inference.arrays.predict_arrays`."""
        from apl_jax.inference.arrays import predict_arrays

        return predict_arrays(self, recordings, fps, duration_s)


def with_generator(detector: Detector, generator: Detector) -> Detector:
    """A detector that wants proposals as one that makes them itself; its parameters are those of both, by owner."""

    def apply(params: PyTree, batch: Batch, key: Array | None) -> Any:
        proposals = generator.decode(generator.apply(params[GENERATOR], batch, None))
        return detector.apply(params[OWNER], dataclasses.replace(batch, proposals=proposals), key)

    return detector._replace(apply=apply)


def write_parameters(folder: Path, params: PyTree) -> None:
    """Writes ``params.safetensors``: parameters by owner, on the host, whole or not at all."""
    leaves = {name: np.asarray(leaf, order="C") for name, leaf in leaves_by_name(params).items()}
    write_bytes(folder / PARAMETERS, save_tensors(leaves))


def read_parameters(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of ``params.safetensors`` by owner and path. Raises :class:`~apl_jax.data.files.DataError`."""
    return read_tensors(folder / PARAMETERS, _AGAIN)


def write_card(folder: Path, card: ModelCard) -> None:
    """Writes ``model.json`` beside the parameters; it holds their hash, and that of the network they belong to."""
    digest, document = hashlib.sha256(_read_bytes(folder / PARAMETERS)).hexdigest(), card.to_json()
    write_json(folder / CARD, document | {"parameters": digest, "network": _network(document)})


def write_model(folder: Path, card: ModelCard, params: PyTree) -> None:
    """Writes a whole artefact; ``params`` by owner, at least ``{"detector": ...}``."""
    write_parameters(folder, params)
    write_card(folder, card)


def open_model(path: Path, stage: str = "") -> Model:
    """Opens a model: its own folder, the folder of a run (then ``stage`` "" is the final variant's), or of a stage.

    Raises :class:`~apl_jax.data.files.DataError` when there is none, when a file is damaged, and when the two do not
    belong together.
    """
    enable_compile_cache()
    folder = model_folder(path, stage)
    document, content = load_json(folder / CARD), _read_bytes(folder / PARAMETERS)
    card = _read_card(folder / CARD, document)
    fine = hashlib.sha256(content).hexdigest() == document.get("parameters")
    if not fine or _network(document) != document.get("network"):
        where = folder / (CARD if fine else PARAMETERS)
        found = (
            "another network than the parameters are of"
            if fine
            else "other parameters than those that model.json was written for"
        )
        raise refusal(str(where), found, "both files of one model", _AGAIN)
    owners, mesh = nested(parse_tensors(folder / PARAMETERS, content, _AGAIN)), build_mesh()
    needed = (OWNER,) if card.generator is None else (OWNER, GENERATOR)
    missing = [name for name in needed if name not in owners]
    if missing:
        found = f"no parameters of {' and '.join(missing)}"
        raise refusal(str(folder / PARAMETERS), found, f"those of {' and '.join(needed)}", _AGAIN)
    params = owners[OWNER] if card.generator is None else {name: owners[name] for name in needed}
    return Model(card, place(params, replicated(mesh)), mesh)


def _network(document: Mapping[str, Any]) -> str:
    """A hash of all in a card that decides which parameters there are; decoding and clocks may be changed by hand."""
    names = "feature_width", "classes", "generator"
    return fingerprint(_undecoded(document.get("detector")), [document.get(name) for name in names])


def _undecoded(detector: Any) -> dict[str, Any]:
    """A detector's entries but for its decoding, and that of the detector which it is made of."""
    entries = {name: value for name, value in dict(detector or {}).items() if name != "decoding"}
    return entries | ({"of": _undecoded(entries["of"])} if isinstance(entries.get("of"), dict) else {})


def read_card(path: Path, stage: str = "") -> ModelCard:
    """What a model's ``model.json`` says, without its parameters; ``path`` and errors as for :func:`open_model`."""
    folder = model_folder(path, stage)
    return _read_card(folder / CARD, load_json(folder / CARD))


def model_folder(path: Path, stage: str = "") -> Path:
    """The folder of the two files that a path means. Raises :class:`~apl_jax.data.files.DataError` with what there
    is."""
    path = path.absolute()
    if (path / PARAMETERS).is_file() and (path / CARD).is_file():
        if stage:
            raise refusal(f"`stage`={stage}", f"{path}, a single model", "the folder of a run", "leave `stage` out")
        return path
    own = path / "stages" / stage / FOLDER if stage else path / FOLDER
    if (own / CARD).is_file():
        return own
    stages = sorted(card.parent.parent.name for card in path.glob(f"stages/*/{FOLDER}/{CARD}"))
    again = "the command of the run again: it skips all stages that are done"
    former = (path / _FORMER_CARD).is_file() and (path / "stages").is_dir()
    if former and not stages:
        found = "a run folder of apl_jax 0.1, whose models are training checkpoints"
        remedy = "train again with this version and another `workdir`, or predict with apl_jax 0.1"
        raise refusal(str(path), found, f"a folder {FOLDER}/ with {CARD} and {PARAMETERS}", remedy)
    if stage or stages:
        found = f"no model of a stage {stage!r}" if stage else "a run that is not finished"
        expected = f"one of {', '.join(stages)}" if stages else "a stage that has ended well"
        raise refusal(f"{path}: `stage`", found, expected, f"one of these, or {again}" if stages else again)
    found = "no such folder" if not path.is_dir() else f"no {FOLDER}/{CARD}"
    raise refusal(str(path), found, "the folder of a model, or of a finished run", "check the path")


def _read_bytes(path: Path) -> bytes:
    return read_bytes(path, "the parameters of a model", most_array_bytes())


def _read_card(path: Path, document: Mapping[str, Any]) -> ModelCard:
    if document.get("format") != FORMAT:
        found = shown(document.get("format"), 40)
        raise refusal(f"{path}: format", found, f"{FORMAT}, as apl_jax {__version__} writes it", _AGAIN)
    _check_numbers(path, document)
    try:
        choice = _read_choice(document["detector"])
        generator = _read_choice(document["generator"]) if document.get("generator") else None
        grid = from_dict(GridSettings, document["grid"], "grid")
    except (SettingsError, KeyError, TypeError) as error:
        known = isinstance(error, SettingsError)
        words = str(error) if known else f"found a damaged entry ({shown(error)}); expected what this version writes."
        remedy = "load the plug-in that registers its detector first" if "no such detector" in words else _AGAIN
        raise DataError(f"{path}: {words} Try: {remedy}.") from None
    standardizer = Standardizer(np.array(document["mean"], np.float32), np.array(document["std"], np.float32))
    plain: dict[str, Any] = {
        n: document[n] for n in ("stage", "features", "feature_width", "longest_t", "fps", "prediction_batch")
    }
    plain["max_proposals"] = document.get("max_proposals")
    plain |= {n: str(document.get(n, "")) for n in ("data", "licence")}
    return ModelCard(
        detector=choice,
        generator=generator,
        grid=grid,
        classes=tuple(document["classes"]),
        standardizer=standardizer,
        **plain,
    )


def _read_choice(document: Mapping[str, Any]) -> Choice:
    """A detector with its settings; what the file leaves out has its default."""
    entry = DETECTORS.get(str(document["name"]), "detector.name")
    values = {name: value for name, value in document.items() if name != "name"}
    return Choice(entry.name, override(entry.settings(), values))


def _check_numbers(path: Path, document: Mapping[str, Any]) -> None:
    """Refuses a card whose plain entries cannot be."""
    width: Any = document.get("feature_width")
    classes: Any = document.get("classes")
    numbers = all(
        isinstance(document.get(name), list) and len(document[name]) == width and all(map(is_number, document[name]))
        for name in ("mean", "std")
    )
    scaled = numbers and max(map(abs, document["mean"] + document["std"]), default=0) <= float(np.finfo(np.float32).max)
    scaled = scaled and np.float32(min(document["std"], default=0)) > 0  # a tiny float64 is 0 to float32
    named = isinstance(classes, list) and bool(classes) and all(isinstance(name, str) for name in classes)
    named = named and len(set(map(clean_name, classes))) == len(classes)
    clock = "fps" in document and (document["fps"] is None or is_rate(document["fps"]))
    counts = [document.get(name) for name in ("longest_t", "prediction_batch", "feature_width")]
    counts += [] if document.get("max_proposals") is None else [document["max_proposals"]]
    counted = all(type(count) is int and count > 0 for count in counts)
    texts = isinstance(document.get("stage"), str) and document.get("features") in ("rows", "signal")
    if not (scaled and named and clock and counted and texts):
        expected = "stage, classes (each once), feature_width, features, longest_t, fps, mean and std (above 0)"
        raise refusal(str(path), "a damaged file", expected, _AGAIN)


def describe(card: ModelCard) -> str:
    """One line about a model."""
    return (
        f"{card.detector.name}, {len(card.classes)} classes, {card.feature_width} features per row, stage {card.stage}"
    )


__all__ = ["Model", "ModelCard", "describe", "open_model", "read_card", "read_parameters", "write_card",
           "write_model", "write_parameters"]  # fmt: skip
