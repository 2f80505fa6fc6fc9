"""Real trainings in a project of their own: all of the road but DVC, and a kill in the middle of one."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.setting import Setting
from pipeline.process import members
from pipeline.settings.places import Places
from pipeline.settings.yaml import read_yaml
from pipeline.training.provenance import file_sha256

CAMVID = ("camvid_resnet50_os8", "camvid_resnet18_os8", "camvid_resnet101_os8", "camvid_resnet50_os16")
ORPHANS = 20.0  # seconds that processes of a killed training may live
PATIENCE = 60.0  # seconds until the first checkpoint of a training that is to be killed


def train(setting: Setting) -> None:
    """Train and evaluate as many cells as the time allows; records and pictures go to training.tgz."""
    places = project(setting, "project")
    for cell in CAMVID if setting.camvid else ("shapes_resnet18_os8",):
        began = time.monotonic()
        said = stage(places, "train", cell)
        seconds = time.monotonic() - began
        stage(places, "evaluate", cell)
        facts = json.loads(places.facts(cell).read_bytes())["seeds"]["0"]
        plan = re.search(r"iterations measured: (.*)", said)
        setting.results.add(
            "training", cell=cell, device=facts["device"], iterations=facts["iterations"], seconds=round(seconds, 1),
            images_per_second=facts["images_per_second"], peak_GB=round(facts["peak_memory"] / 1e9, 2),
            plan=plan[1] if plan else "", metrics=json.loads(places.metrics(cell).read_bytes()),
        )  # fmt: skip
        with tarfile.open(setting.out / "training.tgz", "w:gz") as archive:
            archive.add(places.reports, "reports")


def resume(setting: Setting) -> None:
    """kill -9 at the first checkpoint and the same command again, beside an unbroken training."""
    cell = "camvid_resnet18_os16" if setting.camvid else "shapes_resnet18_os16"
    whole, broken = (project(setting, name, short=True) for name in ("whole", "broken"))
    stage(whole, "train", cell)
    killed = subprocess.Popen(command("train", cell), cwd=broken.root, env=environment(), start_new_session=True)
    deadline = time.monotonic() + PATIENCE
    while not kept(broken, cell) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    steps = [int(path.name.split("-")[1]) for path in kept(broken, cell)]
    began = time.monotonic()
    while members(killed.pid) and time.monotonic() < began + ORPHANS:
        time.sleep(0.05)
    alone = round(time.monotonic() - began, 1)
    stage(broken, "train", cell)
    histories = [places.history(cell).read_text(encoding="utf-8").splitlines() for places in (whole, broken)]
    rows = [list(csv.DictReader(lines)) for lines in histories]
    plain = [[(row["step"], row["train/lr"]) for row in history] for history in rows]
    losses = [[float(row["train/loss"]) for row in history] for history in rows]
    apart = max(abs(one - other) / max(one, 1e-9) for one, other in zip(*losses, strict=True))
    hashes = [file_sha256(places.weights(cell) / "seed0.safetensors") for places in (whole, broken)]
    setting.results.add(
        "resume", killed_at_checkpoints=steps, seconds_until_workers_end=alone,
        steps_and_rates_equal=plain[0] == plain[1],
        largest_relative_difference_of_a_loss=apart, weights_equal_to_the_bit=hashes[0] == hashes[1],
    )  # fmt: skip


def kept(places: Places, cell: str) -> list[Path]:
    """The checkpoints of an unfinished training."""
    return list(places.resume(cell).glob("*/step-*.pt"))


def project(setting: Setting, name: str, short: bool = False) -> Places:
    """A project with CamVid, or with shapes, prepared. `short` is for a training that is broken on purpose: few epochs,
    a checkpoint as often as possible, deterministic kernels.
    """
    dataset = "camvid" if setting.camvid else "shapes"
    places = Places(setting.work / name)
    places.root.mkdir(parents=True, exist_ok=True)
    params = read_yaml(setting.root / ("examples/camvid/params.yaml" if setting.camvid else "params.yaml"))
    adapt(params, dataset, setting, short)
    places.params.write_text(json.dumps(params), encoding="utf-8")  # JSON is YAML
    shared = setting.work / dataset  # its data is prepared once
    shared.mkdir(exist_ok=True)
    if not places.data.exists():
        places.data.symlink_to(shared)
    if setting.camvid and not places.raw(dataset).exists():
        places.raw(dataset).parent.mkdir(exist_ok=True)
        places.raw(dataset).symlink_to(setting.camvid.resolve())
    if not places.manifest(dataset).exists():
        stage(places, "prepare", dataset)
    shutil.rmtree(places.runs, ignore_errors=True)
    return places


def adapt(params: dict[str, Any], dataset: str, setting: Setting, short: bool) -> None:
    """Change settings for a GPU, or for a look at the code."""
    params["train"].update(precision="fp32" if setting.small else "bf16")
    workers = 1 if setting.small else 4
    params["runtime"].update(device=setting.name, workers=workers, log_every=20, tracking_every=1e6)
    recipe = params["recipes"][dataset]
    if setting.small:
        params["datasets"][dataset]["images"] = {"train": 24, "val": 4}
        recipe["epochs"] = 1
    if short:
        recipe["epochs"] = 2 if setting.small else 8
        params["runtime"].update(checkpoint_every=0.1 if setting.small else 0.5, log_every=1)
        params["train"]["deterministic"] = True


def stage(places: Places, kind: str, name: str) -> str:
    """Run a stage; returns what it printed, which goes to the log as well. Raises CalledProcessError when it fails."""
    words = command(kind, name)
    print("+", *words, flush=True)
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(words, cwd=places.root, env=environment(), text=True, check=False, **both)
    print(done.stdout, flush=True)
    done.check_returncode()
    return done.stdout


def command(kind: str, name: str) -> list[str]:
    """The command of a stage, as dvc.yaml has it."""
    return [sys.executable, "-u", "-m", f"pipeline.stages.{kind}", name]


def environment() -> dict[str, str]:
    """That of this process, with the code of this checkout; the runs of a benchmark are nobody's results."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
