"""Another toolbox's checkpoint as tensors of our network: every tensor finds its place, or the file is refused."""

import pickle
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab.config import ModelConfig
from deeplab.errors import DataError, SettingsError
from pipeline.files import BROKEN
from pipeline.verify.toolboxes.toolbox import Toolbox

if TYPE_CHECKING:
    from torch import Tensor, nn

COUNTER = "num_batches_tracked"  # no weight; files of old versions of torch lack it
BACKBONE = re.compile(r"resnet\d+c?(\..+)?")  # the names of timm, with the tag of their ImageNet weights or without
PROJECTION = "aspp.project.0.weight"


def read_tensors(file: Path, toolbox: Toolbox) -> dict[str, "Tensor"]:
    """The tensors of the checkpoint `file` under the names of `toolbox`, read without running any code in it.

    Raises DataError for a file that is damaged, of another form, or a pickle that wants more than tensors.
    """
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # of a protocol of pickle that torch does not write
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, *BROKEN) as error:
        if wanted := unsafe_names(file, str(error)):
            raise DataError(
                f"{file}: wants to run {', '.join(wanted)}, and nothing but tensors is read from a checkpoint. Load it "
                "with its toolbox, if you trust it, and save its tensors alone."
            ) from None
        raise DataError(f"{file}: not a checkpoint of torch, or damaged. Get it again.") from None
    if toolbox.state is not None:
        if not isinstance(content, dict) or toolbox.state not in content:
            raise DataError(f"{file}: has no {toolbox.state!r}, in which this toolbox keeps the network (--from)")
        content = content[toolbox.state]
    if not isinstance(content, dict) or not content:
        raise DataError(f"{file}: not a dictionary of tensors, as this toolbox saves it (--from)")
    for name, value in content.items():
        if not isinstance(name, str) or not is_plain(value):
            raise DataError(f"{file}: {name!r} is no plain tensor, but {type(value).__name__} (--from)")
    return content


def is_plain(value: Any) -> bool:
    """Whether `value` is a tensor with an element in the file for each of its own."""
    import torch

    plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return plain and value.untyped_storage().nbytes() >= value.nbytes


def unsafe_names(file: Path, message: str) -> list[str]:
    """What a pickle asks for beside tensors; of a file in the old form of torch only the first, from its error."""
    import torch

    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(file)))
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError):
        return re.findall(r"GLOBAL (\S+)", message)[:1]


def as_ours(
    file: Path, toolbox: Toolbox, cell: str, model: ModelConfig, classes: tuple[str, ...]
) -> tuple[ModelConfig, "nn.Module"]:
    """The network of the cell named `cell` with the tensors of `file`, in evaluation mode, and its settings.

    These are `model`, but with the auxiliary head of the file.

    Raises SettingsError when the toolbox has no network with these settings. Raises DataError, with the name of the
    first tensor, when one has no place, is missing, has another shape, or holds NaN or infinity.
    """
    import torch

    from deeplab.model import DeepLabV3

    for key, allowed in toolbox.settings().items():
        if getattr(model, key) not in allowed:
            values = " or ".join(str(list(each) if isinstance(each, tuple) else each) for each in allowed)
            raise SettingsError(f"{cell}: model.{key}: got {getattr(model, key)}, but these weights need {values}")
    tensors = read_tensors(file, toolbox)
    auxiliary = next(
        (len(value) for name, value in tensors.items() if toolbox.rename(name) == "auxiliary.0.0.weight"), 0
    )
    model = replace(model, auxiliary_channels=auxiliary)
    with torch.device("meta"):
        network = DeepLabV3(replace(model, pretrained=False), len(classes))
    needed = network.state_dict()
    plain = BACKBONE.fullmatch(model.backbone)  # others with the same names pool or dilate in other places
    if not plain or "backbone.layer4.0.conv3.weight" not in needed:
        raise SettingsError(
            f"{cell}: model.backbone: got {model.backbone!r}, but only ResNets with blocks of three convolutions "
            "(resnet50, resnet101c and so on) compute here what they compute in the toolbox"
        )
    found = placed(file, toolbox, cell, tensors, needed)
    for name in sorted(needed.keys() - found.keys()):
        if not name.endswith(COUNTER):
            raise DataError(f"{file}: lacks {name!r} of the network of {cell}: weights of another network")
        found[name] = torch.zeros((), dtype=torch.int64)
    if toolbox.image_first:
        found[PROJECTION] = found[PROJECTION].roll(-model.aspp_channels, dims=1)
    network.load_state_dict(
        {name: found[name].to(value.dtype).contiguous() for name, value in needed.items()}, assign=True
    )
    return model, network.eval()


def placed(
    file: Path, toolbox: Toolbox, cell: str, tensors: dict[str, "Tensor"], needed: dict[str, "Tensor"]
) -> dict[str, "Tensor"]:
    """`tensors` under our names. Raises DataError as `as_ours` does."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        ours = toolbox.rename(name)
        if ours is None or ours not in needed or ours in found:
            raise DataError(f"{file}: {name!r} has no place in the network of {cell}: weights of another network")
        shape, expected = tuple(value.shape), tuple(needed[ours].shape)
        if ours == "classifier.weight" and shape[:1] != expected[:1]:
            raise DataError(f"{file}: {name!r} has {shape[0]} classes, but the data set of {cell} has {expected[0]}")
        if shape != expected:
            raise DataError(f"{file}: {name!r} has the shape {shape}, but the network of {cell} has {expected} there")
        if not value.isfinite().all():
            raise DataError(f"{file}: {name!r} holds NaN or infinity. Get the file again.")
        found[ours] = value
    return found
