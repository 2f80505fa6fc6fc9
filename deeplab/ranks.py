"""The processes that share each batch of a cell, one per GPU. Each trains on its slice of the samples.

Together they compute, to rounding, the step of one process on the whole batch, if batch normalisation covers the whole
batch too. That takes SyncBatchNorm, which needs CUDA.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deeplab.errors import SettingsError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process as one of `world`. With more than one, torch's default process group must exist."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes checkpoints, history and result."""
        return self.rank == 0

    def part(self, batch_size: int, device: torch.device) -> slice:
        """The slice of a batch that this process trains on.

        Raises SettingsError when the batch does not divide, or leaves one sample per process without SyncBatchNorm.
        """
        size, rest = divmod(batch_size, self.world)
        if rest:
            raise SettingsError(
                f"batch_size: got {batch_size}, expected a multiple of the {self.world} processes that share it "
                f"(runtime.gpus_per_cell)"
            )
        if size == 1 and device.type != "cuda":
            raise SettingsError(
                f"batch_size: got {batch_size} for {self.world} processes, expected 2 samples or more for each: the "
                f"image pooling branch of ASPP gives one value per channel, and without CUDA there is no SyncBatchNorm"
            )
        return slice(self.rank * size, (self.rank + 1) * size)

    def join(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Wrap `network` so that gradients, and on CUDA batch statistics, are averaged over all processes."""
        if self.world == 1:
            return network
        on_gpu = device.type == "cuda"
        if on_gpu:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        joined: nn.Module = DistributedDataParallel(
            network, device_ids=[device] if on_gpu else None, gradient_as_bucket_view=True
        )
        return joined

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes, on its device, without waiting for it."""
        if self.world == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether any process has set it. All processes get the same answer."""
        if self.world == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.uint8)  # in host memory, so that no process waits for its device
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in raised)

    def agree(self, value: Value) -> Value:
        """The value of the first process (plain data). All processes wait for it."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


ALONE = Ranks()
