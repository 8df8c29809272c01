"""Synthetic features, made from the annotations, with the shape, the timeline and the amount of a real data set.

Whoever has the annotations of a benchmark but not yet its features can so try complete runs on it, at real size. Scores
on them say that everything works and in which order of magnitude time and memory lie, nothing else.

A row is what an extractor's window at its place might give: the prototypes of the classes under it, weighted by how
much of the window they cover (which blurs boundaries), beside background that wanders between prototypes of its own.
To make that neither trivial nor hopeless, prototypes of neighbouring classes share a part, some background resembles
some actions, an instance may be weak, deviates in its own way and leaks into a confusable class, every video has a
scene and a gain, and rows flicker. All sizes are :class:`~apl_jax.settings.SyntheticSettings`.

The annotations of *all* videos go into their features, just as a recording shows what happens in it whether anyone has
annotated it or not. Which annotations *training* sees is the split's matter, here as ever (law 3).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from apl_jax.data.annotations import Annotations, VideoRecord
from apl_jax.data.features.limits import Unusable
from apl_jax.data.features.manifest import Manifest, read_manifest, write_manifest
from apl_jax.data.features.sources import SYNTHETIC, FeatureSource, data_root
from apl_jax.data.files import refusal
from apl_jax.data.grids import build_grid
from apl_jax.data.published import annotation_file, read_published
from apl_jax.declarations import fingerprint
from apl_jax.settings import DataSettings
from apl_jax.structs import TimeGrid

_NUISANCES = 64  # directions that scenes, instances and flicker share
_BLOCK = 256  # rows made at once, few enough to stay in the processor's cache
_BYTE_DEVIATION = np.sqrt((2**16 - 1) / 12)  # of uniform numbers -128 .. 127
_WORLD = 0  # what the numbers of a world are drawn for; videos are keyed by their ids

Follow = Callable[[Sequence[str]], Iterable[str]]


class SyntheticFeatures(FeatureSource):
    """Feature rows made when they are asked for: the same ones every time, in every process and order."""

    windowed = True

    def __init__(self, root: Path, annotations: Annotations, settings: DataSettings) -> None:
        super().__init__(tuple(annotations.videos))
        self.synthetic = True
        self._root, self._annotations, self._settings = root, annotations, settings
        made = settings.synthetic
        draws = _generator(made.seed, _WORLD)
        classes = len(annotations.classes)
        group = np.arange(classes) // made.group
        shared = _directions(draws, group[-1] + 1, made.width)
        blend = lambda common, own: np.sqrt(made.confusion) * common + np.sqrt(1 - made.confusion) * own
        self._classes = blend(shared[group], _directions(draws, classes, made.width))  # [C, D]
        resembled = shared[np.arange(made.backgrounds) % len(shared)]
        self._backgrounds = blend(resembled, _directions(draws, made.backgrounds, made.width))  # [K, D]
        self._nuisances = _directions(draws, _NUISANCES, made.width)  # [_NUISANCES, D]
        self._confusable = [np.flatnonzero((group == group[c]) & (np.arange(classes) != c)) for c in range(classes)]

    def place(self, video_id: str) -> Path:
        """The data folder: no video has a file."""
        return self._root

    def digest(self) -> str:
        """A hash of all that the features are made from: the annotations of every video included."""
        s = self._settings
        videos = [
            [record.id, record.duration_s, record.fps, record.segments_s.tolist(), record.labels.tolist()]
            for record in self._annotations.videos.values()
        ]
        made = dataclasses.replace(s.synthetic, enabled=True)  # the same whether they are written or made on the way
        return fingerprint(made, [s.window, s.stride, s.fixed_length_t], list(self._annotations.classes), videos)

    def _load(self, name: str) -> np.ndarray:
        record, made = self._annotations.videos[name], self._settings.synthetic
        grid = extraction_grid(record, self._settings)
        draws = _generator(made.seed, zlib.crc32(name.encode(errors="surrogateescape")))
        used, coefficients = self._coefficients(draws, record, grid)
        directions = np.concatenate([self._classes[used], self._backgrounds, self._nuisances])
        return _mix(draws, coefficients, directions, made.noise)

    def _coefficients(self, draws: np.random.Generator, record: VideoRecord, grid: TimeGrid):
        """The classes that a video needs, and what each row takes of them, of backgrounds and nuisances: [T, R]."""
        made = self._settings.synthetic
        count, nuisance = len(record.labels), lambda *shape: draws.standard_normal((*shape, _NUISANCES), np.float32) / 8
        strength = draws.uniform(made.weakest, 1, count)
        leak = draws.uniform(0, made.leak, count)
        other = [draws.choice(pool) if len(pool := self._confusable[c]) else c for c in record.labels]
        used, place = np.unique(np.concatenate([record.labels, np.array(other, np.int32)]), return_inverse=True)

        mixture = np.zeros((count, len(used)))  # of classes, by instance
        mixture[np.arange(count), place[:count]] = strength * (1 - leak)
        mixture[np.arange(count), place[count:]] += strength * leak
        covered = coverage(record, grid, made.blur)
        deviation = covered @ (made.instance * strength[:, None] * nuisance(count))
        silence = 1 - covered.max(1, initial=0)[:, None]
        knots = max(2, 1 + round(record.duration_s / made.wander_s))
        background = silence * _wander(draws, grid.length, knots, made.backgrounds, made.backgrounds_spread)
        disturbance = made.scene * nuisance() + made.flicker * nuisance(grid.length)
        rows = np.concatenate([covered @ mixture, background, deviation + disturbance], axis=1)
        return used, (np.exp(made.gain * draws.standard_normal()) * rows).astype(np.float32)


def open_synthetic(root: Path, settings: DataSettings) -> SyntheticFeatures:
    """Synthetic features of all videos that a data folder annotates; raises
    :class:`~apl_jax.data.files.DataError`."""
    return SyntheticFeatures(root, read_published(root, settings), settings)


def extraction_grid(record: VideoRecord, settings: DataSettings) -> TimeGrid:
    """The rows that an extractor would leave of a video: ``1 + (frames - window) // stride``.

    Stride 0, for features that were published at one length: ``fixed_length_t`` rows that span the video.
    Raises :class:`Unusable` for an unknown frame rate, where it matters.
    """
    if settings.stride == 0:
        length = settings.fixed_length_t
        return TimeGrid(1.0, record.duration_s / length, record.duration_s / length, length)
    if not record.fps > 0:
        raise Unusable(f"fps {record.fps:g}", "frames per second", "add fps to its entry in the annotations")
    frames = max(round(record.duration_s * record.fps), settings.window)
    return build_grid(record.fps, frames, settings.window, settings.stride, video=record.id)


def coverage(record: VideoRecord, grid: TimeGrid, blur: float) -> np.ndarray:
    """How much of what each row sees lies in each instance, ``[T, N]`` in [0, 1]; a row sees ``blur`` windows."""
    center_s = grid.to_s(np.arange(grid.length))[:, None]
    half_s = 0.5 * max(blur, 1e-3) * grid.window / grid.fps
    start_s, end_s = record.segments_s.T
    return np.clip((np.minimum(center_s + half_s, end_s) - np.maximum(center_s - half_s, start_s)) / (2 * half_s), 0, 1)


def write_synthetic(
    settings: DataSettings, folder: Path, limit: int | None = None, follow: Follow = lambda videos: videos
) -> int:
    """Writes synthetic features as a data folder and returns how many videos it has features of.

    ``features/<video>.npy`` (float32), a manifest that says that they are synthetic, and copies of the annotation
    files. Files are written beside and renamed, those that are there already are kept: the same command goes on after
    an interruption. ``limit``: only so many videos, to try out how fast a folder is read. ``follow`` hands on the ids
    that are about to be written, one by one (a progress bar).

    Raises :class:`~apl_jax.data.files.DataError` for a folder with other features, and ``OSError``.
    """
    root = data_root(settings)
    source = open_synthetic(root, settings)
    subsets = settings.training_subset.lower(), settings.test_subset.lower()
    videos = [v for v, record in read_published(root, settings).videos.items() if record.subset in subsets][:limit]
    features = folder / "features"
    manifest = Manifest(
        settings.stride, settings.window, settings.synthetic.width, source=f"{SYNTHETIC} {source.digest()}"
    )
    there = read_manifest(folder) if folder.is_dir() else None
    if (there.source if there else "") != manifest.source and (there or features.exists()):
        found = f"features of {there.source or 'an unnamed source'}" if there else "features without a manifest"
        raise refusal(str(folder), found, f"a new folder, or one with those of {manifest.source}", "another `out`")
    features.mkdir(parents=True, exist_ok=True)
    for path in _annotation_files(root, settings):
        if path.resolve().parent != folder.resolve():
            shutil.copyfile(path, folder / path.name)
    write_manifest(folder, manifest)
    for video in follow(videos):
        _write_once(features / f"{video}.npy", lambda video=video: source.read(video))
    return len(videos)


def _annotation_files(root: Path, settings: DataSettings) -> list[Path]:
    """The annotations of a data folder: the JSON file, if there is one, and all tables."""
    path = annotation_file(root, settings.name)
    return [*([path] if path else []), *sorted(root.glob("*.csv"))]


def _write_once(path: Path, make: Callable[[], np.ndarray]) -> None:
    """Saves an array under a name that nothing has yet; never a part of it."""
    if path.exists():
        return
    if path.parent.name != "features":
        raise refusal(f"video {path.name!r}", "a name with a slash", "names that files can have", "rename the video")
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            np.save(file, make(), allow_pickle=False)
        os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):  # after the rename there is none
            beside.unlink()


def _generator(seed: int, key: int) -> np.random.Generator:
    """Numbers for one purpose; SFC64 is the fastest that numpy has."""
    return np.random.Generator(np.random.SFC64([seed, key]))


def _directions(draws: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Random unit vectors ``[count, width]`` float32."""
    values = draws.standard_normal((count, width), np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _wander(draws: np.random.Generator, length: int, knots: int, count: int, spread: float) -> np.ndarray:
    """Mixtures ``[length, count]`` that sum to 1 and change slowly: drawn at ``knots`` times, linear in between."""
    weight = np.exp(spread * draws.standard_normal((knots, count)))
    weight /= weight.sum(1, keepdims=True)
    time = np.linspace(0, knots - 1, length)
    before = np.minimum(time.astype(int), knots - 2)
    share = (time - before)[:, None]
    return (1 - share) * weight[before] + share * weight[before + 1]


def _mix(draws: np.random.Generator, coefficients: np.ndarray, directions: np.ndarray, noise: float) -> np.ndarray:
    """``coefficients [T, R] @ directions [R, D]`` plus white noise: uniform, made of raw words, since normal numbers
    would take several times as long as all the rest (and Generator.bytes twice as long)."""
    rows = np.empty((len(coefficients), directions.shape[1]), np.float32)
    scale = np.float32(noise / np.sqrt(rows.shape[1]) / _BYTE_DEVIATION)
    for first in range(0, len(rows), _BLOCK):
        block = rows[first : first + _BLOCK]
        np.matmul(coefficients[first : first + _BLOCK], directions, out=block)
        words = draws.integers(0, 2**64, -(-block.size // 8), np.uint64)
        block += scale * words.view(np.int8)[: block.size].reshape(block.shape)
    return rows
