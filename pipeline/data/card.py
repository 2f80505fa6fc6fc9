"""The data card of a data set: what it contains, in numbers and as Markdown."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from deeplab.baselines import majority_miou, prior_miou
from deeplab.store import IGNORE, Record, Store
from pipeline.files import write_whole
from pipeline.markdown import code, plain

TEMPLATE = "data_card.md"
SHOWN = 20  # groups of equal images that the Markdown lists


def write_card(
    store: Store, dataset: str, published: dict[str, int], duplicates: Sequence[Sequence[Record]], out: Path
) -> None:
    """Write `out`/card.json and card.md. The same store gives the same bytes: they contain no time and no path.

    `published` is split -> number of images. `duplicates` are groups of samples with equal images.
    """
    card = describe(store, dataset, published, duplicates)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "card.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    write_whole(out / "card.md", markdown(card))


def describe(
    store: Store, dataset: str, published: dict[str, int], duplicates: Sequence[Sequence[Record]]
) -> dict[str, Any]:
    """The content of card.json, computed from the records of the manifest and the masks."""
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
    """Number, sizes and ignored share of the images of one split."""
    return {
        "images": len(records),
        "published": published,
        "width": spread([record.width for record in records]),
        "height": spread([record.height for record in records]),
        "ignored_share": round(pixels[IGNORE] / pixels.total(), 6),
    }


def describe_trivial(store: Store, splits: list[str]) -> dict[str, float]:
    """The mIoU on the last split of predictors that know only the masks of the first. Empty if there is one split."""
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
    """The share of `label` among the pixels that are not ignored."""
    labelled = pixels.total() - pixels[IGNORE]
    return round(pixels[label] / labelled, 6) if labelled else 0.0


def markdown(card: dict[str, Any]) -> str:
    """The content of card.md."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # noqa: S701  Markdown, which `plain` and `code` escape
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    across = [group for group in card["duplicates"] if len({sample["split"] for sample in group}) > 1]
    repeated = {
        "several splits, so that results are too good": across,
        "one split": [group for group in card["duplicates"] if group not in across],
    }
    template = environment.get_template(TEMPLATE)
    return template.render(card, repeated=repeated, shown=SHOWN, percent="{:.2%}".format, plain=plain, code=code)
