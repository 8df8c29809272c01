"""Settings of SPOT (detectors/spot.py). Defaults are those of the paper on ActivityNet."""

from __future__ import annotations

from dataclasses import dataclass, field

from apl_jax.declarations import Checked, SettingsError, number, numbers, one_of
from apl_jax.settings import NmsSettings


@dataclass(frozen=True)
class SpotDecoding(NmsSettings):
    """From dense predictions to detections (spec 3.5)."""

    top_k_per_level: int = number(200, at_least=1, at_most=1_000_000)  # runs of class sequences per window
    sigma: float = number(0.1, above=0, at_most=1e6)  # exp(-10 IoU^2), C13
    max_detections: int = number(100, at_least=1, at_most=100_000)  # K
    top_snippets: int = number(10, at_least=1, at_most=100_000)  # whose mask rows become proposals
    mask_thresholds: tuple[float, ...] = numbers((0.0, 0.2, 0.4, 0.6, 0.8), at_least=0, below=1)
    class_thresholds: tuple[float, ...] = numbers((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), at_least=0, below=1)
    # classes per recording whose score sequence becomes proposals
    class_candidates: int = number(5, at_least=1, at_most=100_000)
    shortest_share: float = number(0.02, at_least=0, below=1)  # of `steps`; shorter proposals are discarded
    extent: str = one_of("component", "span")  # component that holds the snippet | first to last active (public code)
    label: str = one_of("snippet", "video")  # class of a proposal: its snippet's | the recording's (one action only)


@dataclass(frozen=True)
class SpotSettings(Checked):
    """SPOT on ActivityNet as the papers describe it; the public code's departures are switches (spec 3)."""

    # W, snippets that the network sees at once; 256 on THUMOS14
    steps: int = number(100, at_least=1, at_most=100_000)
    # how a recording becomes snippets: resized, or cut in windows of grid steps
    window_mode: str = one_of("resize", "windows")
    overlap: float = number(0.5, at_least=0, below=1)  # of neighbouring windows
    # of the embedding; 0 = the feature width, without a projection (public code)
    width: int = number(0, at_least=0, at_most=65_536)
    # 3-wide convolutions instead of the projection, for features without temporal context
    embedding_convs: int = number(0, at_least=0, at_most=64)
    heads: int = number(4, at_least=1, at_most=1024)
    # of each head's queries, keys and values; 0 = width (public code)
    head_width: int = number(0, at_least=0, at_most=65_536)
    attention_dropout: float = number(0.1, at_least=0, below=1)
    dropout: float = number(0.3, at_least=0, below=1)
    mask_head: str = one_of("rows", "bilinear")  # rows (weights depend on `steps`) | bilinear (query x key)
    mask_hidden: int = number(256, at_least=1, at_most=65_536)
    class_loss: str = one_of("cross_entropy", "reference")  # per snippet | factor (1 - exp(-c))^2 / 2 on the mean c
    bce_share: float = number(0.4, at_least=0, at_most=1)  # of the mask loss; the rest is dice
    dice_factor: float = number(2.0, above=0, at_most=1e3)  # 1 = the public code, whose perfect mask loses 0.5
    # cells added to the counts of the weighted cross-entropy
    mask_smoothing: float = number(10.0, at_least=0, at_most=1e6)
    target_edges: str = one_of("floor", "nearest")  # which snippet edge an annotated time becomes (spec 3.3: floor)
    # snippets taken off each end of a target; 1 = the public code
    target_shrink: int = number(0, at_least=0, at_most=10_000)
    reconstruction_weight: float = number(1.0, at_least=0, at_most=1e6)
    refinement_weight: float = number(0.5, at_least=0, at_most=1e6)
    refinement_temperature: float = number(0.07, above=0, at_most=1e3)
    easy_snippets: int = number(10, at_least=1, at_most=100_000)
    # share of snippets, drawn at each step, whose scores are 0 when easy ones are chosen (spec 3.4); 0.3 = public code
    easy_time_mask: float = number(0.0, at_least=0, below=1)
    hard_snippets: int = number(20, at_least=1, at_most=100_000)
    # snippets; hard bands lie between erosions, and dilations, by the two
    band_inner: int = number(4, at_least=1, at_most=100_000)
    band_outer: int = number(8, at_least=2, at_most=100_000)
    mask_threshold: float = number(0.7, at_least=0, at_most=1)  # of on-line pseudo masks (C12)
    dtype: str = one_of("float32", "bfloat16")
    decoding: SpotDecoding = field(default_factory=SpotDecoding)


def check_spot(s: SpotSettings) -> None:
    """Raises :class:`~apl_jax.declarations.SettingsError` for settings that contradict one another."""
    if s.band_outer <= s.band_inner:
        expected = f"expected more than `detector.band_inner` = {s.band_inner}"
        raise SettingsError(f"`detector.band_outer`: found {s.band_outer}, {expected}")
    for name in ("mask_thresholds", "class_thresholds"):
        found = getattr(s.decoding, name)
        if not found or list(found) != sorted(found):
            expected = "expected at least one number, in rising order"
            raise SettingsError(f"`detector.decoding.{name}`: found {found}, {expected}")
