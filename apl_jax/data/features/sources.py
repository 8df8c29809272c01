"""Feature sources: the arrays of a data folder by video, read one at a time and refused when unusable.

A video's features are those of its name, else of that with or without ``v_`` before it (:mod:`apl_jax.data.names`); no
other name is guessed.
Which source a folder needs, :mod:`apl_jax.data.features.folder` finds out.
"""

from __future__ import annotations

import importlib.resources
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apl_jax.data.features import layouts
from apl_jax.data.features.layouts import READERS, words_of
from apl_jax.data.features.limits import AGAIN, Unusable, open_zip
from apl_jax.data.features.manifest import Manifest
from apl_jax.data.features.outliers import LARGEST_VALUE, Outliers
from apl_jax.data.files import DataError, expanded, refusal
from apl_jax.data.grids import TRANSPOSED
from apl_jax.data.names import clean_name, find_recording, nearest
from apl_jax.settings import DataSettings, GridSettings
from apl_jax.text import shown

SYNTHETIC = "synthetic"  # first word of a manifest's source where features are synthetic (data/synthetic.py)
SYNTHETIC_NOTE = "synthetic features, made from the annotations: no score on them is a result"


def embedded_root() -> Path:
    """The folder of the data set inside the package."""
    return Path(str(importlib.resources.files("apl_jax.data.embedded")))


def data_root(settings: DataSettings) -> Path:
    """The folder with annotations and features that the settings mean."""
    return expanded(settings.root) if settings.root else embedded_root()


def transposed_note(source: FeatureSource, settings: GridSettings) -> tuple[str, ...]:
    """A sentence where rows that span their video (``stride`` 0) have ``fixed_length_t`` channels and other rows:
    no duration can tell then that they are ``[D, T]``."""
    rows, channels = source.first_shape or (0, 0)
    if settings.stride or channels != settings.fixed_length_t or rows == channels:
        return ()
    words = f"features of {rows} rows and {channels} channels, as many as `data.fixed_length_t`"
    return (f"{words}: they look transposed, [D, T]; if so, turn them",)


class FeatureSource(ABC):
    """Arrays by video id. ``windowed``: rows already are feature rows, not samples of a raw signal.

    ``ids`` are the names as stored (``v_`` included); ``manifest`` is what features.json says, if there is one;
    ``synthetic``: synthetic features (:mod:`apl_jax.data.synthetic`), on which no score is a result.
    """

    windowed: bool

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = tuple(sorted(ids))
        self.manifest: Manifest | None = None
        self.synthetic = False
        self.outliers: Outliers | None = Outliers()  # of the recordings that were read
        self._stored: dict[str, str] = {}  # by clean name: some systems store names decomposed
        for name in self.ids:
            other = self._stored.setdefault(clean_name(name), name)
            if other != name:
                found = f"{shown(other)} and {shown(name)}, which are one name"
                raise refusal(str(self.place(other)), found, "each recording once", "move one of them away")
        self._first: tuple[str, tuple[int, ...]] | None = None  # the first video read and its shape

    def find(self, video_id: str) -> str | None:
        """The name under which a video is stored: its own, else with or without ``v_`` before it; None when there is
        neither. Spaces around names and how a file system composes accents make no difference."""
        clean = find_recording(video_id, self._stored)
        return None if clean is None else self._stored[clean]

    def read(self, video_id: str) -> np.ndarray:
        """One recording, float32 ``[samples, channels]``, finite and not empty.

        Raises :class:`DataError` for a missing, truncated or foreign file, a wrong shape, NaN or infinite values, and
        a number of channels that differs from the manifest's or the first recording's.
        """
        where = f"{self.place(video_id)}: video {video_id!r}"
        name = self.find(video_id)
        if name is None:
            near = nearest(video_id, self.ids)
            words = f", the nearest name is {shown(near)}" if near else ""
            found = f"no features ({len(self.ids)} videos have some{words})"
            remedy = "add the missing features, rename them, or leave the video out with `data.exclude`"
            raise refusal(where, found, "one array per annotated video", remedy)
        try:
            array = self._load(name)
            layouts.check_rows(array.shape, array.dtype)
        except DataError:
            raise
        except Unusable as unusable:
            raise refusal(where, *unusable.args) from None
        except Exception as error:  # decoders raise anything on damaged bytes
            raise refusal(
                where, f"an unreadable array ({words_of(error)})", "a complete numeric array", AGAIN
            ) from None
        return self._checked(where, video_id, array)

    def _checked(self, where: str, video_id: str, array: np.ndarray) -> np.ndarray:
        if self.manifest is not None and array.shape[1] != self.manifest.width:
            expected = f"width {self.manifest.width} as in {self.manifest.path}"
            remedy = "correct the manifest, or extract this recording again"
            turned = TRANSPOSED if len(array) == self.manifest.width else ""
            raise refusal(where, f"{array.shape[1]} values per row{turned}", expected, remedy)
        self._first = self._first or (video_id, array.shape)
        first, (rows, width) = self._first
        if array.shape[1] != width:
            turned = TRANSPOSED if len(array) == width else ""
            expected, remedy = f"{width} as in video {first!r}", "extract all videos in the same way"
            if len(array) == rows:  # T differs, and D does not
                remedy += "; or, if they are transposed, [D, T], turn them all"
            raise refusal(where, f"{array.shape[1]} channels{turned}", expected, remedy)
        with np.errstate(over="ignore", invalid="ignore"):  # a float64 too large becomes infinite and is refused below
            array = array.astype(np.float32, copy=False)
        if not max(-array.min(), array.max()) <= LARGEST_VALUE:  # NaN is neither
            wrong = ~(np.abs(array) <= LARGEST_VALUE)
            row, channel = np.argwhere(wrong)[0]
            found = f"{array[row, channel]:g} at row {row}, channel {channel} ({int(wrong.sum())} such values)"
            expected = f"finite numbers (float32) of at most {LARGEST_VALUE:g}"
            raise refusal(where, found, expected, "interpolate or re-extract this recording")
        if self.outliers is not None:
            self.outliers.add(video_id, array)
        return array

    @property
    def first_shape(self) -> tuple[int, ...] | None:
        """Samples and channels of the first recording that was read; None before."""
        return self._first and self._first[1]

    @abstractmethod
    def place(self, video_id: str) -> Path:
        """The file that holds, or should hold, the video."""

    @abstractmethod
    def _load(self, name: str) -> np.ndarray:
        """The array stored under a name of ``ids``; raises :class:`Unusable` or whatever its decoder does."""


class SignalArchive(FeatureSource):
    """``signals_*.npz``: raw signals, one array per recording."""

    windowed = False

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._archive: dict[str, tuple[Path, zipfile.ZipFile]] = {}
        for path in self._paths:
            try:
                archive = open_zip(path)
            except DataError:
                raise
            except Exception as error:  # a damaged directory raises more than BadZipFile
                found = f"an unreadable archive ({words_of(error)})"
                raise refusal(str(path), found, "a complete .npz file", AGAIN) from None
            for video in (name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")):
                if video in self._archive:
                    where = f"{path}: video {video!r}"
                    raise refusal(where, f"it also in {self._archive[video][0]}", "each video once", "remove one")
                self._archive[video] = path, archive
        super().__init__(tuple(self._archive))

    def place(self, video_id: str) -> Path:
        name = self.find(video_id)
        return self._archive[name][0] if name is not None else self._paths[0]

    def _load(self, name: str) -> np.ndarray:
        return layouts.read_npz_member(self._archive[name][1], name + ".npy")


class FeatureFolder(FeatureSource):
    """``features/<video>`` with one suffix of :data:`READERS`: ready-made feature rows."""

    windowed = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths = layouts.list_folder(folder)
        self._suffix = next(iter(self._paths.values())).suffix
        super().__init__(tuple(self._paths))

    def place(self, video_id: str) -> Path:
        name = self.find(video_id)
        return self._folder / f"{video_id}{self._suffix}" if name is None else self._paths[name]

    def _load(self, name: str) -> np.ndarray:
        path = self._paths[name]
        return READERS[path.suffix.lower()](path)


class FeatureFile(FeatureSource):
    """``features.h5``: ready-made rows of all videos, a dataset or a group with one dataset for each."""

    windowed = True

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = layouts.open_h5(path)
            super().__init__(layouts.list_h5(self._file))
        except DataError:
            raise
        except Exception as error:  # h5py raises OSError, RuntimeError, KeyError and more on damaged bytes
            found = f"an unreadable file ({words_of(error)})"
            raise refusal(str(path), found, "a complete HDF5 file", AGAIN) from None
        if not self.ids:
            raise refusal(str(path), "no datasets", "one dataset or group per video", AGAIN)

    def place(self, video_id: str) -> Path:
        return self._path

    def _load(self, name: str) -> np.ndarray:
        return layouts.read_h5_dataset(layouts.find_h5_dataset(self._file, name))


class StreamFolders(FeatureSource):
    """Several folders (rgb, flow), each as :class:`FeatureFolder`, joined on channels in the declared order."""

    windowed = True

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self._streams = {name: FeatureFolder(root / name) for name in names}
        first, *others = self._streams.values()
        for stream in self._streams.values():
            stream.outliers = None  # rows are looked at when they are joined
        super().__init__([video for video in first.ids if all(other.find(video) for other in others)])

    def read(self, video_id: str) -> np.ndarray:
        """One recording as :meth:`FeatureSource.read`; streams may differ by one row and are cut to the shorter."""
        arrays = {name: stream.read(video_id) for name, stream in self._streams.items()}
        lengths = {name: len(array) for name, array in arrays.items()}
        where = f"{self.place(video_id)}: video {video_id!r}"
        shortest = min(lengths.values())
        if max(lengths.values()) > shortest + 1:
            found = " and ".join(f"{length} rows in {name}" for name, length in lengths.items())
            remedy = "extract all streams with the same stride and window"
            raise refusal(where, found, "streams that differ by one row at most", remedy)
        return self._checked(where, video_id, np.concatenate([array[:shortest] for array in arrays.values()], axis=1))

    def place(self, video_id: str) -> Path:
        """The file of the first stream, or of the first that lacks the video."""
        streams = tuple(self._streams.values())
        return next((s for s in streams if s.find(video_id) is None), streams[0]).place(video_id)

    def _load(self, name: str) -> np.ndarray:
        return self.read(name)
