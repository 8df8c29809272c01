"""``features.json``: what the extractor of a folder of features says about them, held against settings and files.

``{"stride": frames, "window": frames, "width": D, "fps": number or null for "per video", "order": [streams],
"source": text}``; the last three may be absent. Features that were extracted in another way than the settings assume
shift every instance in time without any error (spec 8, row 11).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apl_jax.data.annotations import VideoRecord
from apl_jax.data.files import load_json, refusal, write_json
from apl_jax.data.values import is_rate
from apl_jax.settings import GridSettings

MANIFEST = "features.json"
_KEYS = ("stride", "window", "width", "fps", "order", "source")
_RATE_TOLERANCE = 5e-4  # 30000/1001 is written 29.97; 30 for 29.97 drifts by a second in a quarter of an hour


@dataclass(frozen=True)
class Manifest:
    """How a folder of feature rows was extracted."""

    stride: int  # frames between rows; 0: rows span the video, however many there are
    window: int  # frames per row
    width: int  # D, of all streams together
    fps: float | None = None  # frames per second that stride and window count; None: each video's own
    order: tuple[str, ...] = ()  # streams by channel; empty: not said
    source: str = ""  # network, weights, who extracted: free text
    path: Path = field(default=Path(MANIFEST), compare=False)  # where it was read, for messages


def read_manifest(root: Path) -> Manifest | None:
    """The manifest of a data folder, None when it has none.

    Raises :class:`~apl_jax.data.files.DataError` for broken JSON, unknown or missing keys and impossible values.
    """
    path = root / MANIFEST
    if not path.exists() and not path.is_symlink():
        return None
    document = load_json(path)
    for key in document:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            remedy = f"rename it to {near[0]!r}" if near else "remove it"
            raise refusal(f"{path}: {key}", f"an unknown key {key!r}", f"keys of {', '.join(_KEYS)}", remedy)
    stride = _count(path, document, "stride", 0)
    window, width = (_count(path, document, key) for key in ("window", "width"))
    fps, order, source = document.get("fps"), document.get("order", []), document.get("source", "")
    if fps is not None and not is_rate(fps):
        expected = "a positive number, or null for each video's own (rates are 0.001 to 1e6)"
        raise refusal(f"{path}: fps", f"{fps!r}"[:60], expected, "correct it")
    if not isinstance(order, list) or not all(isinstance(s, str) and s for s in order) or len(set(order)) < len(order):
        raise refusal(f"{path}: order", f"{order!r}"[:60], 'streams, each once, such as ["rgb", "flow"]', "correct it")
    if not isinstance(source, str):
        raise refusal(f"{path}: source", f"{source!r}"[:60], "text", "correct it, or leave it out")
    return Manifest(stride, window, width, None if fps is None else float(fps), tuple(order), source, path)


def write_manifest(root: str | Path, manifest: Manifest) -> Path:
    """Writes ``features.json`` into a data folder, beside and renamed, and returns its path; ``OSError`` if it cannot.

    Streams that are not said and an empty source are left out; ``fps`` is always written.
    """
    path = Path(root) / MANIFEST
    document: dict[str, Any] = {"fps": manifest.fps, "stride": manifest.stride, "window": manifest.window}
    document["width"] = manifest.width
    if manifest.order:
        document["order"] = list(manifest.order)
    if manifest.source:
        document["source"] = manifest.source
    write_json(path, document)
    return path


def check_settings(manifest: Manifest, settings: GridSettings) -> None:
    """Raises :class:`~apl_jax.data.files.DataError` when stride, window or the order of streams are not the settings'.

    ``order`` of features that already are one array per video only says what their channels are.
    """
    if (manifest.stride, manifest.window) != (settings.stride, settings.window):
        raise refusal(
            f"{manifest.path}: stride, window",
            f"stride {manifest.stride}, window {manifest.window} frames",
            f"stride {settings.stride}, window {settings.window} as in `data.stride`, `data.window`",
            f"`data.stride={manifest.stride}` `data.window={manifest.window}`",
        )
    if manifest.order and settings.streams and manifest.order != settings.streams:
        where = f"{manifest.path}: order"
        expected = f"{list(settings.streams)} as in `data.streams`"
        raise refusal(where, f"{list(manifest.order)}", expected, f'`data.streams="{manifest.order}"`')


def check_clock(manifest: Manifest, record: VideoRecord) -> None:
    """Raises :class:`~apl_jax.data.files.DataError` when a video's frame rate is not the manifest's (within 0.05 %).

    Passes when either states none.
    """
    if manifest.fps is None or not record.fps:
        return
    if abs(record.fps - manifest.fps) > _RATE_TOLERANCE * manifest.fps:
        raise refusal(
            f"{manifest.path}: video {record.id!r}, fps",
            f"{manifest.fps:g} frames per second for all features",
            f"{record.fps:g} as in the annotations",
            'correct the wrong one, or "fps": null when each video was extracted at its own rate',
        )


def _count(path: Path, document: dict[str, Any], key: str, least: int = 1) -> int:
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        found = "no value" if key not in document else f"{value!r}"[:60]
        raise refusal(f"{path}: {key}", found, f"a whole number, at least {least}", "state what the extraction used")
    return value
