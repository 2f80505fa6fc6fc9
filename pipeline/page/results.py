"""The table of a data set: its cells beside published numbers, and what its words mean."""

from typing import Any

from markupsafe import Markup

from pipeline.page.html import interval, joined, marked, part, percent, signed, table
from pipeline.page.inputs import CellPage, DatasetPage
from pipeline.page.verdicts import elsewhere, schedule, subset
from pipeline.results.columns import texts

SOURCES = ("mmsegmentation 1.2.2", "paper")  # columns beside the number that is compared
LEGEND = (
    "OS: output stride, the size of the image divided by that of the features. PRE: weights at the start. Schedule: "
    "learning rate, policy, batch size and epochs. Bold: the best. A number links to where it comes from."
)
COMPARED = (
    "The first published number is that of sssegmentation, whose recipe this is: one scale, no flip. The same training "
    "repeated moves by about 0.7 (PASCAL VOC, Cityscapes) to 0.8 (ADE20k): within that a number counts as reproduced. "
    "No verdict is given for a subset of the images, for settings that differ from the recipe, or while a seed is "
    "missing."
)
ALONE = "No numbers are published for this data set."


def results(page: DatasetPage) -> Markup:
    """The table of the cells, with the published numbers beside it, and what its words mean."""
    rows = [result_row(cell, page) for cell in page.cells]
    mious = marked(
        {cell.name: row["mIoU"] for cell, row in zip(page.cells, rows, strict=True)},
        {cell.name: cell.miou and cell.miou * page.ranked(cell) for cell in page.cells},
    )
    rows = [row | {"mIoU": miou} for row, miou in zip(rows, mious.values(), strict=True)]
    pieces = [table(rows, f"Results on {page.title}, mIoU in percent"), part("notes", page.gaps)]
    if page.measured:
        pieces.append(part("text", f"{LEGEND} {COMPARED if page.published else ALONE}"))
    if page.published:
        published = [
            {
                "backbone": f"{number['backbone']}, OS={number['output_stride']}",
                "source": part("link", number["url"], number["source"], external=True),
                "mIoU": percent(number["mIoU"]),
                **{name: number[name] or "-" for name in ("protocol", "schedule", "note")},
            }
            for number in page.reference.to_dict("records")
        ]
        numbers = table(published, f"Published mIoU on {page.title}, percent")
        pieces.append(part("more", f"All {len(published)} published numbers, with their sources", numbers))
    return joined(pieces)


def result_row(cell: CellPage, page: DatasetPage) -> dict[str, Any]:
    """A row of the table, the numbers first."""
    found, row, recipe = cell.comparison, cell.row, cell.cell.recipe
    spread = f" ± {100 * float(row['mIoU_std']):.2f}" if row["mIoU_std"] else ""
    miou = f"{percent(100 * cell.miou)}{spread}" if cell.miou is not None else "-"
    shown: dict[str, Any] = {"cell": part("cell", cell.name, cell.title)}
    shown["mIoU"] = part("link", f"#provenance-{cell.name}", miou) if cell.measured else miou
    if page.measured:
        shown["95 % interval"] = interval(page.interval(cell))
        if any(each.get("low_seeds") is not None for each in page.statistics.get("cells", {}).values()):
            shown["over seeds too"] = interval(page.interval(cell), low="low_seeds", high="high_seeds")
        shown |= {f"mIoU ({split})": split_number(row, split) for split in page.splits}
    more = texts(row, page.columns)
    shown |= {column.heading: more[name] for name, column in page.columns.items()}
    if page.published:
        shown[found.source or "published"] = percent(found.published)
        shown["difference"] = signed(found.difference)
        shown["verdict"] = part("verdict", found.verdict, found.reason)
        others = elsewhere(row, page.reference, page.name)
        shown |= {source: percent(others.get(source)) for source in SOURCES}
    used = subset(row, recipe, page.images) if cell.measured else ""
    shown["crop"] = row["crop"]
    shown["schedule"] = schedule(recipe) + (f" (departs: {row['departs']})" if row["departs"] else "")
    shown["train/eval split"] = recipe.splits + (f" (subset: {used})" if used else "")
    return shown


def split_number(row: dict[str, str], split: str) -> str:
    """The mIoU on a further split with its interval; a dash where it was not measured."""
    miou, low, high = (row[f"{split}.{name}"] for name in ("mIoU", "mIoU_low", "mIoU_high"))
    if not miou:
        return "-"
    ends = interval({"low": float(low), "high": float(high)}) if low else ""
    return f"{percent(100 * float(miou))} {ends}".rstrip()
