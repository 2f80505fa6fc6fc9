"""What `--on slurm` asks for, per cell."""

import re

from pydantic.dataclasses import dataclass

from deeplab.config import STRICT, Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SlurmOptions:
    """`runtime.slurm` in params.yaml. GPUs are `runtime.gpus_per_cell`."""

    partition: str | None  # null is the cluster's default
    time: Positive  # minutes; a cell that needs more is queued again and goes on
    cpus: Positive
    options: dict[str, str]  # further words of sbatch, as {account: vision, qos: long}

    def __post_init__(self) -> None:
        # They become lines `#SBATCH --key=value` of a script: what follows a line break would be run.
        if odd := [key for key in self.options if not re.fullmatch(r"[a-z][a-z-]*", key)]:
            raise ValueError(f"options: got {odd[0]!r}, expected a word of sbatch in lower-case letters and -")
        for name, value in {"partition": self.partition or "", **self.options}.items():
            if not value.isprintable():
                place = name if name == "partition" else "options"
                raise ValueError(f"{place}: got {value!r}, expected text in one line")
