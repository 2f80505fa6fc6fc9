"""Score predictions against masks: `grid predict CELL photos/ --truth masks/`, with the scores of an evaluation.

The masks of a cell hold the labels of its raw data set, which are read as `prepare` reads them. Those of a weights file
hold class indices, and 255 where a pixel is not counted.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deeplab.errors import DataError
from pipeline.data.find import find_pictures
from pipeline.data.formats import FORMATS, folder
from pipeline.data.formats.base import Mask, RawSample
from pipeline.data.pairing import divide, matched
from pipeline.errors import ParamsError
from pipeline.files import write_whole
from pipeline.predict.predict import VIDEOS, output_names
from pipeline.predict.weights import find_weights, is_cell
from pipeline.results.scores import describe, scores_of
from pipeline.settings.params import load_params
from pipeline.settings.places import Places

if TYPE_CHECKING:
    from deeplab.metrics import Matrix

Read = Callable[[Path], Mask]


def pairs_of(images: Path, truth: Path, out: Path) -> dict[Path, Path]:
    """The mask of each image that `predict` finds, by names, which may differ as `a_leftImg8bit` and `a_labelIds` do.

    An image has the mask `truth` itself. Raises DataError for an image without a mask, ParamsError for what does not
    exist and for a file beside a folder.
    """
    if missing := [path for path in (images, truth) if not path.exists()]:
        raise ParamsError(f"{missing[0]}: no such file or folder")
    if images.is_file() or truth.is_file():
        if not (images.is_file() and truth.is_file()) or images.suffix.lower() in VIDEOS:
            raise ParamsError(f"--truth: got {truth} for {images}, expected a mask for an image, a folder for a folder")
        return {images: truth}
    left, right = divide(images, truth)
    if not (left and right):
        raise DataError(f"{truth if left else images}: no picture in this folder")
    pairs = {images / pair.image: truth / pair.mask for pair in matched(images, truth, left, right)[0]}
    files, _ = find_pictures(images, leave=[out / "masks", out / "overlays"])
    if alone := [path for path in files if path not in pairs]:
        raise DataError(
            f"{truth}: no mask for {len(alone)} of {len(files)} images, for example {alone[0]}. A mask is called "
            f"{right[0]}. Add the missing ones, or take the images away."
        )
    return {path: pairs[path] for path in files}


def reader(name: str, classes: int, places: Places) -> Read:
    """How to read the masks for the network `name` of `classes` classes."""
    from pipeline.data.formats.masks import label_table, read_labels, to_train_ids

    config = None
    if is_cell(name):
        params = load_params(places.params)
        dataset = params.cell(name).dataset
        config = params.dataset(dataset)
    if config is None or config.format == "shapes":  # whose masks are drawn and have no files
        table = label_table({index: index for index in (*range(classes), 255)})
        return lambda mask: to_train_ids(read_labels(mask), table, mask)
    load = folder.load_mask if config.folder else FORMATS[config.format].load_mask  # annotations have no mask files
    sample = folder.sampler(places.raw(dataset), config.folder) if config.folder else RawSample
    return lambda mask: load(sample(id=mask.stem, image=mask, mask=mask))


def score_masks(name: str, seed: int, pairs: Mapping[Path, Path], source: Path, out: Path) -> str:
    """Compare the masks that `predict` wrote into `out` with the truth; the scores as text, and in out/scores.json.

    Every image of `pairs` must have been segmented: an older prediction may lie there. Raises DataError for a mask of
    another size than its image, or with a label that is no class.
    """
    import numpy as np
    from PIL import Image

    from deeplab.counts import gather
    from deeplab.metrics import confusion_matrix, score
    from deeplab.segmenter import WEIGHTS, read_about

    file = find_weights(name, seed, Places())
    classes = tuple(read_about(file / WEIGHTS if file.is_dir() else file)["classes"])
    names = output_names(list(pairs), source if source.is_dir() else source.parent)
    written = {path: out / "masks" / f"{each}.png" for path, each in zip(pairs, names, strict=True)}
    read = reader(name, len(classes), Places())

    def matrices() -> Iterator["Matrix"]:
        for image, mask in written.items():
            with Image.open(mask) as picture:
                predicted = np.asarray(picture)
            truth = read(pairs[image])
            if truth.shape != predicted.shape:
                sizes = ["x".join(map(str, each.shape)) for each in (truth, predicted)]
                raise DataError(f"{pairs[image]}: {sizes[0]} pixels, but its image {image} has {sizes[1]}")
            yield confusion_matrix(truth.ids, predicted, len(classes))

    counts = gather(matrices(), [path.as_posix() for path in written], classes)
    scores = score(counts.matrix)
    shares = scores_of(scores, counts).model_dump(exclude_unset=True)
    iou = [None if value != value else round(float(value), 6) for value in scores.iou]
    content = {"images": len(written), **shares, "IoU": dict(zip(classes, iou, strict=True))}
    write_whole(out / "scores.json", json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return f"{describe(classes, {(seed, name): scores})}\nin {out}/scores.json"
