"""One training in several processes, one per GPU: the same command, run by the elastic agent of torch (torchrun)."""

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

SILENCE = timedelta(minutes=30)  # after which a process gives up waiting for another one
PATIENCE = 5.0  # seconds to wait for the process that failed first to report it


def under_torchrun() -> bool:
    """Whether torchrun started this process, through `launch` or by hand on several hosts."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def local_rank() -> int:
    """The number of this process among those on this host, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if under_torchrun() else 0


def launch(module: str, arguments: Sequence[str], processes: int) -> None:
    """Run `python -m module arguments` in a group of `processes`.

    Exits with the code of the process that failed. Raises StoppedError when a process was killed, and after a signal:
    all processes get it too and save their state.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    die_with_parent()
    logging.disable(logging.ERROR)  # the failed process printed its error already; the agent would add three lines
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,  # the caller decides whether to start again, from the last checkpoint
        monitor_interval=0.2,
        signals_to_handle=",".join(number.name for number in SAVE_AND_STOP),
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", module, *arguments)
    except SignalException:
        raise StoppedError(f"{arguments[0]}: stopped by a signal. Run the same command again to continue.") from None
    except ChildFailedError as error:
        codes = [failure.exitcode for _, failure in sorted(error.failures.items())]
        killed = [-code for code in codes if code < 0 and -code != signal.SIGTERM]  # which the agent sends
        if not killed and (failed := [code for code in codes if code > 0]):
            sys.exit(failed[0])
        number = killed[0] if killed else signal.SIGTERM.value  # of somebody else, before a process handles it
        raise StoppedError(
            f"{arguments[0]}: a process was killed by signal {number}. Run the same command again to continue from "
            f"the last checkpoint."
        ) from None


@contextmanager
def grouped(device: str, stop: Callable[[], bool]) -> Iterator["Ranks"]:
    """Join the group of processes that torchrun started. Yields the rank in it, or ALONE outside of torchrun.

    `device` is that of runtime in params.yaml. `stop` says whether a signal came: the agent sends one to all processes
    when one of them has failed.
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
        # This may only be the result of a failure elsewhere, such as a lost connection. Let that process report first.
        if not ranks.first or not isinstance(error, tuple(EXIT_CODES)):
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                if stop():
                    sys.exit(EXIT_CODES[StoppedError])
                time.sleep(0.1)
        raise
    dist.destroy_process_group()
