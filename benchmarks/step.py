"""How much faster a training step is than torchvision's deeplabv3_resnet50 trained the plain way, and what it holds.

Both networks have the same layers, parameters and FLOPs (checked before anything is timed) and see the same normalised
crops. Plain is what a tutorial does: contiguous tensors, SGD as it comes, interpolate, cross-entropy, 0.4 times that of
the auxiliary head. The steps take turns in this process; the ratio is the median over the rounds. Memory is measured
in a process of its own for each. On a GPU, say --crop 512 --batch 16 --precision bf16.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from deeplab.config import Cell
from pipeline.errors import run_command
from pipeline.settings.params import load_params

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SIDES = ("plain", "ours")
Step = Callable[[], Any]


def run(arguments: argparse.Namespace) -> None:
    """Print images per second, peak memory and the profile of both, and last their ratios as JSON."""
    import torch

    device = prepare_torch(arguments)
    flops = compare_networks(arguments)
    steps = {side: build_step(side, arguments, device) for side in SIDES}
    for step in steps.values():  # kernels are chosen and compiled here, and pools of memory grow
        for _ in range(arguments.warmup):
            timed(step, device)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(arguments.rounds):
        for side in SIDES:
            seconds[side].append(timed(steps[side], device))
    memory = {side: measure_memory(side) for side in SIDES}
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {arguments.threads} threads"
    print(f"{where}, torch {torch.__version__}, {arguments.precision}: {describe(arguments)}")
    for side in SIDES:
        pace = median(seconds[side])
        line = f"{side}: {arguments.batch / pace:.3f} images/s, {memory[side] / 1e6:.0f} MB at the peak"
        line += f", {flops / pace / 1e12:.3f} TFLOP/s"
        if arguments.peak_tflops:
            line += f" ({flops / pace / 1e10 / arguments.peak_tflops:.1f} % of the chip's peak)"
        print(line)
    if arguments.profile:
        for side in SIDES:
            print(f"\n{side}:\n{profile(steps[side])}")
    ratios = [plain / ours for plain, ours in zip(seconds["plain"], seconds["ours"], strict=True)]
    print(f"one round in two lies between {spread(ratios)}")
    result = {"step_ratio": round(median(ratios), 3), "memory_ratio": round(memory["ours"] / memory["plain"], 3)}
    print(json.dumps(result))


def prepare_torch(arguments: argparse.Namespace) -> "torch.device":
    """Threads, TF32 and kernel choice as the train stage sets them, for both sides."""

    from pipeline.training.device import choose_kernels_by_time, select_device, set_arithmetic

    set_arithmetic(cell_of(arguments).train)
    choose_kernels_by_time(cell_of(arguments).train)
    return select_device(arguments.device)


def cell_of(arguments: argparse.Namespace) -> Cell:
    """VOC's ResNet50 at output stride 8 with torchvision's stem and widths."""
    cell = load_params().cell("voc_resnet50_os8")
    model = replace(
        cell.model,
        backbone="resnet50",
        pretrained=False,
        aspp_channels=256,
        projection_kernel=1,
        auxiliary_channels=256,
    )
    train = replace(cell.train, precision=arguments.precision, threads=arguments.threads, compile=arguments.compile)
    recipe = replace(cell.recipe, crop=(arguments.crop, arguments.crop), batch_size=arguments.batch)
    return replace(cell, model=model, train=train, recipe=recipe)


def our_network(arguments: argparse.Namespace) -> "nn.Module":
    """The project's network, and the 3x3 convolution that torchvision has between ASPP and classifier."""
    from torch import nn

    from deeplab.model import DeepLabV3, conv_bn_relu

    network = DeepLabV3(cell_of(arguments).model, arguments.classes)
    network.aspp = nn.Sequential(network.aspp, conv_bn_relu(256, 256, kernel=3))  # type: ignore[assignment]
    return network


def their_network(arguments: argparse.Namespace) -> "nn.Module":
    """torchvision's."""
    from torchvision.models.segmentation import deeplabv3_resnet50

    return deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=arguments.classes, aux_loss=True)


def compare_networks(arguments: argparse.Namespace) -> int:
    """FLOPs of a step, forward and backward, after making sure that both networks have as many, and parameters too."""
    counts = {build: count(build(arguments), arguments) for build in (our_network, their_network)}
    assert len(set(counts.values())) == 1, counts
    return counts[our_network][1]


def count(network: "nn.Module", arguments: argparse.Namespace) -> tuple[int, int]:
    """Parameters, and FLOPs of a step: 2 for a multiplication with its addition. Nothing is computed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network.to("meta").train()
    with FlopCounterMode(display=False) as counter:
        output = network(torch.empty(arguments.batch, 3, arguments.crop, arguments.crop, device="meta"))
        logits, auxiliary = output.values() if isinstance(output, dict) else output
        (logits.mean() + auxiliary.mean()).backward()
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops()


def build_step(side: str, arguments: argparse.Namespace, device: "torch.device") -> Step:
    """A step of `side` on one batch that stays the same."""
    import torch

    torch.manual_seed(0)
    shape = (arguments.batch, arguments.crop, arguments.crop)
    images = torch.randn(shape[0], 3, *shape[1:], device=device)
    masks = torch.randint(0, arguments.classes, shape, dtype=torch.uint8, device=device)
    masks[:, :8] = 255
    return (our_step if side == "ours" else plain_step)(arguments, images, masks)


def our_step(arguments: argparse.Namespace, images: "Tensor", masks: "Tensor") -> Step:
    """As the train stage does it."""
    import torch

    from deeplab.step import build_optimizer, set_rate, train_step

    cell = cell_of(arguments)
    network = our_network(arguments).to(images.device).to(memory_format=torch.channels_last).train()
    images = images.contiguous(memory_format=torch.channels_last)
    optimizer = build_optimizer(network, cell.train)
    set_rate(optimizer, 0.01)
    scaler = torch.amp.GradScaler(images.device.type, enabled=arguments.precision == "fp16")
    joined: Any = torch.compile(network) if arguments.compile else network
    return lambda: train_step(joined, optimizer, scaler, (images, masks), cell)


def plain_step(arguments: argparse.Namespace, images: "Tensor", masks: "Tensor") -> Step:
    """As a tutorial does it; torchvision's network interpolates its logits itself."""
    import torch
    import torch.nn.functional as F

    from deeplab.precision import autocast

    network = their_network(arguments).to(images.device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    labels = masks.long()

    def step() -> Any:
        with autocast(arguments.precision, images.device):
            output = network(images)
            loss = F.cross_entropy(output["out"], labels, ignore_index=255)
            loss = loss + 0.4 * F.cross_entropy(output["aux"], labels, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def timed(step: Step, device: "torch.device") -> float:
    """Seconds of one step, to the end of what it has asked of the device."""
    import torch

    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def measure_memory(side: str) -> int:
    """The peak in bytes of another process that makes three steps of `side`."""
    command = [sys.executable, "-m", "benchmarks.step", *sys.argv[1:], "--memory-of", side]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def print_memory(arguments: argparse.Namespace) -> None:
    """Make three steps; print the peak, on the CPU less what the process held before: the interpreter and torch."""
    import torch

    from deeplab.monitor import peak_memory

    device = prepare_torch(arguments)
    torch.optim.SGD([torch.zeros(1, requires_grad=True)]).step()  # imports what a first step imports
    before = 0 if device.type == "cuda" else peak_memory(device)
    step = build_step(arguments.memory_of, arguments, device)
    for _ in range(3):
        timed(step, device)
    print(peak_memory(device) - before)


def profile(step: Step) -> str:
    """What one step spends its time on."""
    import torch

    with torch.profiler.profile() as recorded:
        step()
    return recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=45)


def spread(ratios: list[float]) -> str:
    """The middle half of the ratios."""
    ordered, quarter = sorted(ratios), len(ratios) // 4
    return f"{ordered[quarter]:.2f}x and {ordered[-1 - quarter]:.2f}x"


def describe(arguments: argparse.Namespace) -> str:
    """The work in words."""
    return (
        f"{arguments.classes} classes, batch {arguments.batch}, crop {arguments.crop}, medians of {arguments.rounds} "
        f"rounds" + ", compiled" * arguments.compile
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--crop", type=int, default=192)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of torch on the CPU")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=1, help="steps of each before anything is timed")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"), help="of both")
    parser.add_argument("--compile", action="store_true", help="compile ours")
    parser.add_argument("--peak-tflops", type=float, help="of the chip in this precision, from its data sheet")
    parser.add_argument("--profile", action="store_true", help="also show what a step spends its time on")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print_memory(arguments)
    else:
        run(arguments)


if __name__ == "__main__":
    run_command(main)
