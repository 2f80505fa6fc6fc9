"""An example is a project of its own: its own settings, stages and reports, and the same code."""

import re
import runpy
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from ruamel.yaml import YAML

from pipeline.results.readme import fill
from pipeline.settings.params import load_params

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/camvid"


def stages(path):
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))["stages"]


def test_the_stages_of_an_example_are_those_of_the_grid():
    expected = stages(ROOT / "dvc.yaml")
    for body in (stage.get("do", stage) for stage in expected.values()):
        body["cmd"] = f"PYTHONPATH=../.. {body['cmd']}"
    expected["check"]["deps"][:2] = ["../../deeplab", "../../pipeline"]
    assert stages(EXAMPLE / "dvc.yaml") == expected


def test_an_example_has_settings_of_its_own_that_are_shared_where_nothing_else_is_said():
    params, grid = load_params(EXAMPLE / "params.yaml"), load_params(ROOT / "params.yaml")
    cell = params.cell("camvid_resnet18_os8")
    assert (cell.model.pretrained, cell.model.aspp_channels, cell.recipe.crop) == (False, 256, (128, 160))
    assert cell.augment == grid.cell("voc_resnet50_os8").augment
    assert not params.cells.keys() & grid.cells.keys()


def test_nothing_in_the_pipeline_knows_that_there_are_examples():
    named = [path for path in (ROOT / "pipeline").rglob("*.py") if re.search(r"(?i)examples/|camvid", path.read_text())]
    assert not named


@pytest.mark.parametrize("table", sorted((EXAMPLE / "reports/tables").glob("*.md")), ids=lambda path: path.stem)
def test_the_readme_of_an_example_shows_its_tables_as_they_are(table):
    readme = EXAMPLE / "README.md"
    assert fill(readme.read_bytes(), table.stem, table.read_bytes(), readme) == readme.read_bytes()


def test_the_only_pictures_of_an_example_are_charts_of_its_scores_as_they_are():
    known = subprocess.run(["git", "ls-files", "examples"], cwd=ROOT, capture_output=True, text=True, check=True)
    charts = ["examples/camvid/pictures/classes.png", "examples/camvid/pictures/curves.png"]
    assert re.findall(r"\S+\.(?:png|jpe?g|bin|npz|html)", known.stdout) == charts
    draw = runpy.run_path(str(EXAMPLE / "pictures.py"))
    with Image.open(ROOT / charts[0]) as picture:
        assert picture.info["Description"] == draw["source"](draw["measured"]()), "run examples/camvid/pictures.py"
