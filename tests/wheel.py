"""The package as a user has it: built as a wheel, installed into an empty environment, used outside of this repository.

`make test-wheel` runs it; its name keeps it out of `make test`, because it takes minutes. The packages that the project
needs are 6.6 GB, so the environment borrows those of .venv by a .pth file, and only the wheel is installed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.settings.code import entries, nested
from pipeline.settings.params import load_params
from pipeline.settings.places import Places

ROOT = Path(__file__).parents[1]
PACKAGES = ("deeplab", "pipeline")


def call(*command, folder, **settings):
    """The output of a command without this repository in its environment."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env={**kept, **settings}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked():
    """The files of the packages that git knows or would know."""
    listed = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PACKAGES)
    return {name for name in call(*listed, folder=ROOT).splitlines() if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: a build leaves files in its folder."""
    source = tmp_path_factory.mktemp("source")
    for name in (*tracked(), "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    call("uv", "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "-o", out, folder=source)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The folder `bin` of an environment with the wheel and the packages of .venv, but not this repository."""
    made = tmp_path_factory.mktemp("environment")
    call("uv", "venv", "--python", sys.executable, made / "env", folder=made)
    call("uv", "pip", "install", "--no-deps", "--python", made / "env/bin/python", wheel, folder=made)
    own = Path(
        call(
            made / "env/bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=made
        ).strip()
    )
    (own / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not followed
    where = call(
        made / "env/bin/python",
        "-c",
        "import pipeline, deeplab; print(pipeline.__file__, deeplab.__file__)",
        folder=made,
    )
    assert all(Path(file).is_relative_to(own) for file in where.split())
    return made / "env/bin"


def test_the_wheel_has_every_file_of_the_packages(wheel):
    names = {
        name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(PACKAGES) and "dist-info" not in name
    }
    assert names == tracked()


def test_a_project_outside_of_the_repository_fills_its_table(environment, tmp_path):
    random = np.random.default_rng(0)
    for folder in ("photos", "labels"):
        (tmp_path / folder).mkdir()
    for name in [f"{film}_{number}" for film in "abcde" for number in range(4)]:
        mask = np.zeros((48, 64), np.uint8)
        mask[random.integers(20) :, random.integers(40) :] = 1
        Image.fromarray(mask).save(tmp_path / f"labels/{name}_mask.png")
        noise = random.integers(0, 60, (48, 64, 3))
        Image.fromarray((noise + 120 * mask[..., None]).astype(np.uint8)).save(tmp_path / f"photos/{name}.jpg")
    grid, streets = environment / "grid", tmp_path / "streets"
    found = call(grid, "new", "streets", "--images", "photos", "--masks", "labels", folder=tmp_path)
    assert "splits   train 16, val 4; proposed: 5 groups" in found
    params = streets / "params.yaml"
    text, epochs = params.read_text(), "epochs: 50"
    assert epochs in text
    params.write_text(text.replace(epochs, "epochs: 2"))
    path = f"{environment}{os.pathsep}{os.environ['PATH']}"

    assert "10 stages done" in call(grid, "run", folder=streets, PATH=path)
    rows = [line for line in (streets / "README.md").read_text().splitlines() if line.startswith("| ResNet18")]
    assert len(rows) == 2
    assert all("%" in row and "| - |" not in row for row in rows)
    code = json.loads((streets / "reports/code.json").read_text())
    assert code == nested(entries(load_params(params), Places(streets)))  # the installed code is that of this checkout
    assert call(grid, "run", folder=streets, PATH=path) == "up to date: 11 stages\n"
    assert "as recorded" in call(grid, "verify", "--fast", folder=streets, PATH=path)
    assert "<title>" in (streets / "reports/index.html").read_text()
    call(environment / "python", "-m", "dvc", "plots", "show", folder=streets, PATH=path)

    # Another code in the environment makes every cell stale, though nothing in the project has changed.
    loss = Path(
        call(environment / "python", "-c", "import deeplab.step as s; print(s.__file__)", folder=tmp_path).strip()
    )
    loss.write_text(loss.read_text() + "\nEDITED = 1\n")
    assert re.search("^streets_resnet18_os8 ", call(grid, "plan", folder=streets, PATH=path), re.M)
