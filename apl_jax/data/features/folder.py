"""The features of a data folder, in whichever of the published layouts they are.

One layout per folder. ``signals_*.npz``: raw signals, one array ``[samples, channels]`` per recording, windowed at
load. ``features/<video>`` as .npy, .npz, .csv, .h5; ``features.h5`` with all videos; or the folders of
``settings.streams``, joined on channels: rows ``[T, D]`` that were extracted elsewhere with the window and stride of
the settings (in frames), which ``features.json`` (:mod:`apl_jax.data.features.manifest`) can state. Only plain numeric
arrays: pickles are never opened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from apl_jax.data.features import layouts
from apl_jax.data.features.manifest import Manifest, check_settings, read_manifest
from apl_jax.data.features.sources import (
    SYNTHETIC,
    FeatureFile,
    FeatureFolder,
    FeatureSource,
    SignalArchive,
    StreamFolders,
    data_root,
)
from apl_jax.data.files import DataError, expanded, refusal
from apl_jax.data.synthetic import open_synthetic
from apl_jax.settings import DataSettings, GridSettings


def open_features(settings: DataSettings) -> FeatureSource:
    """The features of the data set that the settings mean: made from its annotations where they ask for synthetic
    ones, else read from its folder. Raises :class:`DataError` as :func:`open_folder`."""
    root = data_root(settings)
    if settings.synthetic.enabled and root.is_dir():
        return open_synthetic(root, settings)
    return open_folder(root, settings)


def open_folder(root: Path, grid: GridSettings) -> FeatureSource:
    """The features in a data folder.

    Raises :class:`DataError` when the folder is missing, holds no features, several layouts, pickles or streams that
    are not declared, and when its ``features.json`` contradicts the settings.
    """
    root = expanded(root)
    if not root.is_dir():
        raise refusal(f"`data.root={root}`", "no such folder", "a data folder", "check the path")
    manifest = read_manifest(root)
    source = _open_streams(root, grid.streams) if grid.streams else _open_layout(root, manifest)
    if manifest is not None:
        if not source.windowed:
            found = "a manifest of feature rows beside raw signals"
            raise refusal(
                str(manifest.path), found, "either", "move it away; window and stride of signals are settings"
            )
        as_signal = grid.features == "signal"
        manifest = _of_signal(manifest) if as_signal else manifest
        if not as_signal:
            check_settings(manifest, grid)
        source.manifest = manifest
        source.synthetic = manifest.source.startswith(SYNTHETIC)
    if grid.features == "signal":
        source.windowed = False
    return source


def _of_signal(manifest: Manifest) -> Manifest:
    """What a manifest says of rows that are windowed like a signal: their width, for their clock is the settings'.

    Raises :class:`DataError` for rows that see more, or less, than a stride: they are no samples.
    """
    if manifest.stride != manifest.window:
        found = f"rows of {manifest.window} frames, {manifest.stride} frames apart"
        expected = "as many frames a row as between rows, for `data.features=signal`"
        raise refusal(str(manifest.path), found, expected, "`data.features=stored`")
    return dataclasses.replace(manifest, fps=None)


def _open_layout(root: Path, manifest: Manifest | None) -> FeatureSource:
    """The one layout that a folder without declared streams holds."""
    archives, folder = sorted(root.glob("signals_*.npz")), root / "features"
    files = [path for path in (root / "features.h5", root / "features.hdf5") if path.is_file()]
    streams = tuple(name for name in ("rgb", "flow") if (root / name).is_dir())
    if streams:
        order = manifest.order if manifest and manifest.order else streams
        found = " and ".join(f"{name}/" for name in streams) + ", which are not declared"
        expected = "their order on the channels"
        raise refusal(str(root), found, expected, f'`data.streams="{order}"`, or move them away')
    present = [path.name for path in archives[:1]] + ["features/"] * folder.is_dir() + [path.name for path in files]
    if len(present) > 1:
        raise refusal(str(root), " and ".join(present), "one of them", "move the other away")
    if archives:
        return SignalArchive(archives)
    if files:
        return FeatureFile(files[0])
    if folder.is_dir():
        return FeatureFolder(folder)
    layouts.refuse_pickles(sorted(path for path in root.iterdir() if path.stem.startswith("features")))
    raise DataError(
        f"{root}: found no features; expected signals_*.npz (raw signals), or feature rows in features/<video>.npy "
        "(.npz, .csv, .h5) or features.h5. Try: `data.root=<folder that holds them>`."
    )


def _open_streams(root: Path, names: Sequence[str]) -> FeatureSource:
    """The declared folders of streams."""
    where = "`data.streams`"
    for name in names:
        inside = (
            isinstance(name, str) and name and not PurePosixPath(name).is_absolute() and ".." not in name.split("/")
        )
        if not inside or names.count(name) > 1:
            raise refusal(where, f"{name!r}", "folders within the data folder, each once", "\"('rgb', 'flow')\"")
        if not (root / name).is_dir():
            folders = ", ".join(sorted(f"{path.name}/" for path in root.iterdir() if path.is_dir())) or "no folders"
            raise refusal(f"{root}: {where}", folders, f"{name}/", "correct the names of the streams")
    return StreamFolders(root, names)
