"""What `--on slurm` asks for, per cell."""

from pydantic.dataclasses import dataclass

from deeplab.config import STRICT, Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SlurmOptions:
    """`runtime.slurm` in params.yaml. GPUs are `runtime.gpus_per_cell`."""

    partition: str | None  # null is the cluster's default
    time: Positive  # minutes; a cell that needs more is queued again and goes on
    cpus: Positive
    options: dict[str, str]  # further words of sbatch, as {account: vision, qos: long}
