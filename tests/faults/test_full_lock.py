"""The disk is full when dvc.lock is to be written: by DVC itself, and by the runner."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from pipeline.files import claimed
from pipeline.runner.board import only_runner
from pipeline.runner.dvc import is_readable_lock
from pipeline.runner.graph import read_stages
from pipeline.runner.repair import repair
from tests.faults.disk import NO_SPACE, outcome, small_disk

FIRST = 3900 * "x"  # its entry ends just before the end of a page, so that the next one needs a page more
STAGES = f"""
stages:
  first:
    cmd: "echo {FIRST} > first.txt"
    outs: [first.txt: {{cache: false}}]
  second:
    cmd: "echo two > second.txt; test ! -e full || cat /dev/zero > .ballast || true"
    deps: [first.txt]
    outs: [second.txt: {{cache: false}}]
"""
ROOT = Path(__file__).parents[2]


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A project on a small disk, whose second stage fills the disk when it runs."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with small_disk(tmp_path / "disk", "2m") as disk, monkeypatch.context() as patch:
        patch.chdir(disk.path)
        Path("dvc.yaml").write_text(STAGES)
        Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
        assert call("dvc", "init", "--no-scm", "-q").returncode == 0
        assert call("dvc", "repro", "-q", "first").returncode == 0
        Path("full").touch()
        yield disk


def call(module, *words):
    return subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, check=False)


def free(disk):
    disk.free()
    Path("full").unlink()


def leftovers():
    return [path for path in Path().rglob("*") if "part" in path.name]


@pytest.mark.fault(
    "disk",
    "the disk is full when DVC writes dvc.lock",
    "a stage of `dvc repro` that fills a tmpfs",
    "DVC fails and leaves it torn; with space `grid repair` keeps all whole entries, and dvc repro completes",
)
def test_a_dvc_lock_that_a_full_disk_has_torn_is_repaired(disk):
    before = Path("dvc.lock").read_text()
    done = call("dvc", "repro")
    assert done.returncode
    assert "ERROR: failed to reproduce 'second': [Errno 28] No space left on device" in done.stderr
    torn = Path("dvc.lock").read_bytes()
    assert not is_readable_lock(torn.decode())
    assert call("dvc", "repro").returncode

    assert outcome(repair) == (74, [f"error: dvc.lock: {NO_SPACE}"])
    assert Path("dvc.lock").read_bytes() == torn
    assert leftovers() == []

    free(disk)
    assert repair() == [f"dvc.lock: damaged by a kill or a full disk, {len(torn) - len(before)} bytes cut off its end"]
    assert Path("dvc.lock").read_text() == before
    assert call("dvc", "repro").returncode == 0
    assert "up to date" in call("dvc", "status").stdout


@pytest.mark.fault(
    "disk",
    "the disk is full when a stage of the runner records its result",
    "a stage of `grid run` that fills a tmpfs",
    "the stage fails, and the next `grid run` exits with 74 and one line that names dvc.lock; with space it repairs and completes",
)
def test_the_runner_repairs_a_dvc_lock_that_a_full_disk_has_torn(disk):
    before = Path("dvc.lock").read_text()
    failed = call("pipeline", "run")
    assert failed.returncode == 1, failed.stderr
    assert "No space left on device" in failed.stdout
    full = call("pipeline", "run")
    assert (full.returncode, full.stderr) == (74, f"error: dvc.lock: {NO_SPACE}\n"), full.stdout
    assert leftovers() == []
    free(disk)
    done = call("pipeline", "run")
    assert done.returncode == 0, done.stderr
    assert "dvc.lock: damaged by a kill or a full disk, " in done.stdout
    assert Path("dvc.lock").read_text().startswith(before)
    assert "second:" in Path("dvc.lock").read_text()


@pytest.mark.fault(
    "disk",
    "the disk is full when a process takes its lock",
    "a full tmpfs, under the runner and a training",
    "exit code 74, one line that names the lock; with space it is taken",
)
@pytest.mark.parametrize("take", [only_runner, partial(claimed, name="cell")], ids=["runner", "training"])
def test_a_lock_that_cannot_be_written_is_named(tmp_path, take):
    with small_disk(tmp_path / "disk", "1m") as disk:
        disk.fill()
        path, taken = disk.path / "lock", []

        def command():
            with take(path):
                taken.append(path)

        assert outcome(command) == (74, [f"error: {path}: {NO_SPACE}"])
        disk.free()
        assert (outcome(command), taken) == ((0, []), [path])


@pytest.mark.fault(
    "disk",
    "the disk is full where DVC notes what it has seen of files",
    "a full tmpfs in place of /var/tmp/dvc",
    "exit code 74, one line that names the folder and what to do",
)
def test_the_folder_of_dvcs_notes_is_named_when_it_is_full(tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", "4m") as disk:
        monkeypatch.chdir(tmp_path)
        Path("dvc.yaml").write_text("stages: {}\n")
        assert call("dvc", "init", "--no-scm", "-q").returncode == 0
        monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(disk.path))
        disk.fill()
        code, said = outcome(lambda: read_stages([]) and None)
        assert (code, len(said)) == (74, 1)
        assert said[0].startswith(f"error: {disk.path}: DVC cannot write its notes about files: ")
        assert said[0].endswith("Free some space there, or name another folder in DVC_SITE_CACHE_DIR.")
        disk.free()
        assert outcome(lambda: read_stages([]) and None) == (0, [])
