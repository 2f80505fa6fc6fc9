"""Steps of the cells of the grid, as the train stage makes them, on one batch that stays the same."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.clock import held, profile, synchronise, typical
from benchmarks.gpu.setting import Setting
from benchmarks.work import Step, our_step, plain_step
from deeplab.config import Cell
from deeplab.step import is_out_of_memory
from pipeline.training.facts import flat_settings
from pipeline.training.speeds import pace_of_cell

CELLS = (
    "voc_resnet50_os8", "voc_resnet101_os8", "voc_resnet50_os16", "voc_resnet101_os16", "ade20k_resnet50_os16",
    "ade20k_resnet50_os8", "cityscapes_resnet50_os8", "cityscapes_resnet50_os16",
)  # fmt: skip
R50_OS8, R101_OS8, R50_OS16, ADE_OS16 = CELLS[0], CELLS[1], CELLS[2], CELLS[4]
# What a kernel does, by a part of its name.
KINDS = {
    "convolution": ("cudnn", "cutlass", "xmma", "implicit", "conv", "gemm", "gemv", "nvjet", "grad", "fprop"),
    "batch norm": ("batch_norm", "bn_"),
    "copy, cast, layout": ("copy", "memcpy", "memset", "nchw", "nhwc", "transpose", "cat"),
    "softmax, gather, scatter": ("softmax", "gather", "scatter"),
    "reduction": ("reduce",),
    "optimizer": ("multi_tensor",),
    "elementwise": ("elementwise", "vectorized", "triton"),
}


def bf16(setting: Setting) -> None:
    """All sizes of the grid, beside torchvision's network trained the plain way, and the kernels of a step."""
    for name in CELLS[:2] if setting.small else CELLS:
        measure(setting, name, "bf16", profiled=name == R50_OS8)
        if name == R50_OS8:
            plain(setting, "bf16")


def compiled(setting: Setting) -> None:
    """With torch.compile."""
    for name in () if setting.small else (R50_OS8, R50_OS16, R101_OS8, ADE_OS16):
        measure(setting, name, "bf16", compiled=True)


def two_strides(setting: Setting, precision: str, rounds: int = 12) -> None:
    """ResNet50 at both output strides in another arithmetic."""
    for name in (R50_OS8, R50_OS16):
        measure(setting, name, precision, rounds=rounds)


tf32 = partial(two_strides, precision="tf32")
fp32 = partial(two_strides, precision="fp32", rounds=4)  # as params.yaml says
fp16 = partial(two_strides, precision="fp16")


def measure(
    setting: Setting, name: str, precision: str, compiled: bool = False, rounds: int = 12, profiled: bool = False
) -> None:
    """Time a cell, or note that it does not fit into the memory."""
    began = time.monotonic()
    cell = setting.cell(name, precision)
    cell = replace(cell, train=replace(cell.train, compile=compiled))
    try:
        step = our_step(cell, setting.classes(cell), setting.device)
        report(setting, name, "ours", cell, step, rounds, began)
        if profiled:
            kernels(setting, name, step)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        setting.results.add("step", cell=name, precision=precision, error="out of memory")
    step = None  # type: ignore[assignment]  # lets go of its memory
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()


def plain(setting: Setting, precision: str) -> None:
    """torchvision's deeplabv3_resnet50 as a tutorial trains it."""
    from torchvision.models.segmentation import deeplabv3_resnet50

    began, cell = time.monotonic(), setting.cell(R50_OS8, precision)
    classes = setting.classes(cell)
    network = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=classes, aux_loss=True)
    step = plain_step(cell, classes, setting.device, network)
    report(setting, "torchvision deeplabv3_resnet50", "plain", cell, step, 12, began)


def report(setting: Setting, name: str, side: str, cell: Cell, step: Step, rounds: int, began: float) -> None:
    """Time a step that is ready to run since `began`, and write its line."""
    precision = "tf32" if cell.train.tf32 else cell.train.precision
    for _ in range(setting.rounds(3)):  # kernels are chosen and compiled here
        loss = step.run()
    synchronise(setting.device)
    ready = time.monotonic() - began
    host = time.perf_counter()
    step.run()
    host = time.perf_counter() - host  # near the time of the step, the host is the limit
    ms = typical(step.run, setting.rounds(rounds), setting.device)
    rate = step.flops / ms / 1e9
    shares: dict[str, Any] = {
        title: f"{rate / peak:.1%}"
        for title, peak in (("of_data_sheet", setting.peak(precision)), ("of_measured_bf16", setting.measured_peak()))
        if peak
    }
    setting.results.add(
        "step", cell=name, side=side, precision=precision, compiled=cell.train.compile, ms=round(ms, 2),
        images_per_second=round(1e3 * step.batch / ms, 1), TFLOP_s=round(rate, 2), **shares,
        peak_memory=held(step.run, setting.device) if setting.device.type == "cuda" else 0, parameters=step.parameters,
        host_ms=round(1e3 * host, 1), ready_after_s=round(ready, 1), loss=round(float(loss), 3),
        pace=pace_of_cell(flat_settings(cell, 0)) if side == "ours" else "",
    )  # fmt: skip


def kernels(setting: Setting, name: str, step: Step) -> None:
    """What a step spends its time on, by kernel in profile.txt and by kind in the results."""
    rows = profile(step.run, setting.device, rows=400)
    with (setting.out / "profile.txt").open("a", encoding="utf-8") as file:
        file.write(f"\n{name}\n" + "".join(f"{ms:9.3f} ms {calls:5}x {key[:160]}\n" for key, ms, calls in rows[:60]))
    sums: dict[str, float] = {}
    for key, ms, _ in rows:
        kind = next((kind for kind, words in KINDS.items() if any(word in key.lower() for word in words)), "other")
        sums[kind] = sums.get(kind, 0.0) + ms
    total = sum(sums.values()) or 1.0
    for kind, ms in sorted(sums.items(), key=lambda pair: -pair[1]):
        setting.results.add("share of a step", cell=name, kernels=kind, ms=round(ms, 2), share=f"{ms / total:.1%}")


def determinism(setting: Setting) -> None:
    """Are two trainings equal to the bit, with and without `train.deterministic`, and what does it cost?"""
    cell = setting.cell(R50_OS16)
    for wanted in (True, False):  # first, because cuBLAS reads its setting once
        chosen = replace(cell, train=replace(cell.train, deterministic=wanted))
        states = []
        for _ in range(2):
            step = our_step(chosen, setting.classes(cell), setting.device)
            for number in range(setting.rounds(6)):
                torch.manual_seed(number)
                step.run()
            states.append([value.clone() for value in step.network.state_dict().values()])
        same = all(torch.equal(one, other) for one, other in zip(*states, strict=True))
        ms = typical(step.run, setting.rounds(6), setting.device)
        setting.results.add("determinism", deterministic=wanted, two_runs_equal_to_the_bit=same, ms=round(ms, 2))
    torch.use_deterministic_algorithms(False)
