"""`grid try CELL key=value...`: another setting, beside the recorded one."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deeplab.config import InitConfig
from deeplab.errors import DataError
from pipeline.errors import ParamsError
from pipeline.runner import trial
from pipeline.settings.places import Places
from tests.tiny import tiny_cell, tiny_params

ROOT = Path(__file__).parents[1]
# The learning rate is the score.
STAGES = """
stages:
  evaluate:
    foreach: [tiny_os8]
    do:
      cmd: python score.py
      deps: [data/tiny/manifest.json]
      params: ["grid.${item}"]
      metrics: ["reports/metrics/${item}.json": {cache: false}]
"""
SCORE = """
import json, pathlib
from ruamel.yaml import YAML
row = YAML(typ="safe").load(pathlib.Path("params.yaml"))["grid"]["tiny_os8"]
pathlib.Path("reports/metrics/tiny_os8.json").write_text(json.dumps({"mIoU": row.get("recipe", {}).get("lr", 0.01)}))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder below the root of a repository."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.fixture
def places(folder):
    """A project with one cell."""
    tiny_params(folder / "params.yaml")
    return Places()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny", "lr=1"], "params.yaml: grid: unknown name 'tiny'; did you mean 'tiny_os8'?"),
        (["tiny_os8", "lrr=1"], "lrr=1: unknown name 'lrr'; did you mean 'lr'?"),
        (["tiny_os8", "recipe.flip=1"], "recipe.flip=1: unknown name 'recipe.flip'; did you mean 'recipe.lr'?"),
        (["tiny_os8", "lr"], "lr: expected key=value, such as lr=0.02"),
        (["tiny_os8", "lr=["], "lr=[: the value is not YAML"),
        (["tiny_os8", "lr=x"], "params.yaml: grid.tiny_os8.recipe.lr: got 'x', expected a valid number"),
        (["tiny_os8", "output_stride=32"], "params.yaml: grid.tiny_os8.output_stride: got 32, expected 8 or 16"),
        (["tiny_os8", "lr=0.01"], "tiny_os8: has these settings already. `grid run evaluate@tiny_os8` trains it."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_anything_runs(places, words, message):
    cell, *settings = words
    with pytest.raises(ParamsError) as error:
        trial.run(cell, settings, places)
    assert str(error.value) == message


def test_data_that_is_not_prepared_is_named(places):
    with pytest.raises(DataError, match="data/tiny/manifest.json: not found. Run: grid run prepare@tiny"):
        trial.run("tiny_os8", ["lr=0.5"], places)


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("lr=2e-3", "recipe.lr", 0.002),
        ("augment.flip=0", "augment.flip", 0),
        ("multi_grid=[1,2,4]", "model.multi_grid", [1, 2, 4]),
        ("backbone=resnet34", "backbone", "resnet34"),
        ("model.pretrained=true", "pretrained", True),
    ],
)
def test_a_key_is_found_in_its_section_and_where_a_row_has_it(setting, key, value):
    assert trial.parse(setting) == (key, value)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("data/weights/a.safetensors", ["data/weights"]),
        ("data/a.safetensors", ["data/a.safetensors"]),
        ("data/pretrained/a.safetensors", []),  # copied with its folder for every cell
        ("committed/a.safetensors", []),
        ("committed/b.safetensors", ["committed/b.safetensors"]),
        ("model", ["model"]),  # a folder in the form of a Hugging Face repository
        ("/a.safetensors", []),
        ("data/missing.safetensors", []),
    ],
)
def test_the_file_that_a_cell_starts_from_is_copied(places, folder, file, expected):
    for name in ("tiny/manifest.json", "pretrained/a.safetensors", "weights/a.safetensors", "a.safetensors"):
        (folder / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "data" / name).touch()
    for name in ("committed/a.safetensors", "committed/b.safetensors", "model/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    run("git", "init", "-q", "..")
    run("git", "add", "committed/a.safetensors")
    cell = replace(tiny_cell(), init=InitConfig(file=file, sha256="0" * 64))
    assert [str(path) for path in trial.copied(cell, places)] == ["data/tiny", "data/pretrained", *expected]


def test_another_setting_is_tried_and_nothing_here_changes(places, folder, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    (folder / "dvc.yaml").write_text(STAGES)
    (folder / "score.py").write_text(SCORE)
    (folder / ".gitignore").write_text("/data/\n")
    for name in ("data/tiny", "data/downloads", "reports/metrics"):
        (folder / name).mkdir(parents=True)
    for file in ("data/tiny/manifest.json", "data/downloads/tiny.json", "reports/metrics/.keep"):
        (folder / file).touch()
    run("git", "init", "-q", "..")
    run("git", "config", "user.name", "a")
    run("git", "config", "user.email", "a@example.org")
    monkeypatch.chdir("..")
    run(sys.executable, "-m", "dvc", "init", "-q")
    monkeypatch.chdir(folder)
    run(sys.executable, "-m", "dvc", "repro", "-q")
    run("git", "add", "-A")
    run("git", "commit", "-qm", "start")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    grid = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pipeline.__main__ import main; main()"
    done = run(sys.executable, "-c", grid, "try", "tiny_os8", "lr=0.25", "multi_grid=[1,2,4]")
    head, score, last = done.stdout.splitlines()[-3:]
    assert head.split() == ["recorded", "tried"]
    assert score.split() == ["mIoU", "0.0100", "0.2500"]
    assert last.startswith("experiment tiny-os8-lr-0.25-multi-grid-1-2-4-")
    assert not run("git", "status", "--porcelain").stdout
    assert {path: path.read_bytes() for path in before} == before
    assert json.loads((folder / "params.yaml").read_text())["grid"]["tiny_os8"].get("recipe") is None


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done
