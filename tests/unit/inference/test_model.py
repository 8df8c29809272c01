"""A trained model as two files: what is written is opened bit for bit, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import CLASSES, FEATURE_WIDTH, random_batch, tiny_choice, variants
from small_models import FPS, make_run, small_card, small_params

from apl_jax.data.batching import Standardizer
from apl_jax.data.files import DataError
from apl_jax.declarations import Choice
from apl_jax.devices import build_mesh
from apl_jax.inference.model import (
    CARD,
    FOLDER,
    PARAMETERS,
    Model,
    ModelCard,
    describe,
    model_folder,
    open_model,
    read_card,
    read_parameters,
    with_generator,
    write_model,
)
from apl_jax.registry import DETECTORS
from apl_jax.settings import GridSettings
from apl_jax.structs import DataFacts, leaves_by_name

DETECTOR_VARIANTS = [(name, variant) for name in DETECTORS for variant in variants(name)]


def assert_same_card(one: ModelCard, other: ModelCard) -> None:
    for name in ("mean", "std"):
        a, b = getattr(one.standardizer, name), getattr(other.standardizer, name)
        assert a.dtype == b.dtype == np.float32 and a.tobytes() == b.tobytes()
    assert dataclasses.replace(one, standardizer=None) == dataclasses.replace(other, standardizer=None)  # pyright: ignore


def assert_same_leaves(one: Any, other: Any) -> None:
    ours, theirs = (jax.device_get(leaves_by_name(tree)) for tree in (one, other))
    assert ours.keys() == theirs.keys() and len(ours) > 0
    for name, leaf in ours.items():
        found = theirs[name]
        assert leaf.dtype == found.dtype and leaf.shape == found.shape and leaf.tobytes() == found.tobytes(), name


@pytest.mark.parametrize(("detector", "variant"), DETECTOR_VARIANTS)
def test_there_and_back(detector: str, variant: str, tmp_path: Path) -> None:
    """Any registered detector, with all of its settings."""
    card = small_card(variants(detector)[variant], fps=29.97, prediction_batch=3)
    params = small_params(card)
    write_model(tmp_path, card, {"detector": params})
    assert sorted(path.name for path in tmp_path.iterdir()) == [CARD, PARAMETERS]
    model = open_model(tmp_path)
    assert_same_card(model.card, card)
    assert_same_card(read_card(tmp_path), card)
    assert_same_leaves(model.params, params)
    assert_same_leaves(read_parameters(tmp_path), {f"detector/{n}": x for n, x in leaves_by_name(params).items()})
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(model.params))
    assert (
        model.classes == card.classes and model.windowed and describe(card).startswith(f"{detector}, {CLASSES} classes")
    )


def test_numbers_survive_whatever_they_are(tmp_path: Path) -> None:
    """Zeros of both signs, the smallest and largest float32, infinity, NaN with its payload, and no dimension."""
    odd = np.array([0.0, -0.0, 1e-45, -1e-45, 3.4028235e38, np.inf, np.nan, 1 / 3], np.float32)
    odd = np.concatenate([odd, np.array([0x7FC01234], np.uint32).view(np.float32)])
    tree = {"detector": {"odd": odd, "turned": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))}}
    tree["detector"]["scalar"] = np.float32(0.1)  # pyright: ignore[reportArgumentType]
    mean = np.array([1e-45, -3.4e38, 0.1, 1 / 3, -0.0, 7.0], np.float32)
    std = np.array([1e-45, 3.4e38, 0.1, 1 / 3, 1.0, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    card = small_card(standardizer=Standardizer(mean, std))
    write_model(tmp_path, card, tree)
    model = open_model(tmp_path)
    assert_same_leaves(model.params, tree["detector"])
    assert model.params["scalar"].shape == ()
    assert_same_card(model.card, card)


def test_it_predicts_as_the_one_that_was_written(tmp_path: Path) -> None:
    card = small_card()
    written = Model(card, small_params(card), build_mesh())
    write_model(tmp_path, card, {"detector": written.params})
    rows = np.random.default_rng(0).normal(size=(30, FEATURE_WIDTH)).astype(np.float32)
    found = open_model(tmp_path).predict(rows, fps=FPS)
    assert found == written.predict(rows, fps=FPS) and len(found) > 3


def test_where_a_model_is(tmp_path: Path) -> None:
    """Its own folder, a run's with the final variant's, and those of the run's stages."""
    make_run(tmp_path, small_card(stage="self_train_1"))
    for stage in ("teacher", "supervised"):
        write_model(
            tmp_path / "stages" / stage / FOLDER, card := small_card(stage=stage), {"detector": small_params(card)}
        )
    assert open_model(tmp_path).card.stage == open_model(tmp_path / FOLDER).card.stage == "self_train_1"
    assert open_model(tmp_path, "teacher").card.stage == "teacher"
    assert read_card(tmp_path / "stages" / "supervised").stage == "supervised"
    assert model_folder(tmp_path, "teacher") == tmp_path / "stages" / "teacher" / FOLDER
    with pytest.raises(
        DataError, match=r"`stage`: found no model of a stage 'pretrain'; expected one of supervised, tea"
    ):
        open_model(tmp_path, "pretrain")
    with pytest.raises(DataError, match=r"`stage`=teacher: found .*, a single model; .* leave `stage` out"):
        open_model(tmp_path / FOLDER, "teacher")


def test_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found no such folder; expected the folder of a model, or of a finished run"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"found no model/model.json; expected the folder of a model"):
        open_model(tmp_path)
    write_model(tmp_path / "stages" / "teacher" / FOLDER, card := small_card(), {"detector": small_params(card)})
    with pytest.raises(
        DataError, match=r"found a run that is not finished; expected one of teacher.* skips all stages"
    ):
        open_model(tmp_path)


def test_a_former_run_is_told_what_to_do(tmp_path: Path) -> None:
    """Version 0.1 kept ``model.json`` in the run folder, and parameters in training checkpoints."""
    (tmp_path / "stages" / "teacher" / "checkpoints" / "40").mkdir(parents=True)
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "model.json").write_text(json.dumps({"format": 1, "version": "0.1.0", "stage": "teacher"}))
    for stage in ("", "teacher"):
        with pytest.raises(DataError) as caught:
            open_model(tmp_path, stage)
        message = str(caught.value)
        assert str(tmp_path) in message and "found a run folder of apl_jax 0.1, whose models are training" in message
        assert "Try: train again with this version and another `workdir`, or predict with apl_jax 0.1" in message


def test_a_folder_without_its_parameters_is_not_taken_for_a_former_run(tmp_path: Path) -> None:
    """Half of a model that somebody copied, and an export, whose card has the same name."""
    write_model(tmp_path / "half", card := small_card(), {"detector": small_params(card)})
    (tmp_path / "half" / PARAMETERS).unlink()
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "model.json").write_text(json.dumps({"format": 1, "platforms": ["cpu"]}))
    (tmp_path / "export" / "model.stablehlo").write_bytes(b"")
    for name in ("half", "export"):
        with pytest.raises(DataError) as caught:
            open_model(tmp_path / name)
        assert "0.1" not in str(caught.value), name
    # Where the path says that it is a model's, its file is named.
    make_run(tmp_path / "run", card)
    (tmp_path / "run" / FOLDER / PARAMETERS).unlink()
    with pytest.raises(DataError, match=r"params\.safetensors: found no such file"):
        open_model(tmp_path / "run")


# Damage


@pytest.fixture
def model(tmp_path: Path) -> Path:
    card = small_card()
    write_model(tmp_path / "model", card, {"detector": small_params(card)})
    return tmp_path / "model"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / CARD).read_text())
    change(document)
    (folder / CARD).write_text(json.dumps(document))


@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.999])
def test_one_other_bit_in_the_parameters(model: Path, place: float) -> None:
    content = bytearray((model / PARAMETERS).read_bytes())
    content[int(place * len(content))] ^= 1
    (model / PARAMETERS).write_bytes(content)
    with pytest.raises(DataError, match=r"found other parameters than those that model.json was written for"):
        open_model(model)
    read_card(model)  # which does not look at them


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_parameters_cut_off(model: Path, share: float) -> None:
    content = (model / PARAMETERS).read_bytes()
    (model / PARAMETERS).write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match="found other parameters"):
        open_model(model)
    with pytest.raises(DataError, match=r"params\.safetensors: found an unreadable file \(.*complete safetensors file"):
        read_parameters(model)


def test_parameters_of_another_model(model: Path, tmp_path: Path) -> None:
    card = small_card(tiny_choice("spot"))
    write_model(tmp_path / "other", card, {"detector": small_params(card)})
    (tmp_path / "other" / PARAMETERS).replace(model / PARAMETERS)
    with pytest.raises(DataError, match=r"other parameters .*expected both files of one model.* copy the folder again"):
        open_model(model)


def test_a_card_that_no_longer_fits_its_parameters(model: Path) -> None:
    """The hash is that of the parameters; the card says of which shapes they are."""
    edit(model, lambda d: d["detector"].update(width=16))
    with pytest.raises(DataError):
        open_model(model)


def test_parameters_without_the_detector_s(tmp_path: Path) -> None:
    card = small_card()
    write_model(tmp_path, card, {"another": small_params(card)})
    with pytest.raises(DataError):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 1}, r"format: found 1; expected 2, as apl_jax"),
        ({"format": None}, r"format: found None; expected 2"),
        ({"classes": []}, "a damaged file"),
        ({"classes": ["a", "a", "b"]}, r"expected stage, classes \(each once\), feature_width"),
        ({"classes": "abc"}, "a damaged file"),
        ({"classes": [1, 2, 3]}, "a damaged file"),
        ({"feature_width": FEATURE_WIDTH + 1}, "a damaged file"),
        ({"feature_width": 0, "mean": [], "std": []}, "a damaged file"),
        ({"feature_width": True}, "a damaged file"),
        ({"mean": None}, "a damaged file"),
        ({"mean": [float("nan")] * FEATURE_WIDTH}, "a damaged file"),
        ({"std": [0.0] * FEATURE_WIDTH}, r"mean and std \(above 0\)"),
        ({"std": [-1.0] * FEATURE_WIDTH}, "a damaged file"),
        ({"std": [10**400] * FEATURE_WIDTH}, "a damaged file"),
        ({"fps": 0}, "a damaged file"),
        ({"fps": "25"}, "a damaged file"),
        ({"longest_t": 2.5}, "a damaged file"),
        ({"longest_t": 0}, "a damaged file"),
        ({"prediction_batch": 0}, "a damaged file"),
        ({"stage": 3}, "a damaged file"),
        ({"features": "video"}, "a damaged file"),
        ({"grid": 3}, r"`grid`: found 3, expected settings by name"),
        ({"grid": {"windw": 3}}, r"`grid\.windw`: no such setting; .* Did you mean 'window'\?"),
        ({"grid": {"window": 0}}, r"`grid\.window`: found 0, expected at least 1"),
        ({"detector": None}, "a damaged entry"),
        ({"detector": "actionformer"}, "a damaged entry"),
        ({"detector": {}}, "a damaged entry"),
        ({"detector": {"name": "actionformer", "windws": [3]}}, r"`windws`: no such setting"),
        ({"detector": {"name": "actionformer", "width": -1}}, r"`width`: found -1, expected at least 1"),
        ({"detector": {"name": "theirs"}}, "found 'theirs', no such detector; .*Try: load the plug-in that registers"),
        ({"generator": "spot"}, "a damaged entry"),
    ],
)
def test_damaged_cards(model: Path, change: dict[str, Any], words: str) -> None:
    edit(model, lambda document: document.update(change))
    for act in (open_model, read_card):
        with pytest.raises(DataError, match=words) as caught:
            act(model)
        message = str(caught.value)
        assert str(model / CARD) in message and "Try: " in message and "\n" not in message


@pytest.mark.parametrize(
    "name",
    ["format", "stage", "detector", "classes", "feature_width", "features", "grid", "longest_t", "mean", "std",
     "prediction_batch", "parameters"],
)  # fmt: skip
def test_entries_that_must_be_there(model: Path, name: str) -> None:
    edit(model, lambda document: document.pop(name))
    with pytest.raises(DataError, match=r"found|damaged"):
        open_model(model)


def test_entries_that_may_be_absent(model: Path) -> None:
    edit(model, lambda document: [document.pop(name) for name in ("data", "licence", "generator", "version")])
    card = open_model(model).card
    assert (card.data, card.licence, card.generator) == ("", "", None)


def test_settings_that_came_later_have_their_defaults(model: Path) -> None:
    """What a file leaves out: an older model of this format opens as long as its settings mean the same."""
    edit(model, lambda document: document["detector"].pop("compare_threshold"))
    edit(model, lambda document: document["grid"].pop("fps"))
    card = read_card(model)
    assert card.detector == small_card().detector and card.grid.fps == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 2, "format": 2}'])
def test_cards_that_are_no_json(model: Path, content: bytes) -> None:
    (model / CARD).write_bytes(content)
    with pytest.raises(DataError, match=r"model\.json"):
        open_model(model)


def test_a_plug_in_s_detector_opens_once_it_is_registered(tmp_path: Path) -> None:
    """In a process that does not know it, the message says what is missing."""
    card = small_card(Choice("conv", DETECTORS["conv"].settings()))
    write_model(tmp_path, card, {"detector": small_params(card)})
    assert open_model(tmp_path).card.detector == card.detector
    code = (
        f"from pathlib import Path; from apl_jax.inference.model import open_model; open_model(Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "`detector.name`: found 'conv', no such detector" in done.stderr
    assert "Try: load the plug-in that registers its detector first." in done.stderr


# Proposals


def test_a_generator_comes_with_its_detector(tmp_path: Path) -> None:
    card = small_card(generator=tiny_choice("spot"))
    params = {"detector": small_params(card), "generator": small_params(small_card(tiny_choice("spot")))}
    write_model(tmp_path, card, params)
    model = open_model(tmp_path)
    assert model.card.generator == tiny_choice("spot")
    assert_same_leaves(model.params, params)
    write_model(tmp_path, card, {"detector": params["detector"]})
    with pytest.raises(DataError):  # half of it is missing
        open_model(tmp_path)


def test_a_detector_is_given_the_proposals_of_its_generator() -> None:
    """Made without dropout, by the generator's own parameters, on the same videos."""
    seen: dict[str, Any] = {}

    def generate(params: Any, batch: Any, key: Any) -> Any:
        assert key is None
        return params, batch.video

    def detect(params: Any, batch: Any, key: Any) -> Any:
        seen.update(params=params, proposals=batch.proposals, key=key)
        return "outputs"

    template = DETECTORS["conv"].build(DETECTORS["conv"].settings(), DataFacts(FEATURE_WIDTH, CLASSES))
    generator = template._replace(apply=generate, decode=lambda outputs: ("decoded", *outputs))
    whole = with_generator(template._replace(apply=detect), generator)
    batch = dataclasses.replace(random_batch([9, 5], 9), proposals=None)
    assert whole.apply({"detector": "ours", "generator": "theirs"}, batch, "key") == "outputs"  # pyright: ignore
    assert seen["params"] == "ours" and seen["key"] == "key"
    decoded, params, video = seen["proposals"]
    assert (decoded, params) == ("decoded", "theirs") and (jnp.asarray(video) == batch.video).all()
    assert batch.proposals is None
    assert whole.decode is template.decode


def test_opening_imports_no_optimiser_and_no_run(model: Path) -> None:
    """Nor does predicting."""
    code = (
        "import sys, numpy as np\nfrom pathlib import Path\nfrom apl_jax.inference.model import open_model\n"
        f"model = open_model(Path({str(model)!r}))\n"
        f"assert model.predict(np.ones((20, {FEATURE_WIDTH}), np.float32), fps=10.0) is not None\n"
        "names = 'optax', 'orbax', 'clu', 'ml_collections', 'matplotlib', 'sklearn'\n"
        "names += 'apl_jax.runs', 'apl_jax.training'\n"
        "found = [name for name in names if any(m == name or m.startswith(name + '.') for m in sys.modules)]\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_the_grid_alone_is_kept_of_the_data_s_settings(model: Path) -> None:
    """A model knows neither where its training data were nor how they were divided."""
    document = json.loads((model / CARD).read_text())
    assert set(document["grid"]) == {f.name for f in dataclasses.fields(GridSettings)}
    assert not {"root", "split_seed", "label_ratio", "learning", "runtime"} & set(document)
