"""Data of your own beside the grid: the same stages, driven by the same params.yaml, and no part of a plain `dvc repro`."""

import re
import subprocess
from contextlib import chdir
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.cluster.cells import Remote
from pipeline.cluster.engines import Order
from pipeline.errors import ParamsError
from pipeline.page.inputs import Folders, read_pages
from pipeline.runner import plan
from pipeline.runner.graph import choose
from pipeline.runner.lockparts import LockParts, recover
from pipeline.runner.status import show
from pipeline.settings.params import load_params
from pipeline.verify.committed import Place

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # in DVC
ROOT = Path(__file__).parents[1]
CELL = "camvid_resnet18_os8"
MOVED = (
    (r"\$\{(grid|datasets)\}", r"${examples.\1}"),
    (r"(?<!-)\breports\b", "examples/reports"),
    (r"^(grid|recipes|datasets)\b", r"examples.\1"),
)


@pytest.fixture(scope="module")
def graph():
    """Each stage of this repository with those that it needs, as DVC sees them."""
    from dvc.repo import Repo

    with chdir(ROOT), Repo() as repo:  # names are relative to the current folder
        found = repo.index.graph
        return {stage.addressing: [need.addressing for need in found.successors(stage)] for stage in repo.index.stages}


@pytest.fixture
def params():
    return load_params(ROOT / "params.yaml")


def moved(value):
    """A piece of dvc.yaml as it has to stand in examples/dvc.yaml."""
    if isinstance(value, dict):
        return {moved(key): moved(each) for key, each in value.items()}
    if isinstance(value, list):
        return [moved(each) for each in value]
    if isinstance(value, str):
        for old, new in MOVED:
            value = re.sub(old, new, value)
    return value


def stages(path):
    return YAML(typ="safe").load((ROOT / path).read_text(encoding="utf-8"))["stages"]


def test_the_stages_of_the_examples_are_those_of_the_grid():
    expected = {name: moved(stage) for name, stage in stages("dvc.yaml").items()}
    for body in (stage.get("do", stage) for stage in expected.values()):
        body["wdir"] = ".."
    assert stages("examples/dvc.yaml") == expected


def test_nothing_in_dvc_yaml_needs_an_example(graph):
    alone = choose(graph, [])
    assert alone
    assert not [name for name in alone if ":" in name or "camvid" in name]


@pytest.mark.parametrize("target", ["readme@camvid", "examples/dvc.yaml:readme@camvid", "readme@cam*"])
def test_an_example_is_run_by_its_name(graph, target):
    names = choose(graph, [target])
    assert names[-1] == "examples/dvc.yaml:readme@camvid"
    assert f"examples/dvc.yaml:train@{CELL}" in names
    assert all(name.startswith("examples/dvc.yaml:") for name in names)


def test_the_file_stands_for_all_of_its_stages_and_a_kind_for_those_of_the_grid(graph):
    assert set(choose(graph, ["examples/dvc.yaml"])) == {name for name in graph if ":" in name}
    assert not [name for name in choose(graph, ["train"]) if ":" in name]
    with pytest.raises(ParamsError, match="no stage is called 'readme@camvit'; did you mean 'readme@camvid'"):
        choose(graph, ["readme@camvit"])


def test_a_stage_is_called_as_dvc_calls_it(params, graph):
    assert params.stage("train", CELL) == f"examples/dvc.yaml:train@{CELL}"
    assert {params.stage("train", name) for name in params.cells} <= set(graph)
    assert {params.stage("tables", name) for name in params.datasets} <= set(graph)


def test_the_cells_share_what_is_not_their_own(params):
    cell = params.cell(CELL)
    assert params.examples == {"camvid"}
    assert (cell.model.pretrained, cell.model.aspp_channels, cell.recipe.crop) == (False, 256, (128, 160))
    assert cell.train.momentum == params.cell("voc_resnet50_os8").train.momentum
    assert params.splits["camvid"] == ("train", "val")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size: 8, epochs: 40", "batch_size: 8, epochs: 0", "examples.recipes.camvid.epochs: got 0, expected greater"),
        ("aspp_channels: 256, aux", "aspp_chanels: 256, aux", "examples.recipes.camvid.model: unknown name 'aspp_chanels'; did"),
        ("dataset: camvid, backbone: resnet18, output_stride: 8", "dataset: camvit, backbone: resnet18, output_stride: 8",
         f"examples.grid.{CELL}.dataset: unknown name 'camvit'; did you mean 'camvid'?"),
        ("dataset: camvid, backbone: resnet18, output_stride: 8", "dataset: camvid, backbone: resnet18, output_stride: 7",
         f"examples.grid.{CELL}.output_stride: got 7, expected 8 or 16"),
        ("dataset: shapes, backbone: resnet18, output_stride: 8", "dataset: camvid, backbone: resnet18, output_stride: 8",
         "grid.shapes_resnet18_os8.dataset: unknown name 'camvid'"),
        ("format: folder", "formt: folder", "examples.datasets.camvid: unknown name 'formt'; did you mean 'format'?"),
        ("\n  recipes:\n    camvid:", "\n  recipe:\n    camvid:", "examples: unknown name 'recipe'; did you mean 'recipes'?"),
        ("\n    camvid:\n      title", "\n    voc:\n      title", "examples.datasets.voc: `datasets` has this name too; choose another"),
        (f"    {CELL}:", "    ../x:", "the name '../x': expected lower-case letters"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_examples_is_answered_with_its_place(tmp_path, old, new, message):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / "params.yaml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ParamsError) as caught:
        load_params(tmp_path / "params.yaml")
    assert f"params.yaml: {message}" in str(caught.value)


def test_the_examples_may_be_left_out(tmp_path):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    kept = re.sub(r"\nexamples:\n(?:  .*\n)+", "\n", text)
    assert "camvid:" not in kept
    (tmp_path / "params.yaml").write_text(kept, encoding="utf-8")
    assert load_params(tmp_path / "params.yaml").examples == frozenset()


def test_the_parts_of_an_example_go_into_its_own_lock_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["dvc", "init", "--quiet", "--no-scm"], check=True)
    names = ("report", "examples/dvc.yaml:report")
    (tmp_path / "examples").mkdir()
    parts = LockParts()
    for name in names:
        parts.begin(name).write_text(f"schema: '2.0'\nstages:\n  report:\n    cmd: {name}\n")
    recover()
    for name, path in zip(names, ("dvc.lock", "examples/dvc.lock"), strict=True):
        assert YAML(typ="safe").load(Path(path).read_text())["stages"] == {"report": {"cmd": name}}
    assert f"cmd: {names[1]}" in LockParts().begin(names[1]).read_text()


def test_another_engine_refuses_an_example(params):
    order = Order(
        params=params.runtime, stages=(f"examples/dvc.yaml:train@{CELL}",), count=1, address=None, threads=1,
        logs=Path("logs"), lock=None,
    )  # fmt: skip

    class Nowhere:
        place = "nowhere"

    with pytest.raises(ParamsError, match="the examples run on this machine only"):
        Remote(order, Nowhere())


def test_plan_and_status_show_the_grid_and_an_example_when_it_is_asked_for_or_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "this_device", lambda: "cpu")
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    for words, there in (["plan"], False), (["plan", "camvid_*"], True):
        monkeypatch.setattr("sys.argv", words)
        plan.main()
        assert (CELL in capsys.readouterr().out) == there
    assert CELL not in show()
    (tmp_path / "examples/reports/metrics").mkdir(parents=True)
    (tmp_path / f"examples/reports/metrics/{CELL}.json").write_text('{"mIoU": 0.25}')
    assert "25.00%" in next(line for line in show().splitlines() if line.startswith(CELL))


def test_the_page_and_the_proof_of_an_example_look_into_its_own_reports(params, tmp_path):
    def titles(reports):
        return [page.name for page in read_pages(params, Folders(reports=reports, runs=tmp_path, data=tmp_path))]

    assert titles(tmp_path / "examples/reports") == ["camvid"]
    assert "camvid" not in titles(tmp_path / "reports")
    place = Place().of("camvid", params)
    assert (place.reports, place.lock) == (Path("examples/reports"), Path("examples/dvc.lock"))
    assert Place().of("voc", params) == Place()


def test_the_readme_shows_the_tables_of_the_examples_as_they_are():
    for table in sorted((ROOT / "examples/reports/tables").glob("*.md")):
        block = f"<!-- results:{table.stem} -->\n{table.read_text()}<!-- /results:{table.stem} -->"
        assert block in (ROOT / "README.md").read_text(), f"dvc repro examples/dvc.yaml:readme@{table.stem}"


def test_no_picture_of_an_example_is_committed():
    known = subprocess.run(["git", "ls-files", "examples"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not re.findall(r"\S+\.(?:png|jpe?g|bin|npz|html)", known.stdout)
