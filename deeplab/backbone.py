"""ResNets that keep their resolution: timm's networks at an output stride of 8 or 16 (DeepLabv3, section 3.1)."""

import difflib
from pathlib import Path
from typing import Any

import timm
from torch import nn

from deeplab.config import ModelConfig
from deeplab.errors import DataError, SettingsError

TAPS = (3, 4)  # layer3 feeds the auxiliary head, layer4 the ASPP


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
            f"({type(error).__name__}: {error}). Choose a ResNet, which has five levels that timm can dilate."
        ) from None
    if config.pretrained:
        backbone = load_imagenet(name, options, weights)
    apply_multi_grid(backbone, config.multi_grid)
    low, high = backbone.feature_info.channels()  # type: ignore[operator, union-attr]
    return backbone, (low, high)


def load_imagenet(name: str, options: dict[str, Any], folder: Path | None) -> nn.Module:
    """The timm network `name` with its ImageNet weights, from `folder` if they are there, else by timm's loader."""
    source = timm.models.get_pretrained_cfg(name)
    if source is None or not (source.hf_hub_id or source.url or source.file):
        raise SettingsError(
            f"pretrained: timm has no ImageNet weights for {name!r}. Set pretrained: false for this cell."
        )
    file = folder / f"{source.architecture}.{source.tag}.safetensors" if folder else None
    overlay = {"file": str(file)} if file and file.exists() else None
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except Exception as error:  # noqa: BLE001  the loader's errors range from OSError to those of three HTTP libraries
        if overlay:
            raise DataError(f"{file}: not the weights of {name!r} ({first_line(error)})") from None
        raise DataError(
            f"ImageNet weights {source.hf_hub_id or source.url!r} are neither at {file} nor in the Hugging Face cache, "
            f"and could not be downloaded ({first_line(error)}). Place that repository's model.safetensors at {file}, "
            f"or set pretrained: false for the cell (shown as PRE=none)."
        ) from None
    return model


def apply_multi_grid(backbone: nn.Module, factors: tuple[int, ...]) -> None:
    """Multiply the dilation of layer4's blocks by `factors` (DeepLabv3, section 4.2.1: rates 2 * (1, 2, 4) at stride
    16).

    With all factors 1 the layer stays as timm builds it: the first block has half the dilation of the layer.
    """
    if set(factors) == {1}:
        return
    blocks = list(backbone["layer4"]) if "layer4" in dict(backbone.named_children()) else []  # type: ignore[index]
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
