"""Where torch computes, and how exactly."""

from typing import TYPE_CHECKING

from deeplab.config import TrainConfig
from pipeline.errors import ParamsError
from pipeline.params import PARAMS

if TYPE_CHECKING:
    import torch


def select_device(name: str) -> "torch.device":
    """The device `name` of params.yaml's runtime; auto is CUDA if there is any. ParamsError if it is not there."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    known = ["cpu"] + ["cuda"] * (count > 0) + [f"cuda:{index}" for index in range(count)]
    if name not in known:
        raise ParamsError(f"{PARAMS}: runtime.device: got {name!r}, expected one of auto, {', '.join(known)}")
    return torch.device(name)


def set_arithmetic(train: TrainConfig) -> None:
    """Set what moves the last bits of torch's results in this process: threads on the CPU, TF32 on CUDA."""
    import torch

    torch.set_num_threads(train.threads)
    torch.backends.cuda.matmul.allow_tf32 = train.tf32
    torch.backends.cudnn.allow_tf32 = train.tf32
