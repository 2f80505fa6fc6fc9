"""Checks of several trainings at a time, in processes of their own."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from typing import TypeVar

from deeplab.errors import WorkerError
from pipeline.data.pack import start_worker
from pipeline.runner.local import find_slots

Item = TypeVar("Item")


def side_by_side(check: Callable[[Item], str], items: Sequence[Item], device: str, threads: int) -> Iterator[str]:
    """`check` each of `items`, in order. On a CPU as many at a time as the grid would train with `threads` each.

    In processes, because the random state and the number of threads of torch belong to a process. A failure, or
    leaving the generator, ends them. Raises WorkerError when one of them is killed.
    """
    slots = find_slots(None, device, threads) if len(items) > 1 else []
    if len(slots) < 2 or any(slots):  # a slot with a setting is one of a GPU
        yield from map(check, items)
        return
    # Spawned: a fork of a process in which torch has computed may hang.
    context = get_context("spawn")
    with ProcessPoolExecutor(min(len(slots), len(items)), context, initializer=start_worker) as pool:
        try:
            yield from pool.map(check, items)
        except BrokenProcessPool:
            cause = "a process was killed, probably because memory ran out"
            raise WorkerError(f"{cause}. Check one cell at a time: grid verify --training CELL") from None
        finally:
            for worker in active_children():
                worker.kill()
