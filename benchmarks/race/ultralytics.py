"""Ultralytics' semantic task by its own command: it is under the AGPL-3.0, so no code here imports it.

`yolo semantic train` with its defaults, its smallest network, its own limit of time in hours, which the schedule fits,
the images' own size, and no validation after each epoch, which would take from the time.
"""

import csv
import json
import os
import re
import sys
from pathlib import Path

from benchmarks.race.job import CLASSES, Job, call, main

BATCH = 16  # its default


def run(job: Job):
    data = {"path": str(job.data), "train": "images/train", "val": "images/val", "masks_dir": "masks"}
    (job.out / "data.yaml").write_text(json.dumps({**data, "names": dict(enumerate(CLASSES))}))
    last = job.out / "train/weights/last.pt"
    text = yolo(job, "train", model="yolo26n-sem.yaml", time=job.minutes / 60, val=False, pretrained=False)
    yolo(job, "val", model=last, batch=8, save_json=True)
    (job.out / "val/results").rename(job.out / "masks")
    shown = re.findall(r"^ *(\d+)/\d+ +\S+G .* (\d+)/\d+ ", text, re.M) or [
        (1, 1)
    ]  # none when the first step is the last
    *_, end = csv.DictReader((job.out / "train/results.csv").open())  # it plans whole epochs, and may end early
    seconds = float(end["time"])
    epoch, done = map(int, shown[-1])
    images = (epoch - 1) * len(job.images("train")) + done * BATCH
    return {"network": "yolo26n-sem", "given": "480x480, batch 16", "images": images, "seconds": seconds}


def yolo(job: Job, mode: str, **settings: object) -> str:
    """What its command printed, without colours."""
    same = {"data": job.out / "data.yaml", "imgsz": 480, "device": "cpu", "workers": 0, "plots": False}
    words = [f"{key}={value}" for key, value in {**same, "project": job.out, "name": mode, **settings}.items()]
    environment = {**os.environ, "YOLO_CONFIG_DIR": str(job.out), "YOLO_OFFLINE": "true"}
    command = Path(sys.executable).with_name("yolo")
    return re.sub(
        r"\x1b\[[0-9;]*[A-Za-z]",
        "",
        call([command, "semantic", mode, *words], job.out / f"{mode}.log", env=environment),
    )


if __name__ == "__main__":
    main("ultralytics", run)
