"""Segment images or a video with a trained network, or export it.

    python -m pipeline.predict.predict voc_resnet50_os8 photos/ --out segmented

Of an image come an overlay and a mask of class indices (a palette PNG), both at the image's own size and upright as its
EXIF tag says; of a video one with the overlay. classes.csv tells how many pixels each class has in each of them. Images
of one size are segmented together. Each is resized into the box of the recipe first, as in the evaluation; with
--window it keeps its own scale and is cut into overlapping tiles, which suits images in which things are small, and
needs little memory however large the image is.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deeplab.errors import DataError
from pipeline.errors import ParamsError, run_command
from pipeline.files import readable, whole, writable
from pipeline.predict.class_table import Table, Tiling, labels_of
from pipeline.progress import shown
from pipeline.settings.params import EXAMPLES, NAME, PARAMS, load_params
from pipeline.training.provenance import file_sha256

if TYPE_CHECKING:
    from deeplab.segmenter import Segmenter
    from deeplab.store import Bytes

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}

Batch = list[tuple[str, "Bytes"]]  # names, and images of one size


def run(model: "Segmenter", source: Path, out: Path, batch: int, tiling: Tiling | None) -> int:
    """Segment `source` into `out`; the exit code: 1 when an image could not be read, and the rest was segmented."""
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    writable(out)
    if source.suffix.lower() in VIDEOS:
        from pipeline.predict.video import segment_video

        segment_video(model, source, out, batch, tiling)
        return 0
    files = find_images(source, out)
    names = output_names(files, source if source.is_dir() else source.parent)
    broken = 0
    with Table(out / "classes.csv", ("image",), model.classes) as table:
        waiting: Batch = []
        for index in shown(range(len(files)), "segmented"):
            try:
                image = upright(files[index])
            except DataError as error:
                print(f"left out: {error}", file=sys.stderr, flush=True)
                broken += 1
                continue
            if waiting and (len(waiting) == batch or tiling or waiting[0][1].shape != image.shape):
                segment(model, waiting, out, table, tiling)
                waiting = []
            waiting.append((names[index], image))
        if waiting:
            segment(model, waiting, out, table, tiling)
    print(f"{len(files) - broken} of {len(files)} images segmented: {out}/overlays, {out}/masks, {out}/classes.csv")
    return 1 if broken else 0


def segment(model: "Segmenter", images: Batch, out: Path, table: Table, tiling: Tiling | None) -> None:
    """Segment images of one size and write what comes of each."""
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
        table.add((name,), mask)


def find_images(source: Path, out: Path) -> list[Path]:
    """The images in a folder and below it, sorted, without what an earlier call has left in `out`; a file is one."""
    if source.is_file():
        return [source]
    own = [out / "masks", out / "overlays"]
    found = (path for path in source.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())
    files = sorted(path for path in found if not any(path.is_relative_to(folder) for folder in own))
    if not files:
        raise DataError(f"{source}: no image in this folder, expected files that end in {', '.join(sorted(IMAGES))}")
    return files


def output_names(files: list[Path], base: Path) -> list[str]:
    """The place of each file below `base`, without its ending but where two would then be the same."""
    places = [path.relative_to(base) for path in files]
    bare = [place.with_suffix("").as_posix() for place in places]
    return [name if bare.count(name) == 1 else place.as_posix() for name, place in zip(bare, places, strict=True)]


def upright(path: Path) -> "Bytes":
    """The image as a viewer shows it, (H, W, 3) RGB: turned as its EXIF tag says. DataError when it cannot be read."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    from deeplab.decode import read_image

    image = read_image(path)
    try:
        with Image.open(path) as file:
            turn = TURNS.get(file.getexif().get(ORIENTATION, 1))
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError):  # pixels are there: only the tag is not readable
        turn = None
    if turn is None:
        return image
    return np.asarray(Image.fromarray(image).transpose(Image.Transpose[turn]))


def find_weights(name: str, runs: Path, seed: int) -> Path:
    """The weights file that `name`, a path or a cell of params.yaml, stands for."""
    path = Path(name)
    if path.exists():
        return path
    if not NAME.fullmatch(name):
        raise DataError(f"{name}: no such weights file, and no name of a cell")
    params = load_params()
    params.cell(name)
    file = runs / name / "weights" / f"seed{seed}.safetensors"
    if not file.exists():
        train = params.stage("train", name)
        raise DataError(f"{file}: no such weights. Run: dvc pull {file.parent}, or train them: dvc repro {train}")
    return file


def require_evaluated(cell: str, file: Path, records: Path) -> None:
    """Refuse weights of a cell that are not those its record tells of: then its number and its card are of others."""
    stage = load_params().stage("evaluate", cell)
    for record in (*records.glob(f"*/{cell}.json"), *(EXAMPLES / records).glob(f"*/{cell}.json")):
        with readable(record, f"Run: dvc repro -f {stage}"):
            held = json.loads(record.read_bytes())["weights"].values()
            known = {weights["file"]: weights["sha256"] for weights in held}
        if file.name in known and known[file.name] != file_sha256(file):
            raise DataError(
                f"{file}: not the weights that {record} tells of (other SHA-256): damaged, or trained anew. Run: "
                f"dvc repro {stage}, or name the file to use it as it is."
            )


def tiling_of(window: list[int] | None, stride: list[int] | None) -> Tiling | None:
    """The tiles asked for; without a stride half of each tile is shared with the next."""
    if window is None:
        if stride:
            raise ParamsError("--stride: got one without --window, which it belongs to")
        return None
    stride = stride or [max(1, side // 2) for side in window]
    if min(*window, *stride) < 1:
        raise ParamsError(f"--window, --stride: got {window} and {stride}, expected 1 or more")
    if stride[0] > window[0] or stride[1] > window[1]:
        raise ParamsError(f"--stride: got {stride}, expected at most the window, {window}")
    return (window[0], window[1]), (stride[0], stride[1])


def pick_device(name: str | None) -> str:
    """The device asked for, else that of params.yaml if there is one, else the GPU if there is one."""
    from pipeline.training.device import select_device

    if name is None:
        name = load_params().runtime.device if PARAMS.exists() else "auto"
    return str(select_device(name))


def allow_tf32(allowed: bool) -> None:
    """Compute on a GPU as the evaluation does; torch's own choice is TF32 in convolutions."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a cell of params.yaml, a weights file, or a folder with model.safetensors")
    parser.add_argument("source", type=Path, nargs="?", help="an image, a folder of images, or a video")
    parser.add_argument("--out", type=Path, required=True, help="the folder for what comes of it")
    parser.add_argument("--seed", type=int, default=0, help="which of a cell's trainings (0)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where train writes weights (runs)")
    parser.add_argument("--records", type=Path, default=Path("reports/records"), help="where evaluate writes")
    parser.add_argument("--cards", type=Path, default=Path("reports/cards"), help="where tables writes model cards")
    parser.add_argument("--batch", type=int, default=8, help="images or frames at a time (8)")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, ... (as in params.yaml)")
    parser.add_argument("--window", type=int, nargs=2, metavar=("H", "W"), help="cut images into tiles of this size")
    parser.add_argument("--stride", type=int, nargs=2, metavar=("H", "W"), help="between tiles (half a tile)")
    parser.add_argument("--export", metavar="FORMAT", help="write onnx, torchscript, pt2 or huggingface instead")
    arguments = parser.parse_args()
    tiling = tiling_of(arguments.window, arguments.stride)
    if arguments.batch < 1:
        raise ParamsError(f"--batch: got {arguments.batch}, expected 1 or more")
    if arguments.export is None and arguments.source is None:
        raise ParamsError("source: missing. Name an image, a folder or a video, or a format with --export.")
    if arguments.export is not None:
        from pipeline.predict.export import check_format

        check_format(arguments.export)
    file = find_weights(arguments.model, arguments.runs, arguments.seed)
    if NAME.fullmatch(arguments.model) and not Path(arguments.model).exists():
        require_evaluated(arguments.model, file, arguments.records)
    from deeplab.segmenter import load_model

    if arguments.export is not None:
        from pipeline.predict.export import run as export

        card = next(arguments.cards.glob(f"*/{arguments.model}.md"), None) if NAME.fullmatch(arguments.model) else None
        export(load_model(file), file, arguments.export, arguments.out, card)
        return
    model = load_model(file, pick_device(arguments.device))
    allow_tf32(model.settings.tf32)
    sys.exit(run(model, arguments.source, arguments.out, arguments.batch, tiling))


ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}

if __name__ == "__main__":
    run_command(main)
