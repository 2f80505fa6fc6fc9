"""A row of a table: a cell of the grid with the results of its seeds."""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from deeplab.config import Cell
from pipeline.results.records import Result
from pipeline.settings.schema import DatasetConfig


@dataclass(frozen=True, kw_only=True)
class Row:
    """A cell and what is known about it."""

    name: str
    cell: Cell
    dataset: DatasetConfig
    results: tuple[Result, ...]  # one per seed; none when the cell is not measured
    folder: Path | None  # its weights and history; None when they are a colleague's
    card: Path | None  # where its model card goes; None when it has no weights here

    def mean(self, score: str) -> float:
        return fmean(result.scores[score] for result in self.results)

    def mean_end(self, end: str) -> float | None:
        """The mean over the seeds of an end of their intervals: at least as wide as the interval of their mean."""
        held = [result.scores[end] for result in self.results if end in result.scores]
        return fmean(held) if held and len(held) == len(self.results) else None

    def spread(self, score: str) -> float | None:
        """Standard deviation over the seeds."""
        values = [result.scores[score] for result in self.results]
        return stdev(values) if len(values) > 1 else None
