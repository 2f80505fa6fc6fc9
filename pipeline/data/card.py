"""The card of a data set: what it holds in numbers, and a sheet of samples under their masks to look at."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

from deeplab.baselines import majority_miou, prior_miou
from deeplab.store import IGNORE, Bytes, Color, Record, Store
from pipeline.files import whole, write_whole
from pipeline.markdown import code, plain

if TYPE_CHECKING:
    from PIL import Image

SHOWN = 20  # groups of the same image that card.md lists
SAMPLES = 16  # on the sheet
COLUMNS = 4
TILE = 360, 270  # the box that a sample is fitted into: width, height
SEED = 0


def write_card(
    store: Store, dataset: str, published: dict[str, int], duplicates: Sequence[Sequence[Record]], out: Path
) -> None:
    """Write `out`/card.json and card.md: the same bytes for the same store, and no time or place in them.

    `published` is split -> how many images; `duplicates` are groups of samples that have one image.
    """
    card = describe(store, dataset, published, duplicates)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "card.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    write_whole(out / "card.md", markdown(card))


def describe(
    store: Store, dataset: str, published: dict[str, int], duplicates: Sequence[Sequence[Record]]
) -> dict[str, Any]:
    """The card as plain values, from the manifest's records, what was found with them, and the masks."""
    names = dict.fromkeys(record.split for record in store.records)
    records = {split: [record for record in store.records if record.split == split] for split in names}
    pixels = {split: sum((Counter(record.pixels) for record in records[split]), Counter[int]()) for split in names}
    return {
        "dataset": dataset,
        "fingerprint": store.fingerprint,
        "splits": {split: describe_split(records[split], pixels[split], published[split]) for split in names},
        "classes": [
            {
                "name": name,
                "color": list(store.palette[label]),
                "pixel_share": {split: share(pixels[split], label) for split in names},
                "images": {split: sum(label in record.pixels for record in records[split]) for split in names},
            }
            for label, name in enumerate(store.classes)
        ],
        "duplicates": [[{"split": record.split, "id": record.id} for record in group] for group in duplicates],
        "trivial_mIoU": describe_trivial(store, list(names)),
    }


def describe_split(records: list[Record], pixels: Counter[int], published: int) -> dict[str, Any]:
    """Counts, sizes and the ignored share of one split."""
    return {
        "images": len(records),
        "published": published,
        "width": spread([record.width for record in records]),
        "height": spread([record.height for record in records]),
        "ignored_share": round(pixels[IGNORE] / pixels.total(), 6),
    }


def describe_trivial(store: Store, splits: list[str]) -> dict[str, float]:
    """What predictors that look at no image score on the last split, knowing the first; nothing where there is one."""
    if len(splits) == 1:
        return {}
    train, val, classes = store.split(splits[0]), store.split(splits[-1]), len(store.classes)
    return {
        "majority": round(majority_miou(train, val, classes), 6),
        "prior": round(prior_miou(train, val, classes), 6),
    }


def spread(values: list[int]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}


def share(pixels: Counter[int], label: int) -> float:
    """Of the pixels that are not ignored."""
    labelled = pixels.total() - pixels[IGNORE]
    return round(pixels[label] / labelled, 6) if labelled else 0.0


def markdown(card: dict[str, Any]) -> str:
    """The card for a person."""
    splits: dict[str, dict[str, Any]] = card["splits"]
    lines = [
        f"# Data card: {card['dataset']}",
        "",
        f"Data fingerprint (SHA-256 of the manifest): `{card['fingerprint']}`",
        "",
        *table(
            ["split", "images", "width: min / median / max", "height: min / median / max", "pixels ignored"],
            [
                [
                    name,
                    str(split["images"]),
                    extent(split["width"]),
                    extent(split["height"]),
                    percent(split["ignored_share"]),
                ]
                for name, split in splits.items()
            ],
        ),
        "",
    ]
    subsets = [
        f"{split['images']} of {split['published']} {name} images"
        for name, split in splits.items()
        if split["images"] != split["published"]
    ]
    lines += [f"**Not the published set:** {', '.join(subsets)}.", ""] if subsets else []
    for name in splits:
        unseen = [plain(kind["name"]) for kind in card["classes"] if not kind["images"][name]]
        lines += [f"**No image of {name} shows:** {', '.join(unseen)}.", ""] if unseen else []
    lines += repeated(card["duplicates"])
    if trivial := card["trivial_mIoU"]:
        lines += [
            f"Without a look at the image: mIoU {percent(trivial['majority'])} for the class with most pixels, "
            f"{percent(trivial['prior'])} for the most frequent class of each place, both as in the training masks.",
            "",
        ]
    head = ["class", *(f"{name}: {what}" for name in splits for what in ("pixels", "images"))]
    rows = [
        [
            plain(kind["name"]),
            *(cell for name in splits for cell in (percent(kind["pixel_share"][name]), str(kind["images"][name]))),
        ]
        for kind in card["classes"]
    ]
    lines += ["Pixels: share of those that are not ignored. Images: how many show the class.", "", *table(head, rows)]
    return "\n".join(lines) + "\n"


def repeated(duplicates: list[list[dict[str, str]]]) -> list[str]:
    """Images that the set holds more than once, those in several splits first; card.json has all of them."""
    within = [group for group in duplicates if len({sample["split"] for sample in group}) == 1]
    across = [group for group in duplicates if group not in within]
    lines: list[str] = []
    for kind, groups in (("several splits, so that results are too good", across), ("one split", within)):
        if groups:
            shown = [" = ".join(f"{one['split']} {code(one['id'])}" for one in group) for group in groups[:SHOWN]]
            more = f", and {len(groups) - SHOWN} more in card.json" if len(groups) > SHOWN else ""
            lines += [f"**The same image more than once in {kind}:** {', '.join(shown)}{more}.", ""]
    return lines


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    marks = [":-", *["-:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, marks, *rows)]


def extent(values: dict[str, float]) -> str:
    return " / ".join(f"{value:g}" for value in values.values())


def percent(value: float) -> str:
    return f"{value:.2%}"


def write_sheet(store: Store, split: str, path: Path) -> None:
    """Write SAMPLES samples of `split` under their masks, above a legend of the classes that occur, as a PNG."""
    samples = store.split(split)
    chosen = sorted(Random(SEED).sample(range(len(samples)), min(SAMPLES, len(samples))))  # noqa: S311  not a secret
    pictures = [(samples.records[index].id, shrink(samples.image(index), samples.mask(index))) for index in chosen]
    with whole(path) as partial:
        sheet(pictures, store.classes, store.palette).save(partial)


def shrink(image: Bytes, mask: Bytes) -> tuple[Bytes, Bytes]:
    """Both as large as TILE allows; the mask keeps its labels."""
    import numpy as np
    from PIL import Image

    height, width = mask.shape
    factor = min(TILE[0] / width, TILE[1] / height)
    size = max(1, round(factor * width)), max(1, round(factor * height))
    smooth = Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST  # small pictures keep their pixels
    small = np.asarray(Image.fromarray(image).resize(size, smooth, reducing_gap=2.0))
    return small, np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def sheet(
    pictures: list[tuple[str, tuple[Bytes, Bytes]]], classes: tuple[str, ...], palette: tuple[Color, ...]
) -> Image.Image:
    """The overlays in rows, each under its id, and the legend below them."""
    from PIL import Image, ImageDraw

    from pipeline.pictures.overlay import FONT, GAP, INK, LINE, draw_legend, legend_of, tint, wrap

    total = COLUMNS * (TILE[0] + GAP) + GAP
    tall = max(mask.shape[0] for _, (_, mask) in pictures)
    rows = wrap(legend_of([mask for _, (_, mask) in pictures], classes, palette), total - 2 * GAP)
    bottom = -(-len(pictures) // COLUMNS) * (LINE + tall + GAP)
    canvas = Image.new("RGB", (total, bottom + LINE * len(rows) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (name, (image, mask)) in enumerate(pictures):
        left = GAP + index % COLUMNS * (TILE[0] + GAP)
        top = index // COLUMNS * (LINE + tall + GAP)
        draw.text((left, top + 3), shortened(name), INK, FONT)
        canvas.paste(Image.fromarray(tint(image, mask, palette)), (left, top + LINE))
    draw_legend(draw, rows, bottom)
    return canvas


def shortened(name: str) -> str:
    """What of an id fits above a tile; its end tells more than its start."""
    return name if len(name) <= 40 else f"…{name[-39:]}"
