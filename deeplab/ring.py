"""Batches that worker processes write in place: a ring of slots in shared memory, and the processes that fill it.

Nothing is collated, pickled or copied in the training process. The memory is an anonymous mapping that the workers
inherit when they are forked: no file, no name, nothing of /dev/shm, and nothing to clean up after a kill. Jobs are
dealt out in turn, so the order of the batches never depends on which worker is fast.
"""

import atexit
import mmap
import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from deeplab.errors import DataError, SettingsError, WorkerError

AHEAD = 2  # jobs that wait in or for each worker
IN_TRANSIT = 2  # batches whose copy to the device may be under way while the next ones are filled
ALIGNMENT = 4096  # bytes; a page, so that no two slots share one
PATIENCE = 300.0  # seconds without a batch until a worker is taken to hang
HEARTBEAT = 1.0  # seconds between a waiting worker's looks at whether its parent is alive

Layout = tuple[tuple[tuple[int, ...], type[np.generic]], ...]  # shape and type of each array of a slot
Slot = tuple[NDArray[Any], ...]
Fill = Callable[[Slot, Any], None]  # writes the batch of a job into a slot
Fence = Callable[[], Callable[[], None]]  # marks this moment on the device; the result waits until it has come


class Ring:
    """`count` slots of equal arrays. With a `fence` a slot is not reused before the device has passed the moment at
    which it was given back.
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
        """Nobody on this side reads or copies from the slot any more, but for copies that the device has in hand."""
        self.free.append((index, self.fence() if self.fence else None))


def fill_in_turn(layout: Layout, jobs: Iterable[Any], fill: Fill, workers: int, pin: bool) -> Iterator[Slot]:
    """Each job's slot, filled by one of `workers` processes (by this one, when 0), in the order of `jobs`.

    A slot is valid until the next one is asked for; with `pin` also for copies that were put on the current CUDA
    stream until then. A DataError or OSError of a worker is raised here as it is. Raises WorkerError when one died or
    hangs, SettingsError when there is no memory for the ring or no room for the processes.
    """
    depth = max(1, AHEAD * workers)
    ring = Ring(layout, depth + 1, None) if not pin else Ring(layout, depth + 1 + IN_TRANSIT, device_fence)
    waiting: deque[tuple[int, int]] = deque()
    with pinned(ring.memory, pin), Crew(workers, fill, ring.slots) as crew:
        for turn, job in enumerate(jobs):
            index = ring.take()
            crew.send(turn, index, job)
            waiting.append((turn, index))
            if len(waiting) == depth:
                yield from finished(crew, ring, waiting)
        while waiting:
            yield from finished(crew, ring, waiting)


def finished(crew: "Crew", ring: Ring, waiting: deque[tuple[int, int]]) -> Iterator[Slot]:
    """The slot that has been waited for longest, given back when the consumer asks for more."""
    turn, index = waiting.popleft()
    crew.receive(turn)
    yield ring.slots[index]
    ring.give_back(index)


class Crew:
    """Forked processes that fill slots. They are killed on leaving: what they do has no other effect."""

    def __init__(self, count: int, fill: Fill, slots: list[Slot]) -> None:
        self.count, self.fill, self.slots = count, fill, slots
        self.owner = os.getpid()
        self.pipes: list[Connection] = []
        self.processes: list[multiprocessing.process.BaseProcess] = []
        self.job: tuple[int, Any] | None = None  # without workers: what is to be done when it is asked for

    def __enter__(self) -> "Crew":
        atexit.register(self.close)  # before multiprocessing's own, which would wait for them
        context = multiprocessing.get_context("fork")
        try:
            for _ in range(self.count):
                ours, theirs = context.Pipe()
                process = context.Process(target=serve, args=(theirs, self.fill, self.slots, self.owner), daemon=True)
                process.start()
                theirs.close()  # or the end of the process would not end the pipe
                self.pipes.append(ours)
                self.processes.append(process)
        except OSError as error:
            self.close()
            raise SettingsError(f"workers: {self.count} cannot be started ({error.strerror}). Use fewer.") from None
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, turn: int, index: int, job: Any) -> None:
        """Have the worker whose turn it is fill slot `index`."""
        if not self.count:
            self.job = index, job
            return
        try:
            self.pipes[turn % self.count].send((index, job))
        except OSError:
            raise self.death(turn) from None

    def receive(self, turn: int) -> None:
        """Wait until the slot of that turn is filled."""
        if not self.count:
            assert self.job
            self.fill(self.slots[self.job[0]], self.job[1])
            return
        pipe = self.pipes[turn % self.count]
        try:
            if not pipe.poll(PATIENCE):
                raise WorkerError(f"no batch from a worker in {PATIENCE:.0f} s. Does the disk of the data answer?")
            error = pipe.recv()
        except (EOFError, ConnectionError):
            raise self.death(turn) from None
        if error is not None:
            raise error

    def death(self, turn: int) -> WorkerError:
        """What to say of the worker of that turn, which is gone."""
        process = self.processes[turn % self.count]
        process.join(PATIENCE)
        code = process.exitcode
        if code == -signal.SIGKILL:
            return WorkerError(f"worker {process.pid} was killed, most likely for lack of memory. Use fewer workers.")
        if code == -signal.SIGBUS:
            return WorkerError(f"worker {process.pid} could not read the data: the disk fails, or a file was cut.")
        return WorkerError(f"worker {process.pid} ended with exit code {code}; its last words stand above.")

    def close(self) -> None:
        """End all workers."""
        atexit.unregister(self.close)
        if os.getpid() != self.owner:  # a fork of this process: they are not its children
            return
        for process in self.processes:
            process.kill()
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            process.join(PATIENCE)
            pipe.close()
        self.processes, self.pipes = [], []


def serve(pipe: Connection, fill: Fill, slots: list[Slot], parent: int) -> None:
    """A worker's life: fill the slots that it is told to, until the parent is gone.

    Signals are the training process's business, which ends its workers.
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
    """Have CUDA copy from `memory` without a copy of its own in between, for as long as the block lasts."""
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
            torch.cuda.synchronize()
            runtime.cudaHostUnregister(address)


def device_fence() -> Callable[[], None]:
    """Mark where the current CUDA stream has got to."""
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record()
    return event.synchronize
