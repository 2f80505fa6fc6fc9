"""The table of a data set, as Markdown for the README and as CSV for programs.

Both are functions of the results and of params.yaml: verify makes them again and compares.
"""

import csv
import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from deeplab.config import Cell
from pipeline.markdown import plain
from pipeline.results.columns import asked, extras, texts
from pipeline.results.records import INTERVAL, SCORES, Place, Result, Row
from pipeline.results.splits import on_split
from pipeline.results.values import percent
from pipeline.settings.links import LOG, read_published
from pipeline.settings.params import Params
from pipeline.settings.places import Places
from pipeline.settings.published import departs

Entry = Callable[[Row], str]

TITLES = {
    "resnet18": "ResNet18",
    "resnet34": "ResNet34",
    "resnet50": "ResNet50-7x7stem",
    "resnet101": "ResNet101-7x7stem",
    "resnet50c": "ResNet50",
    "resnet101c": "ResNet101",
    "tf_efficientnet_lite0": "EfficientNet-Lite0",
}


def make_rows(
    dataset: str, results: dict[Place, Result], reasons: dict[str, str], params: Params, places: Places
) -> list[Row]:
    """A row for each cell of `dataset`, empty unless `results` has all its seeds.

    `reasons` names the cells without a record of their own, whose results come from somebody else.
    """
    rows = []
    published = read_published(places.published(dataset))
    for name, cell in params.cells_of(dataset).items():
        found = tuple(results[name, seed] for seed in params.runs[name] if (name, seed) in results)
        if len(found) < len(params.runs[name]):
            found = ()
        own = found and name not in reasons
        card = (places.cards(dataset) / f"{name}.md").relative_to(places.root) if own else None
        links = tuple(entry for entry in published if entry.cell == name)
        config = params.dataset(dataset)
        row = Row(
            name=name,
            cell=cell,
            overrides=params.overrides[name],
            dataset=config,
            results=found,
            card=card,
            published=links,
            splits=params.further(dataset),
            columns=asked(params),
            extras=extras(name, found, bool(own), params, places),
        )
        rows.append(row)
    return rows


def markdown(rows: list[Row]) -> str:
    """The table in the form of the README."""
    columns = with_splits(COLUMNS, rows)
    head = [*columns, *(column.heading for column in (rows[0].columns if rows else {}).values())]
    body = ([*(column(row) for column in columns.values()), *map(plain, more_texts(row))] for row in rows)
    last = list(columns).index("Download")
    lines = [[*line[:last], *line[last + 1 :], line[last]] for line in (head, [":-:"] * len(head), *body)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + note(rows)


def note(rows: list[Row]) -> str:
    """A line below the table where its rows were measured with different versions of a library, else nothing."""
    cells: dict[str, dict[str, list[str]]] = {}  # library -> version -> cells
    for row in rows:
        for name, version in row.results[0].versions.items() if row.results else ():
            cells.setdefault(name, {}).setdefault(version, []).append(row.name)
    several = [
        f"{name} " + " and ".join(f"{version} ({', '.join(own)})" for version, own in found.items())
        for name, found in cells.items()
        if len(found) > 1 and name != "packages"  # most of these cannot move a number
    ]
    return f"\nMeasured with different versions: {'; '.join(several)}.\n" if several else ""


def plain_table(lines: list[tuple[str, str, str]]) -> str:
    """Name, mIoU and interval of each cell, in columns for a terminal."""
    lines = [("", "mIoU", "95 % interval"), *lines]
    width = max(len(name) for name, *_ in lines)
    return "".join(f"{name:{width}}  {miou:>14}  {between}".rstrip() + "\n" for name, miou, between in lines)


def sheet(rows: list[Row]) -> str:
    """The table as CSV: shares instead of percent, and where each number comes from."""
    text = io.StringIO()
    writer = csv.DictWriter(text, csv_row(rows[0]) if rows else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(csv_row(row) for row in rows)
    return text.getvalue()


def csv_row(row: Row) -> dict[str, Any]:
    recipe, results = row.cell.recipe, row.results
    first = results[0] if results else None
    return {
        "cell": row.name,
        "backbone": row.cell.model.backbone,
        "output_stride": row.cell.model.output_stride,
        "crop": crop(row),
        "batch_size": recipe.batch_size,
        "epochs": recipe.epochs,
        "seeds": " ".join(str(result.seed) for result in results),
        **numbers(row),
        "train_images": first and first.images.get(recipe.train_split),
        "eval_images": first and first.images.get(recipe.eval_split),
        "keys": " ".join(result.key for result in results),
        "cell_fingerprint": row.cell.fingerprint,
        "data_fingerprint": first and first.fingerprint["data"],
        "code_fingerprint": first and first.fingerprint["code"],
        "weights_sha256": " ".join(result.weights["sha256"] for result in results),
        "departs": departs(row.cell),
        **{f"{split}.{name}": value for split in row.splits for name, value in split_numbers(row, split).items()},
        **row.extras,
    }


def numbers(row: Row) -> dict[str, float | None]:
    """The means over the seeds, and what lies around that of the mIoU."""
    return {
        **{score: row.mean(score) if row.results else None for score in SCORES},
        "mIoU_std": row.spread("mIoU"),
        **{end: row.mean_end(end) for end in INTERVAL},
    }


def split_numbers(row: Row, split: str) -> dict[str, Any]:
    """The columns of a further split."""
    measured = on_split(row, split)
    first = measured.results[0].splits[split] if measured.results else None
    images, data = (first.images, first.data) if first else (None, None)
    return {**numbers(measured), "eval_images": images, "data_fingerprint": data}


def backbone(row: Row) -> str:
    return plain(title_of(row.cell, row.overrides))


def title_of(cell: Cell, overrides: str) -> str:
    """The name of a row: two cells of a data set with different settings have different ones."""
    model = cell.model
    named = (f"OS={model.output_stride}", f"PRE={cell.pretraining}", overrides)
    return f"{TITLES.get(model.backbone, model.backbone)} ({', '.join(filter(None, named))})"


def crop(row: Row) -> str:
    return "x".join(map(str, row.cell.recipe.crop))


def schedule(row: Row) -> str:
    """The schedule, and where the cell departs from the published recipe."""
    recipe = row.cell.recipe
    text = f"LR/POLICY/BS/EPOCH: {recipe.lr:g}/{recipe.policy}/{recipe.batch_size}/{recipe.epochs}"
    return text + (f" (departs: {departs(row.cell)})" if departs(row.cell) else "")


def sets(row: Row) -> str:
    return plain(splits(row))


def splits(row: Row) -> str:
    """The splits, and the number of images where a result used fewer than the data set has."""
    names, title = (row.cell.recipe.train_split, row.cell.recipe.eval_split), row.cell.recipe.splits
    if not row.results:
        return title
    used = [row.results[0].images[name] for name in names]
    published = [row.dataset.images[name] for name in names]
    if all(have >= full for have, full in zip(used, published, strict=True)):
        return title
    return f"{title} (subset: {'/'.join(map(str, used))} of {'/'.join(map(str, published))} images)"


def more_texts(row: Row) -> list[str]:
    """The entries in the columns that params.yaml asks for."""
    return list(texts(row.extras, row.columns).values())


def mean_iou(row: Row) -> str:
    """Percent, with the standard deviation when there are several seeds."""
    return percent(row.mean("mIoU"), row.spread("mIoU")) if row.results else "-"


def split_iou(row: Row, split: str) -> str:
    """The same on a further split, and the number of images where it has fewer than published."""
    measured = on_split(row, split)
    text = mean_iou(measured)
    used = measured.results[0].splits[split].images if measured.results else 0
    full = row.dataset.images.get(split, used)
    return f"{text} (subset: {used} of {full} images)" if 0 < used < full else text


def with_splits(columns: Mapping[str, Entry], rows: list[Row]) -> dict[str, Entry]:
    """`columns`, with one for each further split behind the mIoU."""
    more = {f"mIoU ({split})": partial(split_iou, split=split) for split in (rows[0].splits if rows else ())}
    place = list(columns).index("mIoU") + 1
    own = list(columns.items())
    return dict([*own[:place], *more.items(), *own[place:]])


def download(row: Row) -> str:
    """Links to the weights of each seed, to the log of all, and to the model card. Nothing links to an ignored file."""
    if not row.results or not row.card:
        return "-"
    card = f"[card]({row.card.as_posix()})"
    one = len(row.results) == 1
    names = {result.weights["file"]: "model" if one else f"model {result.seed}" for result in row.results} | {
        LOG: "log"
    }
    own = {result.weights["sha256"] for result in row.results}
    if not own <= {entry.sha256 for entry in row.published}:
        return f"local · {card}"
    if not all(entry.url for entry in row.published):
        return f"`grid pull {row.name}` · {card}"
    links = {entry.file: f"[{names[entry.file]}]({entry.url})" for entry in row.published if entry.file in names}
    return " · ".join([*(links[file] for file in names if file in links), card])


# Title of a column -> its text for a row.
COLUMNS: dict[str, Entry] = {
    "Backbone": backbone,
    "Crop Size": crop,
    "Schedule": schedule,
    "Train/Eval Set": sets,
    "mIoU": mean_iou,
    "Download": download,
}
