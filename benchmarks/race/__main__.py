"""Equal minutes of training on CamVid on the same cores: this project and others, scored by torchmetrics.

    python -m benchmarks.race --camvid FOLDER --minutes 5 [--start imagenet --weights FILE] [--peers ours smp]

Each peer runs in an environment of its own, which uv makes in --cache. One that does not install or run is named with
the reason, and the others go on. The table of docs/race.md, which says what each is given, gets the rows; the last line
is JSON. FILE is what examples/camvid/imagenet_weights.py writes.
"""

import argparse
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.race.job import CLASSES, IGNORE, call
from pipeline.errors import ParamsError, run_command
from pipeline.files import claimed, write_whole

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/race.md"
LEAST, OVERHEAD = 0.5, 3.0  # minutes: of a race; of building and predicting, for each peer
MEMORY, DISK = 4e9, 8e9  # bytes: for a peer; for all environments, which share their files
COUNTS = {"train": 367, "val": 101}  # images
TORCH = ("torch==2.15.0", "torchvision==0.29.2")


# What is installed for each; for `ours`, the environment of this project.
PEERS: dict[str, tuple[str, ...]] = {
    "ours": (),
    "smp": (*TORCH, "segmentation-models-pytorch==0.6.0", "albumentations==2.0.8"),
    "torchvision": (*TORCH, "numpy==2.4.6"),
    "mmsegmentation": (*TORCH, "mmsegmentation==1.2.2", "mmcv-lite==2.1.0", "mmengine==0.10.7", "ftfy", "regex"),
    "ultralytics": (*TORCH, "ultralytics==8.4.190"),
    "lightlytrain": (*TORCH, "lightly-train==0.18.0"),
}
IMAGENET = ("ours", "smp")  # can take the weights of --start imagenet


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.race", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--camvid", type=Path, required=True, help="with train, trainannot, val, valannot")
    parser.add_argument("--minutes", type=float, required=True, help="of training, for each peer")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--start", choices=("scratch", "imagenet"), default="scratch")
    parser.add_argument("--weights", type=Path, help="tf_efficientnet_lite0.in1k.safetensors, for --start imagenet")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/deeplab-grid/race")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the peer too, as Ctrl-C
    race(parser.parse_args())


def race(asked: argparse.Namespace) -> None:
    """Run the peers in turn, print their results, and fill the page."""
    cache, own = asked.cache.resolve(), sorted(os.sched_getaffinity(0))
    check(asked, cache, len(own))
    names = [name for name in asked.peers if asked.start == "scratch" or name in IMAGENET]
    for name in sorted(set(asked.peers) - set(names)):
        print(f"{name}: left out: it cannot take these ImageNet weights")
    print(f"{len(names)} peers, about {len(names) * (asked.minutes + OVERHEAD):.0f} minutes in all", flush=True)
    os.sched_setaffinity(0, own[: asked.cores])
    rows = {}
    with claimed(cache / ".lock", str(cache), "used"):  # a second race would remove the data and results of this one
        data = convert(asked.camvid.resolve(), cache / "camvid")
        for name in names:
            rows[name] = one(name, asked, data, cache)
            print(f"{name}: {rows[name]['status']}", flush=True)
        fill(asked, rows)
    print(json.dumps(rows))


def check(asked: argparse.Namespace, cache: Path, cores: int) -> None:
    """Raise ParamsError for what would end the race later."""
    if not LEAST <= asked.minutes < 1e4:
        raise ParamsError(f"--minutes: got {asked.minutes:g}, expected {LEAST:g} or more: some make few steps in that")
    if not 1 <= asked.cores <= cores:
        raise ParamsError(f"--cores: got {asked.cores}, expected 1 to {cores}")
    if asked.start == "imagenet" and not (asked.weights and asked.weights.is_file()):
        raise ParamsError(f"--weights: {asked.weights}: no such file. examples/camvid/imagenet_weights.py writes it")
    for split, count in COUNTS.items():
        images = [*(asked.camvid / split).glob("*")]
        lost = [image.name for image in images if not (asked.camvid / f"{split}annot" / f"{image.stem}.png").is_file()]
        if len(images) != count or lost:
            wrong = f"{len(images)} images, {len(lost)} of them without a mask in {split}annot"
            raise ParamsError(f"--camvid: {asked.camvid / split}: {wrong}; expected {count} and none")
    cache.mkdir(parents=True, exist_ok=True)
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(cache).free
    for what, there, needed in (("memory", memory, MEMORY), (f"space in {cache}", disk, DISK)):
        if there < needed:
            raise ParamsError(f"{there / 1e9:.1f} GB of {what}, expected {needed / 1e9:.0f} or more")


def convert(camvid: Path, data: Path) -> Path:
    """The layout that all peers read: images/<split>, masks/<split> with 255 for the ignored label, classes.txt."""
    shutil.rmtree(data, ignore_errors=True)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (data / kind / split).mkdir(parents=True)
        for image in sorted((camvid / split).iterdir()):
            labels = np.array(Image.open(camvid / f"{split}annot" / f"{image.stem}.png"))
            labels[labels >= len(CLASSES)] = IGNORE
            Image.fromarray(labels).save(data / "masks" / split / f"{image.stem}.png")
            (data / "images" / split / image.name).symlink_to(image)
    (data / "classes.txt").write_text("".join(f"{index} {name}\n" for index, name in enumerate(CLASSES)))
    return data


def one(name: str, asked: argparse.Namespace, data: Path, cache: Path) -> dict[str, Any]:
    """The result of a peer; what went wrong is its `status`."""
    out = cache / "out" / f"{asked.start}-{asked.minutes:g}" / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    words = [install, "-m", f"benchmarks.race.{name}", "--data", data, "--out", out, "--minutes", asked.minutes]
    words += ["--cores", asked.cores, *(("--weights", asked.weights.resolve()) if asked.start == "imagenet" else ())]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(asked.cores))
    seconds = 60 * (3 * asked.minutes + 20 * OVERHEAD)
    try:
        words[0] = install(name, cache)
        call(words, out / "log.txt", seconds, cwd=ROOT, env={**os.environ, **threads}, start_new_session=True)
        result = json.loads((out / "result.json").read_text())
        speed = round(result["images"] / result["seconds"], 2)
        return {**result, "images_per_second": speed, "mIoU": score(data, out / "masks"), "status": "ok"}
    except (OSError, ValueError, SubprocessError) as error:
        return {"status": f"left out: {error}"}


def install(name: str, cache: Path) -> Path | str:
    """The Python of the environment of a peer, which is made unless it is there with these pins."""
    pins, folder, log = PEERS[name], cache / "env" / name, cache / f"{name}.install.txt"
    if not pins:
        return sys.executable
    python, made = folder / "bin/python", folder / "pins.txt"
    if not made.exists() or made.read_text() != "\n".join(pins):
        uv = shutil.which("uv") or Path(sys.executable).with_name("uv")
        call([uv, "venv", "--clear", "--python", sys.executable, folder], log)
        call([uv, "pip", "install", "--python", python, *pins], log)
        made.write_text("\n".join(pins))
    return python


def score(data: Path, masks: Path) -> float:
    """mIoU over all pixels of the validation images, by torchmetrics. Raises for a mask that is missing or wrong."""
    import torch
    from torchmetrics.classification import MulticlassJaccardIndex

    metric = MulticlassJaccardIndex(len(CLASSES), ignore_index=IGNORE)
    for path in sorted((data / "masks/val").iterdir()):
        truth, found = np.array(Image.open(path)), np.array(Image.open(masks / path.name))
        if found.shape != truth.shape or found.max() >= len(CLASSES):
            raise ValueError(f"{masks / path.name}: shape {found.shape}, largest label {found.max()}")
        metric.update(torch.from_numpy(found).long()[None], torch.from_numpy(truth).long()[None])
    return round(float(metric.compute()), 4)


def fill(asked: argparse.Namespace, rows: dict[str, dict[str, Any]]) -> None:
    """Put the rows into the table, in place of those of the same peers, start and minutes; and mIoU over minutes."""
    page = PAGE.read_text()
    key = f"| {asked.start} | {asked.minutes:g} |"
    own = tuple(f"{key} {name} " for name in rows)
    head, rule, *lines = [line for line in block("race").search(page)[2].splitlines() if not line.startswith(own)]
    chip = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    place = f"{asked.cores} x {chip[1] if chip else 'CPU'}, {time.strftime('%Y-%m-%d')}"
    for name, row in rows.items():
        shown = {"version": "", "network": row["status"], "given": "-", **row}
        numbers = (
            ("mIoU", ".1%"),
            ("images", ""),
            ("images_per_second", ""),
            ("seconds", ".0f"),
            ("other_seconds", ".0f"),
        )
        cells = [f"{name} {shown['version']}".strip(), shown["network"]]
        cells += [format(row[each], form) if each in row else "-" for each, form in numbers]
        lines.append(f"{key} {' | '.join(cell.replace('|', '/') for cell in (*cells, shown['given'], place))} |")
    lines.sort(key=lambda line: order(columns(line)))
    for name, table in (("race", [head, rule, *lines]), ("race-minutes", over_minutes(lines))):
        page = block(name).sub(lambda found, table=table: found[1] + "\n".join(table) + "\n" + found[3], page)
    write_whole(PAGE, page)


def over_minutes(lines: list[str]) -> list[str]:
    """The table of the mIoU, a row for each start and peer and a column for each number of minutes, of those rows."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for start, minutes, peer, _, miou, *_ in map(columns, lines):
        found.setdefault((start, peer.split()[0]), {})[minutes] = miou
    times = sorted({minutes for row in found.values() for minutes in row}, key=float)
    rows = [("Start", "Peer", *(f"{minutes} min" for minutes in times)), (":-:",) * (2 + len(times))]
    rows += [(*names, *(row.get(minutes, "-") for minutes in times)) for names, row in found.items()]
    return [f"| {' | '.join(row)} |" for row in rows]


def columns(line: str) -> list[str]:
    """The entries of a row of a table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def order(row: list[str]) -> tuple[bool, float, float]:
    """The order of the rows: from scratch first, by minutes, and the best first."""
    return row[0] != "scratch", float(row[1]), -float(row[4].rstrip("%")) if row[4] != "-" else 0.0


def block(name: str) -> re.Pattern[str]:
    """What is between two comments of the page, and the comments."""
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- /{name} -->\n)", re.DOTALL)


if __name__ == "__main__":
    run_command(main)
