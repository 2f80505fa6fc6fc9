"""Published numbers beside ours, and what may be said of the difference."""

from dataclasses import dataclass

import pandas as pd

from pipeline.settings.params import DatasetConfig, Params

COLUMNS = (
    "dataset", "backbone", "output_stride", "source", "protocol", "mIoU", "tolerance", "schedule", "note", "url",
)  # fmt: skip
SINGLE_SCALE = {"scales": (1.0,), "flip": False, "window": None, "stride": None}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Our number against the published one; percent."""

    published: float | None  # of the primary source: the one whose row has a tolerance
    source: str
    difference: float | None
    verdict: str  # reproduced, above, below, not measured, not compared, or empty without a published number
    reason: str = ""  # why it is not compared


def read_reference(text: str) -> pd.DataFrame:
    """The rows of reports/reference.csv; ValueError when a column is missing or a number is none."""
    from io import StringIO

    table = pd.read_csv(StringIO(text), dtype=str, keep_default_na=False)
    if missing := [name for name in COLUMNS if name not in table]:
        raise ValueError(f"no column {missing[0]}")
    table["mIoU"] = table["mIoU"].astype(float)
    return table


def elsewhere(row: dict[str, str], reference: pd.DataFrame) -> dict[str, float]:
    """Source -> its last single-scale number for the cell, the one of its longest schedule; without the primary one."""
    same = of_cell(row, reference)
    same = same[(same["tolerance"] == "") & (same["protocol"] == "single scale")]
    return {str(source): float(found["mIoU"].iloc[-1]) for source, found in same.groupby("source", sort=False)}


def of_cell(row: dict[str, str], reference: pd.DataFrame) -> pd.DataFrame:
    """The published numbers for a row of the table."""
    kind = [row["dataset"], row["backbone"], row["output_stride"]]
    return reference[(reference[["dataset", "backbone", "output_stride"]] == kind).all(axis=1)]


def compare(row: dict[str, str], shown: dict[str, str], reference: pd.DataFrame, params: Params) -> Comparison:
    """What may be said of a row of the table: `row` for programs, `shown` as in the README.

    A verdict is given only for what was measured as published: the whole data set, the schedule, ImageNet weights, one
    scale, every seed, and no setting that departs from the recipe.
    """
    config = params.datasets[row["dataset"]]
    same = of_cell(row, reference)
    primary = same[same["tolerance"] != ""]
    ours = 100 * float(row["mIoU"]) if row["mIoU"] else None
    if primary.empty:
        return Comparison(published=None, source="", difference=None, verdict="")
    first = primary.iloc[0]
    published = float(first["mIoU"])
    if ours is None:
        return Comparison(published=published, source=first["source"], difference=None, verdict="not measured")
    difference = ours - published
    reason = why_not(row, shown, str(first["schedule"]), config, params)
    if reason:
        verdict = "not compared"
    elif abs(round(difference, 2)) <= float(first["tolerance"]):
        verdict = "reproduced"
    else:
        verdict = "above" if difference > 0 else "below"
    return Comparison(
        published=published,
        source=first["source"],
        difference=difference,
        verdict=verdict,
        reason=reason,
    )


def why_not(row: dict[str, str], shown: dict[str, str], schedule: str, config: DatasetConfig, params: Params) -> str:
    """What keeps a measured row from being compared; empty when nothing does."""
    from dataclasses import asdict

    published = [config.images[split] for split in params.splits[row["dataset"]]]
    used = [row.get("train_images", ""), row.get("eval_images", "")]
    protocol = asdict(next(iter(params.protocols.values())))
    said = shown.get("Schedule", "")
    reasons = {
        "a subset of the images": any(not has or float(has) < all_ for has, all_ in zip(used, published, strict=True)),
        f"departs from the recipe: {row.get('departs', '')}": bool(row.get("departs")),
        f"another schedule than {schedule}": bool(schedule) and schedule not in said.split(),
        "no ImageNet weights": "PRE=ImageNet" not in shown.get("Backbone", ""),
        "not one scale without flip": protocol != SINGLE_SCALE,
        "not every seed": len(row["seeds"].split()) < len(params.seeds),
    }
    return ", ".join(text for text, holds in reasons.items() if holds)
