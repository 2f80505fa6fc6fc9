import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from deeplab.errors import DataError
from pipeline.errors import BusyError, ParamsError
from pipeline.runner.board import only_runner, plan_board
from pipeline.runner.checks import check_markers, uncommitted_line
from pipeline.runner.graph import Stage, choose, deepest_first, outdated, verdict
from pipeline.runner.local import Workers, environment, find_slots, misses_cache
from pipeline.runner.run import Walk, conclude
from pipeline.runner.status import Screen

REPOSITORY = Path(__file__).parents[1]

NEEDS = {
    "prepare@shapes": (),
    "prepare@voc": (),
    "train@shapes_a": ("prepare@shapes",),
    "train@shapes_b": ("prepare@shapes",),
    "train@voc_a": ("prepare@voc",),
    "evaluate@shapes_a": ("train@shapes_a", "prepare@shapes"),
    "evaluate@shapes_b": ("train@shapes_b", "prepare@shapes"),
    "evaluate@voc_a": ("train@voc_a", "prepare@voc"),
    "tables@shapes": ("evaluate@shapes_a", "evaluate@shapes_b"),
    "tables@voc": ("evaluate@voc_a",),
    "readme@shapes": ("tables@shapes",),
    "readme@voc": ("tables@voc",),
}


def stages_of(*targets, changed=(), inputs=()):
    return {
        name: Stage(needs=NEEDS[name], inputs=tuple(inputs), changes="code.py modified" if name in changed else "")
        for name in choose(NEEDS, targets)
    }


# --- the plan


def test_a_target_brings_all_that_it_needs_and_nothing_else():
    assert choose(NEEDS, ["evaluate@shapes_a"]) == ["prepare@shapes", "train@shapes_a", "evaluate@shapes_a"]
    assert set(choose(NEEDS, ["readme@shapes"])) == {name for name in NEEDS if "shapes" in name}
    assert set(choose(NEEDS, [])) == set(NEEDS)


def test_a_glob_and_the_word_before_the_at_name_groups_of_stages():
    assert set(choose(NEEDS, ["train@shapes_*"])) == {"prepare@shapes", "train@shapes_a", "train@shapes_b"}
    assert choose(NEEDS, ["prepare"]) == ["prepare@shapes", "prepare@voc"]


def test_every_stage_stands_after_what_it_needs():
    order = choose(NEEDS, [])
    assert all(order.index(need) < order.index(name) for name in NEEDS for need in NEEDS[name])


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("train@shapes_c", "did you mean 'train@shapes_"),
        ("train@vok_*", "did you mean 'train@voc_a'"),
        ("x", "there are: evaluate, prepare, readme, tables, train"),
    ],
)
def test_an_unknown_target_is_answered_with_the_nearest_name(target, answer):
    with pytest.raises(ParamsError, match=rf"no stage is called '{target.replace('*', '.')}'; {answer}"):
        choose(NEEDS, [target])


def test_what_stands_after_a_changed_stage_runs_too_and_the_reason_is_told():
    reasons = outdated(stages_of("readme@shapes", changed=["train@shapes_a"]))
    assert reasons == {
        "train@shapes_a": "code.py modified",
        "evaluate@shapes_a": "after train@shapes_a",
        "tables@shapes": "after evaluate@shapes_a",
        "readme@shapes": "after tables@shapes",
    }


def test_nothing_runs_when_nothing_has_changed():
    assert outdated(stages_of()) == {}


def test_a_cell_is_evaluated_before_the_next_one_is_trained():
    order = deepest_first(stages_of("evaluate@shapes_*"))
    assert order.index("evaluate@shapes_a") < order.index("train@shapes_b")


def test_tables_wait_for_all_cells_and_then_make_do_with_what_there_is(tmp_path):
    stages = stages_of("readme@shapes", inputs=[tmp_path])
    assert verdict("tables@shapes", stages, {"evaluate@shapes_a": "failed"}) == "wait"
    ended = {"evaluate@shapes_a": "failed", "evaluate@shapes_b": "done"}
    assert verdict("tables@shapes", stages, ended) == "skip"
    (tmp_path / "shapes_b.json").write_text("{}")
    assert verdict("tables@shapes", stages, ended) == "start"
    assert verdict("evaluate@shapes_a", stages, {"train@shapes_a": "failed", "prepare@shapes": "done"}) == "skip"


# --- the slots


def test_there_is_one_slot_per_visible_gpu_and_more_share_them(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert find_slots(None, "auto", 1) == [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in find_slots(3, "cuda", 1)] == ["3", "5", "3"]


def test_a_single_gpu_named_in_params_is_left_to_the_stage(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert find_slots(None, "cuda:1", 1) == [{}]


@pytest.mark.parametrize(("threads", "slots"), [(1, 4), (2, 2), (3, 1), (8, 1)])
def test_without_a_gpu_the_cores_hold_as_many_stages_as_their_threads_allow(monkeypatch, threads, slots):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("pipeline.runner.local.cores", lambda: 4)
    assert find_slots(None, "auto", threads) == [{}] * slots


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("GPU 0: A (UUID: GPU-a1)\nGPU 1: A (UUID: GPU-b2)", ["GPU-a1", "GPU-b2"]),
        (
            "GPU 0: A (UUID: GPU-a1)\n  MIG 1g Device 0: (UUID: MIG-c)\n  MIG 1g Device 1: (UUID: MIG-d)",
            ["MIG-c", "MIG-d"],
        ),
        ("NVIDIA-SMI has failed because it couldn't communicate with the driver", []),
    ],
)
def test_gpus_are_found_without_torch(monkeypatch, tmp_path, listed, names):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{listed}\nEND\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("pipeline.runner.local.cores", lambda: 1)
    assert find_slots(None, "auto", 1) == ([{"CUDA_VISIBLE_DEVICES": name} for name in names] or [{}])


def test_gpus_that_share_a_cell_share_its_slot_and_the_rest_is_left_alone(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    assert find_slots(None, "auto", 1, 2) == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]
    with pytest.raises(ParamsError, match="runtime.gpus_per_cell: got 8, but 5 GPUs are visible"):
        find_slots(None, "cuda", 1, 8)


def test_stages_may_write_compiled_modules(monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert "PYTHONDONTWRITEBYTECODE" not in environment({})


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_asked_for_and_not_there_is_missed_before_anything_runs(monkeypatch, device):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ParamsError, match=f"runtime.device: got '{device}', but no GPU is visible here"):
        find_slots(None, device, 1)


# --- the walk, with an engine whose stages end at once


class InstantWorkers(Workers):
    def __init__(self, logs, says):
        super().__init__([{}, {}], logs)
        self.says, self.order = says, []

    def start(self, name):
        self.order.append(name)
        self.free.pop()
        text, _ = self.says.get(name, ("", 0))
        self.log(name).write_text(text)
        self.running[name] = None

    def ended(self):
        names = list(self.running)
        self.running.clear()
        self.free = [{}, {}]
        return [(name, self.says.get(name, ("", 0))[1], 0.0) for name in names]


def walked(folder, stages, workers):
    board = plan_board("here", stages, dict.fromkeys(stages, ""))
    folder.joinpath("runs").mkdir(exist_ok=True)
    with Screen(board, folder / "grid.log", every=60) as screen:
        return Walk(stages, workers, [], screen).run()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Boards and logs of a test stay in its folder."""
    monkeypatch.chdir(tmp_path)


def test_a_failed_cell_takes_only_its_own_evaluation_with_it(tmp_path, capsys):
    (tmp_path / "shapes_b.json").write_text("{}")
    workers = InstantWorkers(
        tmp_path / "logs", {"train@shapes_a": ("one\nerror: shapes_a: no data\nERROR: rc 65", 255)}
    )
    states = walked(tmp_path, stages_of("readme@shapes", inputs=[tmp_path]), workers)
    assert {name for name, state in states.items() if state == "failed"} == {"train@shapes_a"}
    assert {name for name, state in states.items() if state == "skipped"} == {"evaluate@shapes_a"}
    assert states["readme@shapes"] == "done"
    assert conclude(states, workers, []) == 1
    said = capsys.readouterr().out
    assert "skipped evaluate@shapes_a: train@shapes_a failed (" in said
    assert "    error: shapes_a: no data" in said
    assert "5 stages done, 1 failed: train@shapes_a" in said


def test_a_result_that_the_cache_did_not_take_is_a_failure_whatever_dvc_says(tmp_path, capsys):
    log = "ERROR: failed to transfer 'd1dd' - [Errno 28] No space left on device: 'a' -> 'b'\n"
    workers = InstantWorkers(tmp_path / "logs", {"train@shapes_a": (log, 0)})
    states = walked(tmp_path, stages_of("evaluate@shapes_a"), workers)
    assert states == {"prepare@shapes": "done", "train@shapes_a": "failed", "evaluate@shapes_a": "skipped"}
    assert conclude(states, workers, []) == 1
    assert "Free some space, then keep it with: dvc commit -f train@shapes_a" in capsys.readouterr().out


def test_cells_that_all_fail_at_once_and_alike_end_the_run_early(tmp_path, capsys):
    needs = {f"train@c{number}": () for number in range(12)}
    stages = {name: Stage(needs=(), inputs=(), changes="new") for name in needs}
    says = {name: (f"error: {name[6:]}: no weights\nERROR: failed to reproduce '{name}'", 255) for name in needs}
    workers = InstantWorkers(tmp_path / "logs", says)
    states = walked(tmp_path, stages, workers)
    assert len(workers.order) == 2  # one try per slot
    assert sorted(states.values()) == ["failed"] * 2 + ["skipped"] * 10
    said = capsys.readouterr().out
    assert "not tried, because 2 others failed at once alike: error: *: no weights" in said


def test_cells_that_fail_for_reasons_of_their_own_are_all_tried(tmp_path):
    names = [f"train@c{number}" for number in range(6)]
    stages = {name: Stage(needs=(), inputs=(), changes="new") for name in names}
    workers = InstantWorkers(tmp_path / "logs", {name: (f"error: reason {name[7:]}", 255) for name in names[1:]})
    states = walked(tmp_path, stages, workers)
    assert sorted(states.values()) == ["done"] + ["failed"] * 5


def test_data_sets_without_their_archives_keep_no_other_one_from_its_training(tmp_path):
    needs = {
        f"{kind}@{name}": (f"{before}@{name}",) * bool(before)
        for name in "abcd"
        for before, kind in (("", "download"), ("download", "prepare"), ("prepare", "train"))
    }
    stages = {name: Stage(needs=needs[name], inputs=(), changes="new") for name in needs}
    says = {f"download@{name}": (f"error: data/raw/{name}: not found", 255) for name in "abc"}
    workers = InstantWorkers(tmp_path / "logs", says)
    states = walked(tmp_path, stages, workers)
    assert states["train@d"] == "done"
    assert {name for name, state in states.items() if state == "failed"} == says.keys()


def test_a_result_from_the_cache_is_called_so(tmp_path, capsys):
    log = "Stage 'train@shapes_a' is cached - skipping run, checking out outputs\n"
    workers = InstantWorkers(tmp_path / "logs", {"train@shapes_a": (log, 0)})
    walked(tmp_path, stages_of("train@shapes_a"), workers)
    assert "done    train@shapes_a 0 s from cache (2 of 2)" in capsys.readouterr().out


def test_a_training_from_files_that_are_not_committed_is_announced(tmp_path):
    assert uncommitted_line(["train@a"]) == ""  # outside of git
    for words in (["init"], ["add", "params.yaml"], ["-c", "user.name=x", "-c", "user.email=x", "commit", "-m", "x"]):
        (tmp_path / "params.yaml").touch()
        subprocess.run(["git", *words], check=True, capture_output=True)
    assert uncommitted_line(["train@a"]) == ""
    (tmp_path / "params.yaml").write_text("a: 1")
    assert uncommitted_line(["prepare@a"]) == ""
    said = "params.yaml: not committed, so the trainings will be recorded as dirty. Commit first to avoid that."
    assert uncommitted_line(["prepare@a", "train@a"]) == said


def test_half_a_block_in_the_readme_is_noticed_before_anything_runs(tmp_path):
    check_markers(["readme@voc"])  # no README
    (tmp_path / "README.md").write_text("# T\n")
    check_markers(["readme@voc"])
    (tmp_path / "README.md").write_text("<!-- results:voc -->\n")
    check_markers(["train@voc", "readme@ade20k"])
    with pytest.raises(DataError, match="found 1 times <!-- results:voc --> and 0 times"):
        check_markers(["train@voc", "readme@voc"])


def test_plain_dvc_finishes_one_data_set_after_another_and_cityscapes_last():
    code = (
        "from dvc.repo import Repo; from dvc.repo.reproduce import plan_repro\n"
        "print(*(stage.addressing for stage in plan_repro(Repo().index.graph)))"
    )
    names = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    filled = [names.index(f"readme@{name}") for name in ("shapes", "voc", "ade20k")]
    assert filled == sorted(filled)
    assert filled[-1] < names.index("download@cityscapes")


def test_a_failed_stage_without_a_log_does_not_stop_the_runner(tmp_path):
    class Unwritten(InstantWorkers):
        def ended(self):
            for name in self.running:
                self.log(name).unlink()
            return super().ended()

    workers = Unwritten(tmp_path / "logs", {"train@voc_a": ("", 74)})
    states = walked(tmp_path, stages_of("train@voc_a"), workers)
    assert states == {"prepare@voc": "done", "train@voc_a": "failed"}
    assert conclude(states, workers, []) == 1


def test_a_command_may_speak_of_transfers():
    assert not misses_cache("the ERROR: failed to transfer is DVC's, at the start of a line\n")


# --- real stages in a real DVC repository

STAGE = """
import pathlib, signal, sys, time

kind, cell = sys.argv[1:]
began = time.time()


def save(number, frame):
    while pathlib.Path("slow").exists():
        time.sleep(0.1)
    pathlib.Path("saved").write_text(signal.Signals(number).name)
    sys.exit(75)


if kind == "train":
    pathlib.Path(f"begun_{cell}").touch()
    while cell in "ab" and not all(pathlib.Path(f"begun_{other}").exists() for other in "ab"):
        time.sleep(0.1)  # for ever, unless the other runs at the same time
    if cell == "c" and not pathlib.Path("repaired").exists():
        sys.exit("error: c: its data is broken")
    pathlib.Path(f"runs/{cell}").write_text("weights")
elif kind == "evaluate":
    pathlib.Path(f"metrics/{cell}.json").write_text("{}")
elif kind == "tables":
    pathlib.Path("table").write_text(" ".join(sorted(path.stem for path in pathlib.Path("metrics").iterdir())))
elif kind == "long":
    signal.signal(signal.SIGINT, signal.SIG_IGN if pathlib.Path("deaf").exists() else save)
    pathlib.Path("runs/started").touch()
    time.sleep(60)
with open("times.txt", "a") as file:
    print(kind, cell, began, time.time(), sys.executable, file=file)
"""

STAGES = """
stages:
  train:
    foreach: [a, b, c]
    do:
      cmd: python stage.py train ${item}
      deps: [stage.py]
      outs: ["runs/${item}"]
  evaluate:
    foreach: [a, b, c]
    do:
      cmd: python stage.py evaluate ${item}
      deps: ["runs/${item}"]
      outs:
        - metrics/${item}.json: {cache: false}
  tables:
    foreach: [all]
    do:
      cmd: python stage.py tables ${item}
      deps: [metrics]
      outs:
        - table: {cache: false}
  long:
    cmd: python stage.py long x
    deps: [stage.py]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A grid of three cells with DVC; the training of cell c fails until there is a file `repaired`."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "stage.py").write_text(STAGE)
    (folder / "dvc.yaml").write_text(STAGES)
    (folder / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    (folder / "metrics").mkdir()
    subprocess.run(
        [sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=folder, env=surroundings(), check=True
    )
    return folder


def surroundings():
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "DVC_NO_ANALYTICS": "1", "CI": "1"}


def grid(*words):
    return [sys.executable, "-m", "pipeline", *words]


def call(folder, *words):
    return subprocess.run(
        grid("run", *words), cwd=folder, env=surroundings(), capture_output=True, text=True, check=False, timeout=240
    )


def test_two_slots_run_a_grid_in_order_and_past_a_failure(project):
    first = call(project, "tables", "--slots", "2")
    assert first.returncode == 1, first.stdout + first.stderr
    assert "error: c: its data is broken" in first.stdout
    assert "5 stages done, 1 failed: train@c" in first.stdout
    assert (project / "table").read_text() == "a b"

    rows = [line.split() for line in (project / "times.txt").read_text().splitlines()]
    began = {f"{kind}@{cell}": float(start) for kind, cell, start, _, _ in rows}
    ended = {f"{kind}@{cell}": float(end) for kind, cell, _, end, _ in rows}
    assert max(began["train@a"], began["train@b"]) < min(ended["train@a"], ended["train@b"])
    assert all(began[f"evaluate@{cell}"] > ended[f"train@{cell}"] for cell in "ab")
    assert {python for *_, python in rows} == {sys.executable}

    (project / "repaired").touch()
    second = call(project, "tables", "--slots", "2")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "3 of 7 stages to run here, 2 at a time" in second.stdout
    assert (project / "table").read_text() == "a b c"

    third = call(project, "tables")
    assert (third.returncode, third.stdout) == (0, "up to date: 7 stages\n")


@pytest.mark.fault(
    "kill",
    "the runner is stopped",
    "SIGTERM to it",
    "its stages save, exit code 143; a second runner meanwhile leaves with 73",
)
def test_a_signal_lets_the_stage_save_and_a_second_runner_leaves_at_once(project):
    with started(project) as runner:
        other = call(project, "tables")
        assert other.returncode == 73
        assert f"another runner (process {runner.pid}) works here" in other.stderr
        stage = stages_below(runner)
        runner.terminate()
        said, _ = runner.communicate(timeout=60)
    assert runner.returncode == 128 + signal.SIGTERM
    assert "stopped long. The same command continues from here." in said
    assert (project / "saved").read_text() == "SIGINT"
    assert [process for process in stage if is_at_work(process)] == []
    assert not any(json.loads((project / ".dvc/tmp/rwlock").read_text()).values())


@pytest.mark.fault(
    "kill",
    "the runner is killed",
    "kill -9, also right after it has started a stage",
    "its stages save and end; the next runner goes on",
)
def test_a_killed_runner_leaves_no_stage_behind(project):
    with started(project) as runner:
        left = stages_below(runner)
        runner.kill()
    _, alive = psutil.wait_procs(left, timeout=60)
    assert left
    assert not alive
    assert (project / "saved").read_text() == "SIGINT"
    plan = subprocess.run(grid("plan", "long"), cwd=project, env=surroundings(), capture_output=True, text=True)
    assert plan.stdout == "1 of 1 stages to run; short ones: long\n"


@pytest.mark.fault(
    "kill",
    "the same command is given at once after the runner was killed",
    "kill -9 while a stage needs long to save",
    "the next runner says that it waits, and goes on when the stage has ended",
)
def test_the_next_runner_waits_for_what_a_killed_one_has_left_saving(project):
    (project / "repaired").touch()
    (project / "slow").touch()
    with started(project) as runner:
        left = stages_below(runner)
        runner.kill()
    try:
        after = subprocess.Popen(
            grid("run", "train@c"), cwd=project, env=surroundings(), stdout=subprocess.PIPE, text=True
        )
        printed = after.stdout.readline()
        saving = [process for process in left if process.is_running()]
    finally:
        (project / "slow").unlink()
    after.communicate(timeout=60)
    assert printed == f"the previous runner (process {runner.pid}) has ended and its stages save; waiting for them\n"
    assert saving
    assert [process for process in left if is_at_work(process)] == []
    assert (project / "saved").read_text() == "SIGINT"
    assert after.returncode == 0


def test_a_runner_on_another_machine_is_named_and_not_taken_for_one_that_has_ended():
    with only_runner(Path("lock")):
        Path("lock").write_text("1 on login2")
        with pytest.raises(BusyError, match="another runner .process 1 on login2. works here"):
            only_runner(Path("lock")).__enter__()


@pytest.mark.parametrize("ended", [os.WEXITED, os.WEXITED | os.WNOWAIT], ids=["gone", "zombie"])
def test_what_a_runner_that_has_ended_left_is_not_waited_for_without_end(ended, monkeypatch):
    monkeypatch.setattr("pipeline.runner.board.PATIENCE", 0.3)
    with subprocess.Popen(["true"]) as runner, only_runner(Path("lock")):  # which a guard holds
        os.waitid(os.P_PID, runner.pid, ended)
        Path("lock").write_text(str(runner.pid))
        with pytest.raises(
            BusyError, match=f"the previous runner .process {runner.pid}. has ended, but its stages have not after"
        ):
            only_runner(Path("lock")).__enter__()


@pytest.mark.fault(
    "kill",
    "the runner is killed",
    "kill -9, also right after it has started a stage",
    "its stages save and end; the next runner goes on",
)
def test_a_runner_that_is_killed_right_after_it_has_started_a_stage_leaves_none_behind(project):
    """The new process reports itself to the guard; the runner has no time to."""
    code = """if True:
        import os, signal, subprocess
        from pipeline.cluster.engines import ENGINES
        from pipeline.runner.run import run

        class Killed(subprocess.Popen):
            def __init__(self, command, **options):
                super().__init__(command, **options)
                if "repro" in command:
                    print(self.pid, flush=True)
                    os.kill(os.getpid(), signal.SIGKILL)

        subprocess.Popen = Killed
        run(["long"], ENGINES["here"])
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=surroundings(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    left = int(done.stdout.split()[-1])
    deadline = time.monotonic() + 50  # the stage itself would take a minute
    while psutil.pid_exists(left) and psutil.Process(left).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_runner_repairs_what_a_killed_dvc_has_left_torn(project):
    lock = project / "dvc.lock"
    lock.write_text((lock.read_text() if lock.exists() else "schema: '2.0'\nstages:\n") + "  long:\n    cm")
    (project / ".dvc/tmp/rwlock").write_text("")
    (project / "repaired").touch()
    done = call(project, "train@c")
    assert done.returncode == 0, done.stderr
    assert "dvc.lock: damaged by a kill or a full disk, " in done.stdout
    assert "rwlock: damaged by a kill or a full disk, removed" in done.stdout


@pytest.mark.fault("kill", "a stage does not listen", "two signals to the runner", "all ends at once")
def test_a_second_signal_ends_a_stage_that_does_not_listen(project):
    (project / "deaf").touch()
    with started(project) as runner:
        (project / "deaf").unlink()
        stage = stages_below(runner)
        runner.send_signal(signal.SIGINT)
        time.sleep(1)
        assert runner.poll() is None
        runner.send_signal(signal.SIGINT)
        runner.communicate(timeout=60)
    assert runner.returncode == 128 + signal.SIGINT
    _, alive = psutil.wait_procs(stage, timeout=5)
    assert not alive
    assert not (project / "saved").exists()


def started(folder):
    """A runner whose stage `long` has begun."""
    for name in ("saved", "runs/started"):
        (folder / name).unlink(missing_ok=True)
    runner = subprocess.Popen(grid("run", "long"), cwd=folder, env=surroundings(), stdout=subprocess.PIPE, text=True)
    while not (folder / "runs/started").exists():
        assert runner.poll() is None, runner.communicate()
        time.sleep(0.1)
    return runner


def stages_below(runner):
    return psutil.Process(runner.pid).children(recursive=True)


def is_at_work(process):
    """Whether a process is alive; one that has ended may stay a zombie when nobody waits for it."""
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


BUSY = """
stages:
  slow:
    cmd: touch started && sleep 60
    outs: [slow.txt]
  other:
    cmd: touch other.txt
    outs: [other.txt]
"""


def repository(folder, stages):
    (folder / "dvc.yaml").write_text(stages)
    (folder / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, env=surroundings(), check=True)
    return folder


def test_a_dvc_that_works_on_a_stage_is_noticed(tmp_path):
    folder = repository(tmp_path, BUSY)
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "slow"]
    with subprocess.Popen(command, cwd=folder, env=surroundings(), process_group=0) as dvc:
        try:
            while not (folder / "started").exists():
                assert dvc.poll() is None
                time.sleep(0.1)
            other, slow = call(folder, "other"), call(folder, "slow")
        finally:
            os.killpg(dvc.pid, signal.SIGKILL)
    assert other.returncode == 0, other.stderr
    assert slow.returncode == 73, slow.stdout
    assert slow.stderr.startswith("error: DVC is at work in this folder: ")


CHECKED = """
stages:
  check:
    cmd: test ! -e broken && python -c 'print(open("code").readline())' > code.json
    deps: [code]
    outs: [code.json: {cache: false}]
  train:
    cmd: echo 1 > weights
    params: [code.json: [train]]
    outs: [weights]
"""


def test_an_edit_that_leaves_the_hashes_as_they_are_makes_nothing_out_of_date(tmp_path):
    (tmp_path / "dvc.yaml").write_text(CHECKED)
    (tmp_path / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    subprocess.run(
        [sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=tmp_path, env=surroundings(), check=True
    )
    (tmp_path / "code").write_text('{"train": 1}\n')
    assert call(tmp_path).returncode == 0
    (tmp_path / "code").write_text('{"train": 1}\n# a comment\n')
    assert call(tmp_path).stdout == "up to date: 2 stages\n"
    (tmp_path / "code").write_text('{"train": 2}\n')
    assert "1 of 2 stages to run" in call(tmp_path).stdout
    (tmp_path / "code").write_text('{"train": 3}\n')
    (tmp_path / "broken").touch()
    assert call(tmp_path).returncode == 78


# --- bad input


def test_an_unknown_target_is_one_line(project):
    unknown = call(project, "train@d")
    assert unknown.returncode == 78
    assert "to run" not in unknown.stdout
    assert unknown.stderr == "error: dvc.yaml: no stage is called 'train@d'; did you mean 'train@c'?\n"
