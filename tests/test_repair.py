"""What a DVC that was killed while it wrote has left torn is repaired, and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.runner.dvc import EMPTY, is_readable_lock
from pipeline.runner.repair import STAGES, repair

LOCK = """schema: '2.0'
stages:
  train@a:
    cmd: python train.py a
    deps:
    - path: train.py
      hash: md5
      md5: 0123456789abcdef0123456789abcdef
      size: 10
  train@b:
    cmd: python train.py b
    outs:
    - path: runs/b
      hash: md5
      md5: 0123456789abcdef0123456789abcdee
      size: 10
"""
FIRST = LOCK[: LOCK.index("  train@b")]


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    return tmp_path


def torn_anywhere():
    return [LOCK[:length] for length in range(len(LOCK)) if not is_readable_lock(LOCK[:length])]


@pytest.mark.fault(
    "kill",
    "dvc.lock is torn: DVC writes it in place",
    "cut after any byte",
    "`grid run` (or `grid repair`) keeps all whole entries",
)
def test_a_torn_dvc_lock_keeps_its_whole_entries(record_property):
    torn = torn_anywhere()
    assert len(torn) > 100
    record_property("tries", len(torn))
    for text in torn:
        Path("dvc.lock").write_text(text)
        (line,) = repair()
        assert line.startswith("dvc.lock: damaged by a kill or a full disk, ")
        left = Path("dvc.lock").read_text()
        assert is_readable_lock(left)
        assert left == (FIRST if len(text) > len(FIRST) else EMPTY)
    assert sorted(path.name for path in Path().iterdir()) == [".dvc", "dvc.lock"]


def test_a_dvc_lock_that_was_cut_within_a_letter_is_repaired():
    whole = (FIRST + "  train@b:\n    cmd: python train.py \u00e4").encode()
    Path("dvc.lock").write_bytes(whole[:-1])
    (line,) = repair()
    assert line.startswith("dvc.lock: damaged by a kill or a full disk, ")
    assert Path("dvc.lock").read_text() == FIRST
    Path("dvc.lock").write_bytes(whole[:-1] + b"\n" + LOCK[len(FIRST) :].encode())  # in the middle: nobody's repair
    assert repair() == []


@pytest.mark.parametrize(
    "text",
    [
        LOCK,
        "schema: '2.0'\n",
        LOCK.replace("  train@b:", "<<<<<<< HEAD\n  train@b:"),
        LOCK.replace("schema", "  - x\n"),
    ],
    ids=["whole", "without stages", "in a merge", "broken at its start"],
)
def test_a_dvc_lock_that_no_kill_has_torn_is_left_alone(text):
    Path("dvc.lock").write_text(text)
    assert repair() == []
    assert Path("dvc.lock").read_text() == text


def test_of_a_whole_dvc_lock_only_the_last_entry_is_read_however_long_it_is(monkeypatch):
    read = []
    monkeypatch.setattr("pipeline.runner.repair.is_readable_lock", lambda text: not read.append(text))
    Path("dvc.lock").write_text(LOCK)
    assert repair() == []
    assert read == [EMPTY + STAGES + LOCK.removeprefix(FIRST)]


def test_a_torn_list_of_readers_and_writers_is_removed_and_a_whole_one_stays():
    path = Path(".dvc/tmp/rwlock")
    path.write_text(json.dumps({"read": {}, "write": {}}))
    assert repair() == []
    path.write_text('{"write": {"/a/runs')
    assert repair() == [f"{path.resolve()}: damaged by a kill or a full disk, removed"]
    assert not path.exists()
    assert repair() == []


def test_the_list_of_a_repository_is_repaired_from_a_project_in_one_of_its_folders(monkeypatch):
    path = Path(".dvc/tmp/rwlock").resolve()
    path.write_text("{")
    Path("examples").mkdir()
    monkeypatch.chdir("examples")
    assert repair() == [f"{path}: damaged by a kill or a full disk, removed"]


@pytest.fixture
def process():
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        yield sleeper
        sleeper.kill()


def listed(process):
    """DVC's list as `process` has left it."""
    info = {"pid": process.pid, "cmd": "dvc repro"}
    path = Path(".dvc/tmp/rwlock")
    path.write_text(json.dumps({"read": {"/a/code.py": [info]}, "write": {"/a/runs": info}}))
    return path


@pytest.mark.fault(
    "kill",
    "DVC's list of readers and writers names a process that was killed",
    "its number is by now that of another process, or of nobody, or it is a zombie",
    "`grid run` (or `grid repair`) forgets it; one that is running stays",
)
@pytest.mark.parametrize("now", ["another", "nobody", "a zombie"])
def test_a_list_of_processes_that_have_ended_is_removed(process, now):
    path = listed(process)
    assert repair() == []
    if now == "another":
        born = psutil.Process(process.pid).create_time()
        os.utime(path, (born - 1, born - 1))
    else:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | (os.WNOWAIT if now == "a zombie" else 0))
    assert repair() == [f"{path.resolve()}: left by processes that have ended, removed"]
    assert not path.exists()


def test_the_command_prints_what_it_did():
    Path("dvc.lock").write_text(torn_anywhere()[-1])
    root = str(Path(__file__).parents[1])
    command = [sys.executable, "-m", "pipeline", "repair"]
    done = subprocess.run(command, env={"PYTHONPATH": root}, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("dvc.lock: damaged by a kill or a full disk, ")
