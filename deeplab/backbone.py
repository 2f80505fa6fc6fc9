"""Backbones that keep their resolution: timm's networks at an output stride of 8 or 16 (DeepLabv3, section 3.1)."""

import difflib
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from deeplab.config import ModelConfig
from deeplab.errors import DataError, SettingsError

TAPS = (-2, -1)  # a ResNet's layer3 feeds the auxiliary head, its layer4 the ASPP
NORMALISATION = 0.01  # of 0..1: two sources of one network differ by up to 0.004


def build_backbone(config: ModelConfig, weights: Path | None = None) -> tuple[nn.Module, tuple[int, int]]:
    """The network named by `config` and the channels of its last two levels.

    (N, 3, H, W) -> [(N, C3, h, w), (N, C4, h, w)]; at output stride 8 both are H / 8, at 16 both are H / 16.
    `weights` is a folder that is searched for ImageNet weights before timm downloads them.

    Raises SettingsError for a name that timm does not know or cannot dilate, DataError for unavailable weights.
    """
    name = BACKBONES.get(config.backbone, config.backbone)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*BACKBONES, *timm.list_models()], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see timm.list_models()"
        raise SettingsError(f"backbone: unknown name {config.backbone!r}; {hint}")
    options: dict[str, Any] = {"features_only": True, "output_stride": config.output_stride, "out_indices": TAPS}
    try:
        backbone = timm.create_model(name, pretrained=False, **options)
    except (IndexError, NotImplementedError, TypeError, ValueError, AssertionError) as error:
        raise SettingsError(
            f"backbone: {name!r} cannot be used at output stride {config.output_stride} "
            f"({type(error).__name__}: {error}). Choose one of the table in docs/use-a-model.md, such as a ResNet."
        ) from None
    if config.pretrained:
        backbone = load_imagenet(config, name, options, weights)
    apply_multi_grid(backbone, config.multi_grid)
    low, high = backbone.feature_info.channels()  # type: ignore[operator, union-attr]
    return backbone, (low, high)


def load_imagenet(config: ModelConfig, name: str, options: dict[str, Any], folder: Path | None) -> nn.Module:
    """The timm network `name` with its ImageNet weights, from `folder` if they are there, else from the Hub.

    Raises SettingsError when timm names no weights, or other mean and std than `config`. Raises DataError for a file
    that lacks a tensor of the network up to its pooling: timm itself would leave that tensor random.
    """
    source = timm.models.get_pretrained_cfg(name)
    if source is None or not source.hf_hub_id:
        raise SettingsError(
            f"pretrained: timm has no ImageNet weights for {name!r}. Set pretrained: false for this cell."
        )
    require_normalisation(config, source)
    file = imagenet_file(f"{source.architecture}.{source.tag}", source.hf_hub_id, folder)
    require_whole(file, name)
    try:
        overlay = {"file": str(file)}
        model: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except Exception as error:  # noqa: BLE001  timm's renaming of other projects' files may raise anything
        raise DataError(f"{file}: not the weights of {name!r} ({first_line(error)})") from None
    if odd := [key for key, value in model.state_dict().items() if not value.isfinite().all()]:
        raise DataError(f"{file}: {odd[0]} holds NaN or infinity. Get the file again.")
    return model


def imagenet_file(name: str, repository: str, folder: Path | None) -> Path:
    """The weights file `name` in `folder`, or from the Hugging Face cache, or downloaded into that cache."""
    place = (folder or Path()) / f"{name}.safetensors"
    if folder and place.exists():
        return place
    cached = huggingface_hub.try_to_load_from_cache(repository, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached)
    try:
        huggingface_hub.HfApi().model_info(repository, timeout=5)  # one try: the download itself tries for a minute
        return Path(huggingface_hub.hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # noqa: BLE001  the loader's errors range from OSError to those of two HTTP libraries
        raise DataError(
            f"ImageNet weights {repository!r} are neither at {place} nor in the Hugging Face cache, "
            f"and could not be downloaded ({first_line(error)}). Place that repository's model.safetensors at {place}, "
            f"or set pretrained: false for the cell (shown as PRE=none)."
        ) from None


def require_whole(file: Path, name: str) -> None:
    """Raise DataError unless `file` holds each tensor of the network `name` without its classifier."""
    with torch.device("meta"):
        needed = timm.create_model(name, num_classes=0).state_dict().keys()
    try:
        with safe_open(file, framework="numpy") as content:
            missing = needed - content.keys()
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file}: not a safetensors file, or cut short ({first_line(error)}). Get it again.") from None
    missing = {key for key in missing if not key.endswith("num_batches_tracked")}  # no weight; older files lack it
    if missing:
        raise DataError(
            f"{file}: not the weights of {name!r}: {len(missing)} of its {len(needed)} tensors are missing, "
            f"for example {min(missing)}. Place the file of timm's repository, with timm's names."
        )


def require_normalisation(config: ModelConfig, source: timm.models.PretrainedCfg) -> None:
    """Raise SettingsError when `mean` or `std` are not those that the ImageNet weights were trained with."""
    for key, own, theirs in (("mean", config.mean, source.mean), ("std", config.std, source.std)):
        if any(abs(a / 255 - b) > NORMALISATION for a, b in zip(own, theirs, strict=True)):
            right = [round(255 * value, 3) for value in theirs]
            raise SettingsError(
                f"model.{key}: got {list(own)}, but the ImageNet weights of {config.backbone!r} expect {right}"
            )


def apply_multi_grid(backbone: nn.Module, factors: tuple[int, ...]) -> None:
    """Multiply the dilation of layer4's blocks by `factors` (DeepLabv3, section 4.2.1: rates 2 * (1, 2, 4) at stride
    16).

    With all factors 1 the layer stays as timm builds it: the first block has half the dilation of the layer.
    """
    if set(factors) == {1}:
        return
    if "layer4" not in dict(backbone.named_children()):
        raise SettingsError("multi_grid: this backbone has no layer4 as a ResNet has. Leave multi_grid at [1, 1, 1].")
    blocks = list(backbone["layer4"])  # type: ignore[index]
    if len(blocks) != len(factors):
        raise SettingsError(f"multi_grid: got {list(factors)}, expected {len(blocks)} factors, one per block of layer4")
    dilated = [[c for c in block.modules() if isinstance(c, nn.Conv2d) and c.kernel_size == (3, 3)] for block in blocks]
    unit = dilated[-1][-1].dilation[0]
    for convolutions, factor in zip(dilated, factors, strict=True):
        for convolution in convolutions:
            convolution.dilation = convolution.padding = (unit * factor, unit * factor)


def first_line(error: Exception) -> str:
    """The type and the first line of `error`, for a message of one line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]}"


# Name in params.yaml -> timm name with the tag of its weights. Any other timm name is valid as it is.
BACKBONES = {
    "resnet50c": "resnet50c.gluon_in1k",  # ResNet-V1c: three 3x3 convolutions instead of one 7x7
    "resnet101c": "resnet101c.gluon_in1k",
}
