"""What this project does on a GPU, measured in one go, every number on the disk as soon as it is known.

    python -m benchmarks.gpu --out DIR [--minutes 9] [--camvid FOLDER] [--only facts,convs]

Each part runs in a process group of its own with a time limit: an error of CUDA ends the process it is in, and the next
part begins with a sound one. This process never imports torch. The parts come in the order of their worth; what does
not fit into the time is left out and named. DIR gets results.jsonl, summary.md, log.txt, profile.txt and <device>.md,
which is also written to reports/benchmarks: `grid plan` reads the hours of a cell on that device there.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, NamedTuple

from benchmarks.gpu.results import Results, summarise, write_page
from pipeline.process import members

ROOT = Path(__file__).resolve().parents[2]
RESERVE = 10.0  # seconds at the end, for the page
SLOW = 5.0  # times the limits, for stand-ins on a CPU that others use too
GRACE = 1.0  # seconds between asking a part to end and ending it


class Part(NamedTuple):
    """A part of the measurement: `module`:`function`, which takes a Setting."""

    name: str
    most: float  # seconds
    least: float  # seconds that make sense
    place: str


PARTS = (
    Part("facts", 40, 15, "machine:facts"),
    Part("tests", 90, 20, "machine:tests"),
    Part("convs", 50, 20, "kernels:convolutions"),
    Part("loss", 40, 20, "kernels:losses"),
    Part("bf16", 130, 40, "cells:bf16"),
    Part("train", 140, 60, "trainings:train"),
    Part("resume", 75, 35, "trainings:resume"),
    Part("feed", 60, 25, "feed:feed"),
    Part("compile", 110, 60, "cells:compiled"),
    Part("determinism", 45, 25, "cells:determinism"),
    Part("tf32", 60, 25, "cells:tf32"),
    Part("fp32", 60, 25, "cells:fp32"),
    Part("fp16", 50, 25, "cells:fp16"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--camvid", type=Path, help="the raw folder of CamVid, to train on it instead of on shapes")
    parser.add_argument("--only", help="parts, with commas")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--commit", help="where there is no git")
    parser.add_argument("--small", action="store_true", help="tiny stand-ins, to see that all of it runs")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if odd := set((arguments.only or "").split(",")) - {part.name for part in PARTS} - {""}:
        parser.error(f"--only: got {', '.join(sorted(odd))}, expected some of {', '.join(part.name for part in PARTS)}")
    if arguments.camvid and not (arguments.camvid / "classes.txt").exists():
        parser.error(f"--camvid: {arguments.camvid}/classes.txt not found, expected the raw folder of CamVid")
    arguments.out = arguments.out.resolve()
    arguments.camvid = arguments.camvid and arguments.camvid.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.part:
        run_here(arguments)
    else:
        measure(arguments)


def run_here(arguments: argparse.Namespace) -> None:
    """Be the process of a part."""
    from benchmarks.gpu.setting import Setting

    part = next(part for part in PARTS if part.name == arguments.part)
    module, _, function = part.place.partition(":")
    words = {"small": arguments.small, "camvid": arguments.camvid, "root": ROOT}
    setting = Setting(out=arguments.out, work=arguments.work, name=arguments.device, **words)
    getattr(import_module(f"benchmarks.gpu.{module}"), function)(setting)


def measure(arguments: argparse.Namespace) -> None:
    """Run the parts one after another, as far as the time goes."""
    results = Results(arguments.out)
    deadline = time.monotonic() + 60 * arguments.minutes - RESERVE
    wanted = arguments.only.split(",") if arguments.only else [part.name for part in PARTS]
    results.add("run", commit=arguments.commit or commit(), minutes=arguments.minutes, small=arguments.small)
    slow = SLOW if arguments.small else 1.0
    with (arguments.out / "log.txt").open("ab", buffering=0) as log, TemporaryDirectory() as work:
        for part in PARTS:
            if part.name not in wanted:
                continue
            began = time.monotonic()
            left = deadline - began
            said = "left out: no time"
            if left >= part.least:
                most = min(slow * part.most, left)
                print(f"{part.name}: {most:.0f} s at most", flush=True)
                log.write(f"\n===== {part.name}\n".encode())
                own = ["--out", str(arguments.out), "--work", work, "--part", part.name]
                said = run_part([*sys.argv[1:], *own], most, log)
            results.add("part", name=part.name, said=said, seconds=round(time.monotonic() - began, 1))
            summarise(arguments.out)
    write_page(arguments.out, None if arguments.small else ROOT / "reports" / "benchmarks")
    print((arguments.out / "summary.md").read_text())


def run_part(words: list[str], seconds: float, log: BinaryIO) -> str:
    """Run a part in a process group of its own, and end all of the group. Returns what came of it."""
    cache = str(Path(tempfile.gettempdir(), "inductor"))  # later parts find what earlier ones compiled
    child = subprocess.Popen(
        [sys.executable, "-u", "-m", "benchmarks.gpu", *words],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd=ROOT,
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
    )
    try:
        code = child.wait(seconds)
        return "done" if code == 0 else f"failed with {code}: see log.txt"
    except subprocess.TimeoutExpired:
        return "stopped: its time was over"
    finally:
        end_group(child.pid)
        child.wait()


def end_group(group: int) -> None:
    """Ask all processes of a group to end, then end them."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if members(group):
            os.killpg(group, number)
            deadline = time.monotonic() + GRACE
            while members(group) and time.monotonic() < deadline:
                time.sleep(0.05)


def commit() -> str:
    """The commit of the checkout, or unknown."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
