"""Whose clock recordings are predicted by: the rate of each, where it comes from, and annotations that are found."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from apl_jax.data.annotations import Annotations, VideoRecord
from apl_jax.data.features.sources import FeatureSource
from apl_jax.data.files import refusal
from apl_jax.data.names import clean_name, find_recording, nearest
from apl_jax.settings import GridSettings
from apl_jax.text import shown

_SHOWN = 3
_RATES = 4  # rates that the line about the clock lists
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clock:
    """The rates that may serve a recording: None or 0 where there is none."""

    asked: float | None  # `fps`
    manifest: float | None  # of features.json
    training: float | None  # that all training recordings had
    extraction: float = 0.0  # `data.fps`: features are extracted at this, whatever the rate of the videos

    def rate(self, annotated: float) -> tuple[float, str]:
        """Samples or frames per second of a recording, 0 if unknown, and where they come from; ``annotated`` 0 if it is
        not."""
        if self.extraction and self.asked is None:
            return self.extraction, "the setting data.fps of training"
        rates = (
            (annotated, "annotations"), (self.asked, "`fps`"), (self.manifest, "features.json"),
            (self.training, "training"),
        )  # fmt: skip
        return next(((rate, source) for rate, source in rates if rate), (0.0, ""))

    def note(self, annotated: Sequence[float], grid: GridSettings) -> None:
        """Says the rates of all recordings and where they come from, in one line."""
        kinds = Counter(self.rate(fps) for fps in annotated)
        if grid.stride == 0:  # rows span their recording: durations alone count
            log.info("clock: rows span the duration of their recording")
            return
        words = [f"{rate:g} per second ({source})" for rate, source in kinds if source]
        counts = [f" for {count}" if len(kinds) > 1 else "" for (_, source), count in kinds.items() if source]
        said = list(map("".join, zip(words, counts, strict=True)))
        more = [f"and {len(said) - _RATES} other rates"] if len(said) > _RATES else []
        log.info("clock: %s", ", ".join(said[:_RATES] + more) or "not known")


def annotated_records(
    source: FeatureSource, annotations: Annotations, where: str
) -> Iterator[tuple[str, VideoRecord | None]]:
    """Every recording of the source with its annotated record, None where it has none, which is noted.

    Raises :class:`~apl_jax.data.files.DataError` where none has one: the clock would be nobody's.
    """
    stored: Mapping[str, str] = {clean_name(name): name for name in source.ids}
    found: dict[str, VideoRecord] = {}
    for video, record in annotations.videos.items():
        name = find_recording(video, stored)
        if name is not None:
            found[stored[name]] = record
    missing = [name for name in source.ids if name not in found]
    if missing and not found:
        example = nearest(missing[0], annotations.videos) or next(iter(annotations.videos))
        words = (
            f"none of {len(source.ids)} recordings: they have names such as {shown(missing[0])}, not {shown(example)}"
        )
        raise refusal(f"{where}: database", words, "the recordings that are predicted", "rename the entries or files")
    if missing:
        said = ", ".join(map(shown, missing[:_SHOWN]))
        near = nearest(missing[0], annotations.videos)
        near = f"; the nearest entry to the first is {shown(near)}" if near else ""
        count = f"{len(missing)} of {len(source.ids)}"
        log.info("note: %s has no entry for %s recordings, such as %s%s", where, count, said, near)
    return ((name, found.get(name)) for name in source.ids)
