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

from pipeline.page.embedded import DAMAGED, plot, sheet
from pipeline.page.html import amount, durations, interval, joined, marked, part, percent, short, signed, table
from pipeline.page.inputs import CellPage, DatasetPage
from pipeline.page.predictions import predictions
from pipeline.pictures import charts

TOP = 12  # confusions that are listed
CONFUSIONS_BELOW = 0.005  # of a class's pixels: not listed
INTERVALS = (
    "Intervals: what another set of as many validation images would change (95 %, bootstrap). What another training "
    "seed would change is known only where a cell has several seeds."
)
CONFUSION = "percent of each true class's pixels. The colour grows with the root, so that small shares stay visible"
FINGERPRINTS = {"settings": "cell", "data": "data", "code": "code"}  # title -> its name in the table
HASHES = ("commit", "weights", "key", *FINGERPRINTS)
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


def statistics(page: DatasetPage) -> Markup:
    """Which differences between cells are clear."""
    level = f"{100 * page.statistics.get('level', 0.95):g} % interval"
    pairs = [
        {
            "better": pair["better"],
            "than": pair["than"],
            "by": signed(100 * pair["difference"]),
            level: interval(pair, signed),
            "clear difference": "yes" if pair.get("clear", pair["low"] > 0) else "no",
        }
        for pair in page.statistics.get("pairs", [])
    ]
    numbers = table(pairs, "Differences of mIoU on the same images, percent")
    return joined([numbers, part("text", INTERVALS)]) if pairs else Markup()


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
        | marked(
            {name: percent(scores[color][title]) for color, name in names.items()},
            {name: scores[color][title] * page.ranked(cells[color]) for color, name in names.items()},
        )
        for title in order
    ]
    figure = charts.class_bars({color: dict(scores[color]) for color in found}, order)
    words = f"Bars of IoU per class for {', '.join(names.values())}: on average highest for {order[0]}"
    bars = plot(figure, "IoU of each class, percent", words, tall=len(order) > charts.NAMED)
    numbers = table(rows, "IoU of each class, percent, and its share of the pixels")
    return part("row", [bars, numbers if len(order) <= charts.NAMED else part("more", "The same as a table", numbers)])


def confusion(page: DatasetPage) -> Markup:
    """Which class is mistaken for which: the whole matrix, and the largest confusions by name."""
    pieces = []
    for cell in page.measured:
        if cell.pairs is None or cell.classes is None:
            continue
        pairs = cell.pairs.sort_values("share", ascending=False, kind="stable")
        figure = charts.confusion_picture(list(cell.classes["class"]), pairs.to_dict("records"))
        right = pairs["truth"] == pairs["predicted"]
        recognised = pairs["share"][right].mean()
        words = f"Confusion matrix of {cell.name}: on average {recognised:.0%} of the pixels of a class are recognised"
        rows = [
            {
                "truth": pair["truth"],
                "predicted as": pair["predicted"],
                "of its pixels": f"{percent(100 * pair['share'])} %",
            }
            for pair in pairs[~right & (pairs["share"] >= CONFUSIONS_BELOW)].head(TOP).to_dict("records")
        ]
        drawn = plot(figure, f"{cell.name}: {CONFUSION}", words)
        pieces.append(part("row", [drawn, table(rows, f"{cell.name}: largest confusions")]))
    return part("row", pieces) if pieces else Markup()


def cost(page: DatasetPage) -> Markup:
    """Time, memory and size; a dash where it was not recorded."""
    times = durations([mean(list(cell.facts.values()), "seconds") for cell in page.measured])
    rows = []
    for cell, time in zip(page.measured, times, strict=True):
        seeds = list(cell.facts.values())
        row: dict[str, Any] = {"cell": cell.name, "training, each seed": time}
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
        {"split": name, "images": split["images"], "expected": split["published"]}
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
        pieces.append(part("more", "Samples under their masks", drawn_sheet(page.sheet, page.name, page.title)))
    return joined(pieces)


def drawn_sheet(path: Path, name: str, title: str) -> Markup:
    """The sheet, or a note that it is damaged."""
    try:
        words = f"Samples of {title} under their masks, with a legend of the classes"
        return part("picture", *sheet(path), words, f"sheet-{name}")
    except DAMAGED:
        return part("notes", [f"{path}: damaged"])


def provenance(page: DatasetPage) -> Markup:
    """Which weights, commit, settings, data and code each number comes from."""
    rows = [row for cell in page.measured for row in origins(cell)]
    shown = [{name: short(value) if name in HASHES else value for name, value in row.items()} for row in rows]
    for row in shown:
        if row["seed"] == rows[0]["seed"]:
            row["cell"] = part("anchor", f"provenance-{row['cell']}", row["cell"])
    words = (
        'To see a run in MLflow, search for tags.key = "the key". The weights are the file '
        "runs/<cell>/weights/seed<seed>.safetensors. Settings, data and code are hashes."
    )
    whole = [
        part("facts", f"{row['cell']}, seed {row['seed']}", [(name, row[name]) for name in HASHES]) for row in rows
    ]
    pieces = [table(shown, "Where each number comes from; hashes by their first digits"), part("text", words)]
    return joined([*pieces, part("more", "Whole hashes", part("row", whole))]) if rows else Markup()


def origins(cell: CellPage) -> list[dict[str, str]]:
    """For each seed what it was trained on, and HASHES."""
    rows = []
    for seed, key, weights in zip(cell.seeds, cell.row["keys"].split(), cell.weights, strict=True):
        facts = cell.facts.get(seed, {})
        dirty = " with uncommitted changes" if facts.get("dirty") else ""
        rows.append(
            {
                "cell": cell.name,
                "seed": seed,
                "trained": str(facts.get("started", "-"))[:16].replace("T", " "),
                "on": f"{facts.get('device', '-')}, torch {facts.get('torch', '-')}",
                "commit": f"{facts.get('commit') or '-'}{dirty}",
                "weights": weights,
                "key": key,
                **{name: cell.row[f"{column}_fingerprint"] for name, column in FINGERPRINTS.items()},
            }
        )
    return rows


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
