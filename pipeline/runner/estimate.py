"""What a training costs when nothing like it was measured: from its floating-point operations, within a factor.

The numbers of the backbones are typed here because asking timm takes seconds. tests/test_plan.py compares them with
what torch counts.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from deeplab.config import Cell, ModelConfig
from pipeline.training.facts import Facts

WITHIN = 2.5  # the truth is between an estimate divided by this, and times this
# FLOP/s of a training without any measurement: reports/benchmarks/step_cpu.md has 12 to 43 GFLOP/s for a thread.
PER_THREAD = 25e9


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """Facts of a backbone."""

    parameters: int
    flops: dict[int, int]  # output stride -> FLOPs per pixel of the input
    low: int  # channels of layer3
    high: int  # channels of layer4


def train_flops(cell: Cell) -> float | None:
    """FLOPs to train on one crop: three forward passes, without the auxiliary head. None for an unusual backbone."""
    model = cell.model
    backbone = BACKBONES.get(model.backbone)
    height, width = cell.recipe.crop
    if backbone is None:
        return None
    per_pixel = backbone.flops[model.output_stride] + 2 * head(model, backbone) / model.output_stride**2
    return 3 * height * width * per_pixel


def parameters(model: ModelConfig) -> int | None:
    """Parameters of a network without its biases and normalisation. None for an unusual backbone."""
    backbone = BACKBONES.get(model.backbone)
    if backbone is None:
        return None
    image = backbone.high * model.aspp_channels
    return backbone.parameters + head(model, backbone) + image + 9 * backbone.low * model.auxiliary_channels


def head(model: ModelConfig, backbone: Backbone) -> int:
    """Weights of ASPP that are multiplied at each position, (N, C, h, w) -> (N, D, h, w)."""
    rates, width = len(model.aspp_rates), model.aspp_channels
    return backbone.high * width * (1 + 9 * rates) + (rates + 2) * width**2 * model.projection_kernel**2


def speed(cell: Cell, device: str, known: Iterable[Facts]) -> float | None:
    """Images per second of a training of `cell` on one `device`, from the `known` trainings there. None is unknown."""
    flops = train_flops(cell)
    threads = cell.train.threads if device == "cpu" else 1
    rates = [rate for facts in known if (rate := rate_of(facts, device))]
    if not rates and device == "cpu":
        rates = [PER_THREAD]
    return threads * median(rates) / flops if rates and flops else None


def rate_of(facts: Facts, device: str) -> float | None:
    """FLOP/s of a training, per thread of a CPU or per GPU."""
    if not facts.flops or not facts.images_per_second:
        return None
    count: int = facts.settings.get("threads", 1) if device == "cpu" else max(facts.gpus_per_cell, default=1)
    return 3 * facts.flops * facts.images_per_second / count


BACKBONES = {
    "resnet18": Backbone(parameters=11_176_512, flops={8: 367_200, 16: 121_440}, low=256, high=512),
    "resnet34": Backbone(parameters=21_284_672, flops={8: 689_760, 16: 222_816}, low=256, high=512),
    "resnet50": Backbone(parameters=23_508_032, flops={8: 760_416, 16: 247_392}, low=1024, high=2048),
    "resnet50c": Backbone(parameters=23_527_264, flops={8: 769_968, 16: 256_944}, low=1024, high=2048),
    "resnet101": Backbone(parameters=42_500_160, flops={8: 1_352_288, 16: 395_360}, low=1024, high=2048),
    "resnet101c": Backbone(parameters=42_519_392, flops={8: 1_361_840, 16: 404_912}, low=1024, high=2048),
}
