"""How much of the decode-only rate `prepare` keeps: the same files, the same processes, with and without a store.

    python -m benchmarks.prepare [--images DIR]

A repetition runs both, one after the other; the ratio is the median over the repetitions, since a machine that others
use too is faster or slower from one to the next. Expected: 0.80 or more.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from pipeline import prepare
from pipeline.datasets import voc
from pipeline.datasets.layout import RawSample
from pipeline.params import load_params

SIZE = 375, 500  # height and width of a picture that is made
MADE = 300
CHUNK = 16  # samples that the decode-only run hands to a process at once


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="a folder of JPEGs (default: pictures made by code)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        count = write_voc(raw, sorted(args.images.glob("*.jpg")) if args.images else [])
        rates = [compare(raw, count, Path(folder) / "store", args.processes) for _ in range(args.repetitions + 1)][1:]
    decode, whole, ratio = (statistics.median(column) for column in zip(*rates, strict=True))
    print(f"{count} images, {args.processes} processes, median of {args.repetitions} repetitions")
    print(f"decode only  {decode:7.1f} images/s\nprepare      {whole:7.1f} images/s")
    print(json.dumps({"prepare_ratio": round(ratio, 3)}))


def compare(raw: Path, count: int, out: Path, processes: int) -> tuple[float, float, float]:
    """Images/s of decoding alone and of prepare, and the ratio of prepare to it."""
    config = replace(load_params().dataset("voc"), images={"train": count - 1, "val": 1}, allow_subset=True)
    samples = [sample for split in ("train", "val") for sample in voc.voc_split(raw, split)]
    decode = seconds(lambda: decode_only(samples, processes))
    whole = seconds(lambda: prepare.run("voc", config, ("train", "val"), raw, out, processes))
    return count / decode, count / whole, decode / whole


def decode_only(samples: list[RawSample], processes: int) -> None:
    """What prepare cannot do without: load every sample, and drop it."""
    with ProcessPoolExecutor(processes, initializer=prepare.start_worker) as pool:
        assert sum(pool.map(pixels, samples, chunksize=CHUNK)) > 0


def pixels(sample: RawSample) -> int:
    return voc.load(sample)[1].size


def seconds(work: Callable[[], None]) -> float:
    with redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        work()
        return time.perf_counter() - start


def write_voc(raw: Path, images: list[Path]) -> int:
    """Write a VOC folder of `images` with a mask each, or of pictures made here; return how many."""
    root = raw / "VOCdevkit/VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    names = []
    for name, content in contents(images):
        (root / f"JPEGImages/{name}.jpg").write_bytes(content)
        height, width = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE).shape
        mask = blobs(np.random.default_rng(len(names)), height, width)
        (root / f"SegmentationClass/{name}.png").write_bytes(cv2.imencode(".png", mask)[1].tobytes())
        names.append(name)
    for split, part in (("train", names[:-1]), ("val", names[-1:])):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in part))
    return len(names)


def contents(images: list[Path]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each JPEG."""
    yield from ((path.stem, path.read_bytes()) for path in images)
    for index in range(0 if images else MADE):
        rng = np.random.default_rng(index)
        picture = sum(noise(rng, *SIZE, side) for side in (4, 16, 64, 256)) / 4  # detail at all scales, as in photos
        yield f"{index:06}", cv2.imencode(".jpg", picture.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def noise(rng: np.random.Generator, height: int, width: int, side: int) -> np.ndarray:
    """Colours at random (H, W, 3), `side` of them from one edge to the other, with everything between."""
    return cv2.resize(rng.uniform(0, 255, (side, side, 3)), (width, height), interpolation=cv2.INTER_LINEAR)


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A mask (H, W) of a few smooth regions."""
    coarse = rng.choice(np.array([0, 0, 0, 1, 15, 20], np.uint8), (6, 8))
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)


if __name__ == "__main__":
    main()
