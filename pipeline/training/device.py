"""Where torch computes, and how exactly."""

from typing import TYPE_CHECKING

from deeplab.config import TrainConfig
from pipeline.errors import ParamsError
from pipeline.settings.params import PARAMS

if TYPE_CHECKING:
    import torch


def select_device(name: str, processes: int = 1, local_rank: int = 0) -> "torch.device":
    """The device `name` of params.yaml's runtime for one of the `processes` of a cell; auto is CUDA if there is any.

    Raises ParamsError if it is not there, or cannot be shared.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if processes > 1:
        return shared_device(name, processes, local_rank, count)
    if name == "auto":
        name = "cuda" if count else "cpu"
    known = ["cpu"] + ["cuda"] * (count > 0) + [f"cuda:{index}" for index in range(count)]
    if name not in known:
        raise ParamsError(f"{PARAMS}: runtime.device: got {name!r}, expected one of auto, {', '.join(known)}")
    return torch.device(name)


def shared_device(name: str, processes: int, local_rank: int, count: int) -> "torch.device":
    """The device of one of several processes. The CPU has to be asked for: it normalises each part by itself."""
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
    """Set what moves the last bits of torch's results in this process: threads on the CPU, TF32 on CUDA."""
    import torch

    torch.set_num_threads(train.threads)
    torch.backends.cuda.matmul.allow_tf32 = train.tf32
    torch.backends.cudnn.allow_tf32 = train.tf32


def choose_kernels_by_time() -> None:
    """Let cuDNN time its kernels once for each shape; pays where the shape stays the same, as in training."""
    import torch

    torch.backends.cudnn.benchmark = True
