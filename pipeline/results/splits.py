"""The further splits that cells are evaluated on, `eval_splits` in params.yaml: where they are, what was measured."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.settings.params import Params
from pipeline.settings.places import Places

if TYPE_CHECKING:
    from pipeline.results.records import Record, Row


@dataclass(frozen=True, kw_only=True)
class SplitResult:
    """What one seed of a cell reached on a further split, under the first protocol."""

    images: int
    data: str  # SHA-256 of the manifest
    scores: dict[str, float]  # as those of a result on the validation split


def manifest_fingerprint(manifest: Path) -> str | None:
    """SHA-256 of a store's manifest; None when there is no store."""
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else None


def folder_of(split: str, dataset: str, params: Params, places: Places) -> Path:
    """The store that has `split`: that of the data set for the split that it is trained on, else one of its own."""
    main = places.store(dataset)
    return main if split in params.splits[dataset] else places.splits(dataset) / split


def split_results(record: "Record", seed: int, params: Params, places: Places) -> dict[str, SplitResult]:
    """What `seed` reached on each further split whose images are those that are here, or of which there are none."""
    found, protocol = {}, next(iter(params.protocols))
    for split in params.further(record.dataset):
        measured = (record.splits or {}).get(split)
        folder = folder_of(split, record.dataset, params, places)
        if measured and manifest_fingerprint(folder / "manifest.json") in (None, measured.data):
            scores = measured.seeds[str(seed)][protocol].model_dump(exclude_unset=True, exclude={"measures"})
            numbers = {name: float(value) for name, value in scores.items()}
            found[split] = SplitResult(images=measured.images, data=measured.data, scores=numbers)
    return found


def on_split(row: "Row", split: str) -> "Row":
    """`row` with the numbers of a further split; without results unless all its seeds were measured on it.

    The images there are the same for all runs: folds are no folds there.
    """
    found = [replace(each, scores=each.splits[split].scores) for each in row.results if split in each.splits]
    cell = replace(row.cell, recipe=replace(row.cell.recipe, folds=None))
    return replace(row, cell=cell, results=tuple(found) if len(found) == len(row.results) else ())
