"""Feature files: raw signals or ready-made feature rows, read one video at a time and refused when unusable.

Two layouts of a data folder. ``signals_*.npz``: raw signals, one array ``[samples, channels]`` per recording, windowed
at load. ``features/<video>.npy``: rows ``[T, D]`` that were extracted elsewhere with the window and stride of the
settings (in frames). Only plain numeric arrays: pickles are never opened.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.resources
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from apl_jax.data.files import DataError, refusal
from apl_jax.settings import DataSettings

_EDGE_BYTES = 65536  # of each file of a features/ folder that enter its digest, from either end
_UNREADABLE = (OSError, EOFError, ValueError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)
_AGAIN = "copy or extract the file again; it may be incomplete"


def embedded_root() -> Path:
    """The folder of the data set inside the package."""
    return Path(str(importlib.resources.files("apl_jax.data.embedded")))


def data_root(settings: DataSettings) -> Path:
    """The folder with annotations and features that the settings mean."""
    return Path(settings.root).expanduser() if settings.root else embedded_root()


class FeatureSource(ABC):
    """Arrays by video id. ``windowed``: rows already are feature rows, not samples of a raw signal."""

    windowed: bool

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = tuple(sorted(ids))
        self._known = frozenset(self.ids)
        self._width: tuple[str, int] | None = None  # the first video read and its channels

    def read(self, video_id: str) -> np.ndarray:
        """One recording, float32 ``[samples, channels]``, finite and not empty.

        Raises :class:`DataError` for a missing, truncated or foreign file, a wrong shape, NaN or infinite values, and
        a number of channels that differs from the first recording read.
        """
        where = f"{self.place(video_id)}: video {video_id!r}"
        if video_id not in self._known:
            near = difflib.get_close_matches(video_id, self.ids, 1)
            hint = f", the nearest name is {near[0]!r}" if near else ""
            found = f"no features ({len(self.ids)} videos have some{hint})"
            remedy = "add the missing features, or leave the video out of the annotations"
            raise refusal(where, found, "one array per annotated video", remedy)
        try:
            with self._open(video_id) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
        except _UNREADABLE as error:
            if "Object arrays" in str(error):
                found, remedy = "an array of Python objects, which is never loaded", "save it as a float array"
            else:
                found, remedy = f"an unreadable array ({error or type(error).__name__})", _AGAIN
            raise refusal(where, found, "a complete numeric .npy array", remedy) from None
        return self._checked(where, video_id, array)

    def _checked(self, where: str, video_id: str, array: np.ndarray) -> np.ndarray:
        if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiu":
            found = f"shape {list(array.shape)}, {array.dtype}"
            raise refusal(where, found, "real numbers [samples, channels], at least 1 x 1", "re-extract this recording")
        self._width = self._width or (video_id, array.shape[1])
        if array.shape[1] != self._width[1]:
            expected = f"{self._width[1]} as in video {self._width[0]!r}"
            raise refusal(where, f"{array.shape[1]} channels", expected, "extract all videos in the same way")
        with np.errstate(over="ignore"):  # a float64 too large becomes infinite and is refused below
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            row, channel = np.argwhere(~np.isfinite(array))[0]
            count = int((~np.isfinite(array)).sum())
            found = f"{array[row, channel]} at row {row}, channel {channel} ({count} such values)"
            raise refusal(where, found, "finite numbers (float32)", "interpolate or re-extract this recording")
        return array

    @abstractmethod
    def place(self, video_id: str) -> Path:
        """The file that holds, or should hold, the video."""

    @abstractmethod
    def digest(self) -> str:
        """A hash that changes when the files do."""

    @abstractmethod
    def _open(self, video_id: str) -> IO[bytes]: ...


class SignalArchive(FeatureSource):
    """``signals_*.npz``: raw signals, one array per recording."""

    windowed = False

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._archive: dict[str, tuple[Path, zipfile.ZipFile]] = {}
        for path in self._paths:
            try:
                archive = zipfile.ZipFile(path)
            except (OSError, zipfile.BadZipFile) as error:
                raise refusal(str(path), f"an unreadable archive ({error})", "a complete .npz file", _AGAIN) from None
            for video in (name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")):
                if video in self._archive:
                    where = f"{path}: video {video!r}"
                    raise refusal(where, f"it also in {self._archive[video][0]}", "each video once", "remove one")
                self._archive[video] = path, archive
        super().__init__(tuple(self._archive))

    def place(self, video_id: str) -> Path:
        return self._archive[video_id][0] if video_id in self._archive else self._paths[0]

    def digest(self) -> str:
        """Hash of all bytes."""
        total = hashlib.sha256()
        for path in self._paths:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()[:16]

    def _open(self, video_id: str) -> IO[bytes]:
        return self._archive[video_id][1].open(video_id + ".npy")


class FeatureFolder(FeatureSource):
    """``features/<video>.npy``: ready-made feature rows."""

    windowed = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        super().__init__([path.name.removesuffix(".npy") for path in folder.glob("*.npy")])

    def place(self, video_id: str) -> Path:
        return self._folder / f"{video_id}.npy"

    def digest(self) -> str:
        """Hash of names, sizes and the first and last 64 KiB of each file: benchmarks hold tens of gigabytes."""
        total = hashlib.sha256()
        for video in self.ids:
            size = self.place(video).stat().st_size
            total.update(f"{video}\0{size}\0".encode())
            with self.place(video).open("rb") as file:
                total.update(file.read(_EDGE_BYTES))
                file.seek(max(0, size - _EDGE_BYTES))
                total.update(file.read(_EDGE_BYTES))
        return total.hexdigest()[:16]

    def _open(self, video_id: str) -> IO[bytes]:
        return self.place(video_id).open("rb")


def open_features(root: Path | None, settings: DataSettings) -> FeatureSource:
    """The features of a data folder; ``root`` None means ``settings.root``, else the embedded data set.

    Raises :class:`DataError` when the folder is missing, holds no features, or holds both layouts.
    """
    root = Path(root).expanduser() if root is not None else data_root(settings)
    if not root.is_dir():
        raise refusal(f"--config.data.root={root}", "no such folder", "a data folder", "check the path")
    archives, folder = sorted(root.glob("signals_*.npz")), root / "features"
    if archives and folder.is_dir():
        raise refusal(str(root), f"{archives[0].name} and {folder.name}/", "one of them", "move the other away")
    if archives:
        return SignalArchive(archives)
    if any(folder.glob("*.npy")):
        return FeatureFolder(folder)
    raise DataError(
        f"{root}: found no features; expected signals_*.npz (raw signals) or features/<video>.npy (feature rows). "
        "Try: --config.data.root=<folder that holds them>."
    )
