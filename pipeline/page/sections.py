"""The sections about one data set, in their order on the page: a function from its data to a piece of HTML.

A new section is a function here and a line in SECTIONS. A section with nothing to show returns an empty piece and is
left out.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from markupsafe import Markup

from pipeline.page.embedded import DAMAGED, sheet
from pipeline.page.html import amount, duration, interval, joined, part, percent, signed, table
from pipeline.page.inputs import CellPage, DatasetPage
from pipeline.page.plots import plot
from pipeline.page.predictions import predictions
from pipeline.page.verdicts import elsewhere, schedule, subset
from pipeline.pictures import charts

SOURCES = ("mmsegmentation 1.2.2", "paper")  # columns beside the number that is compared
TOP = 12  # confusions that are listed
CONFUSIONS_BELOW = 0.005  # of a class's pixels: not listed
CURVES = {  # column of a history -> caption and name of the axis
    "train/loss": ("Loss of training, smoothed; faint: as logged", "loss"),
    "train/lr": ("Learning rate", "learning rate"),
    "val/mIoU": ("mIoU on the validation set during training", "validation mIoU"),
}
COST = {  # column -> the fact of run.json, its format and unit
    "images/s": ("images_per_second", "{:.1f}", 1),
    "iterations": ("iterations", "{:,.0f}", 1),
    "peak memory": ("peak_memory", "{:.2f} GB", 1e9),
    "parameters": ("parameters", "{:.2f} M", 1e6),
    "FLOPs": ("flops", "{:.2f} G", 1e9),
}


def results(page: DatasetPage) -> Markup:
    """The table of the cells, with the published numbers beside it."""
    rows = [result_row(cell, page) for cell in page.cells]
    pieces = [table(rows, f"Results on {page.title}, mIoU in percent"), part("notes", page.gaps)]
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
    """A row of the table, the numbers first: a phone shows three columns."""
    found, row, recipe = cell.comparison, cell.row, cell.cell.recipe
    spread = f" ± {100 * float(row['mIoU_std']):.2f}" if row["mIoU_std"] else ""
    miou = f"{percent(100 * float(row['mIoU']))}{spread}" if cell.measured else "-"
    shown: dict[str, Any] = {"cell": cell.name}
    shown["mIoU"] = part("link", f"#provenance-{cell.name}", miou) if cell.measured else miou
    if page.statistics:
        shown["interval"] = interval(page.statistics.get("cells", {}).get(cell.name, {}))
    if page.published:
        shown[found.source or "published"] = percent(found.published)
        shown["difference"] = signed(found.difference)
        shown["verdict"] = part("verdict", found.verdict, found.reason)
        others = elsewhere(row, page.reference, page.name)
        shown |= {source: percent(others.get(source)) for source in SOURCES}
    used = subset(row, recipe, page.images) if cell.measured else ""
    shown["backbone"] = f"{row['backbone']}, OS={row['output_stride']}"
    shown["pretrained"] = "ImageNet" if cell.cell.model.pretrained else "no"
    shown["crop"] = row["crop"]
    shown["schedule"] = schedule(recipe) + (f" (departs: {row['departs']})" if row["departs"] else "")
    shown["train/eval split"] = f"{recipe.train_split}/{recipe.val_split}" + (f" (subset: {used})" if used else "")
    return shown


def statistics(page: DatasetPage) -> Markup:
    """How far a number may move with other images, and which differences are clear."""
    found = page.statistics
    if not found:
        return Markup()
    level = f"{100 * found.get('level', 0.95):g} % interval"
    several = any(each.get("low_seeds") is not None for each in found.get("cells", {}).values())
    cells = [
        {"cell": name, "mIoU": percent(100 * each["mIoU"]), level: interval(each)}
        | ({"over seeds too": interval(each, low="low_seeds", high="high_seeds")} if several else {})
        for name, each in found.get("cells", {}).items()
    ]
    pairs = [
        {
            "better": pair["better"],
            "than": pair["than"],
            "by": signed(100 * pair["difference"]),
            level: interval(pair, signed),
            "clear difference": "yes" if pair["low"] > 0 else "no",
        }
        for pair in found.get("pairs", [])
    ]
    numbers = table(cells, "mIoU over the validation images, percent")
    return joined(
        [numbers, table(pairs, "Differences on the same images, percent"), part("text", found.get("note", ""))]
    )


def curves(page: DatasetPage) -> Markup:
    """Loss, learning rate and validation during training."""
    histories = {color: cell.history for color, cell in enumerate(page.measured) if cell.history is not None}
    names = ", ".join(cell.name for cell in page.measured if cell.history is not None)
    drawn = {}
    for column, (caption, title) in CURVES.items():
        if figure := charts.curves(histories, column, title):
            drawn[column] = plot(figure, caption, f"{title} over iterations of {names}")
    if drawn and "val/mIoU" not in drawn:
        drawn["none"] = part("text", "No validation during training: runtime.validate_every in params.yaml is 0.")
    return part("row", drawn.values()) if drawn else Markup()


def classes(page: DatasetPage) -> Markup:
    """IoU of each class for each cell, the best classes on top."""
    cells = dict(enumerate(page.measured))  # colour -> cell
    found = {color: cell.classes.set_index("class") for color, cell in cells.items() if cell.classes is not None}
    if not found:
        return Markup()
    scores = pd.DataFrame({color: 100 * each["IoU"] for color, each in found.items()})
    scores = scores.loc[scores.mean(axis=1).sort_values(ascending=False, kind="stable").index]
    pixels = next(iter(found.values()))["pixels"]
    order, shares = [str(name) for name in scores.index], 100 * pixels / pixels.sum()
    names = {color: cells[color].name for color in found}
    rows = [
        {"class": title, "pixels": f"{percent(shares.get(title))} %"}
        | {name: percent(scores[color][title]) for color, name in names.items()}
        for title in order
    ]
    figure = charts.class_bars({color: dict(scores[color]) for color in found}, order)
    words = f"Bars of IoU per class for {', '.join(names.values())}: on average highest for {order[0]}"
    bars = plot(figure, "IoU of each class, percent", words, tall=len(order) > charts.NAMED)
    numbers = table(rows, "IoU of each class, percent, and its share of the pixels")
    return joined([bars, part("more", "The same as a table", numbers)])


def confusion(page: DatasetPage) -> Markup:
    """Which class is mistaken for which: the whole matrix, and the largest confusions by name."""
    pieces = []
    for cell in page.measured:
        if cell.pairs is None or cell.classes is None:
            continue
        pairs = cell.pairs.sort_values("share", ascending=False, kind="stable")
        figure = charts.confusion_picture(list(cell.classes["class"]), pairs.to_dict("records"))
        right = pairs["truth"] == pairs["predicted"]
        recognised = pairs["share"][right].sum() / pairs["truth"].nunique()
        words = f"Confusion matrix of {cell.name}: on average {recognised:.0%} of the pixels of a class are recognised"
        rows = [
            {
                "truth": pair["truth"],
                "predicted as": pair["predicted"],
                "of its pixels": f"{percent(100 * pair['share'])} %",
            }
            for pair in pairs[~right & (pairs["share"] >= CONFUSIONS_BELOW)].head(TOP).to_dict("records")
        ]
        drawn = plot(figure, f"{cell.name}: share of each true class's pixels", words)
        pieces.append(part("row", [drawn, table(rows, f"{cell.name}: largest confusions")]))
    return part("row", pieces) if pieces else Markup()


def cost(page: DatasetPage) -> Markup:
    """Time, memory and size; a dash where it was not recorded."""
    rows = []
    for cell in page.measured:
        seeds = list(cell.facts.values())
        row: dict[str, Any] = {"cell": cell.name, "training, each seed": duration(mean(seeds, "seconds"))}
        row |= {title: amount(mean(seeds, fact), form, unit) for title, (fact, form, unit) in COST.items()}
        rows.append(row | {"device": ", ".join(sorted({str(facts.get("device", "-")) for facts in seeds})) or "-"})
    words = (
        "Time: the last stretch of training without an interruption. Memory: the tensors on a GPU, the process on a "
        "CPU. FLOPs: one forward pass on one crop, two for each multiply-add."
    )
    return joined([table(rows, "Cost of training"), part("text", words)])


def mean(seeds: list[dict[str, Any]], fact: str) -> float | None:
    values = [facts[fact] for facts in seeds if isinstance(facts.get(fact), int | float)]
    return fmean(values) if values else None


def data(page: DatasetPage) -> Markup:
    """The images of the data set, in numbers and on a sheet."""
    card = page.card
    if not card:
        return Markup()
    splits = [
        {"split": name, "images": split["images"], "as published": split["published"]}
        | {side: " / ".join(f"{value:g}" for value in split[side].values()) for side in ("width", "height")}
        | {"pixels ignored": percent(100 * split["ignored_share"]) + " %"}
        for name, split in card["splits"].items()
    ]
    kinds = [
        {"class": kind["name"]}
        | {f"{name}: pixels": percent(100 * kind["pixel_share"][name]) + " %" for name in card["splits"]}
        | {f"{name}: images": kind["images"][name] for name in card["splits"]}
        for kind in card["classes"]
    ]
    shares = table(kinds, "Share of the labelled pixels, and images that contain the class")
    pieces = [
        table(splits, f"Images of {page.title}; widths and heights: smallest / median / largest"),
        part("more", f"{len(kinds)} classes", shares),
    ]
    if trivial := card.get("trivial_mIoU"):
        words = "Trivial baselines: always the commonest class {} % mIoU; the commonest class at each position {} %."
        pieces.append(part("text", words.format(*(percent(100 * trivial[name]) for name in ("majority", "prior")))))
    if repeated := card.get("duplicates"):
        pieces.append(part("text", f"{len(repeated)} images occur more than once. The data card lists them."))
    if page.sheet:
        pieces.append(part("more", "Samples under their masks", drawn_sheet(page.sheet, page.title)))
    return joined(pieces)


def drawn_sheet(path: Path, title: str) -> Markup:
    """The sheet, or a note that it is damaged."""
    try:
        return part("picture", *sheet(path), f"Samples of {title} under their masks, with a legend of the classes")
    except DAMAGED:
        return part("notes", [f"{path}: damaged"])


def provenance(page: DatasetPage) -> Markup:
    """Which weights, commit, settings, data and code each number comes from."""
    cards = [part("facts", cell.name, f"provenance-{cell.name}", origin(cell)) for cell in page.measured]
    words = part(
        "text",
        'To see a run in MLflow, search for tags.key = "the key". The weights are the file '
        "runs/<cell>/weights/seed<seed>.safetensors. Settings, data and code are hashes.",
    )
    return joined([words, part("row", cards)]) if cards else Markup()


def origin(cell: CellPage) -> list[tuple[str, Any]]:
    """Titles and values: four for each seed, then the hashes that all seeds share."""
    row, pairs = cell.row, []
    for seed, key, weights in zip(cell.seeds, row["keys"].split(), cell.weights, strict=True):
        facts = cell.facts.get(seed, {})
        changed = " with uncommitted changes" if facts.get("dirty") else ""
        pairs += [
            (f"seed {seed}: key", part("code", key)),
            ("commit", part("code", f"{facts['commit']}{changed}") if facts.get("commit") else "-"),
            ("weights, SHA-256", part("code", weights)),
            ("trained", f"{facts.get('started', '-')}, {facts.get('device', '-')}, torch {facts.get('torch', '-')}"),
        ]
    named = {"settings": "cell_fingerprint", "data": "data_fingerprint", "code": "code_fingerprint"}
    return [*pairs, *((title, part("code", row[column])) for title, column in named.items())]


SECTIONS: dict[str, Callable[[DatasetPage], Markup]] = {
    "What a difference means": statistics,
    "Classes": classes,
    "Predictions": predictions,
    "Confusion": confusion,
    "Training": curves,
    "Cost": cost,
    "Data": data,
    "Provenance": provenance,
}
