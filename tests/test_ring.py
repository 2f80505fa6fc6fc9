"""Slots in shared memory and the processes that fill them; a job is a number, its batch that number everywhere."""

import errno
import faulthandler
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from deeplab import ring
from deeplab.errors import DataError, SettingsError, SizeError, WorkerError
from deeplab.monitor import Clock
from deeplab.ring import Ring, fill_in_turn
from tests.forked import forked

LAYOUT = (((2, 3000), np.uint8), ((5,), np.int64))


def fill(slot, job):
    slot[0][:] = job
    slot[1][:] = os.getpid()


def run(jobs=20, fill=fill, workers=2, pin=False):
    return fill_in_turn(LAYOUT, range(jobs), fill, workers, pin)


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_the_order_of_the_jobs(workers):
    def uneven(slot, job):
        time.sleep(0.004 * (job % 3 == 0))
        fill(slot, job)

    assert [int(images[0, 0]) for images, _ in run(fill=uneven, workers=workers)] == list(range(20))


def test_the_jobs_are_dealt_out_in_turn_and_none_is_done_here():
    writers = [int(pids[0]) for _, pids in run(workers=3)]
    assert len(set(writers)) == 3
    assert writers == writers[:3] * 6 + writers[:2]
    assert os.getpid() not in writers


def test_a_batch_is_the_memory_that_the_worker_wrote():
    images, _ = next(batches := run())
    os.waitpid(forked(images.fill, 77), 0)
    assert (images == 77).all()
    batches.close()


def test_the_memory_is_no_file():
    """So the size of /dev/shm does not matter, and a kill leaves nothing behind."""
    kept = Ring(LAYOUT, 2)
    address = kept.slots[0][0].ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(number, 16) for number in line.split()[0].split("-"))
        if first <= address < last:
            assert line.endswith("/dev/zero (deleted)")  # how Linux shows what is shared and has no name
            return
    pytest.fail("not mapped")


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_slot_is_not_written_while_the_consumer_has_it_however_far_the_workers_are_ahead(workers):
    seen = set()
    for job, (images, _) in enumerate(run(jobs=60, workers=workers)):
        seen.add(images.ctypes.data)
        for _ in range(3):
            assert (images == job).all()
            time.sleep(0.0005)
    assert len(seen) == max(1, ring.AHEAD * workers) + 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_copy_that_the_device_makes_late_gets_its_own_batch(workers, monkeypatch):
    """A device that copies only when somebody waits for it, as late as a real one may."""
    ordered, copied = [], []

    def fence():
        until = len(ordered)
        return lambda: copied.extend(np.unique(images).tolist() for images in ordered[len(copied) : until])

    monkeypatch.setattr(ring, "device_fence", fence)
    monkeypatch.setattr(ring, "pinned", lambda *_: nullcontext())
    for images, _ in run(jobs=50, workers=workers, pin=True):
        ordered.append(images)
        assert len(ordered) - len(copied) <= ring.IN_TRANSIT + max(1, ring.AHEAD * workers) + 1
    assert len(copied) > 30  # the others had no successor to be overwritten by
    assert copied == [[job] for job in range(len(copied))]


def test_a_free_slot_is_given_out_only_after_its_fence():
    waits, numbers = [], itertools.count()

    def fence():
        number = next(numbers)
        return lambda: waits.append(number)

    slots = Ring(LAYOUT, 2, fence)
    first, second = slots.take(), slots.take()
    assert waits == []
    slots.give_back(first)
    slots.give_back(second)
    assert [slots.take(), slots.take()] == [first, second]
    assert waits == [0, 1]


class Runtime:
    """Stands for CUDA's, which this machine may not have."""

    def __init__(self, code):
        self.code, self.calls = code, []

    def cudaHostRegister(self, address, size, flags):  # noqa: N802
        self.calls.append(("register", address, size))
        return self.code

    def cudaHostUnregister(self, address):  # noqa: N802
        self.calls.append(("unregister", address))


@pytest.mark.parametrize("code", [0, 2])
def test_the_ring_is_page_locked_while_it_is_used_or_says_that_it_could_not(code, monkeypatch):
    runtime = Runtime(code)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    slots = Ring(LAYOUT, 2)
    address, size = slots.slots[0][0].ctypes.data, len(slots.memory)
    said = pytest.warns(UserWarning, match="not pinned .CUDA error 2.") if code else nullcontext()
    with said, ring.pinned(slots.memory, wanted=True):
        assert runtime.calls == [("register", address, size)]
    assert runtime.calls[1:] == ([] if code else [("unregister", address)])


def test_an_error_of_the_device_is_not_covered_by_the_one_of_waiting_for_it(monkeypatch):
    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    runtime = Runtime(0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    with pytest.raises(KeyError, match="first"), ring.pinned(Ring(LAYOUT, 2).memory, wanted=True):
        raise KeyError("first")
    assert runtime.calls[-1][0] == "unregister"


def test_the_workers_are_forked_before_the_ring_is_page_locked(monkeypatch):
    """A driver may keep page-locked memory from processes that are forked later."""
    order = []
    start = multiprocessing.process.BaseProcess.start
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", lambda self: (order.append("fork"), start(self)))
    monkeypatch.setattr(ring, "pinned", lambda *_: order.append("lock") or nullcontext())
    monkeypatch.setattr(ring, "device_fence", lambda: lambda: None)
    list(run(jobs=3, pin=True))
    assert order == ["fork", "fork", "lock"]


def test_waiting_for_the_device_is_not_waiting_for_samples(monkeypatch):
    """A device that needs 20 ms for each batch, and workers that have long been ready."""
    clock = Clock(step=0, batch_size=1)
    monkeypatch.setattr(ring, "device_fence", lambda: lambda: time.sleep(0.02))
    monkeypatch.setattr(ring, "pinned", lambda *_: nullcontext())
    for job, _ in enumerate(fill_in_turn(LAYOUT, range(30), fill, 2, pin=True, waiting=clock.waiting)):
        if job == 5:
            clock.start(job)
    assert clock.waited_share() < 0.5


def test_waiting_for_a_slow_worker_is_waiting_for_samples():
    def slow(slot, job):
        time.sleep(0.02)
        fill(slot, job)

    clock = Clock(step=0, batch_size=1)
    for job, _ in enumerate(fill_in_turn(LAYOUT, range(20), slow, 1, pin=False, waiting=clock.waiting)):
        if job == 2:
            clock.start(job)
    assert clock.waited_share() > 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_copies_to_a_real_device_get_their_own_batches():
    copies = []
    for images, _ in run(jobs=200, pin=True):
        assert torch.from_numpy(images).is_pinned()
        copies.append(torch.from_numpy(images).to("cuda", non_blocking=True))
    assert [copy.unique().tolist() for copy in copies] == [[job] for job in range(200)]


@pytest.mark.parametrize("kind", [DataError, SizeError, OSError])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_worker_is_raised_as_it_is(kind, workers):
    def fail(slot, job):
        if job == 5:
            raise kind("raw/a.jpg: missing")
        fill(slot, job)

    got = []
    with pytest.raises(kind, match="^raw/a.jpg: missing$"):
        got.extend(int(images[0, 0]) for images, _ in run(fill=fail, workers=workers))
    assert got == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, r"worker \d+ was killed, most likely for lack of memory. Use fewer workers."),
        (signal.SIGBUS, r"worker \d+ could not read the data: the disk fails, or a file was cut."),
        (signal.SIGABRT, r"worker \d+ ended with exit code -6; its last output is above."),
    ],
)
@pytest.mark.fault(
    "kill", "a data worker is killed", "kill -9, a crash", "one line, exit code 71, the checkpoint stays"
)
def test_a_worker_that_dies_is_one_clear_error(number, message):
    def die(slot, job):
        if job == 5:
            faulthandler.disable()  # pytest's would print the stack
            os.kill(os.getpid(), number)
        fill(slot, job)

    with pytest.raises(WorkerError, match=f"^{message}$"):
        list(run(fill=die))


def test_a_bug_in_a_worker_shows_its_traceback_and_ends_the_run(capfd):
    with pytest.raises(WorkerError, match="ended with exit code 1"):
        list(run(fill=lambda slot, job: 1 // 0))
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.fault("kill", "a data worker hangs", "it sleeps", "one line after the patience, not for ever")
def test_a_worker_that_hangs_is_an_error(monkeypatch):
    monkeypatch.setattr(ring, "PATIENCE", 0.2)
    with pytest.raises(WorkerError, match="no batch from a worker in 0 s. Check the disk that holds the data."):
        list(run(fill=lambda slot, job: time.sleep(60)))


def test_workers_leave_requests_to_stop_to_the_training_process():
    batches = run(jobs=30)
    _, pids = next(batches)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(int(pids[0]), number)
    assert len(list(batches)) == 29


def test_leaving_early_ends_the_workers():
    batches = run()
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()


@pytest.mark.fault("kill", "the trainer of data workers is killed", "kill -9", "the workers end")
def test_workers_end_when_their_parent_is_killed(monkeypatch):
    monkeypatch.setattr(ring, "HEARTBEAT", 0.05)
    ours, theirs = multiprocessing.Pipe()

    def train():
        batches = run(jobs=100)
        theirs.send([int(next(batches)[1][0]) for _ in range(2)])
        time.sleep(60)

    child = forked(train)
    workers = [psutil.Process(pid) for pid in ours.recv()]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 20
    while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_program_that_ends_in_the_middle_of_a_batch_does_not_hang():
    code = (
        "import numpy as np\n"
        "from deeplab.ring import fill_in_turn\n"
        "kept = fill_in_turn((((4,), np.uint8),), range(99), lambda slot, job: slot[0].fill(job), 2, False)\n"
        "print(next(kept)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("[0 0 0 0]\n", "", 0)


def test_a_ring_that_does_not_fit_into_memory_is_told_in_one_line():
    with pytest.raises(
        SettingsError, match=r"^workers: [\d.]+ GB for 5 batches \(Cannot allocate memory\). Use fewer, "
    ):
        next(fill_in_turn((((2**58,), np.uint8),), range(3), fill, 2, False))


def test_processes_that_cannot_be_started_are_told_in_one_line(monkeypatch):
    def no_more():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", no_more)
    with pytest.raises(SettingsError, match=r"^workers: cannot start 2 \(Resource temporarily unavailable\). Use fe"):
        next(run())
