"""Nothing silent, around the pictures: settings, MLflow, git, users and environments that people reported in public."""

import os
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from deeplab.backbone import build_backbone
from pipeline import process
from pipeline.runner.dvc import open_repo
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.stages import tables
from pipeline.tracking.client import open_experiment
from pipeline.training.provenance import git_state
from tests.records import CELL, OTHER, ROOT, Folder, blank_database
from tests.reported import case
from tests.tiny import model_config, tiny_params

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own


# --- Settings


def named(tmp_path, name):
    """A params.yaml whose cells are `name` and those of the others, as a person types them."""
    path = tiny_params(tmp_path / "params.yaml", lambda params: params["grid"].update(typed=params["grid"]["tiny_os8"]))
    text = path.read_text()
    path.write_text(text.replace('"typed"', name).replace("typed:", f"{name}:"))
    return load_params(path)


@case("settings", "a cell named 2024_01, which YAML reads as the number 202401",
      "grid: a name is a number for YAML, 202401. Write the name in quotes.")  # fmt: skip
def test_number_names(tmp_path):
    named(tmp_path, "2024_01")


@case("settings", "a cell named null, as YAML reads nothing", "grid: a name is no text for YAML, None. Write the name")
def test_null_names(tmp_path):
    named(tmp_path, "null")


@case("settings", "the same name in quotes")
def test_number_names_in_quotes(tmp_path):
    assert "2024_01" in named(tmp_path, '"2024_01"').cells


@case("settings", "a backbone with four levels of features (convnext_atto)")
def test_timm_backbone_of_four_levels():
    build_backbone(model_config(backbone="convnext_atto"))


@case("settings", "a backbone that timm cannot dilate (hrnet_w18_small)", "Choose one of the table")
def test_timm_backbone_without_strides():
    build_backbone(model_config(backbone="hrnet_w18_small"))


@case("settings", "the section `examples` is deleted from params.yaml: no file needs it any more")
def test_examples_removed():
    for name in ("params.yaml", "dvc.yaml"):
        assert "examples" not in YAML(typ="safe").load((ROOT / name).read_text())


# --- MLflow


@pytest.fixture
def folder(tmp_path, tmp_path_factory, monkeypatch):
    """A project with a measured cell, and a database that it shares with its variants."""
    here = Folder(tmp_path / "project", blank_database(tmp_path_factory.getbasetemp()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here.path}/mlflow.db")
    monkeypatch.chdir(here.path)
    here.train(CELL)
    here.measure(CELL, 0.3)
    return here


def as_git(folder, *words):
    user = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *user, *words], cwd=folder, check=True, capture_output=True)


def variant(folder, lr, score):
    """DVC's copy of the project with another learning rate, trained and measured."""
    place = folder.path / ".dvc/tmp/exps/temp1"
    place.mkdir(parents=True)
    copy = Folder(place / "copy")
    as_git(copy.path, "init")
    as_git(copy.path, "add", "params.yaml")
    as_git(copy.path, "commit", "-m", "the recipe")
    copy.raw["recipes"]["shapes"]["lr"] = lr
    copy.write_params()
    copy.train(CELL)
    copy.measure(CELL, score)
    return copy


def seen(experiment):
    """What belongs to the table of the recipe."""
    client = experiment.client
    note = client.get_experiment(experiment.number).tags["mlflow.note.content"]
    aliases = {model.name: dict(model.aliases) for model in client.search_registered_models()}
    return note, aliases, [run.info.run_id for run in experiment.runs(current="1")]


@case("tracking", "a better variant from DVC's queue: recorded, but the table in MLflow stays that of the recipe")
def test_sweep_takes_over(folder, monkeypatch):
    tables.run("shapes")
    with open_experiment("shapes", timeout=5) as experiment:
        before = seen(experiment)
        copy = variant(folder, lr=0.3, score=0.9)
        monkeypatch.chdir(copy.path)
        tables.run("shapes", Places())
        assert seen(experiment) == before
        (run,) = [run for run in experiment.runs(cell=CELL, complete="1") if run.info.run_id not in before[2]]
        assert run.info.run_name == f"{CELL} (recipe.lr (0.02 -> 0.3))"
        assert run.data.metrics["final/mIoU"] == 0.9
        monkeypatch.chdir(folder.path)
        tables.run("shapes")
        assert seen(experiment) == before


@case("tracking", "a variant that changes another cell is named after nothing")
def test_sweep_names_only_what_changed(folder, monkeypatch):
    copy = variant(folder, lr=0.02, score=0.3)
    monkeypatch.chdir(copy.path)
    tables.run("shapes", Places())
    with open_experiment("shapes", timeout=5) as experiment:
        assert [run.info.run_name for run in experiment.runs(complete="1")] == [CELL]


@case("tracking", "the experiment was deleted in MLflow's page: the warning names the way back",
      "mlflow experiments restore")  # fmt: skip
def test_deleted_experiment(folder, capsys):
    tables.run("shapes")
    with open_experiment("shapes", timeout=5) as experiment:
        experiment.client.delete_experiment(experiment.number)
    folder.train(OTHER)
    folder.measure(OTHER, 0.2)
    capsys.readouterr()
    tables.run("shapes")
    raise RuntimeWarning(capsys.readouterr().err)


# --- Git, users and environments


@case("environment", "`runs` is a link to a larger disk: refused before anything is trained",
      "but DVC keeps results only in a real folder")  # fmt: skip
def test_linked_runs(tmp_path):
    for name in (".git", "scratch"):
        (tmp_path / name).mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "scratch")
    places = Places(tmp_path)
    places.require_own(places.data, places.runs)


@case("environment", "`data/raw/<data set>` is a link, as the documentation says")
def test_linked_raw(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "data/raw/own").symlink_to(tmp_path)
    places = Places(tmp_path)
    places.require_own(places.data, places.runs, places.reports)


@case("environment", "a container that runs as a uid without a name: `grid` sets USER for DVC, MLflow and torch",
      source="mlflow/mlflow#1103")  # fmt: skip
def test_user_without_a_name(monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[f"uid not found: {uid}"])
    process.name_user()
    assert os.environ["USER"] == "uid12345"


@case(
    "environment", "a zip of the project without .git", "In a copy without .git, such as an unpacked zip, run: git init"
)
def test_without_git(tmp_path, monkeypatch):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with open_repo():
        pass


@case(
    "environment",
    "a clone that belongs to another user, as on a mounted folder: the reason is in the record and printed",
)
def test_another_owner(tmp_path, monkeypatch):
    as_git(tmp_path, "init")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    state = git_state()
    assert (state["commit"], state["dirty"]) == ("unknown", None)
    assert "dubious ownership" in state["why_unknown"]


@case("environment", "a `python` without the packages runs a stage: the environment is not active",
      "lacks the packages of this project. Run: source .venv/bin/activate")  # fmt: skip
def test_environment_not_active():
    code = "import sys; sys.path.insert(0, '.'); import pipeline.stages.train"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    raise RuntimeError(done.stderr)
