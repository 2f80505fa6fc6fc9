"""Batches that worker processes write in place: a ring of slots in shared memory, and the processes that fill it.

Nothing is collated, pickled or copied in the training process. The memory is an anonymous mapping that the workers
inherit when they are forked: no file, no name, nothing in /dev/shm, and nothing to clean up after a kill. Jobs are
given out in turn, so the order of the batches never depends on which worker is fast.
"""

import atexit
import mmap
import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from multiprocessing.connection import Connection
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from deeplab.errors import DataError, SettingsError, WorkerError

AHEAD = 2  # jobs with each worker, the one in work included
IN_TRANSIT = 2  # batches that may still be copied to the device while the next ones are filled
ALIGNMENT = 4096  # bytes; a page, so that no two slots share one
PATIENCE = 300.0  # seconds without a batch after which a worker counts as hanging
HEARTBEAT = 1.0  # seconds after which a waiting worker checks that its parent is alive

Layout = tuple[tuple[tuple[int, ...], type[np.generic]], ...]  # shape and type of each array of a slot
Slot = tuple[NDArray[Any], ...]
Fill = Callable[[Slot, Any], None]  # writes the batch of a job into a slot
Fence = Callable[[], Callable[[], None]]  # marks this moment on the device; the result waits for it
Waiting = Callable[[], AbstractContextManager[None]]  # goes around each wait for samples, to measure it


class Ring:
    """`count` slots of equal arrays.

    With a `fence` a slot is reused only when the device has passed the moment at which the slot was given back.
    """

    def __init__(self, layout: Layout, count: int, fence: Fence | None = None) -> None:
        sizes = [int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in layout]
        offsets = np.cumsum([0, *(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)])
        try:
            self.memory = mmap.mmap(-1, int(offsets[-1]) * count)
        except OSError as error:
            size = f"{offsets[-1] * count / 1e9:.1f} GB for {count} batches"
            raise SettingsError(f"workers: {size} ({error.strerror}). Use fewer, or a smaller batch.") from None
        self.slots: list[Slot] = [
            tuple(
                np.frombuffer(self.memory, kind, int(np.prod(shape)), index * int(offsets[-1]) + int(offset)).reshape(
                    shape
                )
                for (shape, kind), offset in zip(layout, offsets, strict=False)
            )
            for index in range(count)
        ]
        self.fence = fence
        self.free: deque[tuple[int, Callable[[], None] | None]] = deque((index, None) for index in range(count))

    def take(self) -> int:
        """The slot that has been free for longest."""
        index, passed = self.free.popleft()
        if passed:
            passed()
        return index

    def give_back(self, index: int) -> None:
        """Free the slot; copies that the device has begun may still read it."""
        self.free.append((index, self.fence() if self.fence else None))


def fill_in_turn(
    layout: Layout, jobs: Iterable[Any], fill: Fill, workers: int, pin: bool, waiting: Waiting = nullcontext
) -> Iterator[Slot]:
    """The slot of each job, filled by one of `workers` processes (by this one when 0), in the order of `jobs`.

    A slot is valid until the next one is asked for; with `pin` also for copies that were put on the current CUDA
    stream until then. `waiting` goes around the waits for a filled slot, not around those for the device. A DataError
    or OSError of a worker is raised here unchanged. Raises WorkerError when a worker died or hangs, SettingsError when
    there is no memory for the ring or no room for the processes.
    """
    depth = max(1, AHEAD * workers)
    ring = Ring(layout, depth + 1, None) if not pin else Ring(layout, depth + 1 + IN_TRANSIT, device_fence)
    # The workers are forked before the ring is page-locked: no driver can then keep its pages from them.
    with Crew(workers, fill, ring.slots) as crew, pinned(ring.memory, pin):
        yield from fill_by_workers(ring, jobs, crew, waiting) if workers else fill_here(ring, jobs, fill, waiting)


def fill_here(ring: Ring, jobs: Iterable[Any], fill: Fill, waiting: Waiting) -> Iterator[Slot]:
    """Fill each slot in this process, when it is asked for."""
    for job in jobs:
        index = ring.take()
        with waiting():
            fill(ring.slots[index], job)
        yield ring.slots[index]
        ring.give_back(index)


def fill_by_workers(ring: Ring, jobs: Iterable[Any], crew: "Crew", waiting: Waiting) -> Iterator[Slot]:
    """Keep AHEAD jobs with each of the workers, and yield the slots in the order of the jobs."""
    given: deque[tuple[int, int]] = deque()

    def finished() -> Iterator[Slot]:
        """The slot that was given first; it is free again when the consumer asks for the next."""
        turn, index = given.popleft()
        with waiting():
            crew.receive(turn)
        yield ring.slots[index]
        ring.give_back(index)

    for turn, job in enumerate(jobs):
        index = ring.take()
        crew.send(turn, index, job)
        given.append((turn, index))
        if len(given) == AHEAD * crew.count:
            yield from finished()
    while given:
        yield from finished()


class Crew:
    """Forked processes that fill slots. They are killed on leaving: they have no other effect."""

    def __init__(self, count: int, fill: Fill, slots: list[Slot]) -> None:
        self.count, self.fill, self.slots = count, fill, slots
        self.owner = os.getpid()
        self.pipes: list[Connection] = []
        self.processes: list[multiprocessing.process.BaseProcess] = []

    def __enter__(self) -> "Crew":
        atexit.register(self.close)  # runs before multiprocessing's own handler, which would wait for the workers
        context = multiprocessing.get_context("fork")
        try:
            for _ in range(self.count):
                ours, theirs = context.Pipe()
                process = context.Process(target=serve, args=(theirs, self.fill, self.slots, self.owner), daemon=True)
                process.start()
                theirs.close()  # else the pipe would outlive the process
                self.pipes.append(ours)
                self.processes.append(process)
        except OSError as error:
            self.close()
            raise SettingsError(f"workers: cannot start {self.count} ({error.strerror}). Use fewer.") from None
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, turn: int, index: int, job: Any) -> None:
        """Give the next worker in turn a job and the slot to fill."""
        try:
            self.pipes[turn % self.count].send((index, job))
        except OSError:
            raise self.death(turn) from None

    def receive(self, turn: int) -> None:
        """Wait until the slot of that turn is filled."""
        pipe = self.pipes[turn % self.count]
        try:
            if not pipe.poll(PATIENCE):
                raise WorkerError(f"no batch from a worker in {PATIENCE:.0f} s. Check the disk that holds the data.")
            error = pipe.recv()
        except (EOFError, ConnectionError):
            raise self.death(turn) from None
        if error is not None:
            raise error

    def death(self, turn: int) -> WorkerError:
        """The error that says how the worker of that turn ended."""
        process = self.processes[turn % self.count]
        process.join(PATIENCE)
        code = process.exitcode
        if code == -signal.SIGKILL:
            return WorkerError(f"worker {process.pid} was killed, most likely for lack of memory. Use fewer workers.")
        if code == -signal.SIGBUS:
            return WorkerError(f"worker {process.pid} could not read the data: the disk fails, or a file was cut.")
        return WorkerError(f"worker {process.pid} ended with exit code {code}; its last output is above.")

    def close(self) -> None:
        """Kill all workers and wait for their end."""
        atexit.unregister(self.close)
        if os.getpid() != self.owner:  # in a fork of this process the workers are not children
            return
        for process in self.processes:
            process.kill()
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            process.join(PATIENCE)
            pipe.close()
        self.processes, self.pipes = [], []


def serve(pipe: Connection, fill: Fill, slots: list[Slot], parent: int) -> None:
    """Fill the slots that arrive on `pipe`, until the parent is gone.

    Signals are ignored: the training process handles them and ends its workers.
    """
    cv2.setNumThreads(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        while not pipe.poll(HEARTBEAT):
            if os.getppid() != parent:
                return
        answer: Exception | None = None
        try:
            index, job = pipe.recv()
            fill(slots[index], job)
        except EOFError:
            return
        except (DataError, OSError) as error:
            answer = error
        try:
            pipe.send(answer)
        except OSError:
            return


@contextmanager
def pinned(memory: mmap.mmap, wanted: bool) -> Iterator[None]:
    """Page-lock `memory` during the block, so that CUDA copies from it directly."""
    if not wanted:
        yield
        return
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = np.frombuffer(memory, np.uint8).ctypes.data
    code = int(runtime.cudaHostRegister(address, len(memory), 0))
    if code:
        warnings.warn(f"batches are not pinned (CUDA error {code}): copies to the device are slower", stacklevel=2)
    try:
        yield
    finally:
        if not code:
            with suppress(RuntimeError):  # it stays, and the next call raises it again
                torch.cuda.synchronize()
            runtime.cudaHostUnregister(address)


def device_fence() -> Callable[[], None]:
    """Mark the current point of the CUDA stream; the result waits until the device has reached it."""
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record()
    return event.synchronize
