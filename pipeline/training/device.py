"""The device and the arithmetic of torch."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deeplab.config import TrainConfig
from pipeline.errors import ParamsError
from pipeline.settings.params import PARAMS

if TYPE_CHECKING:
    import torch


def select_device(name: str, processes: int = 1, local_rank: int = 0) -> "torch.device":
    """The device that runtime.device names, for one of the `processes` of a cell. auto is CUDA where available.

    Raises ParamsError for a device that is missing or cannot be shared, and for a driver that is too old.
    """
    import torch

    count, why = visible()
    if "too old" in why and name != "cpu":  # not for the CPU silently
        raise ParamsError(f"{PARAMS}: runtime.device: got {name!r}, but {why}. Install a newer driver, or say cpu")
    if processes > 1:
        return shared_device(name, processes, local_rank, count)
    if name == "auto":
        name = "cuda" if count else "cpu"
    known = ["cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if name not in known:
        none = f" (no GPU: {why})" if why else ""
        raise ParamsError(f"{PARAMS}: runtime.device: got {name!r}, expected one of auto, {', '.join(known)}{none}")
    device = torch.device(name)
    if device.index is not None:  # streams, events and page-locked memory are those of the current one
        torch.cuda.set_device(device)
    return device


def visible() -> tuple[int, str]:
    """How many GPUs torch can use and, when it is none, why."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of an old driver, and counts no GPU
        if torch.cuda.is_available():
            return torch.cuda.device_count(), ""
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (RuntimeError, AssertionError) as error:  # the latter in a torch without CUDA
            return 0, str(error).partition(". ")[0].rstrip(".")
    return 0, "none is visible"


def shared_device(name: str, processes: int, local_rank: int, count: int) -> "torch.device":
    """The device of one of several processes. auto is never the CPU, where each process normalises its own samples."""
    import torch

    if name == "cpu":
        return torch.device("cpu")
    if name not in ("auto", "cuda") or local_rank >= count:
        raise ParamsError(
            f"{PARAMS}: runtime.gpus_per_cell: got {processes} with device {name!r} and {count} visible GPUs, expected "
            f"a GPU for each process and device auto or cuda"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def set_arithmetic(train: TrainConfig) -> None:
    """Set what changes the last bits of a result: threads on the CPU, TF32 and the kinds of kernels on CUDA.

    Call it before anything is computed on a GPU.
    """
    import torch

    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        # It costs time, and nothing here reads such memory. A property of the module that its types leave out.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(train.deterministic)
    torch.set_num_threads(train.threads)
    torch.backends.cuda.matmul.allow_tf32 = train.tf32
    torch.backends.cudnn.allow_tf32 = train.tf32


def choose_kernels_by_time(train: TrainConfig) -> None:
    """Let cuDNN time its kernels once for each shape, which pays in training, where the shape stays the same.

    Not if they have to be deterministic: another run may choose others.
    """
    import torch

    torch.backends.cudnn.benchmark = not train.deterministic


@contextmanager
def kernels_chosen_by_rule() -> Iterator[None]:
    """Suspend `choose_kernels_by_time` where each image may have another shape: a choice takes seconds."""
    import torch

    before = torch.backends.cudnn.benchmark  # not cudnn.flags(), whose defaults turn TF32 on
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
