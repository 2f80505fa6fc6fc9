"""What the test servers of PASCAL VOC, ADE20k and Cityscapes take: `grid export CELL submission --out exported`.

An archive with a mask of each test image, at its size and with the labels of the raw data set. Its form is from:
- PASCAL VOC: sections 5.2 and 5.3 of the documentation of its development kit of 2012. Always the competition comp6,
  which allows any training data: comp5 allows neither SBD nor ImageNet weights.
- ADE20k: "Submission format" in the README of github.com/CSAILVision/sceneparsing.
- Cityscapes: "Evaluation" in the README of github.com/mcordts/cityscapesScripts, and `getPrediction` in its
  evalPixelLevelSemanticLabeling.py.
"""

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from zipfile import ZipFile

import numpy as np

from deeplab.decode import read_image, read_size
from deeplab.errors import DataError
from pipeline.data.find import find_pictures
from pipeline.data.formats import ade20k, cityscapes, voc
from pipeline.data.formats.base import read_ids
from pipeline.errors import ParamsError
from pipeline.files import whole, writable
from pipeline.progress import shown
from pipeline.settings.params import load_params
from pipeline.settings.places import Places

if TYPE_CHECKING:
    from deeplab.segmenter import Segmenter
    from deeplab.store import Bytes, Color
    from pipeline.data.formats.masks import LabelTable
    from pipeline.settings.schema import DatasetConfig


class Server(NamedTuple):
    """What a test server compares."""

    table: "LabelTable"  # label -> train id
    source: str  # below the raw folder: the folder of the test images, or VOC's list of them
    name: str  # a regular expression for the file name of an image
    images: int  # in the published test set
    page: str  # where to upload
    file: str = "submission.zip"
    folder: str = ""  # in the archive
    palette: "tuple[Color, ...]" = ()  # of the masks, none for grey
    size: tuple[int, int] | None = None  # height and width of each image, None for any


def write(model: "Segmenter", source: Path | None, out: Path, places: Places) -> Path:
    """Segment the images of `source`, by default the test set below the raw folder, into an archive in `out`.

    Returns its path. Raises ParamsError for a data set without a server, and DataError for images that are missing,
    cannot be read, or are more or fewer than published; then there is no archive.
    """
    writable(out)
    dataset = str(model.about["settings"].get("dataset"))
    config = load_params(places.params).dataset(dataset)
    if config.format not in SERVERS:
        known = ", ".join(SERVERS)
        raise ParamsError(f"submission: {dataset} has the format {config.format}, but only {known} have a test server")
    server = SERVERS[config.format]
    source = source or places.raw(dataset) / server.source
    images = images_of(source, server)
    check_count(len(images), source, server, dataset, config)
    check_sizes(images, server)
    classes = range(len(model.classes))
    if len(classes) != len(set(server.table[(server.table >= 0) & (server.table < 255)])):
        raise DataError(f"submission: a network of {len(classes)} classes, which are not those of {config.format}")
    labels = np.array([int(np.argmax(server.table == train_id)) for train_id in classes], np.uint8)
    path = out / server.file
    with archive(path) as add:
        for image in shown(images, "segmented"):
            mask = labels[model.predict(read_image(image))]
            add(f"{server.folder}{image.stem}.png", as_png(mask, server))
    kept = f"Upload: {server.page}" if len(images) == server.images else f"The test set has {server.images:,} images."
    print(f"{path}: {len(images):,} masks. {kept}")
    return path


def images_of(source: Path, server: Server) -> list[Path]:
    """The images in the folder `source` and below, or of VOC's list of ids, sorted by name."""
    if not source.exists():
        raise DataError(f"{source}: not found. Put the test set there, or name a folder of its images with --images.")
    if source.suffix == ".txt" and server.source.endswith(".txt"):
        folder = source.absolute().parent.parent.parent / "JPEGImages"
        return [folder / f"{name}.jpg" for name in sorted(read_ids(source))]
    found = [path for path in find_pictures(source)[0] if re.fullmatch(server.name, path.name)]
    if len({path.name for path in found}) < len(found):
        raise DataError(f"{source}: several images have one name. Name the folder of one split with --images.")
    return sorted(found, key=lambda path: path.name)


def check_count(found: int, source: Path, server: Server, dataset: str, config: "DatasetConfig") -> None:
    """Raise DataError for a number of images that no published split has, unless the data set may be a subset."""
    published = {"test": server.images, **config.images}
    if not found or (found not in published.values() and not config.allow_subset):
        expected = ", ".join(f"{count:,} ({split})" for split, count in published.items())
        raise DataError(
            f"{source}: {found:,} images with names as in {config.format}, expected {expected}. Complete them. To try "
            f"a subset, set datasets.{dataset}.allow_subset: true in params.yaml."
        )


def check_sizes(images: list[Path], server: Server) -> None:
    """Raise DataError for an image that is missing or has another size than all of its data set."""
    for image in images:
        if not image.exists():
            raise DataError(f"{image}: missing. Complete the test set.")
        size = read_size(image)
        if server.size and size != server.size:
            height, width = server.size
            raise DataError(f"{image}: {size[0]}x{size[1]} pixels, expected {height}x{width}. Use the original images.")


def as_png(mask: "Bytes", server: Server) -> bytes:
    """The content of a PNG of `mask` (H, W), with indices into a palette or grey."""
    from PIL import Image

    picture, content = Image.fromarray(mask), io.BytesIO()
    if server.palette:
        picture.putpalette([channel for color in server.palette for channel in color])
    picture.save(content, "PNG")
    return content.getvalue()


@contextmanager
def archive(path: Path) -> Iterator[Callable[[str, bytes], None]]:
    """A function that adds a member, by name and content, to an archive. It is put at `path` when the block ends."""
    with whole(path) as partial:
        if path.suffix == ".zip":
            with ZipFile(partial, "w") as zipped:
                yield zipped.writestr
            return
        with tarfile.open(partial, "w:gz") as tar:

            def add(name: str, content: bytes) -> None:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

            yield add


SERVERS: Final = {
    "voc": Server(
        table=voc.TABLE,
        source="VOCdevkit/VOC2012/ImageSets/Segmentation/test.txt",
        name=r"\d{4}_\d{6}\.jpg",
        images=1456,
        page="http://host.robots.ox.ac.uk:8080/",
        file="results.tar.gz",
        folder="results/VOC2012/Segmentation/comp6_test_cls/",
        palette=voc.colormap(256),
    ),
    "ade20k": Server(
        table=ade20k.TABLE,
        source="release_test/testing",
        name=r"ADE_[a-z]+_\d{8}\.jpg",
        images=3352,
        page="http://sceneparsing.csail.mit.edu/",
    ),
    "cityscapes": Server(
        table=cityscapes.TABLE,
        source="leftImg8bit/test",
        name=r"[A-Za-z-]+_\d{6}_\d{6}_leftImg8bit\.png",
        images=1525,
        page="https://www.cityscapes-dataset.com/submit/",
        size=(1024, 2048),
    ),
}
