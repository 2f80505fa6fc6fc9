"""Curves of a training: what was measured at its steps."""

import csv
from pathlib import Path

from pipeline.files import readable

Curves = list[tuple[int, dict[str, float]]]  # step, and the values measured there


def read_curves(path: Path, seed: int | None = None, columns: tuple[str, ...] | None = None) -> Curves:
    """The rows of a CSV file with a step in each, without a last line that is still being written.

    `columns` names the columns of a file without a header. Raises DataError for a damaged file.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines(), columns)
    with readable(path, "Restore it (dvc checkout --force), or remove it to go on without curves."):
        return [
            (
                int(row["step"]),
                {key: float(row[key]) for key in row if key not in ("seed", "step", "epoch") and row[key]},
            )
            for row in rows
            if seed is None or row["seed"] == str(seed)
        ]
