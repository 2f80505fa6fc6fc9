"""Measures that need more than confusion counts: each sees every image once while a network is evaluated.

To add one: a module with a class as the two here, its line in MEASURES, and its column in pipeline/results/columns.py.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from torch import Tensor

from deeplab.boundary import BoundaryIoU
from deeplab.calibration import CalibrationError
from deeplab.inference import Pass, Prediction, Size


class Measure(Protocol):
    """What is summed up over the images of a split."""

    def __init__(self, classes: int, /) -> None: ...

    @property
    def confidence(self) -> Callable[[list[Pass], Size], Tensor] | None:
        """What gives the confidences that `add` reads."""

    def add(self, found: Prediction) -> None: ...

    def value(self) -> float:
        """A share, 0..1, of all images together."""


def watch(predictions: Iterable[Prediction], measures: Iterable[Measure]) -> Iterator[Prediction]:
    """`predictions` unchanged; each is added to all `measures` first."""
    for each in predictions:
        for measure in measures:
            measure.add(each)
        yield each


# Only those that `columns` of params.yaml names are computed, and are code of an evaluation.
MEASURES: dict[str, type[Measure]] = {"boundary_iou": BoundaryIoU, "calibration_error": CalibrationError}
