"""Check what a grid on several workers needs before anything is submitted: locks, cache, GPUs, tracking and data.

Locks, cache, tracking and data are checked from a second process as well.
"""

import fcntl
import http.client
import multiprocessing
import os
import shutil
import sqlite3
import urllib.request
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cluster.engines import ENGINES
from pipeline.cluster.snapshot import committed
from pipeline.errors import ParamsError
from pipeline.runner.dvc import cache_folder
from pipeline.runner.engine import Order
from pipeline.runner.local import find_slots, visible_gpus
from pipeline.settings.params import Params, load_params
from pipeline.settings.places import Places
from pipeline.tracking.client import SQLITE, tracking_uri, without_password
from pipeline.training.provenance import file_sha256

if TYPE_CHECKING:
    import torch

SPACE = 5e9  # bytes free in the cache below which a grid is likely to fail
PATIENCE = 60.0  # seconds that the second process has for an answer


class DoubtError(Exception):
    """Something works here and may fail elsewhere."""


def examine(on: str, address: str | None = None, places: Places = Places()) -> int:
    """Print a line per check. Returns 0 when none has failed, else 1."""
    params = load_params(places.params)
    checks: dict[str, Callable[[], str]] = {
        "locks": lambda: check_locks(places.runs),
        "cache": lambda: check_cache(cache_folder(places.root)),
        "GPUs": lambda: check_gpus(params, on, address),
        "tracking": lambda: check_tracking(on),
        "data": lambda: check_data(params, places),
    }
    if on != "here":
        checks["commit"] = lambda: f"{committed(places.root)[:12]}, nothing changed since"
    failed = False
    for name, check in checks.items():
        try:
            print(f"ok    {name}: {check()}", flush=True)
        except DoubtError as doubt:
            print(f"warn  {name}: {doubt}", flush=True)
        except (ParamsError, OSError, sqlite3.Error) as error:
            failed = True
            print(f"FAIL  {name}: {error}", flush=True)
    return 1 if failed else 0


def check_locks(folder: Path) -> str:
    """A lock of another process has to keep this one out, and be free when that process is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".doctor.lock"
    with path.open("a") as file:
        with second_process() as call:
            call(hold, path)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                raise OSError(
                    f"{folder.resolve()}: a file lock (flock) does not keep another process out. Mount NFS in version "
                    f"4, Lustre with `-o flock`."
                )
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    path.unlink()
    return f"{folder.resolve()}: kept by one process at a time, free when it is killed"


def hold(path: Path) -> None:
    """Lock `path` until this process ends."""
    fcntl.flock(os.open(path, os.O_RDWR), fcntl.LOCK_EX)


def check_cache(folder: Path) -> str:
    """Another process has to read what this one writes to DVC's cache, and there has to be space."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f"doctor-{uuid.uuid4().hex}"
    try:
        probe.write_bytes(b"0" * 1_000_000)
        require_same(probe)
    finally:
        probe.unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    if free < SPACE:
        raise DoubtError(f"{folder}: only {free / 1e9:.1f} GB free; `grid plan` shows what a grid needs")
    return f"{folder}: {free / 1e9:.0f} GB free"


def check_gpus(params: Params, on: str, address: str | None) -> str:
    """Raise an error when there are fewer GPUs than a cell needs."""
    runtime = params.runtime
    if on == "here":
        gpus, slots = visible_gpus(), find_slots(None, runtime.device, 1, runtime.gpus_per_cell)
        said = f"{len(gpus)} visible, {len(slots)} cells at a time"
        if gpus and runtime.device != "cpu":
            with second_process() as call:
                said += f"; {call(try_device, runtime.device)}"
        return said
    order = Order(params=runtime, stages=(), count=None, address=address, threads=1, logs=Places().logs, lock=None)
    return ENGINES[on](order).place


def try_device(name: str) -> str:
    """Use the GPU as a training does: a product, a copy from page-locked memory, a compiled function.

    Raises OSError for what fails, DoubtError for what only some settings need.
    """
    import torch

    from pipeline.training.device import select_device

    device = select_device(name)
    try:
        ones = torch.ones(64, 64, device=device)
        if float((ones @ ones).sum()) != 64**3:
            raise OSError(f"{device}: a product of two matrices is wrong")
        copy_from_ring(device)
        require_compiler()
        if not torch.equal(torch.compile(torch.square)(ones), ones):
            raise OSError(f"{device}: a compiled function gives wrong numbers")
    except RuntimeError as error:
        raise OSError(f"{device}: {str(error).strip().partition(chr(10))[0]}") from None
    return "a product, a page-locked copy and a compiled function are right"


def copy_from_ring(device: "torch.device") -> None:
    """Copy a batch from page-locked memory, as a step does. Raises OSError when it arrives changed."""
    import numpy as np
    import torch

    from deeplab.ring import Ring, pinned

    ring = Ring((((2**20,), np.uint8),), 1)
    ring.slots[0][0][:] = 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with pinned(ring.memory, wanted=True):
                right = bool((torch.from_numpy(ring.slots[0][0]).to(device, non_blocking=True) == 7).all())
        except UserWarning as warning:
            raise DoubtError(f"{device}: {warning}") from None
    if not right:
        raise OSError(f"{device}: a copy from page-locked memory is wrong")


def require_compiler() -> None:
    """Raise DoubtError without a C compiler, which Triton calls for each kernel that torch.compile makes."""
    if not any(shutil.which(name) for name in (os.environ.get("CC", "gcc"), "gcc", "clang")):
        raise DoubtError(
            "no C compiler (gcc, clang or $CC), which train.compile and the faster form of the loss need. Install gcc"
        )


def check_tracking(on: str) -> str:
    """MLflow has to answer two processes."""
    uri = tracking_uri()
    shown, answer = without_password(uri), ask_tracking(uri)
    with second_process() as call:
        if (other := call(ask_tracking, uri)) != answer:
            raise OSError(f"{shown}: {answer} for this process, but {other} for another one")
    if uri.startswith(SQLITE) and on != "here":
        raise DoubtError(
            f"{shown}: {answer}, but a SQLite file is for one machine. Start a server that the others reach "
            f"(see docs/cluster.md) and set MLFLOW_TRACKING_URI to its address."
        )
    return f"{shown}: {answer}"


def ask_tracking(uri: str) -> str:
    """What the tracking server answers, as text. Raises OSError when it does not answer."""
    if uri.startswith(SQLITE):
        path = Path(uri.removeprefix(SQLITE))
        if not path.exists():
            return "created by the first run"
        with sqlite3.connect(path, timeout=20) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
        return "writable"
    if not uri.startswith(("http://", "https://")):
        return "cannot check this kind of tracking server"
    # This address needs no password, which urllib would take for a port and repeat in its error.
    address = f"{without_password(uri).rstrip('/')}/health"
    try:
        with urllib.request.urlopen(address, timeout=10) as reply:  # noqa: S310  checked above
            return "answers" if reply.status == 200 else f"answers with {reply.status}"
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"{without_password(uri)}: not a tracking server ({type(error).__name__})") from None


def check_data(params: Params, places: Places) -> str:
    """The stores have to exist, the same for another process. A missing store is prepared before its cells."""
    places.require_own(places.data, places.runs, places.reports)
    names = sorted({cell.dataset for cell in params.cells.values()})
    missing = [name for name in names if not places.manifest(name).exists()]
    for name in names:
        if name not in missing:
            require_same(places.manifest(name))
    if missing:
        raise DoubtError(f"not prepared yet: {', '.join(missing)}; `prepare` runs here, before their cells")
    return f"{', '.join(names)} prepared"


def require_same(path: Path) -> None:
    """Raise OSError when another process reads another content of `path`."""
    with second_process() as call:
        if call(file_sha256, path) != file_sha256(path):
            raise OSError(f"{path}: another process reads another content")


@contextmanager
def second_process() -> Iterator[Callable[..., Any]]:
    """A function that calls another one in a second process, which is killed when the block ends.

    It raises what that one raises, and OSError when there is no answer.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:

        def call(job: Callable[..., Any], *arguments: object) -> Any:
            try:
                return pool.apply_async(job, arguments).get(PATIENCE)
            except multiprocessing.TimeoutError:
                raise OSError(f"no answer from a second process within {PATIENCE:.0f} s") from None

        yield call
