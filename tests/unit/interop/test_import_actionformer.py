"""The reference's checkpoint becomes a model: the numbers stay the reference's, and nothing is guessed."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import GOLDEN
from torch_archive import write_checkpoint

from apl_jax.data.annotations import AGNOSTIC
from apl_jax.data.files import DataError, load_json, write_json
from apl_jax.declarations import Choice
from apl_jax.detectors.actionformer_settings import ActionFormerSettings
from apl_jax.detectors.spot_settings import SpotSettings
from apl_jax.inference.model import CARD, FOLDER, PARAMETERS, open_model, read_parameters
from apl_jax.inference.prediction import Request, predict
from apl_jax.interop.import_actionformer import import_actionformer
from apl_jax.settings import DataSettings
from apl_jax.structs import Batch, leaves_by_name

CLASSES, WIDTH, STEPS, LEVELS = 5, 24, 64, 3
FPS, WINDOW, STRIDE = 30.0, 16, 4


@pytest.fixture(params=["identity", "fpn"])
def reference(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    """The recorded run of the reference (tests/golden/README.md)."""
    with np.load(GOLDEN / f"actionformer_{request.param}.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files} | {"neck": np.array(request.param)}


def weights_of(reference: dict[str, np.ndarray]) -> OrderedDict[str, np.ndarray]:
    """Its weights as DataParallel names them."""
    prefix = "param/"
    return OrderedDict(
        (f"module.{name.removeprefix(prefix)}", v) for name, v in reference.items() if name.startswith(prefix)
    )


DATA = DataSettings(name="film", licence="theirs", window=WINDOW, stride=STRIDE, length_multiple=2)


def network_of(reference: dict[str, np.ndarray], **changes: object) -> Choice:
    """The settings of its network; masking and quality heads as a user would leave them."""
    network = ActionFormerSettings(
        width=32, stem_blocks=2, branch_blocks=2, windows=(5, 5, 5), neck=str(reference["neck"]),
        regression_ranges=((0, 4), (4, 8), (8, 10000)),
    )  # fmt: skip
    return Choice("actionformer", dataclasses.replace(network, **changes))  # pyright: ignore[reportArgumentType]


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(f"Klasse {i} größe" for i in range(CLASSES)), "utf-8")
    return path


def test_predictions_of_the_imported_network_are_the_references(
    reference: dict[str, np.ndarray], classes: Path, tmp_path: Path
) -> None:
    weights = weights_of(reference)
    checkpoint = tmp_path / "epoch_034.pth.tar"
    other = OrderedDict((name, np.zeros_like(value)) for name, value in weights.items())
    write_checkpoint(checkpoint, {"epoch": 35, "state_dict": other, "state_dict_ema": weights})
    run = tmp_path / "run"
    card = import_actionformer(checkpoint, network_of(reference), DATA, run, classes, prediction_batch=3)
    assert card.feature_width == WIDTH and card.classes[0] == "Klasse 0 größe"
    assert card.detector.settings.masking == "reference" and card.detector.settings.quality.branches == "none"
    assert card.grid.length_multiple == 4, "the coarsest stride divides it"
    assert (card.grid.window, card.grid.stride, card.longest_t) == (WINDOW, STRIDE, DATA.max_length_t)
    assert (card.data, card.licence, card.prediction_batch, card.fps) == ("film", "theirs", 3, None)
    assert sorted(path.name for path in run.rglob("*")) == [FOLDER, CARD, PARAMETERS]
    assert load_json(run / FOLDER / CARD)["detector"]["masking"] == "reference"
    stored = read_parameters(run / FOLDER)
    assert all(name.startswith("detector/") and value.dtype == np.float32 for name, value in stored.items())

    model = open_model(run)
    assert model.card.stage == "imported" and model.windowed and model.card.detector == card.detector
    assert {f"detector/{name}" for name in leaves_by_name(model.params)} == stored.keys()
    features, mask = np.zeros((2, STEPS, WIDTH), np.float32), np.zeros((2, STEPS), bool)
    for i in range(2):
        rows = reference[f"in/{i}/feats"].T
        features[i, : len(rows)], mask[i, : len(rows)] = model.card.standardizer.apply(rows), True
    batch = Batch(jnp.asarray(features), jnp.asarray(mask), None, jnp.arange(2))  # pyright: ignore[reportArgumentType]
    outputs = jax.jit(lambda params, videos: model.detector.apply(params, videos, None))(model.params, batch)
    for ours, theirs in ((outputs.class_logits, "logits"), (outputs.offsets[..., 0, :], "offsets")):
        expected = np.concatenate([reference[f"{theirs}/{level}"] for level in range(LEVELS)], axis=-2)
        np.testing.assert_allclose(ours, expected, atol=2e-5, rtol=0)

    folder = tmp_path / "features"
    folder.mkdir()
    for i in range(2):
        np.save(folder / f"{i}.npy", reference[f"in/{i}/feats"].T)
    found = predict(run, Request(folder, fps=FPS, min_score=0.0))
    assert [record.id for record in found.records] == ["0", "1"]
    for i in range(2):
        ours = found.instances.select(found.instances.video == i)
        theirs = {name: reference[f"det/{i}/{name}"] for name in ("segments_sec", "scores", "labels")}
        # The recorded durations are half a second longer than what the features cover.
        duration_s = found.records[i].duration_s
        theirs["segments_sec"] = np.clip(theirs["segments_sec"], 0, duration_s)
        kept = theirs["segments_sec"][:, 1] > theirs["segments_sec"][:, 0]
        assert (ours.label == theirs["labels"][kept]).all() and kept.sum() > 100
        np.testing.assert_allclose(ours.score, theirs["scores"][kept], atol=1e-4, rtol=0)
        np.testing.assert_allclose(ours.segments_s, theirs["segments_sec"][kept], atol=1e-4, rtol=0)


@pytest.mark.parametrize("reference", ["identity"], indirect=True)
def test_a_class_agnostic_network_has_one_class(reference: dict[str, np.ndarray], tmp_path: Path) -> None:
    """ActivityNet's published one."""
    weights = weights_of(reference)
    head = [name for name in weights if ".cls_head.conv." in name]
    assert len(head) == 2
    for name in head:
        weights[name] = weights[name][:1]
    write_checkpoint(tmp_path / "c.pth.tar", {"state_dict_ema": weights})
    blind = dataclasses.replace(DATA, class_agnostic=True)
    card = import_actionformer(tmp_path / "c.pth.tar", network_of(reference), blind, tmp_path / "run")
    assert card.classes == (AGNOSTIC,) and card.grid.class_agnostic
    assert open_model(tmp_path / "run").classes == (AGNOSTIC,)


@pytest.mark.parametrize("reference", ["identity"], indirect=True)
class TestRefusals:
    def refuse(
        self, tmp_path: Path, document: object, network: Choice, classes: Path | None, data: DataSettings = DATA
    ) -> str:
        write_checkpoint(tmp_path / "c.pth", document)
        with pytest.raises(DataError) as refused:
            import_actionformer(tmp_path / "c.pth", network, data, tmp_path / "run", classes)
        assert not (tmp_path / "run").exists(), "nothing is written"
        return str(refused.value)

    def test_every_difference_is_named(self, reference: dict, classes: Path, tmp_path: Path) -> None:
        weights = weights_of(reference)
        taken, cut = "module.cls_head.norm.0.weight", "module.backbone.stem.0.mlp.0.weight"
        del weights[taken]
        weights[cut] = weights[cut][:-1]
        weights["module.reg_head.extra.weight"] = np.zeros((3, 4), np.float32)
        weights["module.neck.fpn_norms.0.bias"] = np.full_like(weights["module.neck.fpn_norms.0.bias"], np.nan)
        message = self.refuse(tmp_path, {"state_dict": weights}, network_of(reference), classes)
        for words in (
            "c.pth: state_dict: found 2 parameters that differ, 1 left over, 1 missing:",
            "class_head/trunk/layer_0/norm/scale: found nothing, expected 32",
            "backbone.stem.0.mlp.0.weight: found 127 x 32 x 1 float32, expected 32 x 128",
            "reg_head.extra.weight: found 3 x 4 float32, expected nothing",
            "neck.fpn_norms.0.bias: found 1 x 32 x 1 float32, expected finite",
        ):
            assert words in message, (words, message)

    @pytest.mark.parametrize(
        ("changes", "name"),
        [({"neck": "fpn"}, "neck/lateral_0/kernel: found nothing"), ({"width": 64}, "backbone.branch.0.attn.key.bias"),
         ({"layer_scale": False}, "drop_path_attn.scale"), ({"head_layers": 4}, "layer_2/conv/kernel: found nothing"),
         ({"embedding_convs": 1}, "backbone.embd.1.conv.weight")],
    )  # fmt: skip
    def test_other_network_settings(
        self, changes: dict, name: str, reference: dict, classes: Path, tmp_path: Path
    ) -> None:
        message = self.refuse(tmp_path, weights_of(reference), network_of(reference, **changes), classes)
        assert name in message

    def test_a_full_convolution_is_not_taken_for_a_depthwise_one(
        self, reference: dict, classes: Path, tmp_path: Path
    ) -> None:
        weights = weights_of(reference)
        name = "module.backbone.stem.0.attn.query_conv.conv.weight"
        weights[name] = np.repeat(weights[name], 32, axis=1)
        assert "32 x 32 x 3 float32, expected 3 x 32" in self.refuse(tmp_path, weights, network_of(reference), classes)

    def test_number_and_names_of_classes(self, reference: dict, classes: Path, tmp_path: Path) -> None:
        classes.write_text("run\njump\n")
        message = self.refuse(tmp_path, weights_of(reference), network_of(reference), classes)
        assert "cls_head.cls_head.conv.weight: found 5 x 32 x 3" in message and "with 2 classes" in message
        classes.write_text("run\nrun\n")
        assert "a class twice" in self.refuse(tmp_path, weights_of(reference), network_of(reference), classes)
        gone = DataSettings(root=str(tmp_path / "gone"))
        message = self.refuse(tmp_path, weights_of(reference), network_of(reference), None, gone)
        assert "Or name the classes yourself: `classes=<text file" in message

    def test_a_file_without_a_state_dict(self, reference: dict, classes: Path, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, {"model": weights_of(reference)}, network_of(reference), classes)
        assert "found arrays under model; expected state_dict_ema or state_dict" in message
        assert "no arrays" in self.refuse(tmp_path, {"epoch": 3}, network_of(reference), classes)

    def test_a_folder_that_is_in_use(self, reference: dict, classes: Path, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "settings.json").write_text("{}")
        with pytest.raises(DataError, match="a folder that is not empty"):
            import_actionformer(tmp_path / "c.pth", network_of(reference), DATA, tmp_path / "run", classes)
        assert (tmp_path / "run" / "settings.json").read_text() == "{}"

    def test_settings_of_another_detector(self, reference: dict, classes: Path, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, weights_of(reference), Choice("spot", SpotSettings()), classes)
        assert "`detector.name`: found 'spot'; expected 'actionformer'" in message


@pytest.mark.parametrize("reference", ["identity"], indirect=True)
def test_classes_of_the_data_set_by_number(reference: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Without ``classes`` their order is that of label_id, which is neither that of names nor of first mention."""
    names = ("zebra", "ape", "mole", "bear", "yak")
    rows = [{"segment": [i, i + 1], "label": names[i], "label_id": i} for i in (3, 1, 0, 4, 2)]
    entry = {"subset": "training", "duration": 20.0, "fps": 30.0, "annotations": rows}
    write_json(tmp_path / "data" / "annotations.json", {"database": {"a": entry, "b": entry | {"subset": "test"}}})
    data = dataclasses.replace(DATA, root=str(tmp_path / "data"))
    write_checkpoint(tmp_path / "c.pth", weights_of(reference))
    card = import_actionformer(tmp_path / "c.pth", network_of(reference), data, tmp_path / "run")
    assert card.classes == names and card.fps == 30.0 and open_model(tmp_path / "run").card.fps == 30.0


def test_importing_needs_no_optimiser() -> None:
    code = (
        "import sys, apl_jax.interop.import_actionformer\n"
        "wrong = [m for m in ('optax', 'orbax', 'apl_jax.runs', 'apl_jax.training') if m in sys.modules]\n"
        "assert not wrong, wrong"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
