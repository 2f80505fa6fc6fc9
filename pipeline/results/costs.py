"""What a network costs to use, as `grid measure` found it: reports/records/<data set>/costs.csv.

Such a number is a fact about a machine and no result: no record, run or fingerprint has it.
"""

import csv
import io
from pathlib import Path
from typing import Any

from deeplab.config import digest, without_defaults
from pipeline.files import locked, readable, write_whole
from pipeline.results.records import current_code
from pipeline.results.splits import manifest_fingerprint
from pipeline.settings.params import Params
from pipeline.settings.places import Places

# Of one image under the first protocol. parameters: without the auxiliary head. macs: multiply-adds of all passes, and
# flops twice as many. latency: seconds from pixels to labels, the median. memory: bytes, the peak.
NUMBERS = ("parameters", "macs", "flops", "latency", "memory")
# size: of the input at scale 1. device: of latency and memory. inputs, data: fingerprints.
HEAD = ("cell", *NUMBERS, "size", "device", "torch", "inputs", "data")

Cost = dict[str, Any]  # HEAD -> value; text where it was read from the file


def read_costs(path: Path) -> dict[str, Cost]:
    """Cell -> cost; none without the file. Raises DataError for a damaged one, and for a number without its device."""
    if not path.exists():
        return {}
    with readable(path, "Remove the line, and run grid measure."), path.open(encoding="utf-8", newline="") as file:
        rows = {row["cell"]: row for row in csv.DictReader(file, strict=True)}
        for name, row in rows.items():
            if missing := [key for key in HEAD if not row.get(key)]:
                raise ValueError(f"{name} has no {missing[0]}")
            if row.keys() != set(HEAD) or not all(float(row[key]) > 0 for key in NUMBERS):
                raise ValueError(f"{name} has more than {', '.join(HEAD)}, or a number that is not positive")
        return dict(rows)


def read_cost(name: str, params: Params, places: Places) -> Cost:
    """The cost of the cell `name`; empty unless it was measured with the current settings, data and code."""
    dataset = params.cell(name).dataset
    found = read_costs(places.costs(dataset)).get(name, {})
    data = manifest_fingerprint(places.manifest(dataset))
    current = found and found["inputs"] == inputs(name, params, places) and data in (None, found["data"])
    return found | {key: float(found[key]) for key in NUMBERS} if current else {}


def write_cost(cost: Cost, path: Path) -> None:
    """Write `cost` in place of an older one of its cell, sorted, so that two branches merge."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        found = read_costs(path) | {cost["cell"]: cost}
        text = io.StringIO()
        writer = csv.DictWriter(text, HEAD, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found[name] for name in sorted(found))
        write_whole(path, text.getvalue())


def inputs(name: str, params: Params, places: Places) -> str:
    """The fingerprint of what the network computes for an image."""
    settings = without_defaults(params.cell(name).inference)
    return digest([settings, params.protocol_fingerprint, current_code(params, places, name)])
