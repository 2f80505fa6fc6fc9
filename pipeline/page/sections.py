"""The sections about one data set, in their order on the page: a function from its data to a piece of HTML.

A new section is a function here and a line in SECTIONS. A section with nothing to show returns an empty piece and is
left out.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from pipeline.page import plots
from pipeline.page.embedded import DAMAGED, sheet
from pipeline.page.html import joined, part, table
from pipeline.page.inputs import CellPage, DatasetPage
from pipeline.page.numbers import amount, duration, extent, interval, mean, percent, signed
from pipeline.page.predictions import predictions
from pipeline.page.reference import elsewhere

SOURCES = ("mmsegmentation 1.2.2", "paper")  # columns beside the number that is compared
TOP = 12  # confusions that are listed
CONFUSIONS_BELOW = 0.005  # of a class's pixels: not listed


def results(page: DatasetPage) -> Markup:
    """The table of the README, with what others published beside it."""
    rows = [result_row(cell, page) for cell in page.cells]
    pieces = [table(rows, f"Results on {page.title}, mIoU in percent"), part("notes", page.gaps)]
    if page.published:
        published = [
            {
                "backbone": f"{number['backbone']}, OS={number['output_stride']}",
                "source": part("link", number["url"], number["source"], external=True),
                "mIoU": percent(number["mIoU"]),
                "protocol": number["protocol"],
                "schedule": number["schedule"] or "-",
                "note": number["note"] or "-",
            }
            for number in page.reference.to_dict("records")
        ]
        caption = f"Published mIoU on {page.title}, percent"
        pieces.append(
            part("more", f"All {len(published)} published numbers, with their sources", table(published, caption))
        )
    return joined(pieces)


def result_row(cell: CellPage, page: DatasetPage) -> dict[str, Any]:
    """The numbers first: a phone shows three columns."""
    said, shown = cell.comparison, cell.shown
    number = shown["mIoU"].replace("%", "")
    row: dict[str, Any] = {"Backbone": shown["Backbone"]}
    row["mIoU"] = part("link", f"#provenance-{cell.name}", number) if cell.measured else number
    if page.statistics:
        row["interval"] = interval(page.statistics.get("cells", {}).get(cell.name, {}))
    if page.published:
        row[said.source or "published"] = percent(said.published)
        row["difference"] = signed(said.difference)
        words = part("verdict", said.verdict, said.verdict or "-")
        row["verdict"] = words + Markup('<span class="why">{}</span>').format(said.reason) if said.reason else words
        others = elsewhere(cell.row, page.reference)
        row |= {source: percent(others.get(source)) for source in SOURCES}
    rest = {title: value for title, value in shown.items() if title not in ("Backbone", "mIoU", "Download")}
    return row | {title: value.removeprefix("LR/POLICY/BS/EPOCH: ") for title, value in rest.items()}


def statistics(page: DatasetPage) -> Markup:
    """How far a number may move with other images, and which differences stand."""
    found = page.statistics
    if not found:
        return Markup()
    level = f"{100 * found.get('level', 0.95):g} % interval"
    cells = [
        {"cell": name, "mIoU": percent(100 * each["mIoU"]), level: interval(each)}
        | ({"over seeds too": seeds} if (seeds := interval(each, low="low_seeds", high="high_seeds")) != "-" else {})
        for name, each in found.get("cells", {}).items()
    ]
    pairs = [
        {
            "better": pair["better"],
            "than": pair["than"],
            "by": signed(100 * pair["difference"]),
            level: interval(pair, signed),
            "stands": "yes" if float(pair["low"]) > 0 else "no",
        }
        for pair in found.get("pairs", [])
    ]
    return joined(
        [
            table(cells, "mIoU over the validation images, percent"),
            table(pairs, "Differences on the same images, percent"),
            part("text", found.get("note", "")),
        ]
    )


def curves(page: DatasetPage) -> Markup:
    """Loss, learning rate and validation while training."""
    histories = {cell.name: cell.history for cell in page.measured if cell.history is not None}
    found = {
        "Loss of training, smoothed; faint: as logged": plots.curves(histories, places(page), "train/loss", "loss"),
        "Learning rate": plots.curves(histories, places(page), "train/lr", "learning rate"),
        "mIoU on the validation set while training": plots.curves(
            histories, places(page), "val/mIoU", "validation mIoU"
        ),
    }
    drawn = [part("plot", svg, title) for title, svg in found.items() if svg]
    if drawn and not found["mIoU on the validation set while training"]:
        drawn.append(part("text", "No validation while training: runtime.validate_every in params.yaml is 0."))
    return part("row", drawn) if drawn else Markup()


def places(page: DatasetPage) -> dict[str, int]:
    """A cell's place in the legend, which gives its colour in every plot."""
    return {cell.name: place for place, cell in enumerate(page.measured)}


def classes(page: DatasetPage) -> Markup:
    """IoU of each class for each cell, the best classes on top."""
    found = {cell.name: cell.classes for cell in page.measured if cell.classes is not None}
    if not found:
        return Markup()
    scores = {name: 100 * scores.set_index("class")["IoU"] for name, scores in found.items()}
    frame = pd.DataFrame(scores)
    order = frame.mean(axis=1).sort_values(ascending=False, kind="stable").index
    pixels = next(iter(found.values())).set_index("class")["pixels"]
    rows = [
        {"class": name, "pixels": f"{percent(100 * pixels[name] / pixels.sum())} %"}
        | {cell: percent(scores[cell].get(name)) for cell in scores}
        for name in order
    ]
    return joined(
        [
            part(
                "plot",
                plots.class_bars(scores, places(page), list(order)),
                "IoU of each class, percent",
                len(order) > plots.NAMED,
            ),
            part("more", "The same as a table", table(rows, "IoU of each class, percent, and its share of the pixels")),
        ]
    )


def confusion(page: DatasetPage) -> Markup:
    """Who is taken for whom: the largest mistakes by name, and the whole matrix."""
    pieces = []
    for cell in page.measured:
        if cell.pairs is None or cell.classes is None:
            continue
        wrong = cell.pairs[cell.pairs["truth"] != cell.pairs["predicted"]]
        top = wrong[wrong["share"] >= CONFUSIONS_BELOW].sort_values("share", ascending=False, kind="stable").head(TOP)
        rows = [
            {
                "truth": pair["truth"],
                "taken for": pair["predicted"],
                "of its pixels": percent(100 * pair["share"]) + " %",
            }
            for pair in top.to_dict("records")
        ]
        svg = plots.matrix(list(cell.classes["class"]), cell.pairs, cell.name)
        shown = [part("plot", svg, f"{cell.name}: share of each true class's pixels")]
        shown.append(table(rows, f"{cell.name}: largest confusions"))
        pieces.append(part("row", shown))
    return part("row", pieces) if pieces else Markup()


def cost(page: DatasetPage) -> Markup:
    """Time, memory and size; a dash where it was not written down."""
    rows = []
    for cell in page.measured:
        seeds = list(cell.facts.values())
        rows.append(
            {
                "cell": cell.name,
                "training, each seed": duration(mean(seeds, "seconds")),
                "images/s": amount(mean(seeds, "images_per_second"), "{:.1f}"),
                "iterations": amount(mean(seeds, "iterations"), "{:,.0f}"),
                "peak memory": amount(mean(seeds, "peak_memory"), "{:.2f} GB", 1e9),
                "parameters": amount(mean(seeds, "parameters"), "{:.2f} M", 1e6),
                f"FLOPs, {cell.row['crop']}": amount(mean(seeds, "flops"), "{:.2f} G", 1e9),
                "device": ", ".join(sorted({str(facts.get("device", "-")) for facts in seeds})) or "-",
            }
        )
    words = (
        "Time is that of the last unbroken stretch of training. Memory is that of the tensors on a GPU, of the whole "
        "process on a CPU. FLOPs are those of one forward pass on one image, two for each multiply-add."
    )
    return joined([table(rows, "Cost of training"), part("text", words)])


def data(page: DatasetPage) -> Markup:
    """The images that were seen, in numbers and on a sheet."""
    card = page.card
    if not card:
        return Markup()
    splits = [
        {
            "split": name,
            "images": split["images"],
            "as published": split["published"],
            "width": extent(split["width"]),
            "height": extent(split["height"]),
            "pixels ignored": percent(100 * split["ignored_share"]) + " %",
        }
        for name, split in card["splits"].items()
    ]
    kinds = [
        {"class": kind["name"]}
        | {f"{name}: pixels": percent(100 * kind["pixel_share"][name]) + " %" for name in card["splits"]}
        | {f"{name}: images": kind["images"][name] for name in card["splits"]}
        for kind in card["classes"]
    ]
    shares = table(kinds, "Share of the labelled pixels, and images that show the class")
    pieces = [
        table(splits, f"Images of {page.title}; widths and heights: least / median / most"),
        part("more", f"{len(kinds)} classes", shares),
    ]
    if trivial := card.get("trivial_mIoU"):
        words = "Without a look at the image: mIoU {} % for the class with most pixels, {} % for that of each place."
        pieces.append(part("text", words.format(*(percent(100 * trivial[name]) for name in ("majority", "prior")))))
    if repeated := card.get("duplicates"):
        pieces.append(part("text", f"{len(repeated)} images stand in it more than once: the card names them."))
    if page.sheet:
        pieces.append(part("more", "Samples under their masks", drawn_sheet(page.sheet, page.title)))
    return joined(pieces)


def drawn_sheet(path: Path, title: str) -> Markup:
    try:
        return part("picture", *sheet(path), f"Samples of {title} under their masks, with a legend of the classes")
    except DAMAGED:
        return part("notes", [f"{path}: damaged"])


def provenance(page: DatasetPage) -> Markup:
    """Where each number comes from."""
    cards = [part("facts", cell.name, f"provenance-{cell.name}", origin(cell)) for cell in page.measured]
    words = part(
        "text",
        'In MLflow, search for tags.key = "the key" to see the run. The SHA-256 of the weights is that of '
        "runs/<cell>/weights/seed<seed>.safetensors. Settings, data and code are fingerprints.",
    )
    return joined([words, part("row", cards)]) if cards else Markup()


def origin(cell: CellPage) -> list[tuple[str, Any]]:
    row, pairs = cell.row, []
    for seed, key, weights in zip(row["seeds"].split(), row["keys"].split(), cell.weights, strict=True):
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
