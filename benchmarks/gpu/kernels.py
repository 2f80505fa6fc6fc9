"""What decides the speed of a cell, alone: convolutions (does dilation cost?), batch normalisation, and the loss."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.clock import held, typical
from benchmarks.gpu.setting import Setting
from benchmarks.work import batch, in_precision
from deeplab.losses.choice import Form, difference
from deeplab.losses.cross_entropy import in_chunks
from pipeline.training.device import choose_kernels_by_time, set_arithmetic

# Name, channels in and out, kernel, dilation, at 64x64 and batch 16: ResNet50 and 101 at output stride 8.
SHAPES = (
    *(("ASPP", 2048, 512, 3, rate) for rate in (1, 12, 24, 36)),
    ("projection", 2560, 512, 3, 1),
    ("layer4", 512, 512, 3, 4),
    ("layer3", 256, 256, 3, 2),
    ("1x1 down", 2048, 512, 1, 1),
    ("1x1 up", 512, 2048, 1, 1),
)
# The sizes that the loss has in the grid; that of the auxiliary head is the same.
CELLS = [f"{name}_resnet50_{stride}" for name in ("ade20k", "voc", "cityscapes") for stride in ("os8", "os16")]


def convolutions(setting: Setting) -> None:
    """TFLOP/s of each, forward and for the gradients of input and weights, channels last in bf16."""
    train = in_precision(setting.cell("voc_resnet50_os8"), "bf16").train
    set_arithmetic(train)
    choose_kernels_by_time(train)
    side, batch, divisor = (8, 2, 32) if setting.small else (64, 16, 1)
    for name, inside, outside, kernel, dilation in SHAPES:
        c, d, padding = inside // divisor, outside // divisor, dilation * (kernel // 2)
        shapes = ((batch, c, side, side), (d, c, kernel, kernel), (batch, d, side, side))
        x, weight, gradient = (noise(setting, *shape) for shape in shapes)
        options = (None, [1, 1], [padding] * 2, [dilation] * 2, False, [0, 0], 1)

        def back(*wanted: bool, given=(gradient, x, weight, *options)) -> object:  # type: ignore[no-untyped-def]
            return torch.ops.aten.convolution_backward(*given, wanted)

        def forward(given=(x, weight), padding=padding, dilation=dilation) -> Tensor:  # type: ignore[no-untyped-def]
            return F.conv2d(*given, padding=padding, dilation=dilation)

        ways = {
            "forward": forward,
            "dgrad": lambda back=back: back(True, False, False),
            "wgrad": lambda back=back: back(False, True, False),
        }
        work = 2 * gradient.numel() * c * kernel**2 / 1e9
        rates = {way: work / typical(run, setting.rounds(6), setting.device, 3) for way, run in ways.items()}
        about = {"name": name, "channels": f"{c} to {d}", "kernel": kernel, "dilation": dilation}
        setting.results.add("convolution, TFLOP/s", **about, **{way: round(rate, 1) for way, rate in rates.items()})
    for kind in (torch.bfloat16, torch.float16):
        normalise(setting, 512 // divisor, kind)


def noise(setting: Setting, *shape: int, kind: torch.dtype = torch.bfloat16) -> Tensor:
    """Random numbers, channels last."""
    return torch.randn(*shape, device=setting.device, dtype=kind).contiguous(memory_format=torch.channels_last)


def normalise(setting: Setting, channels: int, kind: torch.dtype) -> None:
    """Batch normalisation, forward and backward: torch's own kernels in bf16, cuDNN's in fp16."""
    side, batch = (8, 2) if setting.small else (64, 16)
    x = noise(setting, batch, channels, side, side, kind=kind).requires_grad_()
    norm, outer = torch.nn.BatchNorm2d(channels).to(setting.device), torch.ones_like(x)
    ms = typical(lambda: norm(x).backward(outer), setting.rounds(6), setting.device, 3)
    rate = 8 * x.numel() * x.element_size() / ms / 1e9
    setting.results.add("batch normalisation", type=str(kind), ms=round(ms, 3), TB_s_if_8_passes=round(rate, 2))


def losses(setting: Setting) -> None:
    """One loss and its gradient in both forms: time, memory beside the logits, and how far their numbers are apart."""
    for name in CELLS:
        cell = setting.cell(name)
        classes, (height, width), stride = setting.classes(cell), cell.recipe.crop, cell.model.output_stride
        _, masks = batch(cell, classes, setting.device)
        small = torch.randn(len(masks), height // stride, width // stride, classes, device=setting.device)
        forms: dict[str, Form] = {"in chunks": in_chunks}
        if setting.device.type == "cuda":
            from deeplab.losses.fused import in_one_pass

            forms["in one pass"] = in_one_pass
        for form, compute in forms.items():
            run, apart = partial(compute, small, masks), difference(compute(small, masks), in_chunks(small, masks))
            on_gpu = setting.device.type == "cuda"
            before = torch.cuda.memory_allocated(setting.device) if on_gpu else 0
            setting.results.add(
                "loss", cell=name, classes=classes, logits="x".join(map(str, small.shape)), form=form,
                ms=round(typical(run, setting.rounds(10), setting.device, 3), 3),
                MB_at_the_peak=round((held(run, setting.device) - before) / 1e6) if on_gpu else 0,
                differs_by=f"{apart:.1e}",
            )  # fmt: skip
