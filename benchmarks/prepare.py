"""How much of the decode-only rate `prepare` keeps: the same files, the same decoders, with and without a store.

    python -m benchmarks.prepare [--raw data/raw/voc]

Both start as many processes, give them the same parts of the list, and decode every image and mask with the same calls;
`prepare` also checks them and writes a store, from finding the files to the manifest on the disk; only the data card is
left out. A repetition runs both, one after the other; the ratio is the median over the repetitions, since a machine
that others use too is faster or slower from one to the next. Expected: 0.80 or more. `cpu_ratio` is the same of the CPU
time of all processes, which others disturb less. The lines before say what a sample costs in one process, part by part:
CPU time, medians over the samples. VOC itself has 2,913 images: of a few hundred, start and end are a larger share.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import rmtree

import cv2
import numpy as np
from PIL import Image

from deeplab.store_writer import StoreWriter, crc32
from pipeline.data import pack
from pipeline.data.formats import voc
from pipeline.data.formats.base import RawSample
from pipeline.errors import run_command
from pipeline.settings.params import load_params
from pipeline.stages import prepare

SIZE = 375, 500  # height and width of a picture that is made


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, help="the raw folder of VOC, a subset will do (default: made by code)")
    parser.add_argument("--made", type=int, default=2000, help="images that are made where there is no raw folder")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw, out = args.raw or Path(folder) / "raw", Path(folder) / "store"
        if not args.raw:
            write_voc(raw, args.made)
        rates = [compare(raw, out, args.processes) for _ in range(args.repetitions + 1)][1:]
        costs = profile(raw, Path(folder) / "profile")
    decode, whole, ratio, cpu_ratio = (statistics.median(column) for column in zip(*rates, strict=True))
    print(f"{args.processes} processes, median of {args.repetitions} repetitions")
    print(f"decode only  {decode:7.1f} images/s\nprepare      {whole:7.1f} images/s")
    for part, cost in costs.items():
        print(f"{part:28}{cost:7.3f} ms")
    print(json.dumps({"prepare_ratio": round(ratio, 3), "cpu_ratio": round(cpu_ratio, 3)}))


def compare(raw: Path, out: Path, processes: int) -> tuple[float, float, float, float]:
    """Images/s of decoding alone and of prepare, and what prepare keeps of it, by the clock and by CPU time."""
    config = replace(load_params().dataset("voc"), images={"train": 1464, "val": 1449}, allow_subset=True)
    samples = [(split, sample) for split in ("train", "val") for sample in voc.voc_split(raw, split)]
    rmtree(out, ignore_errors=True)  # to prepare a set for the first time is not to remove an older store,
    os.sync()  # nor to wait until the disk has done so
    decode, decode_cpu = seconds(lambda: decode_only(samples, processes))
    whole, whole_cpu = seconds(lambda: prepare.build("voc", config, ("train", "val"), raw, out, processes))
    return len(samples) / decode, len(samples) / whole, decode / whole, decode_cpu / whole_cpu


def decode_only(samples: list[tuple[str, RawSample]], processes: int) -> None:
    """What prepare cannot do without: load every sample, and drop it."""
    size = pack.part_size(len(samples), processes)
    parts = [[sample for _, sample in samples[start : start + size]] for start in range(0, len(samples), size)]
    with pack.started(processes) as pool:
        assert sum(pool.map(pixels, parts)) > 0


def pixels(samples: list[RawSample]) -> int:
    """Load some samples, and say how many pixels they have."""
    return sum(voc.load_image(sample).size // 3 + voc.load_mask(sample).ids.size for sample in samples)


def profile(raw: Path, folder: Path) -> dict[str, float]:
    """Milliseconds of CPU time that each part of preparing a sample takes, one process, nothing in between."""
    costs: dict[str, list[float]] = defaultdict(list)
    folder.mkdir()
    with StoreWriter(folder, voc.CLASSES, voc.colormap(len(voc.CLASSES))) as store:
        for sample in voc.voc_split(raw, "train"):
            with timed(costs["header"]):
                voc.size(sample)
            with timed(costs["decode the image"]):
                image = voc.load_image(sample)
            with timed(costs["decode and check the mask"]):
                mask = voc.load_mask(sample)
            with timed(costs["write, of that"]):
                of_image = store.pixels.write_image(store.offset, image)
                record = store.pixels.write_mask("train", sample.id, store.offset, mask.ids, of_image, mask.pixels)
            with timed(costs["  checksum"]):
                crc32(mask.ids.data, crc32(image.data))
            with timed(costs["keep the record"]):
                store.keep(record)
    return {part: 1e3 * statistics.median(values) for part, values in costs.items()}


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    """Append the CPU seconds of the block, the system's for it included."""
    start = time.process_time()
    yield
    into.append(time.process_time() - start)


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """How long `work` takes by the clock, and in CPU time with the processes that it starts and ends."""
    with redirect_stdout(io.StringIO()):
        start, before = time.perf_counter(), sum(os.times()[:4])
        work()
        return time.perf_counter() - start, sum(os.times()[:4]) - before


def write_voc(raw: Path, count: int) -> None:
    """Write a VOC folder of `count` pictures with a mask each; the last is to validate on."""
    root = raw / "VOCdevkit/VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    names = [f"{index:06}" for index in range(count)]
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(write_pair, root), names, chunksize=16))
    for split, part in (("train", names[:-1]), ("val", names[-1:])):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in part))


def write_pair(root: Path, name: str) -> None:
    """Write a picture and its mask; others for each name."""
    rng = np.random.default_rng(int(name))
    picture = sum(noise(rng, *SIZE, side) for side in (4, 16, 64, 256)) / 4  # detail at all scales, as in photos
    content = cv2.imencode(".jpg", picture.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    (root / f"JPEGImages/{name}.jpg").write_bytes(content.tobytes())
    mask = Image.fromarray(blobs(rng, *SIZE))
    mask.putpalette([value for color in voc.colormap(256) for value in color])
    mask.save(root / f"SegmentationClass/{name}.png")


def noise(rng: np.random.Generator, height: int, width: int, side: int) -> np.ndarray:
    """Colours at random (H, W, 3), `side` of them from one edge to the other, with everything between."""
    return cv2.resize(rng.uniform(0, 255, (side, side, 3)), (width, height), interpolation=cv2.INTER_LINEAR)


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A mask (H, W) of a few smooth regions with the ignored border of VOC."""
    coarse = rng.normal(size=(5, 7)).astype(np.float32)
    level = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    mask = np.digitize(level, (0.7, 1.2)).astype(np.uint8) * np.uint8(rng.integers(1, 11))
    border = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
    return np.where(border, np.uint8(255), mask)


if __name__ == "__main__":
    run_command(main)
