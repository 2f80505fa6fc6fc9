"""Training samples per second and core, beside other projects' pipelines doing the same work on the same images.

    uv pip install --no-deps -r benchmarks/requirements.txt    # the peers, into a copy of the project's environment
    python -m benchmarks.input

The pictures are made here and as large and as compressible as those of PASCAL VOC and CityScapes; masks have one class
for most of a picture as often. All pipelines run in turn in this process, each on one thread, several rounds of all of
them; a ratio is the median of the rounds' ratios, in seconds of CPU, which other users of the machine disturb least.

A sample is what a network is trained on: normalised, padded, a float tensor, all of it made on the CPU. With "colours
on the device" this project stops at the batch's slot, in uint8; the peers have no such way. mmsegmentation leaves it
only normalising and padding, and is in the table without them too. Goals, against mmsegmentation: 8x and 23x with
the colours on the CPU (VOC, CityScapes), 15x and 48x with them on the device. A peer that is not installed is named
and left out.

Then the loader as a whole, two worker processes, against torch's DataLoader with its default collate over the same
samples: what arrives, and what each batch costs the training process.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.peers import PEERS, Pair
from deeplab.config import Cell
from deeplab.data import Batch, StepKeys, TrainingSamples, batch_layout, network_input, training_loader
from deeplab.ring import Ring
from deeplab.store import Split, Store
from deeplab.store_writer import StoreWriter
from pipeline.errors import run_command
from pipeline.settings.params import load_params

OURS_CPU, OURS_DEVICE = "this project, colours on the CPU", "this project, colours on the device"
OURS = OURS_CPU, OURS_DEVICE
THEIRS = "mmsegmentation"
# Height and width, file type, pictures, samples a round, cell of params.yaml, how much each class is favoured.
KINDS = {
    "voc": ((375, 500), ".jpg", 24, 24, "voc_resnet50_os16", (1.5, 0.0, 0.0, -0.2)),
    "cityscapes": ((1024, 2048), ".png", 8, 8, "cityscapes_resnet50_os16", (1.2, 0.8, 0.7, *[-0.5] * 7)),
}
Work = Callable[[int], object]  # makes that many samples


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    summary: dict[str, float | None] = {}
    for kind, (size, suffix, pictures, samples, name, favour) in KINDS.items():
        cell = load_params().cell(name)
        with TemporaryDirectory() as folder:
            pairs = write_pictures(Path(folder), pictures, size, suffix, favour)
            source = TrainingSamples(pack(Path(folder) / "store", pairs), cell.recipe, cell.augment, seed=0)
            works = {**ours(source, cell), **theirs(pairs, cell)}
            wall, cpu = measure(works, samples, arguments.rounds)
            print_table(kind, wall, cpu)
            for place, mine in zip(("cpu", "device"), OURS, strict=True):
                summary[f"{kind}_{place}"] = round(ratio(cpu[THEIRS], cpu[mine]), 1) if THEIRS in cpu else None
            print_loaders(kind, source, arguments.workers, arguments.rounds, 3 * samples // cell.recipe.batch_size + 8)
    print(json.dumps({key: summary[key] for key in ("voc_cpu", "cityscapes_cpu", "voc_device", "cityscapes_device")}))


def ours(source: TrainingSamples, cell: Cell) -> dict[str, Work]:
    """This project's work up to the batch slot, and up to the network's input."""
    slot = Ring(batch_layout(1, cell.recipe.crop, cell.augment), 1).slots[0]
    batch = Batch(*map(torch.from_numpy, slot))
    keys = iter(StepKeys(len(source.split), 1, 0, 0, 10**9))

    def to_slot(samples: int) -> None:
        for key in islice(keys, samples):
            source.write_batch(slot, key)

    def to_input(samples: int) -> None:
        for key in islice(keys, samples):
            source.write_batch(slot, key)
            network_input(batch, cell, torch.device("cpu"))

    return {OURS_CPU: to_input, OURS_DEVICE: to_slot}


def theirs(pairs: list[Pair], cell: Cell) -> dict[str, Work]:
    """The peers that are installed."""
    works: dict[str, Work] = {}
    for name, build in PEERS.items():
        try:
            pipeline = build(cell.recipe, cell.model)
        except ImportError as error:
            print(f"{name}: not installed ({error}). uv pip install --no-deps -r benchmarks/requirements.txt")
            continue
        turn = iter(range(10**9))
        works[name] = lambda count, pipeline=pipeline, turn=turn: [
            pipeline(pairs[next(turn) % len(pairs)]) for _ in range(count)
        ]
    return works


def measure(works: dict[str, Work], samples: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds per sample of each work in each round: of the clock, and of the CPU."""
    wall: dict[str, list[float]] = {name: [] for name in works}
    cpu: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work(samples)  # files into memory, code into caches
    for _ in range(rounds):
        for name, work in works.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            work(samples)
            cpu[name].append((time.process_time() - began_cpu) / samples)
            wall[name].append((time.perf_counter() - began) / samples)
    return wall, cpu


def ratio(slow: list[float], fast: list[float]) -> float:
    """The median over the rounds."""
    return median(one / other for one, other in zip(slow, fast, strict=True))


def print_table(kind: str, wall: dict[str, list[float]], cpu: dict[str, list[float]]) -> None:
    print(
        f"\n{kind}, one core\n{'':44}{'samples/s':>10}{'CPU ms':>8}{'colours on CPU':>16}{'on device':>11}  (by clock)"
    )
    for name, times in cpu.items():
        faster = [ratio(times, cpu[mine]) for mine in OURS]
        clock = [ratio(wall[name], wall[mine]) for mine in OURS]
        print(
            f"{name:44}{1 / median(times):10.1f}{1e3 * median(times):8.2f}{faster[0]:15.1f}x{faster[1]:10.1f}x"
            f"  ({clock[0]:.1f}x, {clock[1]:.1f}x)"
        )


def print_loaders(kind: str, source: TrainingSamples, workers: int, rounds: int, steps: int) -> None:
    """The ring and torch's DataLoader, in turn."""
    keys = StepKeys(len(source.split), source.recipe.batch_size, 0, 0, steps)

    def ring() -> Iterable[object]:
        return training_loader(source, 0, steps, workers, pin=False)

    def default() -> Iterable[object]:
        return DataLoader(source, batch_sampler=keys, num_workers=workers)  # type: ignore[arg-type]

    rates: dict[str, list[tuple[float, float]]] = {"ring": [], "DataLoader, default collate": []}
    for _ in range(max(3, rounds // 2)):
        for name, loader in zip(rates, (ring, default), strict=True):
            rates[name].append(drain(loader(), source.recipe.batch_size, steps))
    print(f"\n{kind}, whole loader, {workers} workers, batches of {source.recipe.batch_size} on the device's road")
    for name, found in rates.items():
        speed, cost = (median(column) for column in zip(*found, strict=True))
        print(f"{name:44}{speed:10.1f} samples/s, {1e3 * cost:7.3f} ms of CPU per batch in the training process")


def drain(loader: Iterable[object], size: int, steps: int) -> tuple[float, float]:
    """Samples/s once the workers have been started, and CPU seconds of this process per batch."""
    skipped = steps // 4
    batches = iter(loader)
    for _ in range(skipped):
        next(batches)
    began, began_cpu = time.perf_counter(), time.process_time()
    count = sum(1 for _ in batches)
    return count * size / (time.perf_counter() - began), (time.process_time() - began_cpu) / count


def pack(folder: Path, pairs: list[Pair]) -> Split:
    """A packed store of the pictures."""
    with StoreWriter(folder, tuple(map(str, range(21))), ((0, 0, 0),) * 21) as writer:
        for index, (image, mask) in enumerate(pairs):
            pixels = cv2.imread(str(image), cv2.IMREAD_COLOR_RGB)
            writer.add("train", str(index), pixels, np.array(Image.open(mask)))
    return Store(folder).split("train")


def write_pictures(
    folder: Path, count: int, size: tuple[int, int], suffix: str, favour: tuple[float, ...]
) -> list[Pair]:
    """Pictures with detail at all scales, as photographs have it, and masks of smooth regions with ignored borders."""
    pairs = []
    for index in range(count):
        rng = np.random.default_rng(index)
        image, mask = folder / f"{index}{suffix}", folder / f"{index}_mask.png"
        detail = sum(
            noise(rng, size, side, 3) * strength for side, strength in ((3, 40), (8, 25), (24, 14), (72, 9), (200, 6))
        )
        grey = detail.mean(axis=-1, keepdims=True)  # the channels of a photograph go together
        grain = rng.standard_normal((*size, 3)) * (4 if suffix == ".jpg" else 1)
        picture = np.clip(118 + 1.3 * grey + 0.4 * detail + grain, 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(image, quality=92)  # a PNG with all filters, as libpng makes the original ones
        fields = [bias + noise(rng, size, 6, 1) + 0.35 * noise(rng, size, 24, 1) for bias in favour]
        labels = np.argmax(fields, axis=0).reshape(size).astype(np.uint8)
        labels[cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0] = 255
        drawn = Image.fromarray(labels)
        if suffix == ".jpg":  # as VOC's masks: indices into a palette
            drawn.putpalette([value for label in range(256) for value in (label, 255 - label, label * 7 % 256)])
        drawn.save(mask)
        pairs.append((image, mask))
    return pairs


def noise(rng: np.random.Generator, size: tuple[int, int], side: int, channels: int) -> np.ndarray:
    """Smooth random numbers (H, W, channels), `side` independent ones from left to right."""
    coarse = rng.standard_normal((max(2, side * size[0] // size[1]), side, channels)).astype(np.float32)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC).reshape(*size, channels)


if __name__ == "__main__":
    run_command(main)
