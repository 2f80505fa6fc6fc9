"""Segment images or a video with a trained network: `grid predict voc_resnet50_os8 photos/ --out segmented`.

Each image gives an overlay and a mask of class indices (a palette PNG), at the size of the image and upright as its
EXIF tag says. A video gives one with the overlay. classes.csv counts the pixels of each class in each image or frame.
Images of one size are segmented together, each resized into the box of the recipe as in the evaluation. With tiles an
image keeps its own scale, which suits small objects, and memory does not grow with the image.
"""

import hashlib
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from deeplab.errors import DataError
from pipeline.errors import ParamsError
from pipeline.files import whole, writable
from pipeline.predict.class_table import AddRows, Size, Tiling, class_table, labels_of
from pipeline.predict.weights import find_weights
from pipeline.progress import shown
from pipeline.settings.params import load_params
from pipeline.settings.places import Places

if TYPE_CHECKING:
    from deeplab.segmenter import Segmenter
    from deeplab.store import Bytes

VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}
LONGEST = 200  # bytes of the name of a result: file systems allow 255, and endings are added

Batch = list[tuple[str, "Bytes"]]  # names, and images of one size


def run(
    name: str,
    source: Path,
    out: Path,
    *,
    seed: int = 0,
    batch: int = 8,
    device: str | None = None,
    tiling: Tiling | None = None,
) -> int:
    """Segment `source` into `out` with the network `name`: a cell of params.yaml, a weights file, or a folder of one.

    Returns the exit code: 1 when some images could not be read, while the others were segmented.
    """
    file = find_weights(name, seed, Places())
    from deeplab.segmenter import load_model

    model = load_model(file, pick_device(device))
    allow_tf32(model.settings.tf32)
    return segment(model, source, out, batch, tiling)


def segment(model: "Segmenter", source: Path, out: Path, batch: int, tiling: Tiling | None) -> int:
    """Segment an image, a folder of images or a video into `out`; the exit code as in `run`."""
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    writable(out)
    if source.suffix.lower() in VIDEOS:
        from pipeline.predict.video import segment_video

        segment_video(model, source, out, batch, tiling)
        return 0
    from deeplab.decode import read_image

    files = find_images(source, out)
    names = output_names(files, source if source.is_dir() else source.parent)
    broken = 0
    with class_table(out / "classes.csv", ("image",), model) as add_rows:
        waiting: Batch = []
        for index in shown(range(len(files)), "segmented"):
            try:
                image = read_image(files[index])
            except DataError as error:
                print(f"left out: {error}", file=sys.stderr, flush=True)
                broken += 1
                continue
            if waiting and (len(waiting) == batch or tiling or waiting[0][1].shape != image.shape):
                segment_batch(model, waiting, out, add_rows, tiling)
                waiting = []
            waiting.append((names[index], image))
        if waiting:
            segment_batch(model, waiting, out, add_rows, tiling)
    print(f"{len(files) - broken} of {len(files)} images segmented: {out}/overlays, {out}/masks, {out}/classes.csv")
    return 1 if broken else 0


def segment_batch(model: "Segmenter", images: Batch, out: Path, add_rows: AddRows, tiling: Tiling | None) -> None:
    """Segment images of one size; write the mask, the overlay and the table rows of each."""
    from PIL import Image

    from pipeline.pictures.overlay import tint

    masks = labels_of(model, [image for _, image in images], tiling)
    for (name, image), mask in zip(images, masks, strict=True):
        picture = Image.fromarray(mask)  # 8-bit; a palette makes the values indices
        picture.putpalette([channel for color in model.palette for channel in color])
        for folder, content in (("masks", picture), ("overlays", Image.fromarray(tint(image, mask, model.palette)))):
            path = out / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as partial:
                content.save(partial)
        add_rows((name,), mask)


def find_images(source: Path, out: Path) -> list[Path]:
    """The images in a folder and its subfolders, sorted, without the results of an earlier call in `out`.

    Prints how many other files there are.
    """
    from deeplab.decode import ENDINGS
    from pipeline.data.find import endings_of, find_pictures

    if source.is_file():
        return [source]
    files, others = find_pictures(source, leave=[out / "masks", out / "overlays"])
    others = [path for path in others if path.parent != out]
    if not files:
        raise DataError(f"{source}: no image in this folder, expected files that end in {', '.join(sorted(ENDINGS))}")
    if others:
        films = " Name a film itself to segment it." if any(path.suffix.lower() in VIDEOS for path in others) else ""
        print(f"left out: {len(others)} files that are no images: {endings_of(others)}.{films}", file=sys.stderr)
    return files


def output_names(files: list[Path], base: Path) -> list[str]:
    """The path of each file below `base`, without its ending where no two results get one name by that.

    A part of more than LONGEST bytes is cut, and gets a few digits of its hash.
    """
    paths = [path.relative_to(base) for path in files]
    bare = Counter(path.with_suffix("").as_posix() for path in paths)
    whole_names = {path.as_posix() for path in paths}

    def name_of(path: Path) -> str:
        name = path.with_suffix("").as_posix()
        return path.as_posix() if bare[name] > 1 or name in whole_names else name

    return ["/".join(shortened(part) for part in name_of(path).split("/")) for path in paths]


def shortened(part: str) -> str:
    """`part` of a path, at most LONGEST bytes long."""
    content = os.fsencode(part)
    if len(content) <= LONGEST:
        return part
    return f"{content[: LONGEST - 9].decode(errors='ignore')}~{hashlib.sha256(content).hexdigest()[:8]}"


def tiling_of(window: Size | None, stride: Size | None) -> Tiling | None:
    """The tiles asked for; without a stride neighbouring tiles overlap by half. ParamsError if tiles leave gaps."""
    if window is None:
        if stride:
            raise ParamsError("--stride: got one without --window, which it belongs to")
        return None
    stride = stride or (max(1, window[0] // 2), max(1, window[1] // 2))
    if min(*window, *stride) < 1:
        raise ParamsError(f"--window, --stride: got {window} and {stride}, expected 1 or more")
    if stride[0] > window[0] or stride[1] > window[1]:
        raise ParamsError(f"--stride: got {stride}, expected at most the window, {window}")
    return window, stride


def pick_device(name: str | None) -> str:
    """The device `name`, by default the one of params.yaml; without params.yaml a GPU if there is one."""
    from pipeline.training.device import select_device

    if name is None:
        name = load_params().runtime.device if Places().params.exists() else "auto"
    return str(select_device(name))


def allow_tf32(allowed: bool) -> None:
    """Compute on a GPU as the evaluation does; torch allows TF32 in convolutions by default."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
