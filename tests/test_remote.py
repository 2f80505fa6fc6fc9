"""Cells elsewhere: real workers in real snapshots, started by an engine that is only a list of processes."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.cluster.cells import PACKAGES, Remote
from pipeline.cluster.engines import ENGINES
from pipeline.cluster.slurm import SlurmCells
from pipeline.cluster.snapshot import committed, snapshot
from pipeline.errors import BusyError, ParamsError
from pipeline.runner.board import plan_board
from pipeline.runner.dvc import cache_folder
from pipeline.runner.engine import Order
from pipeline.runner.graph import outdated, read_stages
from pipeline.runner.run import Walk
from pipeline.runner.status import Screen
from pipeline.settings.schema import RuntimeConfig, SlurmOptions

REPOSITORY = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # in DVC
STAGE = """
import pathlib, signal, sys, time

kind, cell = sys.argv[1:]
with open("/dev/stdout" if kind == "none" else pathlib.Path("runs/.resume").resolve() / "ran", "a") as file:
    print(kind, cell, file=file)


def save(number, frame):
    pathlib.Path(f"runs/.resume/saved_{cell}").touch()
    sys.exit(75)


signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
if kind == "train":
    if cell == "slow" and not pathlib.Path("runs/.resume/saved_slow").exists():
        pathlib.Path("runs/.resume/slow_began").touch()
        time.sleep(60)
    if cell == "bad":
        sys.exit("error: bad: no data")
    pathlib.Path("runs", cell).write_text(pathlib.Path("data/store").read_text())
else:
    pathlib.Path("metrics", cell).write_text(pathlib.Path("runs", cell).read_text() + kind)
"""
STAGES = """
stages:
  train:
    foreach: [a, b, slow, bad]
    do:
      cmd: python stage.py train ${item}
      deps: [stage.py, data/store]
      params: [{reports/code.json: ["train.${item}"]}]
      outs: ["runs/${item}"]
  evaluate:
    foreach: [a, b, slow, bad]
    do:
      cmd: python stage.py evaluate ${item}
      deps: ["runs/${item}"]
      outs:
        - metrics/${item}: {cache: false}
"""


class Processes:
    """An engine of child processes; as Slurm and Ray do, it only says which have ended."""

    name, place = "processes", "in processes"

    def __init__(self):
        self.children, self.submitted = {}, []

    def submit(self, tasks):
        for task in tasks:
            self.submitted.append(task.cell)
            self.children[task.cell] = subprocess.Popen([sys.executable, *task.command])

    def over(self):
        return {cell for cell, child in self.children.items() if child.poll() is not None}

    def token(self, cell):
        return str(self.children[cell].pid)

    def recall(self, tokens):
        return {cell for cell, token in tokens.items() if psutil.pid_exists(int(token))}

    def ask_to_stop(self):
        pass

    def kill(self):
        for child in self.children.values():
            child.kill()

    def close(self):
        for child in self.children.values():
            child.wait()


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setattr("pipeline.cluster.cells.LATE", 0.5)
    files = {
        "stage.py": STAGE,
        "dvc.yaml": STAGES,
        "params.yaml": "{}",
        "data/store": "data ",
        "metrics/.keep": "",
        "reports/code.json": "{}",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / ".gitignore").write_text("/data/\n/runs/\n")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], check=True)
    (tmp_path / ".dvcignore").write_bytes((REPOSITORY / ".dvcignore").read_bytes())
    commit("start")
    # Written by a stage, after the commit.
    (tmp_path / "reports/code.json").write_text(json.dumps({"train": dict.fromkeys(("a", "b", "slow", "bad"), "code")}))
    return tmp_path


def commit(message):
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "add", "-A"], check=True)
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *author, "commit", "-qm", message], check=True)


def order_for(*targets):
    slurm = SlurmOptions(partition=None, time=1, cpus=1, options={})
    settings = {"workers": 0, "log_every": 1, "checkpoint_every": 1.0, "validate_every": 0, "tracking_every": 1.0}
    runtime = RuntimeConfig(device="cpu", gpus_per_cell=1, log_weights=False, slurm=slurm, **settings)
    stages = tuple(outdated(read_stages(targets)))
    return Order(params=runtime, stages=stages, count=None, address=None, threads=1, logs=Path("runs/.logs"), lock=None)


def run(engine, *targets, meanwhile=None, stops=()):
    stages = read_stages(targets)
    reasons = outdated(stages)
    Path("runs").mkdir(exist_ok=True)
    board = plan_board("there", stages, reasons)
    with engine, Screen(board, Path("runs/grid.log"), 60) as screen:
        if meanwhile:
            screen.show = meanwhile
        return Walk({name: stages[name] for name in reasons}, engine, stops, screen).run()


def ran():
    return sorted(Path("runs/.resume/ran").read_text().splitlines())


def test_cells_run_in_snapshots_and_their_results_are_collected_without_running_twice(project, capfd):
    cells = Processes()
    states = run(Remote(order_for("evaluate@[ab]"), cells), "evaluate@[ab]")
    assert "cached" not in capfd.readouterr().out  # that DVC looked is not shown in the live view
    assert set(states.values()) == {"done"}
    assert sorted(cells.submitted) == ["a", "b"]  # a cell's two stages travel together
    assert ran() == ["evaluate a", "evaluate b", "train a", "train b"]
    assert Path("metrics/a").read_text() == "data evaluate"
    assert "Stage 'evaluate@a' is cached - skipping run" in Path("runs/.logs/evaluate@a.log").read_text()
    assert outdated(read_stages(["evaluate@[ab]"])) == {}
    left = {path.name for path in Path("runs/.cells").glob("*/*")}
    assert left == {"a.json", "b.json", "call.json", "code.json"}  # no snapshot


def test_a_failed_cell_is_reported_with_its_own_error_and_not_tried_again(project):
    cells = Processes()
    states = run(Remote(order_for("evaluate@bad"), cells), "evaluate@bad")
    assert states == {"train@bad": "failed", "evaluate@bad": "skipped"}
    assert cells.submitted == ["bad"]
    assert "error: bad: no data" in Path("runs/.logs/train@bad.log").read_text()


@pytest.mark.fault(
    "kill", "a worker of a cluster is killed", "kill -9", "it is started again and goes on from what was saved"
)
def test_a_worker_that_is_killed_is_started_again_and_its_cell_has_saved(project):
    cells = Processes()
    killed = []

    def kill_once():
        if not killed and Path("runs/.resume/slow_began").exists():
            killed.append(cells.children["slow"])
            killed[0].kill()

    assert run(Remote(order_for("evaluate@slow"), cells), "evaluate@slow", meanwhile=kill_once)["train@slow"] == "done"
    assert cells.submitted == ["slow", "slow"]
    assert "the worker of slow was lost; try 2 of 4" in Path("runs/.logs/train@slow.log").read_text()
    assert ran() == ["evaluate slow", "train slow", "train slow"]


def test_a_signal_to_the_worker_is_no_failure(project):
    """A cluster preempts so; the trainer has saved, and there is no result that could be taken for an end."""
    cells = Processes()
    signalled = []

    def signal_once():
        if not signalled and Path("runs/.resume/slow_began").exists():
            signalled.append(cells.children["slow"])
            signalled[0].terminate()

    assert run(Remote(order_for("train@slow"), cells), "train@slow", meanwhile=signal_once) == {"train@slow": "done"}
    assert signalled[0].returncode == 75
    assert cells.submitted == ["slow", "slow"]


def test_a_request_to_stop_reaches_the_cells_by_a_file(project):
    stops = []

    def stop():
        if Path("runs/.resume/slow_began").exists() and not stops:
            stops.append(15)

    states = run(Remote(order_for("train@slow"), Processes()), "train@slow", meanwhile=stop, stops=stops)
    assert states == {"train@slow": "stopped"}
    assert Path("runs/.resume/saved_slow").exists()


@pytest.mark.fault(
    "kill",
    "the runner of a cluster goes away",
    "a second runner while cells of the first are at work",
    "it takes them over",
)
def test_a_later_runner_goes_on_with_the_cells_that_an_earlier_one_left_at_work(project):
    first, second = Remote(order_for("train@slow"), Processes()), Processes()
    first.__enter__()
    first.start("train@slow")
    first.ended()
    while not Path("runs/.resume/slow_began").exists():
        time.sleep(0.1)
    worker = psutil.Process(first.cells.children["slow"].pid)
    stage = next(child for child in worker.children(recursive=True) if "stage.py" in str(child.cmdline()))
    Path("runs/.resume/saved_slow").touch()
    written = json.loads(next(Path("runs/.cells").glob("*/call.json")).read_text())
    assert written["cells"]["slow"] == [str(worker.pid), ["train"]]
    later = Remote(order_for("train@slow"), second)
    with later:
        later.start("train@slow")
        stage.kill()
        while not (ends := later.ended()):
            time.sleep(0.1)
    assert second.submitted == []
    assert ends[0][0] == "train@slow"
    first.cells.close()
    first.local.__exit__(None, None, None)


def test_the_cells_of_another_commit_are_waited_for(project):
    first = Remote(order_for("train@slow"), Processes())
    first.__enter__()
    first.start("train@slow")
    first.ended()
    Path("params.yaml").write_text("{x: 1}")
    commit("another")
    with pytest.raises(BusyError, match="cells of another commit, or about to stop, still run: slow"):
        Remote(order_for("train@slow"), Processes()).__enter__()
    first.kill()
    first.cells.close()
    first.local.__exit__(None, None, None)


def test_jobs_that_a_killed_runner_left_on_another_engine_are_not_disturbed(project):
    call = project / "runs/.cells/1"
    call.mkdir(parents=True)
    cells = {"a": ("77_0", ["train"]), "b": ("77_1", ["train"]), "slow": ("", ["train"])}
    (call / "call.json").write_text(json.dumps({"engine": "slurm", "commit": "x", "cells": cells}))
    (call / "b.json").touch()  # has ended
    with pytest.raises(BusyError, match=r"cells on slurm may still run: a \(77_0\). Continue with --on slurm, or end"):
        Remote(order_for("train@a"), Processes()).__enter__()
    (call / "a.json").touch()
    with Remote(order_for("train@a"), Processes()):
        assert not call.exists()


def test_slurm_is_not_asked_to_cancel_ten_times_a_second(monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "7 PENDING\n8 RUNNING\n", "")

    monkeypatch.setattr("pipeline.cluster.slurm.subprocess.run", run)
    cells = SlurmCells.__new__(SlurmCells)
    cells.jobs, cells.listed, cells.asked, cells.killed = {"a": "7", "b": "8"}, {}, float("-inf"), float("-inf")
    for _ in range(10):
        cells.ask_to_stop()
    for _ in range(10):
        cells.kill()
    assert [command[0] for command in commands] == ["squeue", "scancel", "scancel"]
    assert commands[1:] == [["scancel", "--state=PENDING", "7"], ["scancel", "7", "8"]]


def test_uncommitted_code_is_refused_with_the_reason(project):
    Path("params.yaml").write_text("{x: 1}")
    with pytest.raises(ParamsError, match="params.yaml: changed and not committed, but a cell on another machine"):
        Remote(order_for("train@a"), Processes())


def test_a_changed_dvc_of_a_project_in_a_repository_is_refused(project):
    below = project / "own"
    (below / ".dvc").mkdir(parents=True)
    (below / ".dvc/config").touch()
    with pytest.raises(ParamsError, match="own/.dvc/config: changed and not committed"):
        committed(below)
    commit("own")
    assert committed(below)


def test_a_cache_that_the_user_has_for_all_projects_is_that_of_the_snapshots(project, monkeypatch):
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(project / "home"))
    (project / "home").mkdir()
    (project / "home/config").write_text("[cache]\n    dir = ../shared\n")
    assert cache_folder(project) == project / "shared"
    (project / ".dvc/config.local").write_text("[cache]\n    dir = nearer\n")
    assert cache_folder(project) == project / ".dvc/nearer"
    (project / ".dvc/config.local").write_text("[cache]\n    dirr = nearer\n")
    with pytest.raises(ParamsError, match="config file error"):
        cache_folder(project)


def test_a_snapshot_shares_data_checkpoints_and_cache_and_is_gone_afterwards(project):
    (project / "runs/.cells/x").mkdir(parents=True)
    entries = {name: {"cmd": name} for name in ("train@a", "evaluate@a", "train@b")}
    (project / "runs/.cells/x/dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": entries}))
    for trained in ("a", "b"):
        (project / "runs" / trained).mkdir()
        (project / "runs" / trained / "run.json").touch()
    with snapshot(project, committed(project), project / "runs/.cells/x/a", "a") as folder:
        assert (folder / "runs/b").resolve() == project / "runs/b"  # a cell may start from another one
        assert not (folder / "runs/a").exists()
        assert (folder / "data").resolve() == project / "data"
        assert (folder / "runs/.resume").resolve() == project / "runs/.resume"
        assert "train@a" in (folder / "dvc.lock").read_text()
        assert "train@b" not in (folder / "dvc.lock").read_text()
        said = subprocess.run(
            [sys.executable, "-m", "dvc", "cache", "dir"], cwd=folder, capture_output=True, text=True, check=True
        )
        assert said.stdout.strip() == str(project / ".dvc/cache")
    assert not folder.exists()


def test_a_project_in_a_folder_of_the_repository_runs_elsewhere_too(project, monkeypatch):
    below = project / "examples/one"
    for name in ("stage.py", "dvc.yaml", "params.yaml", ".gitignore", "metrics/.keep", "reports/code.json"):
        (below / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).rename(below / name)
    # As the commands of an example, this one has to find the code of the snapshot and not that of the repository.
    (below / "dvc.yaml").write_text(STAGES.replace("python stage.py", "PYTHONPATH=../.. python stage.py"))
    code = "import marker\nassert '.cells' in marker.__file__\n"
    (below / "stage.py").write_text(STAGE.replace("kind, cell = sys.argv[1:]", f"kind, cell = sys.argv[1:]\n{code}"))
    (project / "marker.py").touch()
    (project / "data").rename(below / "data")
    commit("below")
    monkeypatch.chdir(below)
    states = run(Remote(order_for("evaluate@a"), Processes()), "evaluate@a")
    assert states == {"train@a": "done", "evaluate@a": "done"}, Path("runs/.logs/train@a.log").read_text()
    assert ran() == ["evaluate a", "train a"]
    assert Path("metrics/a").read_text() == "data evaluate"
    (project / "marker.py").write_text("edited = True")
    Path("params.yaml").write_text("{x: 1}")
    with pytest.raises(ParamsError, match="params.yaml: changed and not committed"):
        committed(below)


def test_a_result_that_is_not_in_the_cache_fails_and_is_not_made_again(project, monkeypatch):
    remote = Remote(order_for("train@a"), Processes())
    look = remote.look

    def look_and_lose():
        look()
        if remote.units["a"].codes:
            shutil.rmtree(project / ".dvc/cache/runs")

    remote.look = look_and_lose
    assert run(remote, "train@a") == {"train@a": "failed"}
    assert ran() == ["train a"]
    assert "error: the cache of DVC lacks the result" in Path("runs/.logs/train@a.log").read_text()


@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_an_engine_that_is_not_installed_is_named_with_its_install_line(engine, project, monkeypatch):
    monkeypatch.setitem(sys.modules, {"ray": "ray", "slurm": "submitit"}[engine], None)
    with pytest.raises(
        ParamsError, match=f"--on {engine}: not installed. Install it with: uv pip install {PACKAGES[engine]}"
    ):
        ENGINES[engine](order_for("train@a"))


def test_the_install_lines_are_those_of_pyproject():
    text = (REPOSITORY / "pyproject.toml").read_text()
    for engine, package in PACKAGES.items():
        assert f'{engine} = ["{package}"]' in text
