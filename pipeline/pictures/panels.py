"""Predictions of a cell on a few images: a picture of each for MLflow, and its parts for the page."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from deeplab.errors import DataError
from deeplab.metrics import confusion_matrix, score
from deeplab.store import IGNORE, Bytes, Color, Split, Store
from pipeline.files import whole, write_whole
from pipeline.pictures.colors import RIGHT, WRONG
from pipeline.pictures.overlay import FONT, GAP, INK, LINE, UNLABELLED, draw_legend, legend_of, tint, wrap

SPREAD = 8  # images evenly spread over the split, the same ones for each cell
EXTREMES = 4  # best ones of this cell alone, and as many worst ones
LONG_SIDE = 400  # of a part, pixels
PARTS = "parts"  # their folder
PANEL = 480  # long side of each picture of a comparison, pixels


def write_figures(
    folder: Path,
    store: Store,
    samples: Split,
    predict: Callable[[Bytes], Bytes],
    weights: str,
    image_scores: Sequence[float] | None = None,
) -> None:
    """Predict a few of `samples`, which are of `store`; write *.jpg and parts/{*.png, *.jpg, about.json} in `folder`.

    `predict` segments one image; `weights` is the SHA-256 of its network. `image_scores` are the mean IoU of each
    image, nan for one without a labelled pixel; without them there are no best and worst images.
    """
    parts = folder / PARTS
    parts.mkdir(parents=True, exist_ok=True)
    before = {*folder.glob("*.jpg"), *parts.iterdir()}
    images: list[dict[str, Any]] = []
    for place, (index, why) in enumerate(choose(len(samples), image_scores)):
        image, truth = samples.image(index), samples.mask(index)
        predicted = predict(image)
        name = samples.records[index].id
        stem = f"{why}_{place}"
        if why == "spread":
            stem = f"{place}_{re.sub(r'[^A-Za-z0-9_-]', '_', name)}"
            with whole(folder / f"{stem}.jpg") as partial:
                comparison(image, truth, predicted, store.classes, store.palette).save(partial, quality=90)
            before.discard(folder / f"{stem}.jpg")
        before -= write_parts(parts, stem, image, truth, predicted, store.palette)
        images.append({"id": name, "index": index, "stem": stem, "why": why, "mIoU": image_score(truth, predicted)})
    about = {"weights": weights, "classes": store.classes, "palette": store.palette, "images": images}
    write_whole(parts / "about.json", json.dumps(about, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    for old in before - {parts / "about.json"}:
        old.unlink()


def choose(count: int, image_scores: Sequence[float] | None) -> list[tuple[int, str]]:
    """Index of each image to draw, and why: spread over the split, best or worst (the best and the worst first)."""
    shown = min(SPREAD, count)
    chosen = [(place * count // shown, "spread") for place in range(shown)]
    if image_scores is not None:
        order = [int(index) for index in np.argsort(image_scores, kind="stable") if np.isfinite(image_scores[index])]
        most = min(EXTREMES, len(order) // 2)
        chosen += [(index, "worst") for index in order[:most]]
        chosen += [(index, "best") for index in order[::-1][:most]]
    return chosen


def image_scores(hits: NDArray[np.float64], union: NDArray[np.float64]) -> list[float]:
    """Mean IoU of each image over the classes in it, from intersection and union (N, K) in pixels; nan without any."""
    with np.errstate(invalid="ignore"):
        total = np.where(union > 0, hits / union, 0).sum(axis=1) / (union > 0).sum(axis=1)
    return [float(value) for value in total]


def image_score(truth: Bytes, predicted: Bytes) -> float | None:
    """Mean IoU over the classes in one image, (H, W) each; None without a labelled pixel."""
    try:
        return round(score(confusion_matrix(truth, predicted, IGNORE)).mean_iou, 6)
    except DataError:
        return None


def comparison(
    image: Bytes, truth: Bytes, predicted: Bytes, classes: tuple[str, ...], palette: tuple[Color, ...]
) -> Image.Image:
    """Image (H, W, 3), truth and prediction (H, W), and where they differ, above a legend of their classes."""
    height, width = truth.shape
    factor = PANEL / max(height, width)
    panel = round(width * factor), round(height * factor)
    total = 4 * panel[0] + 5 * GAP
    legend = [*legend_of([truth, predicted], classes, palette), ("right", RIGHT), ("wrong", WRONG)]
    rows = wrap(legend, total - 2 * GAP)
    canvas = Image.new("RGB", (total, LINE + panel[1] + GAP + LINE * len(rows) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    pictures = (
        ("image", image),
        ("truth", tint(image, truth, palette)),
        ("prediction", tint(image, predicted, palette)),
        ("error", errors(truth, predicted)),
    )
    for index, (title, picture) in enumerate(pictures):
        left = GAP + index * (panel[0] + GAP)
        draw.text((left, 3), title, INK, FONT)
        method = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.NEAREST  # the latter keeps its pixels
        canvas.paste(Image.fromarray(picture).resize(panel, method), (left, LINE))
    draw_legend(draw, rows, LINE + panel[1] + GAP)
    return canvas


def errors(truth: Bytes, predicted: Bytes) -> Bytes:
    """Where (H, W) and (H, W) differ, as a picture (H, W, 3): RIGHT, WRONG, or UNLABELLED in the truth."""
    picture = np.full((*truth.shape, 3), RIGHT, dtype=np.uint8)
    picture[truth != predicted] = WRONG
    picture[truth == IGNORE] = UNLABELLED
    return picture


def write_parts(
    folder: Path, stem: str, image: Bytes, truth: Bytes, predicted: Bytes, palette: tuple[Color, ...]
) -> set[Path]:
    """Write the image (H, W, 3) as JPEG and both masks (H, W) as PNG in the colours of `palette`, all small."""
    height, width = truth.shape
    factor = min(1.0, LONG_SIDE / max(height, width))
    size = max(1, round(factor * width)), max(1, round(factor * height))
    written = {folder / f"{stem}.{title}" for title in ("image.jpg", "truth.png", "prediction.png")}
    with whole(folder / f"{stem}.image.jpg") as partial:
        Image.fromarray(image).resize(size, Image.Resampling.BOX).save(partial, quality=80)
    colors = np.full((IGNORE + 1, 3), UNLABELLED, dtype=np.uint8)
    colors[: len(palette)] = palette
    for title, mask in (("truth", truth), ("prediction", predicted)):
        small = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
        small.putpalette(colors.tobytes())
        with whole(folder / f"{stem}.{title}.png") as partial:
            small.save(partial, optimize=True)
    return written
