"""Numbers as lines of JSON, on the disk at once, and what is made of them: summary.md and the page of the device."""

import json
import os
from pathlib import Path
from typing import Any

from pipeline.training.speeds import Speed, page_of, write_speeds


class Results:
    """results.jsonl in the folder `out`."""

    def __init__(self, out: Path) -> None:
        self.path = out / "results.jsonl"

    def add(self, kind: str, **values: Any) -> None:
        """Add a line, which is on the disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **values}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self, kind: str) -> list[dict[str, Any]]:
        """The lines of one kind."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return [line for line in map(json.loads, lines) if line.pop("kind") == kind]


def summarise(out: Path) -> None:
    """Write all lines so far as tables, one for each kind."""
    results = Results(out)
    lines = [json.loads(line) for line in results.path.read_text(encoding="utf-8").splitlines()]
    text: list[str] = []
    for kind in dict.fromkeys(line["kind"] for line in lines):
        rows = results.read(kind)
        heads = list(dict.fromkeys(key for row in rows for key in row))
        text += [f"\n## {kind}\n", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
        text += ["| " + " | ".join(str(row.get(head, "")).replace("|", "/") for head in heads) + " |" for row in rows]
    (out / "summary.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def write_page(out: Path, reports: Path | None) -> None:
    """Write <device>.md into `out` and into `reports`; nothing when no step of a cell was measured."""
    results = Results(out)
    machine = results.read("machine")
    steps = [row for row in results.read("step") if row.get("pace")]
    if not machine or not steps:
        return
    found = machine[-1]
    speeds = [
        Speed(
            cell=row["cell"],
            arithmetic=row["precision"] + (", compiled" if row["compiled"] else ""),
            images_per_second=row["images_per_second"],
            peak_memory=row["peak_memory"],
            parameters=row["parameters"],
            pace=row["pace"],
        )
        for row in steps
    ]
    about = (
        f"Steps of training on one batch that stays the same, medians, by `python -m benchmarks.gpu`. "
        f"{found['gpu']}, torch {found['torch']}, commit {results.read('run')[-1]['commit']}."
    )
    for folder in filter(None, (out, reports)):
        write_speeds(page_of(folder, found["device"]), found["device"], about, speeds)
