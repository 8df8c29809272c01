"""The package as other people install it: a wheel, in an environment of its own, away from the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE", "apl_jax", "configs")
FEW = [
    *(f"--config.learning.{stage}.steps=10" for stage in ("pretrain", "supervised", "self_train")),
    "--config.variants=('semi_supervised',)", "--config.evaluation.label_space.enabled=False",
]  # fmt: skip
LINES = """
import numpy as np
import apl_jax as apl
data = apl.load_dataset("spsw", label_ratio=0.1, split_seed=0)
steps = {f"learning.{stage}.steps": 10 for stage in ("pretrain", "supervised", "self_train")}
few = steps | {"variants": ("semi_supervised",), "evaluation.label_space.enabled": False}
run = apl.train("spsw:smoke", data=data, workdir="run", overrides=few)
found = run.model.predict(np.load("walk.npy"), fps=100)
labels = run.pseudo_labels()
truth = {"walk": [("walking", 1.0, 4.0)]}
score = apl.evaluate(predictions={"walk": found}, annotations=truth, tiou=(0.3, 0.5))
print(apl.__file__, len(found), len(labels), score.average_map)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network from a copy of the sources, by the setuptools that is installed."""
    assert int(version("setuptools").partition(".")[0]) >= 77, (
        "the build needs a newer setuptools: pip install '.[test]'"
    )
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", f"--wheel-dir={out}", str(copy)]
    subprocess.run(build, check=True, capture_output=True, text=True, timeout=300)
    return next(out.glob("apl_jax-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of a fresh environment with this wheel, and the libraries of this one without its own apl_jax."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    install = [*pip, "install", "--force-reinstall", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, text=True, timeout=300)
    # A folder named in a .pth file is searched, but the .pth files in it, such as the editable apl_jax's, are not read.
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout.strip()  # fmt: skip
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(site) / "libraries.pth").write_text("".join(f"{path}\n" for path in sorted(libraries)))
    return folder / "bin"


def carry_out(*command: str | Path, folder: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    kinds = (".py", ".npz", ".json", ".md", ".html", ".css", ".typed")
    files = [path for path in (REPOSITORY / "apl_jax").rglob("*") if path.is_file() and path.suffix in kinds]
    expected = {str(path.relative_to(REPOSITORY)) for path in files}
    expected |= {"apl_jax/py.typed"} | {
        f"apl_jax/configs/{path.name}" for path in (REPOSITORY / "configs").glob("*.py")
    }
    assert {name for name in names if ".dist-info/" not in name} == expected
    for name in (
        "configs/spsw.py", "report/templates/report.html", "report/templates/style.css", "data/embedded/README.md",
        "data/embedded/annotations.json", "data/embedded/signals_100hz.npz", "inference/export_example.py",
    ):  # fmt: skip
        assert f"apl_jax/{name}" in names
    licences = {Path(name).name for name in names if ".dist-info/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE"}


@pytest.mark.exhaustive
def test_the_wheel_trains_predicts_and_answers_from_python(installed: Path, tmp_path: Path) -> None:
    apl = installed / "apl-jax"
    told = carry_out(apl, "run", "--config=spsw:smoke", "--workdir=run", *FEW, folder=tmp_path)
    assert str(REPOSITORY) not in told.stderr and "report    run/report.html" in told.stdout
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    walk = np.random.default_rng(0).normal(size=(900, 6)).astype(np.float32)
    np.save(tmp_path / "walk.npy", walk)
    flags = ("--features=walk.npy", "--fps=100", "--min_score=0", "--out=found.json")
    carry_out(apl, "predict", "--workdir=run", *flags, folder=tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())["results"]["walk"]
    carry_out(apl, "export", "--workdir=run", "--out=export", folder=tmp_path)
    assert (tmp_path / "export" / "example.py").is_file()

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
    said = carry_out(installed / "python", "-c", LINES, folder=tmp_path).stdout.split()
    assert Path(said[0]).is_relative_to(installed.parent)
    assert int(said[1]) == len(found) > 0 and int(said[2]) == 138 and 0 <= float(said[3]) <= 1
    # The same settings: nothing was trained again.
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
    assert version("apl_jax") in carry_out(apl, "--version", folder=tmp_path).stdout
