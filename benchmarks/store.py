"""How much faster training samples come from a packed store than from a file-backed one.

Both are prepared from the same raw folder and read in turn in this process, one core, the cut of the data set's recipe.
The ratio is the median over the rounds. In the first round the files may come from the disk, afterwards from memory.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from deeplab.config import Cell
from pipeline.errors import ParamsError, run_command
from pipeline.settings.params import PARAMS, Params, load_params, pick
from pipeline.stages import prepare

if TYPE_CHECKING:
    from deeplab.data import TrainingSamples

KINDS: tuple[Literal["packed"], Literal["files"]] = ("packed", "files")


def run(dataset: str, raw: Path, scratch: Path, samples: int, rounds: int) -> None:
    """Print samples per second of both kinds, and how much space each takes."""
    import cv2

    cv2.setNumThreads(0)  # as in a worker
    params = load_params()
    cell = next(iter(params.cells_of(dataset).values()), None)
    if cell is None:
        raise ParamsError(f"{PARAMS}: grid: no cell of {dataset}, whose recipe says how a sample is cut. Add one.")
    with prepared(params, dataset, raw, scratch) as stores:
        sources = {kind: training_samples(cell, folder) for kind, folder in stores.items()}
        speeds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for turn in range(rounds):
            for kind in KINDS:
                speeds[kind].append(speed(sources[kind], samples, epoch=turn))
        count = sum(record.height * record.width for record in sources["packed"].split.records)
    ratio = median(packed / files for packed, files in zip(speeds["packed"], speeds["files"], strict=True))
    for kind, size in (("packed", 4 * count), ("files", count)):
        number = len(sources[kind].split)
        print(f"{kind}: {median(speeds[kind]):.1f} samples/s, {size / 1e6:.0f} MB for {number} samples")
    print(f"packed / files: {ratio:.2f}x (median of {rounds} rounds of {samples} samples)")


@contextmanager
def prepared(
    params: Params, dataset: str, raw: Path, scratch: Path
) -> Iterator[dict[Literal["packed", "files"], Path]]:
    """The stores of both kinds, for as long as the block lasts."""
    splits = pick(params.splits, dataset, "recipes")
    with TemporaryDirectory(dir=scratch) as folder:
        stores = {kind: Path(folder) / kind for kind in KINDS}
        for kind in KINDS:
            config = replace(params.dataset(dataset), store=kind, allow_subset=True)
            prepare.build(dataset, config, splits, raw, stores[kind])
        yield stores


def training_samples(cell: Cell, folder: Path) -> "TrainingSamples":
    """The training split of a store as `cell` cuts it."""
    from deeplab.data import TrainingSamples
    from deeplab.store import Store

    return TrainingSamples(Store(folder).split(cell.recipe.train_split), cell.recipe, cell.augment, seed=0)


def speed(source: "TrainingSamples", count: int, epoch: int) -> float:
    """Samples per second over `count` of them."""
    began = time.perf_counter()
    for index in islice(cycle(range(len(source.split))), count):
        source[epoch, index]
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument("dataset", help="a key of `datasets` in params.yaml; a subset will do")
    parser.add_argument("--raw", type=Path, required=True, help="the folder with the unpacked official archives")
    parser.add_argument("--scratch", type=Path, default=Path(), help="where to put the stores for the time being")
    parser.add_argument("--samples", type=int, default=260)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    run(arguments.dataset, arguments.raw, arguments.scratch, arguments.samples, arguments.rounds)


if __name__ == "__main__":
    run_command(main)
