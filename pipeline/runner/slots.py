"""How many stages this machine runs at a time, and on what: one slot per group of GPUs, else what the cores hold."""

import os
import re
import shutil
import subprocess

from pipeline.errors import ParamsError

Slot = dict[str, str]  # what a slot adds to the environment of its stages


def find_slots(count: int | None, device: str, threads: int, gpus_per_cell: int = 1) -> list[Slot]:
    """`count` slots; without a count one per `gpus_per_cell` visible GPUs, or else as many as the cores hold `threads`.

    device: as `runtime.device` in params.yaml; one that names a single GPU gets a single slot. Raises ParamsError when
    GPUs are asked for that are not there.
    """
    if device == "cpu":
        return cpu_slots(count, cores() // threads)
    gpus = visible_gpus()
    if not gpus and device != "auto":
        raise ParamsError(
            f"params.yaml: runtime.device: got {device!r}, but no GPU is visible here (nvidia-smi, "
            f"CUDA_VISIBLE_DEVICES). Say `auto` or `cpu`, or run where there is one."
        )
    if not gpus:
        return cpu_slots(count, cores() // threads)
    if device.startswith("cuda:"):
        return cpu_slots(count, 1)  # the stage picks the GPU itself
    if len(gpus) < gpus_per_cell:
        raise ParamsError(
            f"params.yaml: runtime.gpus_per_cell: got {gpus_per_cell}, but {len(gpus)} GPUs are visible here"
        )
    groups = [",".join(gpus[start : start + gpus_per_cell]) for start in range(0, len(gpus), gpus_per_cell)]
    groups = groups[: len(gpus) // gpus_per_cell]  # what is left over is too few for a cell
    return [{"CUDA_VISIBLE_DEVICES": groups[index % len(groups)]} for index in range(count or len(groups))]


def cpu_slots(count: int | None, fitting: int) -> list[Slot]:
    """`count` slots that add nothing, or as many as are fitting."""
    return [{} for _ in range(count or max(1, fitting))]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Torch would know, after six seconds."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    found: list[str] = []
    for name in re.findall(r"UUID: ((?:GPU|MIG)-[^)\s]+)", listed):
        if name.startswith("MIG") and found and found[-1].startswith("GPU"):
            found.pop()  # a GPU that is cut into slices is used by its slices
        found.append(name)
    return found


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
