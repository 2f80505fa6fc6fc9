"""Every setting that can move a number, as frozen values checked on construction.

The defaults are in `params.yaml`, where a reader looks for them. This file computes nothing, so a stage depends on the
settings and not on this code.
"""

import hashlib
import json
import re
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[PositiveFloat, PositiveFloat]
LOSS_TERM = re.compile(r"\s*(?:(\d+(?:\.\d+)?)\s*\*\s*)?(\w+)\s*")  # as `dice` or `0.5*dice`
Part = Literal["backbone", "aspp", "head", "classifier", "auxiliary"]  # of DeepLabV3


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """The network (DeepLabv3, section 3)."""

    backbone: str  # a key of BACKBONES or any timm name that takes output_stride
    output_stride: Literal[8, 16]  # image size / feature size
    pretrained: bool  # start from ImageNet weights
    multi_grid: tuple[Positive, ...]  # factors on the dilations of layer4's blocks; (1, 1, 1) is off
    aspp_channels: Positive
    aspp_rates: tuple[Positive, ...]  # at output stride 16; doubled at 8
    projection_kernel: Literal[1, 3]  # of the convolution that fuses the ASPP branches; the paper has 1
    auxiliary_channels: Annotated[int, Field(ge=0)]  # of the extra head on layer3; 0 leaves it out
    dropout: Annotated[float, Field(ge=0, lt=1)]
    head_convolution: bool = False  # a 3x3 convolution between ASPP and classifier, as torchvision has
    mean: tuple[float, float, float]  # of RGB in 0..255; belongs to the weights
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]


def check_pattern(key: str, pattern: str) -> None:
    """Raise ValueError when `pattern` is not a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{key}: got {pattern!r}, expected a regular expression ({error})") from None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FoldConfig:
    """k-fold cross-validation over groups of images of the training split."""

    count: Annotated[int, Field(ge=2)]
    group: str | None = None  # a regular expression: images in whose name it finds the same stay together

    def __post_init__(self) -> None:
        check_pattern("group", self.group or "")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RecipeConfig:
    """What differs between data sets: sizes, schedule and splits."""

    train_split: str
    val_split: str
    folds: FoldConfig | None = None  # run k trains without fold k of train_split, and is evaluated on it
    crop: tuple[Positive, Positive]  # height, width
    resize: tuple[Positive, Positive]  # long and short side of the box that an image is fitted into
    align: bool = False  # predict on images padded to a multiple of the output stride
    lr: PositiveFloat
    policy: Literal["poly"]
    batch_size: Positive  # of the whole step, over all devices
    epochs: Positive

    def __post_init__(self) -> None:
        if self.batch_size == 1:
            raise ValueError(
                "batch_size: got 1, expected 2 or more: the image pooling branch of ASPP gives one value per channel, "
                "and batch normalisation has no variance over one value"
            )
        if self.train_split == self.val_split:
            raise ValueError(f"val_split: got {self.val_split!r}, expected another split than train_split")
        if self.resize[0] < self.resize[1]:
            raise ValueError(f"resize: got {list(self.resize)}, expected [long side, short side]")

    @property
    def splits(self) -> str:
        """What the tables show as Train/Eval Set."""
        return (
            f"{self.train_split} in {self.folds.count} folds" if self.folds else f"{self.train_split}/{self.val_split}"
        )

    @property
    def eval_split(self) -> str:
        """The split whose images the cell is evaluated on."""
        return self.train_split if self.folds else self.val_split


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig:
    """Optimizer and arithmetic, shared by all cells."""

    momentum: Share
    weight_decay: Annotated[float, Field(ge=0)]
    poly_power: PositiveFloat
    min_lr: Annotated[float, Field(ge=0)]
    loss: str  # a key of LOSSES, or a sum as cross_entropy+0.5*dice
    auxiliary_weight: Annotated[float, Field(ge=0)]  # of the auxiliary head's loss
    precision: Literal["fp32", "bf16", "fp16"]
    tf32: bool
    compile: bool  # the network by torch.compile, whose kernels round otherwise
    threads: Positive  # of torch on the CPU: another count gives other bits
    deterministic: bool = False  # on a GPU: only kernels that give the same bits each time, none chosen by time
    freeze: tuple[Part, ...] = ()  # parts that keep their weights and running statistics
    freeze_norm: bool = False  # batch normalisation keeps its weights, biases and running statistics everywhere
    backbone_lr: PositiveFloat = 1.0  # factor on the learning rate of the backbone
    # For classes that are rare.
    class_weights: Literal["median_frequency"] | None = None  # from the pixels of the training split
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    ohem_threshold: Annotated[float, Field(gt=0, le=1)] = 0.7  # probability of the true class below which it is hard
    ohem_min_share: Share = 0.0625  # of the valid pixels
    # Which weights a training ends with.
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay of the moving average of the weights
    keep: Literal["last", "best"] = "last"  # best: those with the highest mIoU on the validation split
    patience: Positive | None = None  # validations without a higher mIoU after which the training ends
    validate_every: Positive = 1  # epochs between the validations that keep and patience look at

    def __post_init__(self) -> None:
        names = [match and match[2] for match in map(LOSS_TERM.fullmatch, self.loss.split("+"))]
        if None in names or len(set(names)) < len(names):
            raise ValueError(
                f"loss: got {self.loss!r}, expected the name of a loss, or different ones joined by +, each with a "
                f"factor if wanted, as cross_entropy+0.5*dice"
            )
        if "weighted_cross_entropy" in names and not self.class_weights:
            raise ValueError("class_weights: missing, expected median_frequency with loss weighted_cross_entropy")

    @property
    def losses(self) -> dict[str, float]:
        """The terms of `loss`, key of LOSSES -> factor. With class weights, cross-entropy is the weighted one."""
        terms = [match for match in map(LOSS_TERM.fullmatch, self.loss.split("+")) if match]
        found = {match[2]: float(match[1] or 1) for match in terms}
        if self.class_weights and "cross_entropy" in found:
            found["weighted_cross_entropy"] = found.pop("cross_entropy")
        return found

    @property
    def validates(self) -> bool:
        """Whether the validation split decides which weights a training ends with."""
        return self.keep == "best" or self.patience is not None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AugmentConfig:
    """Random changes to a training sample, in the order in which they are made."""

    scale: Range  # factor on the fitted size, uniform
    crop_tries: Positive  # until no class covers max_class_share of the valid pixels
    max_class_share: Share
    flip: Share  # probability
    transforms: tuple[str, ...] = ("photometric",)  # keys of AUGMENTATIONS, applied in this order after the flip
    photometric: Share  # probability of each of the four changes below
    brightness: Annotated[float, Field(ge=0, le=255)]  # added, uniform in +-this
    contrast: Range  # factor
    saturation: Range  # factor
    hue: Annotated[float, Field(ge=0, le=90)]  # turned by +-this, where 180 is the whole circle

    def __post_init__(self) -> None:
        for name in ("scale", "contrast", "saturation"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: got [{low}, {high}], expected [low, high]")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Protocol:
    """One way to evaluate a network; costs no training."""

    scales: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]  # factors on the fitted size
    flip: bool  # average with the mirrored image
    window: tuple[Positive, Positive] | None  # height, width of a sliding window; null is the whole image
    stride: tuple[Positive, Positive] | None  # of the window
    align: bool = False  # as `align` of the recipe, for this protocol
    output_stride: Literal[8, 16] | None = None  # null: that of training (section 4, inference strategy)

    def __post_init__(self) -> None:
        if (self.window is None) != (self.stride is None):
            raise ValueError("window and stride: expected both or neither")
        if self.window and self.stride and (self.stride[0] > self.window[0] or self.stride[1] > self.window[1]):
            raise ValueError(f"stride: got {list(self.stride)}, expected at most the window, {list(self.window)}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Inference:
    """What prediction reads of a cell: weights stay usable when settings of training are added."""

    model: ModelConfig
    resize: tuple[Positive, Positive]  # long and short side of the box that an image is fitted into
    precision: Literal["fp32", "bf16", "fp16"]
    tf32: bool
    align: bool = False  # pad images to a multiple of the output stride


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InitConfig:
    """The segmentation network that a cell starts from, instead of ImageNet weights: one of cell, file and hub."""

    cell: str | None = None  # another cell of the grid; each seed starts from the same seed of it
    file: str | None = None  # a safetensors file, or a folder with model.safetensors
    hub: str | None = None  # a repository of the Hugging Face Hub with model.safetensors
    revision: str | None = None  # of that repository
    sha256: str | None = None  # of the safetensors file; of a cell the settings decide
    parent: "Cell | None" = None  # the settings of `cell`, from params.yaml

    def __post_init__(self) -> None:
        named = [name for name in ("cell", "file", "hub") if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"init: got {' and '.join(named) or 'neither'}, expected one of cell, file and hub")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision: got one without hub, expected it beside hub only")
        if self.cell is not None:
            if self.sha256 is not None:
                raise ValueError("sha256: got one beside cell, expected it beside file or hub only")
        elif self.sha256 is None:
            raise ValueError(
                f"sha256: missing beside {named[0]}. Add the SHA-256 of the safetensors file, which other bytes do not "
                "have (sha256sum prints it)"
            )
        elif not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256: got {self.sha256!r}, expected 64 digits 0-9 a-f")

    @property
    def label(self) -> str:
        """What a table shows as PRE: the name of the cell, the file or the repository."""
        return self.cell or self.hub or PurePath(self.file or "").name


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Cell:
    """One cell of the grid: everything that its numbers depend on, except the data, the code and the seed."""

    dataset: str
    model: ModelConfig
    recipe: RecipeConfig
    train: TrainConfig
    augment: AugmentConfig
    init: InitConfig | None = None  # what the weights are before the first step; None: as model.pretrained says

    def __post_init__(self) -> None:
        if self.recipe.folds and self.train.validates:
            raise ValueError("recipe.folds: expected without keep: best and patience, which would choose on the fold")

    @property
    def pretraining(self) -> str:
        """What the tables show as PRE."""
        return self.init.label if self.init else "ImageNet" if self.model.pretrained else "none"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all settings of the cell, except those at their default.

        A new optional setting therefore changes no fingerprint of a cell that does not use it.
        """
        return digest(without_defaults(self))

    @property
    def inference(self) -> Inference:
        """The settings that prediction and evaluation read."""
        recipe, train = self.recipe, self.train
        return Inference(
            model=self.model,
            resize=recipe.resize,
            align=recipe.align,
            precision=train.precision,
            tf32=train.tf32,
        )


def without_defaults(settings: Any) -> Any:
    """A settings dataclass as nested dictionaries, without the fields that have their default value."""
    if not is_dataclass(settings):
        return settings
    values = {field.name: (field.default, getattr(settings, field.name)) for field in fields(settings)}
    return {name: without_defaults(value) for name, (default, value) in values.items() if value != default}


def digest(value: Any) -> str:
    """SHA-256 of `value` in canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
