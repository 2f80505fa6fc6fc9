"""What a part is given: where to write, on which device, and in which size."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.gpu.results import Results
from benchmarks.work import CLASSES, in_precision
from deeplab.config import Cell
from pipeline.settings.params import load_params
from pipeline.training.device import select_device

PEAKS = {"bf16": 990.0, "fp16": 990.0, "tf32": 495.0, "fp32": 67.0}  # TFLOP/s of an H100 or H200 SXM, without sparsity


@dataclass(frozen=True)
class Setting:
    """`small` is for a look at the code on a CPU: tiny networks and batches, in fp32."""

    out: Path
    work: Path  # for projects, which are thrown away
    name: str  # of the device, as runtime.device
    small: bool
    camvid: Path | None
    root: Path  # of the checkout

    @property
    def results(self) -> Results:
        """Where numbers go."""
        return Results(self.out)

    @cached_property
    def device(self) -> torch.device:
        """The device. Raises ParamsError when it is not there."""
        return select_device(self.name)

    @property
    def title(self) -> str:
        """The name of the device, as `grid plan` has it."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def cell(self, name: str, precision: str = "bf16") -> Cell:
        """A cell of params.yaml in one of PRECISIONS."""
        cell = load_params(self.root / "params.yaml").cell(name)
        if self.small:
            model = replace(cell.model, backbone="resnet18", aspp_channels=8, auxiliary_channels=8)
            recipe = replace(cell.recipe, crop=(32, 32), batch_size=2)
            cell = replace(cell, model=model, recipe=recipe, train=replace(cell.train, threads=1))
            precision = "fp32"
        return in_precision(cell, precision)

    def classes(self, cell: Cell) -> int:
        """How many classes its data set has."""
        return 3 if self.small else CLASSES[cell.dataset]

    def rounds(self, count: int) -> int:
        """How often something is timed."""
        return 1 if self.small else count

    def peak(self, precision: str) -> float | None:
        """The data sheet's TFLOP/s; None for a device that is not listed."""
        return PEAKS[precision] if any(name in self.title for name in ("H100", "H200")) else None

    def measured_peak(self) -> float | None:
        """The TFLOP/s of a bf16 product of matrices that `facts` found."""
        found = [row["value"] for row in self.results.read("ceiling") if row["what"].startswith("bf16 product")]
        return found[-1] if found else None
