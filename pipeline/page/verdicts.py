"""Published numbers beside ours, and the verdict on the difference."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from deeplab.config import Cell, RecipeConfig, without_defaults
from pipeline.settings.params import Params

COLUMNS = (
    "dataset", "backbone", "output_stride", "source", "protocol", "mIoU", "tolerance", "schedule", "note", "url",
)  # fmt: skip
SINGLE_SCALE = {"scales": (1.0,), "flip": False, "window": None, "stride": None}

Row = dict[str, str]  # of a CSV table


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Our number against the published one; percent."""

    published: float | None = None  # of the primary source: the one whose row has a tolerance
    source: str = ""
    difference: float | None = None
    verdict: str = ""  # reproduced, above, below, not measured, not compared, or empty without a published number
    reason: str = ""  # why it is not compared


def read_reference(path: Path) -> pd.DataFrame:
    """The rows of reports/reference.csv; ValueError when a column is missing or a number is not one."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if missing := [name for name in COLUMNS if name not in table]:
        raise ValueError(f"no column {missing[0]}")
    return table.astype({"mIoU": float})


def of_cell(row: Row, reference: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """The published numbers for a row of the table of `dataset`."""
    kind = [dataset, row["backbone"], row["output_stride"]]
    return reference[(reference[["dataset", "backbone", "output_stride"]] == kind).all(axis=1)]


def elsewhere(row: Row, reference: pd.DataFrame, dataset: str) -> dict[str, float]:
    """Source -> its last single-scale number for the cell, the one of its longest schedule; without the primary one."""
    same = of_cell(row, reference, dataset)
    same = same[(same["tolerance"] == "") & (same["protocol"] == "single scale")]
    return {str(source): float(found["mIoU"].iloc[-1]) for source, found in same.groupby("source", sort=False)}


def compare(row: Row, cell: Cell, reference: pd.DataFrame, params: Params) -> Comparison:
    """The verdict on a row of the table.

    There is one only for what was measured as published: the whole data set, the schedule, ImageNet weights, one scale,
    every seed, and no setting that departs from the recipe.
    """
    same = of_cell(row, reference, cell.dataset)
    primary = same[same["tolerance"] != ""]
    if primary.empty:
        return Comparison()
    first = primary.iloc[0]
    published, source = float(first["mIoU"]), str(first["source"])
    if not row["mIoU"]:
        return Comparison(published=published, source=source, verdict="not measured")
    difference = 100 * float(row["mIoU"]) - published
    reason = why_not(row, cell, str(first["schedule"]), params)
    if reason:
        verdict = "not compared"
    elif abs(round(difference, 2)) <= float(first["tolerance"]):
        verdict = "reproduced"
    else:
        verdict = "above" if difference > 0 else "below"
    return Comparison(published=published, source=source, difference=difference, verdict=verdict, reason=reason)


def why_not(row: Row, cell: Cell, published: str, params: Params) -> str:
    """Why a measured row is not compared with a number of the schedule `published`; empty when it is."""
    images = params.datasets[cell.dataset].images
    reasons = {
        "a subset of the images": bool(subset(row, cell.recipe, images)),
        f"departs from the recipe: {row.get('departs', '')}": bool(row.get("departs")),
        f"another schedule than {published}": bool(published) and schedule(cell.recipe) != published,
        f"evaluated on {cell.recipe.splits}": bool(cell.recipe.folds),
        "no ImageNet weights": not cell.model.pretrained,
        "not one scale without flip": without_defaults(next(iter(params.protocols.values()))) != SINGLE_SCALE,
        "not every seed": len(row["seeds"].split()) < len(params.runs[row["cell"]]),
    }
    return ", ".join(text for text, holds in reasons.items() if holds)


def subset(row: Row, recipe: RecipeConfig, published: dict[str, int]) -> str:
    """How many images of each split a measured row used, when the data set has more; else empty."""
    used = [int(float(row.get(column) or 0)) for column in ("train_images", "eval_images")]
    all_ = [published[split] for split in (recipe.train_split, recipe.eval_split)]
    if all(have >= expected for have, expected in zip(used, all_, strict=True)):
        return ""
    return "{}/{} of {}/{} images".format(*used, *all_)


def schedule(recipe: RecipeConfig) -> str:
    """Learning rate, policy, batch size and epochs, as reports/reference.csv has them."""
    return f"{recipe.lr:g}/{recipe.policy}/{recipe.batch_size}/{recipe.epochs}"
