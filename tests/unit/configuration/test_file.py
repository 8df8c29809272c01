"""The file of a configuration: written, read, edited, written again."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.configuration.test_facts import write_folder

from apl_jax.configuration.configure import configure
from apl_jax.data.files import DataError
from apl_jax.declarations import SettingsError
from apl_jax.runs.settings import read_config

RATIO = {"data.label_ratio": 0.2}


def test_the_file_holds_the_lines_and_reads_as_a_configuration(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "walks")
    found = configure(root, tmp_path / "mine.py", changes=RATIO)
    settings = read_config(str(tmp_path / "mine.py"))
    assert settings == found.settings
    assert (settings.data.name, settings.data.root, settings.data.label_ratio) == ("walks", str(root), 0.2)
    assert settings.detector.settings.width == found.proposal.value("detector.width") == 64
    text = (tmp_path / "mine.py").read_text()
    assert "config.detector.width = 64  # 64: 4 labelled instances, fewer than 300" in text


def test_edited_lines_stay_and_are_told(tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "walks"), tmp_path / "mine.py"
    configure(root, out, changes=RATIO)
    text = out.read_text()
    text = text.replace("config.detector.width = 64", "config.detector.width = 96")
    text = text.replace("    return config", "    config.learning.rounds = 3  # mine\n    return config")
    out.write_text(text)
    found = configure(root, out, changes=RATIO)
    assert [tuple(d) for d in found.differences] == [("detector.width", "96", "64")]
    assert found.settings.detector.settings.width == 96 and found.settings.learning.rounds == 3
    assert out.read_text() == text  # nothing else has changed
    assert "kept yours: detector.width = 96 (recommended: 64)" in found.words()


def test_other_lines_follow_one_that_was_edited(tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "walks"), tmp_path / "mine.py"
    first = configure(root, out, changes=RATIO)
    length = first.proposal.value("data.max_length_t")
    stride = first.proposal.value("data.stride")
    text = out.read_text()
    assert f"config.data.stride = {stride} " in text
    out.write_text(text.replace(f"config.data.stride = {stride} ", f"config.data.stride = {2 * stride} "))
    again = configure(root, out, changes=RATIO)
    assert [d.path for d in again.differences] == ["data.stride"]
    assert again.settings.data.stride == 2 * stride and again.settings.data.max_length_t < length


def test_new_facts_change_lines_that_nobody_edited(tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "walks"), tmp_path / "mine.py"
    first = configure(root, out, changes=RATIO)
    again = configure(root, out, changes={"data.label_ratio": 0.6})
    name = "detector.normalizer_init"
    assert first.proposal.value(name) != again.proposal.value(name)
    assert again.settings.detector.settings.normalizer_init == again.proposal.value(name)
    assert again.settings.data.label_ratio == 0.6 and not again.differences
    # Without flags the file's own settings hold.
    third = configure(None, out)
    assert third.facts.digest == again.facts.digest and third.settings == again.settings


def test_a_file_of_another_kind_is_not_touched(tmp_path: Path) -> None:
    out = tmp_path / "mine.py"
    out.write_text("print('mine')\n")
    with pytest.raises(DataError, match="apl-jax configure has not written"):
        configure(write_folder(tmp_path / "walks"), out, changes=RATIO)
    assert out.read_text() == "print('mine')\n"


def test_unknown_settings_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"data\.labelratio"):
        configure(write_folder(tmp_path / "walks"), tmp_path / "mine.py", changes={"data.labelratio": 0.2})
    assert not (tmp_path / "mine.py").exists()


def test_settings_that_are_known_are_not_proposed(tmp_path: Path) -> None:
    found = configure(write_folder(tmp_path / "walks"), tmp_path / "mine.py", changes={**RATIO, "detector.width": 32})
    assert found.settings.detector.settings.width == 32
    assert "config.detector.width = 32\n" in (tmp_path / "mine.py").read_text()


def test_what_the_rules_are_not_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"`detector\.name`: found 'spot'"):
        configure(write_folder(tmp_path / "walks"), tmp_path / "mine.py", changes={**RATIO, "detector.name": "spot"})
    assert not (tmp_path / "mine.py").exists()


def test_notes_tell_the_present_data(tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "walks"), tmp_path / "mine.py"
    configure(root, out, changes=RATIO)
    assert "2 of 10 training recordings show their labels, 4 instances of 2 classes" in out.read_text()
    configure(root, out, changes={"data.label_ratio": 0.6})
    assert out.read_text().count("training recordings show their labels") == 1
    assert "6 of 10 training recordings show their labels, 12 instances of 2 classes" in out.read_text()
