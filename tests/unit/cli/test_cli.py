"""The command line: flags, overrides and plug-ins as they are read, errors in its words, and exit codes."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apl_jax.cli import dispatch
from apl_jax.cli.configuration import read_settings
from apl_jax.cli.dispatch import COMMANDS, main
from apl_jax.cli.parser import Command, Parser, UsageError, build_parser, parse
from apl_jax.cli.words import SETTINGS, in_flags, in_words
from apl_jax.data.files import DataError

RUN = ("workdir", "config", "plugin")


def parsed(*arguments: str) -> Any:
    return parse(COMMANDS, arguments)


def refused(*arguments: str) -> str:
    with pytest.raises(UsageError) as error:
        parse(COMMANDS, arguments)
    return str(error.value)


# Flags


def test_flags_are_taken_with_an_equals_sign_or_without() -> None:
    one = parsed(
        "predict", "--workdir=a b", "--features", "new", "--fps=25", "--top_k", "3", "--plugin=x", "--plugin=y"
    )
    assert (one.workdir, one.features) == (Path("a b"), Path("new"))
    assert (one.fps, one.top_k, one.min_score, one.out, one.stage) == (25.0, 3, 0.1, None, "")
    assert one.plugin == ["x", "y"] and one.overrides == {} and "features" in one.flags
    assert one.command_line.startswith("apl-jax predict '--workdir=a b' --features new")
    bare = parsed("evaluate", "--annotations=a", "--predictions=p")
    assert bare.tiou is None and bare.proposals is False, "what thresholds are usual depends on what is scored"
    assert parsed("evaluate", "--annotations=a", "--proposals", "--predictions=p").proposals is True
    assert parsed("evaluate", "--annotations=a", "--predictions=p", "--tiou=0.5,0.95").tiou == (0.5, 0.95)
    assert parsed("compare", "runs/a", "runs/b").folders == [Path("runs/a"), Path("runs/b")]
    assert parsed("predict", "--workdir=~/x", "--features=f").workdir == Path.home() / "x"


def test_overrides_are_every_flag_below_config() -> None:
    found = parsed(
        "run", "--config.data.root", "/a b", "--workdir", "w", "--config=spsw:apl", "--config.seed=1",
        "--config.seed=2", "--config.variants=('supervised',)",
        "--config.learning.self_train.optimizer.learning_rate", "-1",
    )  # fmt: skip
    assert found.config == "spsw:apl" and found.workdir == Path("w")
    assert found.overrides == {
        "data.root": "/a b", "seed": "2", "variants": "('supervised',)",
        "learning.self_train.optimizer.learning_rate": "-1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("predict", "--tiou=0.5"),
            "no flag --tiou, which is a flag of evaluate, thresholds; there are --workdir, --fea",
        ),
        (("predict", "--features=a\udcff"), r"found '--features=a\udcff', expected text in UTF-8"),
        (("predict", "--plugin=--"), "found '--plugin=--', expected --plugin=<value>"),
        (("predict", "--fps=nan"), "found 'nan', expected a number"),
        (("predict", "--fps=1_0"), "found '1_0', expected a number"),
        (("predict", "--top_k=1_0"), "found '1_0', expected a whole number of at most 2,147,483,647"),
        (("predict", "--min-scor=0.5"), "Did you mean --min_score?"),
        (("predict", "--work=x"), "no flag --work;"),  # no abbreviations
        (("run", "--wrkdir=x"), "no flag --wrkdir; there are --config, --plugin, --workdir. Did you mean --workdir?"),
        (("run", "-workdir=x"), "no flag -workdir; there are --config, --plugin, --workdir. Did you mean --workdir?"),
        (("predict", "--config.data.root=x"), "no flag --config.data.root, since this command takes no configuration"),
        (("compare", "--workdir=x"), "this command has none."),
        (("run", "--config=spsw"), "required: --workdir. See apl-jax run --help."),
        (("run", "--config=spsw", "--config.seed", "--workdir=x"), "found --config.seed without a value"),
        (("run", "--config=spsw", "--workdir=x", "--config.seed"), "found --config.seed without a value"),
        (("predict", "--workdir=a", "--features=b", "c"), "apl-jax predict: found the stray argument 'c'"),
        (("predict", "--workdir=a", "--features=b", "--fps=x"), "--fps: found 'x', expected a number"),
        (("predict", "--workdir=a", "--features=b", "--top_k=2.5"), "--top_k: found '2.5', expected a whole number"),
        (("predict", "--workdir=", "--features=b"), "--workdir: found nothing, expected a path"),
        (("evaluate", "--annotations=a", "--predictions=p", "--proposals=yes"), "--proposals: ignored explicit"),
        (("evaluate", "--annotations=a", "--predictions=p", "--tiou=0.5;0.7"), "expected numbers with commas between"),
        (("synthesize", "--config=spsw", "--out=o", "--videos=0"), "expected a whole number of at least 1"),
        (("compare",), "required: FOLDER"),
        (("trian",), "no command 'trian'; there are inspect, configure, run"),
        (("evalute",), "Did you mean evaluate?"),
        (("--workdir=x", "run"), "expected a command first"),
        ((), "apl-jax COMMAND [--FLAG=VALUE ...]"),
    ],
)
def test_a_command_line_that_cannot_be_understood(arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(*arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_own_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    _, parsers = build_parser(COMMANDS)
    assert all(f"--{flag} " in text for flag in parsers[name].flags)
    assert f"  apl-jax {name} " in text[text.index("example") :]
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_a_command_line(name: str) -> None:
    import shlex

    for example in COMMANDS[name].examples:
        assert parsed(name, *shlex.split(example)).command == name


@pytest.mark.parametrize("arguments", [["--help"], ["help"], ["run", "--help"], ["--version"]])
def test_help_is_quick(arguments: list[str]) -> None:
    """Nothing that takes long is imported for it, nor by the package itself."""
    program = (
        "import sys\nfrom apl_jax.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert not {'jax', 'numpy', 'ml_collections', 'absl'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "apl" in done.stdout and not done.stderr


# Settings

CONFIGURATION = """
from apl_jax.runs.settings import default_config
def get_config(variant="first"):
    config = default_config()
    config.seed = {"first": 1, "second": 2}[variant]
    return config
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(CONFIGURATION)
    return f"--config={path}"


def test_a_configuration_its_variant_and_what_overrides_it(config: str) -> None:
    assert read_settings(parsed("run", config, "--workdir=w")).seed == 1
    changes = "--config.detector.decoding.sigma=0.25", "--config.detector.name", "actionformer"
    found = read_settings(parsed("run", f"{config}:second", "--workdir=w", *changes, "--config.data.root=2"))
    assert found.seed == 2 and found.detector.settings.decoding.sigma == 0.25 and found.data.root == "2"


def test_the_detector_is_switched_by_its_name() -> None:
    found = read_settings(parsed("inspect", "--config.detector.dropout=0.5", "--config.detector.name=spot"))
    assert found.detector.name == "spot" and found.detector.settings.dropout == 0.5
    assert read_settings(parsed("inspect")).detector.name == "actionformer"


def test_a_plug_in_is_loaded_before_the_configuration_is_read(tmp_path: Path) -> None:
    from apl_jax.registry import DETECTORS

    plugin = tmp_path / "cli_plugin.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from apl_jax.declarations import Checked\nfrom apl_jax.detectors import register_detector\n"
        "@dataclass(frozen=True)\nclass Own(Checked):\n    width: int = 4\n"
        "def build(settings, facts):\n    return None\n"
        "register_detector('of_test_cli', Own, build)\n"
    )
    try:
        arguments = f"--plugin={plugin}", "--config.detector.name=of_test_cli", "--config.detector.width=7"
        found = read_settings(parsed("inspect", *arguments))
        assert found.detector.name == "of_test_cli" and found.detector.settings.width == 7
    finally:
        DETECTORS.forget("of_test_cli")  # the laws are about every registered detector


# Words


def test_the_settings_that_words_know_are_all_there_are() -> None:
    from apl_jax.runs.settings import Settings

    assert tuple(field.name for field in dataclasses.fields(Settings)) == SETTINGS


@pytest.mark.parametrize(
    ("message", "flags", "expected"),
    [
        ("Try: `data.label_ratio=0.1`, or more.", RUN, "Try: --config.data.label_ratio=0.1, or more."),
        ("`seed`: found -1", RUN, "--config.seed: found -1"),
        ("`evaluation.tiou[0]`: found 'x'", RUN, "--config.evaluation.tiou[0]: found 'x'"),
        ("`variants=('supervised',)`", RUN, "--config.variants=\"('supervised',)\""),
        ("`data.streams=\"('rgb', 'flow')\"`", RUN, "--config.data.streams=\"('rgb', 'flow')\""),
        ("`data.root=/a b`", RUN, '--config.data.root="/a b"'),
        ("`data.root=/a/b-c_d.e`", RUN, "--config.data.root=/a/b-c_d.e"),
        ("`data.root=it's $5`", RUN, "--config.data.root='it'\"'\"'s $5'"),
        ("`data.root=<folder that holds them>`", RUN, "--config.data.root=<folder that holds them>"),
        ("`data.stride=2` `data.window=4`", RUN, "--config.data.stride=2 --config.data.window=4"),
        ("another `workdir`", RUN, "another --workdir"),
        ("`config`: found no file 'x'", RUN, "--config: found no file 'x'"),
        ("`data.root=x` is a setting", ("workdir",), "data.root=x is a setting"),  # there is no --config to set it
        ("`duration_s`: found 2", ("duration",), "--duration: found 2"),
        ("`length_t`: found 0", ("length",), "--length: found 0"),
        ("`fps=<rate>`, or `annotations=<json with fps>`", ("fps",), "--fps=<rate>, or annotations=<json with fps>"),
        ("Try a lower `learning_rate`.", RUN, "Try a lower learning_rate."),
        ("`database`: found none", RUN, "database: found none"),
        ("no names at all: a < b, 5 %", RUN, "no names at all: a < b, 5 %"),
        ("`selection rule`: found 'x'", RUN, "selection rule: found 'x'"),
        ("/data/a`b.npy, /data/`c.npy", RUN, "/data/a`b.npy, /data/`c.npy"),
    ],
)
def test_names_in_backticks_become_flags(message: str, flags: tuple[str, ...], expected: str) -> None:
    assert in_flags(message, flags) == expected


# Exit codes


@pytest.fixture
def one_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[Exception | type[BaseException] | int], int]]:
    """Carries out a command line whose command raises, or returns, something."""
    log, hook = logging.getLogger("apl_jax"), sys.unraisablehook
    state = log.handlers, log.propagate, log.level

    def carry_out(outcome: Any) -> int:
        def command(_: Any) -> int:
            if isinstance(outcome, int):
                return outcome
            raise outcome

        def declare(parser: Parser) -> None:
            parser.flag("workdir", "FOLDER", "folder")

        own = Command("run", "do it", "Does it.", ("",), declare, command)
        monkeypatch.setattr(dispatch, "COMMANDS", {"run": own})
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        return main(["run"])

    yield carry_out
    log.handlers, log.propagate, log.level = state
    sys.unraisablehook = hook


def test_exit_codes(one_command: Callable[[Any], int], capsys: pytest.CaptureFixture[str]) -> None:
    from apl_jax.interruption import Preempted
    from apl_jax.training.loop import NotFiniteError

    said = lambda: capsys.readouterr().err
    assert one_command(0) == 0 and one_command(1) == 1 and not said()
    for error in (DataError("x.json: choose another `workdir`"), OSError(28, "full"),
                  NotFiniteError("`workdir`")):  # fmt: skip
        assert one_command(error) == 1
        words = said()
        assert words.startswith("apl-jax: ") and len(words.splitlines()) == 1 and "`" not in words
        assert isinstance(error, OSError) or "--workdir" in words
    assert one_command(Preempted("saved; the same command goes on")) == 0 and "goes on" in said()
    assert one_command(KeyboardInterrupt) == 130 and "The same command goes on" in said()
    assert one_command(UsageError("apl-jax run: no")) == 2 and said() == "apl-jax run: no\n"
    for error in (KeyError("x"), ValueError("`workdir`")):  # a mistake of ours is no refusal
        assert one_command(error) == 70 and "a fault of the program" in said()


def test_the_log_speaks_of_flags_too(one_command: Callable[[Any], int], capsys: pytest.CaptureFixture[str]) -> None:
    one_command(0)
    logging.getLogger("apl_jax.elsewhere").info("T = %d; `workdir=%s` for another", 3, "x y")
    assert capsys.readouterr().err == 'T = 3; --workdir="x y" for another\n'


def test_evaluate_needs_the_file_of_scores_for_its_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    given = "evaluate", "--annotations=a.json", "--predictions=p.json"
    with pytest.raises(UsageError, match="found --external_top_k, --out, expected --external_scores"):
        COMMANDS["evaluate"].carry_out(parsed(*given, "--external_top_k=1", "--out=o.json"))


def test_the_module_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "apl_jax.cli", "evaluate", "--annotations=no.json", "--predictions=no.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("apl-jax: no.json: found no such file") and len(done.stderr.splitlines()) == 1
    done = subprocess.run([*command, "--stage=x"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 2 and "no flag --stage, which is a flag of predict, export" in done.stderr


# Ranges, addresses, and what the operating system says


@pytest.mark.parametrize(
    "text, expected",
    [
        ("0.5:0.05:0.95", (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)),
        ("0.1:0.2:0.5,0.75", (0.1, 0.3, 0.5, 0.75)),
        ("0.3:0.3:0.5", (0.3,)),
    ],
)
def test_a_range_of_thresholds(text: str, expected: tuple[float, ...]) -> None:
    assert parsed("evaluate", "--annotations=a", "--predictions=p", f"--tiou={text}").tiou == expected
    found = read_settings(parsed("run", "--config=spsw:smoke", "--workdir=w", f"--config.evaluation.tiou={text}"))
    assert found.evaluation.tiou == expected


@pytest.mark.parametrize("text", ["0.5:0.05", "0.5:0:0.9", "0.9:0.1:0.5", "0:1e-9:1", "a:b:c", "0.5:nan:0.9", ""])
def test_what_is_no_range_is_refused(text: str) -> None:
    assert "such as 0.5:0.05:0.95" in refused("evaluate", "--annotations=a", "--predictions=p", f"--tiou={text}")
    with pytest.raises(ValueError, match=r"evaluation\.tiou"):
        read_settings(parsed("run", "--config=spsw:smoke", "--workdir=w", f"--config.evaluation.tiou={text}"))


def test_an_address_is_no_path() -> None:
    said = refused("run", "--config=spsw:smoke", "--workdir=gs://bucket/run")
    assert "'gs://bucket/run', an address" in said and "Mount" in said


@pytest.mark.parametrize(
    "number, advice",
    [(errno.EACCES, "who may write"), (errno.EROFS, "who may write"), (errno.ENOSPC, "free some space")],
)
def test_what_the_operating_system_refuses_has_a_place_and_advice(number: int, advice: str) -> None:
    said = in_words(OSError(number, os.strerror(number), "/runs/a"))
    assert said.startswith("/runs/a: ") and f"Try: {advice}" in said.replace("check ", "") and "[Errno" not in said


def test_a_setting_is_the_flag_of_its_name_where_there_are_no_settings() -> None:
    assert in_flags("check `evaluation.external_scores`", ("external_scores",)) == "check --external_scores"
