"""The whole road, by `dvc repro` in a clone: two cells from nothing to a filled README."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.tiny import tiny_params

ROOT = Path(__file__).parents[1]
EMPTY = "| ResNet18 (OS=8, PRE=none) | 32x32 | LR/POLICY/BS/EPOCH: 0.01/poly/4/1 | train/val | - | - |"


def run(*command, cwd, check=True):
    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true", "GIT_CONFIG_GLOBAL": "/dev/null",
    }  # fmt: skip
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=400, stdin=subprocess.DEVNULL
    )
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def dvc(*arguments, cwd, check=True):
    return run(sys.executable, "-m", "dvc", *arguments, cwd=cwd, check=check)


def stale(cwd):
    """The stages that DVC itself would run again, not those that follow from them, with the hashes of the code as it is."""
    dvc("repro", "--quiet", "--single-item", "check", cwd=cwd)
    status = json.loads(dvc("status", "--json", "dvc.yaml", cwd=cwd).stdout)
    return {stage for stage, reasons in status.items() if any("changed" in str(reason) for reason in reasons)}


def checkout(folder):
    """The files that git knows, as they are now."""
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.splitlines()
    for name in names:
        if (ROOT / name).exists() and not name.startswith(("tests/", "dvc.lock", "reports/metrics", "reports/plots")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A checkout with a grid of two cells, before anything was run."""
    folder = checkout(tmp_path_factory.mktemp("clone"))

    def two_cells(params):
        row = params["grid"]["tiny_os8"]
        params["grid"]["tiny_os16"] = {**row, "output_stride": 16}
        params["recipes"]["tiny"]["epochs"] = 1

    tiny_params(folder / "params.yaml", two_cells)
    (folder / "README.md").write_text("# Mine\n\n<!-- results:tiny -->\n<!-- /results:tiny -->\n\nThe end.\n")
    run("git", "init", "-q", cwd=folder)
    run("git", "add", "-A", cwd=folder)
    run("git", "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "start", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def done(clone):
    """The same after `dvc repro`, with what that printed."""
    return clone, dvc("repro", cwd=clone).stdout


def test_one_command_fills_the_readme_from_tracked_runs(done):
    clone, printed = done
    text = (clone / "README.md").read_text()
    rows = re.findall(
        r"\| ResNet18 \(OS=(\d+), PRE=none\) .* \| (\d+\.\d\d%) \| local · \[card\]\((\S+)\) \|",
        text,
    )
    assert [row[0] for row in rows] == ["8", "16"]
    for stride, shown, card in rows:
        assert (clone / f"runs/tiny_os{stride}/weights/seed0.safetensors").exists()
        assert (clone / card).exists()
        metrics = json.loads((clone / f"reports/metrics/tiny_os{stride}.json").read_text())
        assert shown == f"{metrics['mIoU']:.2%}"
    assert text.startswith("# Mine\n\n<!-- results:tiny -->\n")
    assert text.endswith("<!-- /results:tiny -->\n\nThe end.\n")
    assert (clone / "mlflow.db").exists()
    assert "the runs: " in printed


def test_the_interval_and_the_difference_of_the_cells_are_told(done):
    clone, printed = done
    told = json.loads((clone / "reports/statistics/tiny.json").read_text())
    for name, cell in told["cells"].items():
        assert cell["mIoU"] == json.loads((clone / f"reports/metrics/{name}.json").read_text())["mIoU"]
    (pair,) = told["pairs"]
    assert {pair["better"], pair["than"]} == {"tiny_os8", "tiny_os16"}
    assert pair["sentence"] in printed


def test_every_number_of_the_readme_is_proven(done):
    clone, _ = done
    proof = run(sys.executable, "-m", "pipeline", "verify", cwd=clone)
    assert [line.rpartition(", ")[2] for line in proof.stdout.splitlines()] == ["again", "again"]


def test_the_same_command_writes_the_page_of_both_cells(done):
    clone, _ = done
    text = (clone / "reports/index.html").read_text()
    assert "2 of 2 cells are measured" in text
    for cell in ("tiny_os8", "tiny_os16"):
        assert f'id="provenance-{cell}"' in text
        assert f'alt="prediction of {cell}, ' in text


def test_a_second_run_does_nothing(done):
    clone, _ = done
    before = {path: path.stat().st_mtime_ns for path in clone.rglob("*") if path.is_file() and ".dvc" not in path.parts}
    printed = dvc("repro", cwd=clone).stdout
    assert "Data and pipelines are up to date." in printed
    assert "Running stage" not in printed
    after = {path: path.stat().st_mtime_ns for path in clone.rglob("*") if path.is_file() and ".dvc" not in path.parts}
    assert before == after


def test_only_reports_and_the_readme_are_left_for_git(done):
    clone, _ = done
    changed = {line[3:].split("/")[0] for line in run("git", "status", "--porcelain", cwd=clone).stdout.splitlines()}
    assert changed <= {"README.md", "dvc.lock", "reports"}


def test_a_metric_that_changes_evaluates_again_and_trains_nothing(done):
    clone, _ = done
    metrics = clone / "deeplab/metrics.py"
    text = metrics.read_text()
    metrics.write_text(text + "# a comment\n")
    assert stale(clone) == set()
    metrics.write_text(text + "LIMIT = 1\n")
    # prepare too: the data card has the scores of baselines. It writes the same store, so nothing is trained.
    assert stale(clone) == {"evaluate@tiny_os8", "evaluate@tiny_os16", "compare@tiny", "prepare@tiny"}
    metrics.write_text(text)


def test_prose_in_the_readme_makes_nothing_stale(done):
    clone, _ = done
    readme = clone / "README.md"
    text = readme.read_text()
    readme.write_text(text.replace("The end.", "The very end."))
    assert stale(clone) == set()
    readme.write_text(text)


def test_a_row_that_leaves_the_grid_leaves_the_table(done):
    clone, _ = done
    params = (clone / "params.yaml").read_text()
    left = json.loads(params)
    del left["grid"]["tiny_os16"]
    (clone / "params.yaml").write_text(json.dumps(left))
    dvc("repro", "readme@tiny", cwd=clone)
    assert "OS=16" not in (clone / "README.md").read_text()
    assert "OS=8" in (clone / "README.md").read_text()
    (clone / "params.yaml").write_text(params)


def test_changing_the_epochs_of_one_data_set_makes_exactly_its_four_cells_stale(tmp_path):
    """On the real grid: its lock file is made as if everything had been run."""
    folder = checkout(tmp_path)
    run("git", "init", "-q", cwd=folder)
    yaml = YAML(typ="safe")
    params = yaml.load((folder / "params.yaml").read_text())
    before = params_that_stages_see(folder, params)
    params["recipes"]["cityscapes"]["epochs"] = 221
    after = params_that_stages_see(folder, params)
    changed = {stage for stage in before if before[stage] != after[stage] and stage.startswith(("prepare", "train"))}
    assert changed == {f"train@cityscapes_resnet{depth}_os{stride}" for depth in (50, 101) for stride in (8, 16)}


def params_that_stages_see(folder, params):
    """For each stage the values of the parameters that DVC watches for it."""
    from dvc.repo import Repo

    with (folder / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    with Repo(str(folder)) as repo:
        return {
            stage.name: {
                (dep.def_path, name): str(value)
                for dep in stage.params
                for name, value in dep.read_params(flatten=False).items()
            }
            for stage in repo.index.stages
        }


def test_the_readme_of_this_repository_shows_its_tables_as_they_are():
    for table in sorted((ROOT / "reports/tables").glob("*.md")):
        block = f"<!-- results:{table.stem} -->\n{table.read_text()}<!-- /results:{table.stem} -->"
        assert block in (ROOT / "README.md").read_text(), f"dvc repro readme@{table.stem}"
