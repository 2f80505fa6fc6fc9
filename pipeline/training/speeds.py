"""How fast cells train on a device: reports/benchmarks/<device>.md, which benchmarks write and `grid plan` reads."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deeplab.config import digest
from pipeline.files import write_whole

# The settings that decide how fast a network trains.
PACE = (
    "backbone", "output_stride", "aspp_channels", "projection_kernel", "auxiliary_channels", "crop", "batch_size",
    "precision", "tf32", "compile", "threads", "deterministic",
)  # fmt: skip


class Speed(NamedTuple):
    """A row of the page."""

    cell: str
    arithmetic: str  # for readers
    images_per_second: float
    peak_memory: int  # bytes
    parameters: int
    pace: str  # `pace_of_cell` when it was measured


def pace(settings: Mapping[str, Any]) -> str:
    """What trainings of the same speed have in common. `settings` are those of `flat_settings`."""
    return json.dumps([settings.get(key) or None for key in PACE])  # facts of older versions lack what is off


def pace_of_cell(settings: Mapping[str, Any]) -> str:
    """The same with the data set, whose classes the loss depends on, short enough for a table."""
    return digest([settings["dataset"], pace(settings)])[:12]


def page_of(folder: Path, device: str) -> Path:
    """The page of a device in `folder`."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.md"


def write_speeds(path: Path, device: str, about: str, speeds: Iterable[Speed]) -> None:
    """Write the page of a device. `about` says how it was measured."""
    heads = ("Cell", "Arithmetic", "Images/s", "Peak memory, bytes", "Parameters", "Settings")
    rows = [heads, (":--", ":--", "--:", "--:", "--:", ":--"), *speeds]
    table = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, f"# {device}\n\n{about}\n`grid plan` reads this table.\n\n{table}\n")


def read_speeds(folder: Path, device: str) -> dict[str, Speed]:
    """The rows of the page of a device by their pace; nothing without a page. Other text may stand around the table."""
    path, found = page_of(folder, device), {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(Speed._fields) and re.fullmatch("[0-9a-f]{12}", cells[-1]):
            cell, arithmetic, speed, memory, parameters, key = cells
            found[key] = Speed(cell, arithmetic, float(speed), int(memory), int(parameters), key)
    return found
