"""One training in several processes, one per GPU: the command again under torch's elastic agent, which is torchrun."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.errors import EXIT_CODES, StoppedError
from pipeline.process import SAVE_AND_STOP, die_with_parent

if TYPE_CHECKING:
    from deeplab.ranks import Ranks

SILENCE = timedelta(minutes=30)  # how long a process waits for another that says nothing
PATIENCE = 5.0  # seconds that a process waits for the one to speak, or to be found dead, that knows what is wrong


def under_torchrun() -> bool:
    """Whether this process was started by torchrun: by `launch`, or by hand to use several hosts."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def local_rank() -> int:
    """Which of the processes on this host this is."""
    return int(os.environ.get("LOCAL_RANK", "0")) if under_torchrun() else 0


def launch(module: str, arguments: Sequence[str], processes: int) -> None:
    """Run `python -m module arguments` in so many processes that form a group, and end as they do.

    Exits with the code of the process that failed. Raises StoppedError after a signal, which they were sent too and
    answered by saving, and when one of them was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    die_with_parent()
    logging.disable(logging.ERROR)  # a mistake is one line, which the process that made it has printed
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,  # whoever started this decides; a new start goes on from the last checkpoint
        monitor_interval=0.2,
        signals_to_handle=",".join(number.name for number in SAVE_AND_STOP),
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", module, *arguments)
    except SignalException:
        raise StoppedError(f"{arguments[0]}: stopped by a signal. Run the same command again to go on.") from None
    except ChildFailedError as error:
        codes = [failure.exitcode for _, failure in sorted(error.failures.items())]
        killed = [-code for code in codes if code < 0 and -code != signal.SIGTERM]  # the agent's own
        if not killed:
            sys.exit(next(code for code in codes if code > 0))
        raise StoppedError(
            f"{arguments[0]}: a process was killed by signal {killed[0]}. Run the same command again to go on from the "
            f"last checkpoint."
        ) from None


@contextmanager
def grouped(device: str, stop: Callable[[], bool]) -> Iterator["Ranks"]:
    """This process as one of the group that torchrun has started, or alone; `device` as in runtime.

    `stop` tells of a signal, as the agent sends one to all when a process has failed.
    """
    import torch.distributed as dist

    from deeplab.ranks import ALONE, Ranks

    if not under_torchrun() or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", timeout=SILENCE)
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    try:
        yield ranks
    except BaseException as error:
        if not ranks.first or not isinstance(error, tuple(EXIT_CODES)):  # such as a connection that another has lost
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                if stop():
                    sys.exit(EXIT_CODES[StoppedError])
                time.sleep(0.1)
        raise
    dist.destroy_process_group()
