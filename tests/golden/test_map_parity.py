"""mAP against the public reference implementation, the specification's worked example and a published result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apl_jax.evaluation.average_precision import Instances, average_precision, without_duplicates

HERE = Path(__file__).parent


# Predictions of map.json that share class and score (the cap of .999), as the reference ranked them.
# It calls numpy's default argsort, which is not stable: processors with AVX-512 give this order, others do not, and the
# AP of classes 0 to 2 depends on it, by up to .05. So the order is part of the recorded result.
TIES = (
    (408, 472, 365, 111, 62, 91, 135, 170, 210, 279),
    (317, 315, 381, 438, 121, 196, 264, 50, 290),
    (85, 179, 192, 295, 306, 24),
    (485, 368, 380, 273, 261, 142),
)
CLASSES = 7


def reference_case() -> tuple[Instances, Instances, dict[str, Any]]:
    """Truth of the recorded split, predictions in the order of the file, expected values."""
    golden = json.loads((HERE / "map.json").read_text())
    expected, database, columns = golden["expected"], golden["ground_truth"]["database"], golden["predictions"]
    split = [video for video in database if database[video]["subset"].lower() == expected["split"]]
    annotated = [(split.index(video), a) for video in split for a in database[video]["annotations"]]
    truth = Instances(
        video=np.array([row for row, _ in annotated]),
        label=np.array([a["label_id"] for _, a in annotated]),
        segments_s=np.array([a["segment"] for _, a in annotated]),
        score=np.zeros(len(annotated)),
    )
    predictions = Instances(
        video=np.array([split.index(video) for video in columns["video-id"]]),
        label=np.array(columns["label"]),
        segments_s=np.stack([columns["t-start"], columns["t-end"]], axis=-1),
        score=np.array(columns["score"]),
    )
    return truth, predictions, expected


def test_reference_average_precision_per_class() -> None:
    truth, predictions, expected = reference_case()
    assert (len(truth), len(without_duplicates(truth))) == (158, 154)
    order = np.arange(len(predictions))
    for group in TIES:
        rows = list(group)
        assert len(set(zip(predictions.label[rows], predictions.score[rows], strict=True))) == 1
        order[sorted(rows)] = rows[::-1]  # of equal scores the last given ranks first
    result = average_precision(truth, predictions.select(order), expected["tiou"], CLASSES)
    np.testing.assert_allclose(result.ap, expected["ap"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(result.mean_ap, expected["mAP"], atol=1e-6, rtol=0)
    assert result.average == pytest.approx(expected["average"], abs=1e-6)


def test_reference_average_precision_where_ties_do_not_matter() -> None:
    truth, predictions, expected = reference_case()
    result = average_precision(truth, predictions, expected["tiou"], CLASSES)
    np.testing.assert_allclose(result.ap[:, 3:], np.array(expected["ap"])[:, 3:], atol=1e-6, rtol=0)


def test_worked_example_of_the_specification() -> None:
    a, b, c, d = range(4)
    truth = Instances(np.array([a, a, b, c]), np.zeros(4), np.array([(0, 4), (10, 20), (5, 9), (0, 10)]), np.zeros(4))
    predictions = Instances(
        video=np.array([a, a, a, b, b, d, c]),
        label=np.zeros(7),
        segments_s=np.array([(0, 5), (11, 19), (10, 20), (5.5, 9), (0, 3), (1, 2), (4, 10)]),
        score=np.array([0.9, 0.8, 0.7, 0.85, 0.6, 0.95, 0.5]),
    )
    first = average_precision(truth, predictions, np.linspace(0.3, 0.7, 5).tolist(), num_classes=1)
    np.testing.assert_allclose(first.mean_ap, [0.705357] * 4 + [0.5625], atol=1e-6)
    second = average_precision(truth, predictions, np.linspace(0.5, 0.95, 10).tolist(), num_classes=1)
    np.testing.assert_allclose(second.mean_ap, [0.705357] * 3 + [0.5625] * 4 + [0.2, 0.05, 0.05], atol=1e-6)


def test_published_result_on_thumos14() -> None:
    """AutoLoc's detections; those in three videos without any annotated instance count as false, as published."""
    table = json.loads((HERE / "autoloc_thumos14.json").read_text())
    rows = {video: i for i, video in enumerate(sorted({row[0] for row in table["gt"] + table["det"]}))}

    def instances(entries: list[list[Any]]) -> Instances:
        """Times are fractions of the video; a nominal 1000 s each keeps distinct instances from passing for twins."""
        numbers = np.array([entry[1:5] if len(entry) > 4 else [*entry[1:4], 0.0] for entry in entries])
        return Instances(
            np.array([rows[entry[0]] for entry in entries]), numbers[:, 0], numbers[:, 1:3] * 1000, numbers[:, 3]
        )

    result = average_precision(
        instances(table["gt"]), instances(table["det"]), [k / 10 for k in range(1, 10)], num_classes=20
    )
    published = [0.467, 0.417, 0.358, 0.290, 0.212, 0.134, 0.058, 0.016, 0.002]
    np.testing.assert_array_equal(np.round(result.mean_ap, 3), published)
