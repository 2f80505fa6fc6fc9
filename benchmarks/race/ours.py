"""This project through its commands, with the settings of examples/camvid, in a project that `grid new` writes.

The number of epochs is the largest that fits into the minutes, by the speed of one epoch that is trained first.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from benchmarks.race.job import Job, call, main
from pipeline.settings.yaml import read_yaml

ROOT = Path(__file__).parents[2]
GIVEN = {
    "camvid_resnet18_os16": "240x180 times 0.5 to 2, crop 160x128, batch 8, bf16, aligned",
    "camvid_lite0_os16": "448x336 times 0.5 to 2, crop 256x192, batch 8, cross-entropy + Dice",
}
LOSS = {"camvid_lite0_os16": "camvid_lite0_os16_dice"}  # cell -> that with its loss: the better one on held-out drives


def run(job: Job):
    cell = "camvid_lite0_os16" if job.weights else "camvid_resnet18_os16"
    project, count = job.out / "camvid", len(job.images("train"))
    folders = [f"--{kind}={job.data / kind}" for kind in ("images", "masks")]
    grid(job.out, "new", "camvid", *folders, f"--classes={job.data / 'classes.txt'}")
    if job.weights:
        (project / "data/pretrained").mkdir(exist_ok=True)
        shutil.copy(job.weights, project / "data/pretrained/tf_efficientnet_lite0.in1k.safetensors")
    speed = train(job, project, cell, 1)["images_per_second"]
    epochs = max(1, int(60 * job.minutes * speed / count))
    facts = train(job, project, cell, epochs)
    grid(project, "predict", cell, job.data / "images/val", "--out", job.out)
    images = facts["iterations"] * facts["settings"]["batch_size"]
    return {"network": cell, "given": GIVEN[cell], "images": images, "seconds": facts["seconds"]}


def train(job: Job, project: Path, cell: str, epochs: int):
    """Train the cell of examples/camvid for so many epochs, and return the facts of the run."""
    params, example = read_yaml(project / "params.yaml"), read_yaml(ROOT / "examples/camvid/params.yaml")
    row = dict(example["grid"][cell])
    row["train"] = {**row.get("train", {}), "threads": job.cores}
    if cell in LOSS:
        row["train"]["loss"] = example["grid"][LOSS[cell]]["train"]["loss"]
    row["recipe"] = {**row.get("recipe", {}), "epochs": epochs, "align": True}  # aligned as in each new project
    merged = {**example, "datasets": params["datasets"], "grid": {cell: row}}
    (project / "params.yaml").write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in merged.items()))
    grid(project, "run", f"train@{cell}")
    return json.loads((project / f"runs/{cell}/run.json").read_text())["seeds"]["0"]


def grid(folder: Path, *words: object) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
    log = folder / f"{words[0]}.log"
    call([sys.executable, "-m", "pipeline", *words], log, cwd=folder, env=environment)


if __name__ == "__main__":
    main("deeplab-grid", run)
