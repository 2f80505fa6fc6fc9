"""The input pipeline alone, and in front of a step: how fast, and how long the step waits for samples."""

from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.clock import synchronise
from benchmarks.gpu.setting import Setting
from benchmarks.input import KINDS, pack, write_pictures
from benchmarks.work import our_step
from deeplab.config import Cell
from deeplab.data import TrainingSamples, network_input, training_loader
from deeplab.monitor import Clock

WORKERS = (2, 4, 8, 12)
BATCHES, WARM = 60, 15


def feed(setting: Setting) -> None:
    """Pictures like those of VOC and CityScapes, several numbers of workers."""
    for kind, (size, suffix, pictures, _, name, favour) in KINDS.items():
        cell = setting.cell(name)
        with TemporaryDirectory() as folder:
            count, size = (4, (60, 80)) if setting.small else (pictures, size)
            split = pack(Path(folder) / "store", write_pictures(Path(folder), count, size, suffix, favour))
            samples = TrainingSamples(split, cell.recipe, cell.augment, seed=0)
            step = our_step(cell, setting.classes(cell), setting.device)
            for workers in (1,) if setting.small else WORKERS:
                for what, work in (("ring and colours", None), ("ring, colours and step", step.run)):
                    speed, waiting = pace(setting, cell, samples, workers, work)
                    setting.results.add(
                        "feed", data=kind, workers=workers, what=what, images_per_second=round(speed, 1),
                        waiting_for_samples=f"{waiting:.1%}",
                    )  # fmt: skip


def pace(setting: Setting, cell: Cell, samples: TrainingSamples, workers: int, work: object) -> tuple[float, float]:
    """Images per second, and the share of the time spent waiting for samples, once all is warm."""
    clock = Clock(step=0, batch_size=cell.recipe.batch_size)
    pin = setting.device.type == "cuda"
    loader = training_loader(samples, 0, 10**6, workers, pin=pin, waiting=clock.waiting)
    count, warm = (4, 1) if setting.small else (BATCHES, WARM)
    for index, batch in enumerate(islice(loader, count)):
        if index == warm:
            synchronise(setting.device)
            clock.first = index
            clock.start(index)
        network_input(batch, cell, setting.device)
        if callable(work):
            work()
    synchronise(setting.device)
    found = clock.mean_speed(count), clock.waited_share()
    loader.close()
    return found
