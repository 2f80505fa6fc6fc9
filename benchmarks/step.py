"""How much faster a training step is than torchvision's deeplabv3_resnet50 trained the plain way, and what it holds.

Both networks have the same layers, parameters and FLOPs (checked before anything is timed) and see the same normalised
crops. Plain is what a tutorial does: contiguous tensors, SGD as it comes, interpolate, cross-entropy, 0.4 times that of
the auxiliary head. The steps take turns in this process; the ratio is the median over the rounds. On the CPU memory is
measured in a process of its own for each. With --cell a cell of params.yaml is measured, alone.
On a GPU, say --crop 512 --batch 16 --precision bf16 tf32.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from statistics import median

import torch
from torch import nn

from benchmarks.clock import held, milliseconds, profile
from benchmarks.work import CLASSES, PRECISIONS, Step, in_precision, our_step, plain_step
from deeplab.config import Cell
from deeplab.model import DeepLabV3, conv_bn_relu
from deeplab.monitor import peak_memory
from pipeline.errors import run_command
from pipeline.settings.params import load_params
from pipeline.training.device import select_device

SIDES = ("plain", "ours")


def run(arguments: argparse.Namespace, precision: str) -> None:
    """Print images per second, peak memory and the profile of each side, and last their ratios as JSON."""
    device, cell = select_device(arguments.device), cell_of(arguments, precision)
    classes = classes_of(arguments, cell)
    sides = ("ours",) if arguments.cell else SIDES
    steps, memory = {}, {}
    for side in sides:
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        steps[side] = build(side, arguments, cell, classes, device)
        on_gpu = device.type == "cuda"
        memory[side] = held(steps[side].run, device) - before if on_gpu else measure_memory(side, precision)
    shapes = {(step.parameters, step.flops) for step in steps.values()}
    assert len(shapes) == 1, shapes
    pace: dict[str, list[float]] = {side: [] for side in sides}
    for side in sides:
        milliseconds(steps[side].run, arguments.warmup, device)
    for _ in range(arguments.rounds):
        for side in sides:
            pace[side] += milliseconds(steps[side].run, 1, device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {arguments.threads} threads"
    print(f"{where}, torch {torch.__version__}, {precision}: {describe(arguments, cell, classes)}")
    for side, step in steps.items():
        print(f"{side}: {summary(step, median(pace[side]), memory[side], arguments.peak_tflops)}")
    if arguments.profile:
        for side, step in steps.items():
            rows = (f"{time:10.3f} ms {calls:5}x {name[:100]}" for name, time, calls in profile(step.run, device))
            print(f"\n{side}:\n" + "\n".join(rows))
    if len(sides) == 2:
        ratios = [plain / ours for plain, ours in zip(pace["plain"], pace["ours"], strict=True)]
        print(f"one round in two lies between {spread(ratios)}")
        result = {"step_ratio": median(ratios), "memory_ratio": memory["ours"] / memory["plain"]}
        print(json.dumps({key: round(value, 3) for key, value in result.items()}))


def cell_of(arguments: argparse.Namespace, precision: str) -> Cell:
    """The cell that was asked for, or VOC's ResNet50 at output stride 8 with torchvision's stem and widths."""
    cell = load_params().cell(arguments.cell or "voc_resnet50_os8")
    if not arguments.cell:
        widths = {"backbone": "resnet50", "aspp_channels": 256, "projection_kernel": 1, "auxiliary_channels": 256}
        recipe = replace(cell.recipe, crop=(arguments.crop, arguments.crop), batch_size=arguments.batch)
        cell = replace(cell, model=replace(cell.model, pretrained=False, **widths), recipe=recipe)
    train = replace(cell.train, threads=arguments.threads, compile=arguments.compile)
    return in_precision(replace(cell, train=train), precision)


def classes_of(arguments: argparse.Namespace, cell: Cell) -> int:
    """How many classes are predicted: those of a known data set that `--cell` names, else as `--classes` says."""
    return CLASSES.get(cell.dataset, arguments.classes) if arguments.cell else arguments.classes


def build(side: str, arguments: argparse.Namespace, cell: Cell, classes: int, device: torch.device) -> Step:
    """A step of `side`."""
    if side == "plain":
        from torchvision.models.segmentation import deeplabv3_resnet50

        theirs = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=classes, aux_loss=True)
        return plain_step(cell, classes, device, theirs)
    return our_step(cell, classes, device, None if arguments.cell else like_torchvision(cell, classes))


def like_torchvision(cell: Cell, classes: int) -> nn.Module:
    """The project's network, and the 3x3 convolution that torchvision has between ASPP and classifier."""
    network = DeepLabV3(cell.model, classes)
    network.aspp = nn.Sequential(network.aspp, conv_bn_relu(256, 256, kernel=3))  # type: ignore[assignment]
    return network


def measure_memory(side: str, precision: str) -> int:
    """The peak in bytes of another process that makes three steps of `side` on the CPU."""
    command = [sys.executable, "-m", "benchmarks.step", *sys.argv[1:], "--memory-of", side, "--precision", precision]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def print_memory(arguments: argparse.Namespace) -> None:
    """Make three steps; print the peak less what the process held before: the interpreter and torch."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)]).step()  # imports what a first step imports
    cpu, cell = torch.device("cpu"), cell_of(arguments, arguments.precision[0])
    before = peak_memory(cpu)
    milliseconds(build(arguments.memory_of, arguments, cell, classes_of(arguments, cell), cpu).run, 3, cpu)
    print(peak_memory(cpu) - before)


def summary(step: Step, pace: float, memory: int, peak: float | None) -> str:
    """One line on a step that takes `pace` milliseconds; `peak` is that of the chip in TFLOP/s."""
    rate = step.flops / pace / 1e9
    share = f" ({100 * rate / peak:.1f} % of {peak:g})" if peak else ""
    return f"{1e3 * step.batch / pace:.3f} images/s, {memory / 1e6:.0f} MB at the peak, {rate:.3f} TFLOP/s{share}"


def spread(ratios: list[float]) -> str:
    """The middle half of the ratios."""
    ordered, quarter = sorted(ratios), len(ratios) // 4
    return f"{ordered[quarter]:.2f}x and {ordered[-1 - quarter]:.2f}x"


def describe(arguments: argparse.Namespace, cell: Cell, classes: int) -> str:
    """The work in words."""
    height, width = cell.recipe.crop
    words = f"{classes} classes, batch {cell.recipe.batch_size}, crop {height}x{width}, medians of {arguments.rounds}"
    return (f"{arguments.cell}, " if arguments.cell else "") + words + (", compiled" if arguments.compile else "")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--cell", help="a key of `grid` in params.yaml: measure it alone, as its recipe says")
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--crop", type=int, default=192)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of torch on the CPU")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=1, help="steps of each before anything is timed")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=PRECISIONS, help="of both; several in turn")
    parser.add_argument("--compile", action="store_true", help="compile ours")
    parser.add_argument("--peak-tflops", type=float, help="of the chip in this precision, measured or published")
    parser.add_argument("--profile", action="store_true", help="also show what a step spends its time on")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print_memory(arguments)
        return
    for precision in arguments.precision:
        run(arguments, precision)


if __name__ == "__main__":
    run_command(main)
