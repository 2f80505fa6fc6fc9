"""LightlyTrain's semantic segmentation: it is under the AGPL-3.0, so only a process of its own imports it.

dinov3/vitt16-notpretrained-linear is the smallest of its networks that start without weights and can be built in 0.18.0
(those of torchvision fail). Defaults (batch 16, AdamW at 1e-3, cosine, bf16), but the backbone is trained, for it knows
nothing yet, and crops have about the images' size, not 518x518. It has no limit of time: the number of steps fits the
minutes, by the speed of the first 3.
"""

import json
import os
import re
import sys

from benchmarks.race.job import CLASSES, IGNORE, Job, call, main

CODE = "import json, sys, lightly_train; getattr(lightly_train, sys.argv[1])(**json.loads(sys.argv[2]))"
NETWORK, BATCH = "dinov3/vitt16-notpretrained-linear", 16


def run(job: Job):
    steps = max(1, int(60 * job.minutes / (train(job, "measure", 3) / 3)))
    seconds = train(job, "run", steps)
    model = str(job.out / "run/exported_models/exported_last.pt")
    masks = {"out": str(job.out / "masks"), "data": str(job.data / "images/val"), "model": model, "num_workers": 0}
    lightly(job, "predict", "predict_semantic_segmentation", masks)
    given = "crop 352x480 at 0.5 to 2, batch 16, bf16"
    return {"network": NETWORK, "given": given, "images": steps * BATCH, "seconds": seconds}


def train(job: Job, name: str, steps: int) -> float:
    """Seconds of the training steps, as its log states them."""
    data = {split: {kind: str(job.data / kind / split) for kind in ("images", "masks")} for split in ("train", "val")}
    settings = {
        "out": str(job.out / name),
        "model": NETWORK,
        "data": {**data, "classes": {**dict(enumerate(CLASSES)), IGNORE: "none"}, "ignore_classes": [IGNORE]},
        "steps": steps,
        "num_workers": 0,
        "model_args": {"backbone_freeze": False},
        "transform_args": {"image_size": [352, 480]},
        "logger_args": {"val_every_num_steps": 10**9},
    }
    lightly(job, name, "train_semantic_segmentation", settings)
    found = re.findall(r"Train Step +(\d+)/.*Step Time +([0-9.]+)s", (job.out / name / "train.log").read_text())
    return int(found[-1][0]) * float(found[-1][1])


def lightly(job: Job, name: str, function: str, settings: dict[str, object]) -> None:
    environment = {**os.environ, "LIGHTLY_TRAIN_EVENTS_DISABLED": "1"}
    call([sys.executable, "-c", CODE, function, json.dumps(settings)], job.out / f"{name}.log", env=environment)


if __name__ == "__main__":
    main("lightly-train", run)
