"""What the rules of a configuration read of a data set: durations and feature rows of all recordings, instances of the
labelled ones only.

Lengths, counts and classes of unlabelled recordings stay out of reach: :func:`read_facts` takes them from the split's
labelled recordings, and from nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apl_jax.data.annotations import VideoRecord
from apl_jax.data.dataset import open_truth
from apl_jax.data.features.folder import open_features
from apl_jax.data.features.manifest import read_manifest
from apl_jax.data.features.sources import FeatureSource, data_root
from apl_jax.data.files import refusal
from apl_jax.data.splits import build_split
from apl_jax.declarations import fingerprint
from apl_jax.settings import DataSettings

LAG_ROWS = 1  # between the neighbours whose correlation is measured
_STATISTICS = 64  # recordings, evenly taken, whose columns are looked at
_ROUND = 0.05  # by which a stride may differ from a whole number of samples, and still is that number

Follow = Callable[[Sequence[VideoRecord]], Iterable[VideoRecord]]


@dataclass(frozen=True, eq=False)
class Facts:
    """A data set in numbers; V recordings, N labelled instances, C classes."""

    name: str
    root: Path
    classes: int  # C, of all annotations: names are no secret
    labelled: int  # recordings that show their labels
    training: int  # labelled and unlabelled recordings
    samples: np.ndarray  # [V] stored rows, or samples of a signal, of training and evaluated recordings
    fps: float  # frames, or samples of a signal, per second; 0: none is annotated
    rates: int  # different rates among the recordings
    windowed: bool  # stored as feature rows; False: as signals
    stride: int  # of stored rows, in frames; 1 for signals
    window: int  # of stored rows, in frames, 0: nobody says; 1 for signals
    columns: int  # stored channels
    constant: int  # of these, channels that never change
    neighbours: float  # correlation of a stored row with the next, mean over channels; nan: no channel changes
    lengths_s: np.ndarray  # [N] labelled instances
    class_counts: np.ndarray  # [C]
    most_instances: int  # of one labelled recording
    covered: float  # share of labelled time with an instance
    concurrent: float  # share of that time with several
    digest: str  # of all of the above

    @property
    def row_s(self) -> float:
        """Seconds from one stored row, or sample, to the next."""
        return self.stride / self.fps

    @property
    def instances(self) -> int:
        """N."""
        return len(self.lengths_s)


def read_facts(data: DataSettings, follow: Follow = lambda records: records) -> Facts:
    """Reads annotations, and the features of all recordings that a run would use.

    ``data.window``, ``data.stride`` and ``data.features`` are not read: they are to be found. ``follow`` hands on the
    recordings one by one (a progress bar). Raises :class:`~apl_jax.data.files.DataError` as a run would, and where no
    labelled recording shows an instance.
    """
    annotations, root = open_truth(data), data_root(data)
    split = build_split(open_truth(data, named=True), data)
    source = _open_as_stored(data)
    training = [annotations.videos[video] for video in (*split.labelled, *split.unlabelled)]
    records = [*training, *(annotations.videos[video] for video in split.evaluation)]
    labelled = [annotations.videos[video] for video in split.labelled]
    samples, columns, constant, neighbours = _read_arrays(records, source, follow)
    durations = np.array([record.duration_s for record in records])
    rates = sorted({record.fps for record in records})
    fps = float(np.median([record.fps for record in records]))
    stride, window = _stored_clock(source, fps, samples, durations)
    if not fps:  # one row is one frame then
        fps = float(np.median(samples / durations))
    lengths = np.concatenate([np.zeros(0), *(_lengths_s(record) for record in labelled)])
    if not len(lengths):
        found, remedy = "no instance in any labelled recording", "annotate some, or another `data.split_seed`"
        raise refusal(str(root), found, "instances, from which a configuration follows", remedy)
    labels = np.concatenate([record.labels[~record.ignore] for record in labelled]).astype(np.int64)
    covered, concurrent = _coverage(labelled)
    numbers = {
        "labelled": len(labelled), "training": len(training), "fps": fps, "rates": len(rates),
        "windowed": source.windowed, "stride": stride, "window": window, "columns": columns, "constant": constant,
        "neighbours": round(neighbours, 4), "most_instances": max(int((~r.ignore).sum()) for r in labelled),
        "covered": covered, "concurrent": concurrent, "classes": len(annotations.classes),
    }  # fmt: skip
    tables = {
        "samples": samples, "lengths_s": lengths,
        "class_counts": np.bincount(labels, minlength=len(annotations.classes)),
    }  # fmt: skip
    digest = fingerprint(numbers, {name: table.tolist() for name, table in tables.items()})
    return Facts(name=data.name, root=root, digest=digest, **numbers, **tables)


def _open_as_stored(data: DataSettings) -> FeatureSource:
    """The features, whatever ``data`` says of their window and stride."""
    manifest = read_manifest(data_root(data))
    data = dataclasses.replace(data, features="stored")
    if manifest is not None:
        data = dataclasses.replace(data, window=manifest.window, stride=manifest.stride)
    return open_features(data)


def _read_arrays(
    records: Sequence[VideoRecord], source: FeatureSource, follow: Follow
) -> tuple[np.ndarray, int, int, float]:
    """Samples of each recording ``[V]``, channels, channels that never change, and how alike neighbours are."""
    samples, columns, looked_at = [], 0, []
    every = max(len(records) // _STATISTICS, 1)
    for i, record in enumerate(follow(records)):
        array = source.read(record.id)
        samples.append(len(array))
        columns = array.shape[1]
        if i % every == 0:
            looked_at.append(array)
    joined = np.concatenate(looked_at)
    deviation = joined.std(0, dtype=np.float64)
    changing = deviation > 1e-6 * np.maximum(np.abs(joined).max(0), 1)
    neighbours = math.nan
    if changing.any():
        scaled = [((a - joined.mean(0)) / np.where(changing, deviation, 1))[:, changing] for a in looked_at]
        products = [a[:-LAG_ROWS] * a[LAG_ROWS:] for a in scaled if len(a) > LAG_ROWS]
        neighbours = float(np.concatenate(products).mean()) if products else math.nan
    return np.array(samples, np.int64), columns, int((~changing).sum()), neighbours


def _stored_clock(source: FeatureSource, fps: float, samples: np.ndarray, durations_s: np.ndarray) -> tuple[int, int]:
    """Stride and window of what is stored, in frames: as ``features.json`` says, else the whole number of frames that
    durations and rows agree on; a window of 0 where nobody says."""
    if not source.windowed:
        return 1, 1
    if source.manifest is not None and source.manifest.stride:
        return source.manifest.stride, source.manifest.window
    if not fps:
        return 1, 1
    frames = float(np.median(durations_s * fps / samples))
    stride = max(round(frames), 1)
    if abs(frames - stride) > _ROUND * stride:
        found = f"{frames:.3g} frames for each row of features at {fps:g} frames per second"
        remedy = "`data.fps`, the rate at which features were extracted, or a features.json beside them"
        raise refusal("`data.stride`", found, "a whole number of frames", remedy)
    return stride, 1 if stride == 1 else 0


def _lengths_s(record: VideoRecord) -> np.ndarray:
    return np.diff(record.segments_s[~record.ignore])[:, 0]


def _coverage(records: Sequence[VideoRecord]) -> tuple[float, float]:
    """The share of the recordings' time that lies in an instance, and the share of that in several."""
    total = covered = concurrent = 0.0
    for record in records:
        segments = record.segments_s[~record.ignore]
        total += record.duration_s
        edges = np.unique(np.clip(segments, 0, record.duration_s))
        middles, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
        inside = ((segments[:, :1] <= middles) & (middles < segments[:, 1:])).sum(0)
        covered += float(widths[inside > 0].sum())
        concurrent += float(widths[inside > 1].sum())
    return covered / total, concurrent / covered if covered else 0.0
