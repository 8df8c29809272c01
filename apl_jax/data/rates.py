"""A rate that is wrong for a whole data set: features of 25 frames per second read as if they were of 24."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apl_jax.data.annotations import VideoRecord
from apl_jax.data.grids import covered_s
from apl_jax.settings import GridSettings
from apl_jax.structs import TimeGrid

_FEWEST = 3  # recordings that can tell something systematic
_OFF = 0.01  # the median ratio must differ from 1 by more ...
_SPREAD, _SHARE = 0.005, 0.9  # ... and this share of the recordings lie as near to it


def systematic_ratio(
    records: Sequence[VideoRecord], grids: Sequence[TimeGrid], settings: GridSettings
) -> tuple[str, ...]:
    """A sentence where the features of most recordings are longer or shorter than annotated by one and the same
    factor; empty where they are not, or where nothing tells (unknown durations, ``stride`` 0).

    Rows end up to a stride before their recording, and a window behind it where the extractor padded: as much is
    forgiven.
    """
    known = [(r, g) for r, g in zip(records, grids, strict=True) if r.duration_s > 0 and r.fps > 0]
    if settings.stride == 0 or len(known) < _FEWEST:
        return ()
    durations_s = np.array([record.duration_s for record, _ in known])
    rates = np.array([grid.fps for _, grid in known])
    lengths_s = np.array([covered_s(grid) for _, grid in known]) + settings.stride / rates / 2
    ratios, slack = lengths_s / durations_s, max(settings.stride, settings.window) / rates / durations_s
    ratio = float(np.median(ratios))
    together = np.mean(np.abs(ratios - ratio) <= _SPREAD + slack)
    if abs(ratio - 1) <= _OFF + float(np.median(slack)) or together < _SHARE:
        return ()
    fps = f"about {ratio * rates[0]:.3g} frames per second instead of {rates[0]:g}"
    if len(set(rates.tolist())) > 1:
        fps = f"{ratio:.3g} times the rate"
    return (
        f"the features are {ratio:.3g} times as long as annotated in {together:.0%} of {len(known)} recordings: all "
        f"times may be off; {fps} would agree (fps of the annotations, `data.fps`, or stride and window)",
    )
