"""The request to stop, as a stage gets it."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from pipeline.process import SAVE_AND_STOP, signals_noted

ROOT = Path(__file__).parents[1]
linux = pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
# What DVC is to a stage: its parent, in the same group. It says the number of its child and waits.
DVC = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.2), os._exit(143)))  # not at once: it has memory to give back
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(60)
"""
STAGE = """
import os, signal, sys, time
from pathlib import Path
import pipeline.stages
from pipeline.errors import run_command
from pipeline.process import signals_noted

def main():
    with signals_noted() as stop:
        Path("ready").touch()
        while not stop():
            time.sleep(0.02)
        time.sleep(0.5)  # to save
        Path("saved").touch()

run_command(main)
"""


def test_a_stage_notes_the_request_to_stop_although_what_started_it_has_blocked_signals_as_ray_does():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SAVE_AND_STOP)
    try:
        with signals_noted() as stop:
            assert not stop()
            os.kill(os.getpid(), signal.SIGINT)
            assert stop()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= set(SAVE_AND_STOP)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def started(folder, stage):
    """A process like DVC that has started `stage`, and this."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_STAGE": "train@a"}
    command = [sys.executable, "-c", DVC, stage]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, process_group=0) as dvc:
        child = psutil.Process(int(dvc.stdout.readline()))
        try:
            yield dvc, child
        finally:
            with suppress(ProcessLookupError):
                os.killpg(dvc.pid, signal.SIGKILL)


def wait_for(path):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@linux
@pytest.mark.fault(
    "kill",
    "dvc ends while a stage runs",
    "kill -9 and SIGTERM, to dvc and to its group",
    "the stage saves and ends too",
)
@pytest.mark.parametrize(
    ("number", "whom"), [(signal.SIGKILL, "dvc"), (signal.SIGTERM, "dvc"), (signal.SIGTERM, "all")]
)
def test_a_stage_saves_when_dvc_is_killed_and_when_the_whole_group_is_asked_to_stop(tmp_path, number, whom):
    """The group: the stage gets the signal and then the news that its parent has died of it, and has to survive both."""
    with started(tmp_path, STAGE) as (dvc, stage):
        wait_for(tmp_path / "ready")
        (os.killpg if whom == "all" else os.kill)(dvc.pid, number)
        dvc.wait(30)
        stage.wait(30)
        assert (tmp_path / "saved").exists()


@linux
@pytest.mark.fault(
    "kill", "dvc ends while a stage begins", "kill -9 before the stage can ask to be told", "the stage does not begin"
)
def test_a_stage_whose_dvc_was_killed_before_it_had_begun_does_not_begin(tmp_path):
    waits = "import time; from pathlib import Path\nwhile not Path('go').exists(): time.sleep(0.02)\n"
    with started(tmp_path, waits + STAGE) as (dvc, stage):
        dvc.kill()
        dvc.wait(30)
        assert stage.is_running()
        if stage.ppid() != 1:
            pytest.skip("what has lost its parent gets another one than process 1 here")
        (tmp_path / "go").touch()
        stage.wait(30)
        assert not (tmp_path / "ready").exists()


@linux
def test_a_stage_that_was_started_deaf_ends_with_dvc_too(tmp_path):
    """As in a job of a cluster, where DVC and what it starts ignore what the whole job is sent."""
    deaf = "import signal; [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGTERM, signal.SIGUSR2)]\n"
    stage = STAGE.replace("with signals_noted() as stop:", "if True:\n        stop = lambda: False")
    with started(tmp_path, deaf + stage) as (dvc, child):
        wait_for(tmp_path / "ready")
        dvc.kill()
        dvc.wait(30)
        child.wait(30)
        assert not (tmp_path / "saved").exists()
