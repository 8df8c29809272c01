"""Shapes from annotations alone are those of the opened data set."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from fixtures import smoke_settings

from apl_jax.compilation.programs import programs_of, surroundings
from apl_jax.compilation.shapes import shapes_of
from apl_jax.data.batching import build_targets
from apl_jax.data.dataset import open_dataset, open_truth
from apl_jax.devices import build_mesh
from apl_jax.runs.settings import read_config


def test_shapes_are_those_of_the_data_set() -> None:
    data = smoke_settings().data
    shapes, dataset = shapes_of(data), open_dataset(data)
    for name in ("labelled", "unlabelled", "evaluation"):
        ours, table = shapes.table(name), getattr(dataset, name)
        assert ours.videos == len(table.ids) and ours.width == table.width
        # Annotated durations are rounded, so that a recording may have a row more or less.
        assert np.abs(ours.lengths - table.lengths).max() <= 1
        assert abs(ours.length_t - table.length_t) <= data.length_multiple
    assert shapes.training.videos == len(dataset.all_training.ids)
    most = build_targets(dataset.labelled.records, dataset.labelled.grids).mask.shape[1]
    assert shapes.labelled.most_instances == most
    assert sum(shapes.instances_of_class) == sum(len(record.labels) for record in dataset.labelled.records)
    assert shapes.facts.num_classes == len(dataset.classes)
    assert shapes.facts.edge_t == pytest.approx(dataset.labelled.grids[0].offset)


def test_without_features_the_width_is_given_or_that_of_synthetic_ones(shared: Path) -> None:
    data = dataclasses.replace(read_config("thumos14:apl").data, root=str(shared / "data" / "annotations"))
    shapes = shapes_of(data)
    assert shapes.facts.feature_width == data.synthetic.width == 2048
    assert shapes_of(data, 512).labelled.width == 512
    assert (shapes.labelled.videos, shapes.unlabelled.videos, shapes.evaluation.videos) == (20, 180, 212)
    assert len(open_truth(data).classes) == shapes.facts.num_classes == 20


def test_the_rows_of_thumos14_on_the_devices(shared: Path) -> None:
    """4.9 GiB; 33.8 were the tables padded to the longest recording."""
    settings = read_config("thumos14:apl")
    data = dataclasses.replace(settings.data, root=str(shared / "data" / "annotations"))
    mesh, shapes = build_mesh(1), shapes_of(data)
    around = surroundings(dataclasses.replace(settings, data=data), shapes, mesh, 16 * 2**30)
    assert not around.streamed
    rows = 4 * 2048 * (shapes.training.lengths.sum() + shapes.evaluation.lengths.sum())
    arguments = shapes.training.bytes + shapes.evaluation.bytes
    assert arguments == rows <= 5.2 * 2**30
    training = next(p for p in programs_of(around) if p.stages == ("teacher",))
    large = [x.shape for x in jax.tree.leaves(training.lower().in_avals) if x.size > shapes.labelled.rows * 2048]
    assert large == [(shapes.training.rows, 2048)]  # once, though two kinds of videos are drawn from it


def test_resized_recordings_have_one_length() -> None:
    data = dataclasses.replace(smoke_settings().data, grid="resize", fixed_length_t=64)
    shapes = shapes_of(data)
    assert set(shapes.evaluation.lengths) == {64} and shapes.facts.edge_t == 0.5
