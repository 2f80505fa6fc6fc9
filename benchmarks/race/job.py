"""What the runners share. It imports nothing but Python: a runner runs in the environment of its peer.

A runner leaves a mask per validation image in `out`/masks, PNG, labels as in the data, and `out`/result.json.
"""

import argparse
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

CLASSES = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"
)  # fmt: skip
IGNORE = 255


@dataclass(frozen=True, kw_only=True)
class Job:
    data: Path  # images/<split>/<name>.jpg and masks/<split>/<name>.png; label 255 is ignored
    out: Path  # an empty folder
    minutes: float  # of training
    cores: int
    weights: Path | None  # of tf_efficientnet_lite0, as safetensors; None: from scratch

    def images(self, split: str) -> list[Path]:
        return sorted((self.data / "images" / split).iterdir())

    def write(self, image: Path, labels: Any) -> None:
        """Write the predicted labels (H, W), of a tensor, for a validation image."""
        from PIL import Image

        (self.out / "masks").mkdir(exist_ok=True)
        Image.fromarray(labels.numpy().astype("uint8")).save(self.out / "masks" / f"{image.stem}.png")


class Clock:
    """The minutes of training, from its making on. Schedules take `share` in place of step / steps."""

    def __init__(self, minutes: float) -> None:
        self.limit, self.began, self.seconds = 60 * minutes, time.monotonic(), 0.0

    def share(self) -> float:
        """The share of the minutes that is over, 1 at most."""
        self.seconds = time.monotonic() - self.began
        return min(1.0, self.seconds / self.limit)


def fit(job: Job, load: Callable[[Path, Path], Any], batch: int, model: Any, loss: Any, optimizer: Any, lr: Any):
    """Train `model` in the plain way until the time is up, for the peers that leave the loop to the user.

    `load` makes a sample of an image and its mask; `lr` a factor on the learning rate of the share of the time.
    """
    import torch
    from torch.utils.data import DataLoader, default_collate

    def collate(images: list[Path]) -> Any:
        masks = job.data / "masks/train"
        return default_collate([load(image, masks / f"{image.stem}.png") for image in images])

    loader = DataLoader(job.images("train"), batch, shuffle=True, drop_last=True, collate_fn=collate)
    clock, images = Clock(job.minutes), 0
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: lr(clock.share()))
    model.train()
    while clock.share() < 1:
        for samples, masks in loader:
            optimizer.zero_grad()
            loss(model(samples), masks).backward()
            optimizer.step()
            scheduler.step()
            images += len(samples)
            if clock.share() == 1:
                break
    model.eval()
    return {"images": images, "seconds": clock.seconds}


def call(words: list[Any], log: Path, seconds: float | None = None, **options: Any) -> str:
    """Run a command and return what it printed, which goes to `log`. Raises OSError with the last line of it."""
    with log.open("w") as file, subprocess.Popen([*map(str, words)], stdout=file, stderr=file, **options) as process:
        try:
            code = process.wait(seconds)
        except BaseException:  # out of time, or Ctrl-C
            (os.killpg if "start_new_session" in options else os.kill)(process.pid, signal.SIGKILL)
            raise
    text = log.read_text(errors="replace").replace("\r", "\n")
    if code:
        raise OSError(f"{(text.strip() or 'no output').splitlines()[-1][:200]} (exit code {code}, {log})")
    return text


def main(package: str, run: Callable[[Job], dict[str, Any]]) -> None:
    """Run the job of the command line. `run` returns network, given, images, and seconds of training."""
    parser = argparse.ArgumentParser()
    for name, kind in (("data", Path), ("out", Path), ("minutes", float), ("cores", int), ("weights", Path)):
        parser.add_argument(f"--{name}", type=kind)
    job, began = Job(**vars(parser.parse_args())), time.monotonic()
    result = {"version": version(package), **run(job)}
    result["other_seconds"] = time.monotonic() - began - result["seconds"]
    (job.out / "result.json").write_text(json.dumps(result))
