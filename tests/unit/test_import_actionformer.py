"""The reference's checkpoint becomes a run folder: the numbers stay the reference's, and nothing is guessed."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import GOLDEN
from torch_archive import write_checkpoint

from apl_jax.data.annotations import AGNOSTIC
from apl_jax.data.files import DataError, load_json
from apl_jax.detectors import build_detector
from apl_jax.interop.import_actionformer import import_actionformer
from apl_jax.inference.model import open_model
from apl_jax.inference.prediction import Request, predict
from apl_jax.settings import ActionFormerSettings, DataSettings, NmsSettings, Settings
from apl_jax.structs import Batch

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


def settings_of(reference: dict[str, np.ndarray], **changes: object) -> Settings:
    """The settings of its network; masking and quality heads as a user would leave them."""
    network = ActionFormerSettings(
        width=32, stem_blocks=2, branch_blocks=2, windows=(5, 5, 5), neck=str(reference["neck"]),
        regression_ranges=((0, 4), (4, 8), (8, 10000)), nms=NmsSettings(),
    )  # fmt: skip
    return Settings(
        actionformer=dataclasses.replace(network, **changes),  # pyright: ignore[reportArgumentType]
        data=DataSettings(window=WINDOW, stride=STRIDE, length_multiple=2),
    )


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
    card = import_actionformer(checkpoint, settings_of(reference), run, classes)
    assert card["feature_width"] == WIDTH and card["classes"][0] == "Klasse 0 größe"
    written = load_json(run / "settings.json")
    assert written["actionformer"]["masking"] == "reference"
    assert written["actionformer"]["quality"]["branches"] == "none"
    assert written["data"]["length_multiple"] == 4, "the coarsest stride divides it"

    model = open_model(run)
    assert model.stage == "imported" and model.windowed
    features, mask = np.zeros((2, STEPS, WIDTH), np.float32), np.zeros((2, STEPS), bool)
    for i in range(2):
        rows = reference[f"in/{i}/feats"].T
        features[i, : len(rows)], mask[i, : len(rows)] = model.standardizer.apply(rows), True
    outputs = build_detector(model.settings, WIDTH, CLASSES).apply(
        model.params, Batch(jnp.asarray(features), jnp.asarray(mask), None, jnp.arange(2)), None
    )
    for ours, theirs in ((outputs.class_logits, "logits"), (outputs.offsets, "offsets")):
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
    settings = settings_of(reference)
    blind = dataclasses.replace(settings, data=dataclasses.replace(settings.data, class_agnostic=True))
    card = import_actionformer(tmp_path / "c.pth.tar", blind, tmp_path / "run", None)
    assert card["classes"] == [AGNOSTIC] and open_model(tmp_path / "run").classes == (AGNOSTIC,)


@pytest.mark.parametrize("reference", ["identity"], indirect=True)
class TestRefusals:
    def refuse(self, tmp_path: Path, document: object, settings: Settings, classes: Path | None) -> str:
        write_checkpoint(tmp_path / "c.pth", document)
        with pytest.raises(DataError) as refused:
            import_actionformer(tmp_path / "c.pth", settings, tmp_path / "run", classes)
        assert not (tmp_path / "run").exists(), "nothing is written"
        return str(refused.value)

    def test_every_difference_is_named(self, reference: dict, classes: Path, tmp_path: Path) -> None:
        weights = weights_of(reference)
        taken, cut = "module.cls_head.norm.0.weight", "module.backbone.stem.0.mlp.0.weight"
        del weights[taken]
        weights[cut] = weights[cut][:-1]
        weights["module.reg_head.extra.weight"] = np.zeros((3, 4), np.float32)
        weights["module.neck.fpn_norms.0.bias"] = np.full_like(weights["module.neck.fpn_norms.0.bias"], np.nan)
        message = self.refuse(tmp_path, {"state_dict": weights}, settings_of(reference), classes)
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
         ({"embedding_convs": 0}, "backbone.embd.0.conv.weight")],
    )  # fmt: skip
    def test_other_network_settings(
        self, changes: dict, name: str, reference: dict, classes: Path, tmp_path: Path
    ) -> None:
        message = self.refuse(tmp_path, weights_of(reference), settings_of(reference, **changes), classes)
        assert name in message

    def test_a_full_convolution_is_not_taken_for_a_depthwise_one(
        self, reference: dict, classes: Path, tmp_path: Path
    ) -> None:
        weights = weights_of(reference)
        name = "module.backbone.stem.0.attn.query_conv.conv.weight"
        weights[name] = np.repeat(weights[name], 32, axis=1)
        assert "32 x 32 x 3 float32, expected 3 x 32" in self.refuse(tmp_path, weights, settings_of(reference), classes)

    def test_number_and_names_of_classes(self, reference: dict, classes: Path, tmp_path: Path) -> None:
        classes.write_text("run\njump\n")
        message = self.refuse(tmp_path, weights_of(reference), settings_of(reference), classes)
        assert "cls_head.cls_head.conv.weight: found 5 x 32 x 3" in message and "with 2 classes" in message
        classes.write_text("run\nrun\n")
        assert "a class twice" in self.refuse(tmp_path, weights_of(reference), settings_of(reference), classes)
        gone = dataclasses.replace(settings_of(reference), data=DataSettings(root=str(tmp_path / "gone")))
        assert "--classes=" in self.refuse(tmp_path, weights_of(reference), gone, None)

    def test_a_file_without_a_state_dict(self, reference: dict, classes: Path, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, {"model": weights_of(reference)}, settings_of(reference), classes)
        assert "found arrays under model; expected state_dict_ema or state_dict" in message
        assert "no arrays" in self.refuse(tmp_path, {"epoch": 3}, settings_of(reference), classes)

    def test_a_folder_that_is_in_use(self, reference: dict, classes: Path, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "settings.json").write_text("{}")
        with pytest.raises(DataError, match="a folder that is not empty"):
            import_actionformer(tmp_path / "c.pth", settings_of(reference), tmp_path / "run", classes)
        assert (tmp_path / "run" / "settings.json").read_text() == "{}"

    def test_settings_of_another_detector(self, reference: dict, classes: Path, tmp_path: Path) -> None:
        spot = dataclasses.replace(settings_of(reference), detector="spot")
        assert "config.detector" in self.refuse(tmp_path, weights_of(reference), spot, classes)


@pytest.mark.parametrize("reference", ["identity"], indirect=True)
def test_classes_of_the_data_set_by_number(reference: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Without --classes their order is that of label_id, which is neither that of names nor of first mention."""
    from apl_jax.data.files import write_json

    names = ("zebra", "ape", "mole", "bear", "yak")
    rows = [{"segment": [i, i + 1], "label": names[i], "label_id": i} for i in (3, 1, 0, 4, 2)]
    entry = {"subset": "training", "duration": 20.0, "fps": 30.0, "annotations": rows}
    write_json(tmp_path / "data" / "annotations.json", {"database": {"a": entry, "b": entry | {"subset": "test"}}})
    settings = settings_of(reference)
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, root=str(tmp_path / "data")))
    write_checkpoint(tmp_path / "c.pth", weights_of(reference))
    card = import_actionformer(tmp_path / "c.pth", settings, tmp_path / "run")
    assert tuple(card["classes"]) == names and card["fps"] == 30.0
