"""Features that somebody hands over to be predicted: one file, a folder of files, or a whole data folder.

The data folder of training (:mod:`apl_jax.data.features.folder`) has a fixed tree, and annotations that say which of
its videos count. Here there may be nothing but ``walk.npy``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from apl_jax.data.features import layouts
from apl_jax.data.features.folder import open_folder
from apl_jax.data.features.layouts import READERS, words_of
from apl_jax.data.features.limits import AGAIN, open_zip
from apl_jax.data.features.manifest import check_settings, read_manifest
from apl_jax.data.features.sources import FeatureFile, FeatureSource
from apl_jax.data.files import DataError, expanded, refusal
from apl_jax.settings import GridSettings

_H5 = (".h5", ".hdf5")
_NAMED = ("feats", "features")  # the array of a video, beside others that are not
_NAMELESS = (*_NAMED, "arr_0")  # names that say nothing about the recording


class LooseFiles(FeatureSource):
    """Files by video, of one of the suffixes :data:`READERS`; of an archive perhaps several arrays, one per video."""

    def __init__(self, arrays: Mapping[str, tuple[Path, str]], windowed: bool) -> None:
        self._arrays = dict(arrays)  # video -> its file, and the member of an archive or ""
        self.windowed = windowed
        super().__init__(tuple(self._arrays))

    def place(self, video_id: str) -> Path:
        name = self.find(video_id)
        return next(iter(self._arrays.values()))[0] if name is None else self._arrays[name][0]

    def _load(self, name: str) -> np.ndarray:
        path, member = self._arrays[name]
        if not member:
            return READERS[path.suffix.lower()](path)
        with open_zip(path) as archive:
            return layouts.read_npz_member(archive, f"{member}.npy")


def open_loose(path: str | Path, settings: GridSettings, windowed: bool) -> FeatureSource:
    """What can be predicted at ``path``; ``windowed``: the files hold feature rows, not samples of a raw signal.

    A folder in the tree of :func:`~apl_jax.data.features.folder.open_folder` is read as that. Otherwise each .npy, .csv
    or .h5 file is a video of its name, and so is a .npz with one array (or one named feats or features); of a .npz with
    several, and of raw signals also with one, each array is a recording of the array's own name. ``features.json``
    beside the files is held against the settings. Raises :class:`~apl_jax.data.files.DataError`.
    """
    path = expanded(path)
    if not path.exists():
        raise refusal(f"`features={path}`", "no such file or folder", "features to predict on", "check the path")
    if path.is_dir():
        streams = tuple(name for name in settings.streams if (path / name).is_dir())
        tree = any(path.glob("signals_*.npz")) or (path / "features").is_dir()
        tree |= any((path / f"features{suffix}").is_file() for suffix in _H5)
        if streams or tree:
            declared = settings.streams if streams else ()
            return _same_kind(open_folder(path, dataclasses.replace(settings, streams=declared)), path, windowed)
        files = sorted(layouts.list_folder(path).values())
    else:
        layouts.refuse_pickles([path])
        files = [path]
        if path.suffix.lower() not in READERS:
            found = f"a file that ends in {path.suffix!r}"
            raise refusal(str(path), found, ", ".join(READERS), "convert it, for instance with numpy.save")
        if path.suffix.lower() in _H5 and _holds_videos(path):
            source = FeatureFile(path)
            source.windowed = windowed
            return source
    source = LooseFiles(_list_arrays(files, windowed), windowed)
    folder = path if path.is_dir() else path.parent
    manifest = read_manifest(folder.parent if folder.name == "features" else folder)
    if manifest is not None and windowed:
        check_settings(manifest, settings)
        source.manifest = manifest
    return source


def _same_kind(source: FeatureSource, path: Path, windowed: bool) -> FeatureSource:
    kinds = {True: "ready-made feature rows", False: "raw signals"}
    if source.windowed != windowed:
        raise refusal(str(path), kinds[source.windowed], f"{kinds[windowed]}, as in training", "the other files")
    return source


def _list_arrays(files: list[Path], windowed: bool) -> dict[str, tuple[Path, str]]:
    """Videos of loose files: where each is."""
    arrays: dict[str, tuple[Path, str]] = {}
    for path in files:
        members = _members(path) if path.suffix.lower() == ".npz" else []
        own = len(members) > 1 and not any(name in _NAMED for name in members)
        own |= len(members) == 1 and not windowed and members[0] not in _NAMELESS
        for video, member in [(name, name) for name in members] if own else [(path.stem, "")]:
            if video in arrays:
                where = f"{path}: video {video!r}"
                raise refusal(where, f"it also in {arrays[video][0]}", "each video once", "rename or remove one")
            arrays[video] = path, member
    return arrays


def _members(path: Path) -> list[str]:
    """Names of the arrays in a .npz."""
    try:
        with open_zip(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except DataError:
        raise
    except Exception as error:  # a damaged directory raises more than BadZipFile
        raise refusal(str(path), f"an unreadable archive ({words_of(error)})", "a complete .npz file", AGAIN) from None
    if not names:
        raise refusal(str(path), "an archive without arrays", "at least one .npy in it", AGAIN)
    return names


def _holds_videos(path: Path) -> bool:
    """Whether an HDF5 file is the ``features.h5`` of many videos, and not one video's."""
    try:
        with layouts.open_h5(path) as file:
            names = layouts.list_h5(file)
    except DataError:
        raise
    except Exception as error:  # h5py raises OSError, RuntimeError, KeyError and more on damaged bytes
        raise refusal(str(path), f"an unreadable file ({words_of(error)})", "a complete HDF5 file", AGAIN) from None
    return path.stem == "features" or (len(names) > 1 and not any(name in _NAMED for name in names))
