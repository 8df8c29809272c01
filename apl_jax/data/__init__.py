"""Data: files on the host become records, grids and padded numpy arrays. No jax transformation happens here."""

from apl_jax.data.annotations import Annotations, VideoRecord, read_annotations
from apl_jax.data.batching import RowStore, Standardizer, VideoTable, build_targets
from apl_jax.data.dataset import Dataset, open_dataset, open_truth
from apl_jax.data.features.folder import open_features
from apl_jax.data.features.manifest import Manifest, read_manifest, write_manifest
from apl_jax.data.features.sources import FeatureSource
from apl_jax.data.files import DataError, write_json
from apl_jax.data.grids import build_grid, place_rows, window_signal
from apl_jax.data.published import read_published
from apl_jax.data.splits import Split, build_split, write_split

__all__ = [
    "Annotations",
    "DataError",
    "Dataset",
    "FeatureSource",
    "Manifest",
    "RowStore",
    "Split",
    "Standardizer",
    "VideoRecord",
    "VideoTable",
    "build_grid",
    "build_split",
    "build_targets",
    "open_dataset",
    "open_features",
    "open_truth",
    "place_rows",
    "read_annotations",
    "read_manifest",
    "read_published",
    "window_signal",
    "write_json",
    "write_manifest",
    "write_split",
]
