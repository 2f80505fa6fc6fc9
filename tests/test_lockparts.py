import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.runner.lockparts import LockParts, recover
from pipeline.runner.repair import is_whole

REPOSITORY = Path(__file__).parents[1]
STAGES = """
stages:
  train:
    foreach: [a, b]
    do:
      cmd: cp code_${item} ${item}
      deps: ["code_${item}"]
      params: ["x", "y.${item}"]
      outs: ["${item}"]
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for cell in "ab":
        (tmp_path / f"code_{cell}").write_text(cell)
    (tmp_path / "dvc.yaml").write_text(STAGES)
    (tmp_path / "params.yaml").write_text("x: {z: [1, 2.5e-3, yes]}\ny: {a: null, b: text}\n")
    subprocess.run(["git", "init", "-q"], check=True)
    (tmp_path / ".gitignore").write_text("/runs/\n")
    dvc("init", "--quiet")
    return tmp_path


def dvc(*words):
    variables = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "dvc", *words], check=True, capture_output=True, text=True, env=variables
    )


def call(parts, name):
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "pipeline.runner.lockparts", str(parts.begin(name)), name]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=variables).stdout


def test_the_parts_give_the_dvc_lock_that_dvc_writes_itself(project):
    parts = LockParts()
    assert "Running stage 'train@a'" in call(parts, "train@a")
    assert not Path("dvc.lock").exists()
    parts.end("train@a", well=True)
    call(parts, "train@b")
    parts.end("train@b", well=True)
    parts.flush()
    ours = Path("dvc.lock").read_bytes()
    assert not list(parts.folder.iterdir())
    assert "up to date" in dvc("status").stdout
    Path("dvc.lock").unlink()
    dvc("repro", "--force")
    assert Path("dvc.lock").read_bytes() == ours

    assert "Stage 'train@a' didn't change, skipping" in call(LockParts(), "train@a")


@pytest.mark.fault(
    "kill",
    "the runner is killed before it has written dvc.lock",
    "finished stages not yet in it",
    "the next runner puts them in; nothing is run twice",
)
def test_what_a_killed_runner_left_is_put_in_by_the_next_one_unless_dvc_lock_is_newer(project):
    parts = LockParts()
    call(parts, "train@a")
    recover()
    assert "train@a" in Path("dvc.lock").read_text()
    assert not list(parts.folder.iterdir())

    before = Path("dvc.lock").read_bytes()
    Path("code_a").write_text("changed")
    call(LockParts(), "train@a")
    LockParts().begin("train@b")  # never ran
    os.utime("dvc.lock", (time.time() + 5, time.time() + 5))
    recover()
    assert Path("dvc.lock").read_bytes() == before
    assert not list(parts.folder.iterdir())


@pytest.mark.fault(
    "kill",
    "the runner is killed while DVC writes the entry of a stage",
    "its file cut after any byte",
    "dvc.lock stays one that DVC can read",
)
def test_an_entry_that_was_not_written_to_its_end_does_not_break_dvc_lock(project, record_property):
    part = LockParts().begin("train@a")
    entry = "schema: '2.0'\nstages:\n  train@a:\n    cmd: cp code_a a\n    deps:\n    - path: code_a\n      size: 1\n"
    record_property("tries", len(entry))
    for length in range(len(entry)):
        part.write_text(entry[:length])
        recover()
        assert not part.exists()
        assert not Path("dvc.lock").exists() or is_whole(Path("dvc.lock").read_text()), entry[:length]


def test_a_kill_while_dvc_lock_is_written_leaves_the_old_one_and_the_next_runner_writes_it(project, monkeypatch):
    parts = LockParts()
    call(parts, "train@a")
    parts.end("train@a", well=True)
    before = Path("dvc.lock").read_bytes()
    call(parts, "train@b")

    class KilledError(BaseException):
        pass

    def killed(_):
        raise KilledError

    parts.spent = float("inf")  # so that it waits
    parts.end("train@b", well=True)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.runner.repair.os.fsync", killed)
        with pytest.raises(KilledError):
            parts.flush()
    assert Path("dvc.lock").read_bytes() == before
    recover()
    assert "train@b" in Path("dvc.lock").read_text()
    assert not Path("dvc.lock.part").exists()


def test_a_failed_stage_leaves_dvc_lock_as_it_was(project):
    parts = LockParts()
    parts.begin("train@a")
    parts.end("train@a", well=False)
    parts.flush()
    assert not Path("dvc.lock").exists()
    assert not list(parts.folder.iterdir())
