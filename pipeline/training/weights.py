"""The published weights of a cell, checked and loaded as the network that was trained."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deeplab.config import Cell, Protocol
from deeplab.errors import DataError

if TYPE_CHECKING:
    from torch import nn

    from deeplab.store import Store


def check_weights(files: Iterable[Path], name: str, cell: Cell, store: "Store") -> str:
    """Compare the metadata of each file with the current settings and data. Returns the hash of the training code.

    Raises FileNotFoundError for a missing file, DataError for a damaged one, for weights of other settings, data or
    classes, and for seeds that were trained by different code.
    """
    from deeplab.segmenter import read_about

    remedy = f"Run: dvc repro train@{name}"
    codes: set[str] = set()
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"{file}: weights not found. {remedy}")
        try:
            about = read_about(file)
        except DataError as error:
            raise DataError(f"{error}. {remedy}") from None
        expected = {
            "settings": ("cell", cell.fingerprint),
            "data": ("data", store.fingerprint),
            "classes": ("classes", list(store.classes)),
        }
        if differ := [what for what, (key, value) in expected.items() if about.get(key) != value]:
            raise DataError(f"{file}: trained with different {' and '.join(differ)}. {remedy}")
        codes.add(about.get("code", ""))
    if len(codes) > 1:
        raise DataError(f"{file.parent}: the seeds were trained by different versions of the code. {remedy}")
    return codes.pop()


def load_network(file: Path, name: str, cell: Cell, classes: int, protocol: Protocol) -> "nn.Module":
    """The network of `cell` with the weights in `file`, in evaluation mode and channels last, as `protocol` wants it.

    Raises DataError when they do not fit, SettingsError for a backbone that cannot have the protocol's output stride.
    """
    import torch
    from safetensors.torch import load_file

    from deeplab.model import DeepLabV3

    stride = protocol.output_stride or cell.model.output_stride  # changes dilations and strides, no weight
    network = DeepLabV3(replace(cell.model, pretrained=False, output_stride=stride), classes)
    try:
        network.load_state_dict(load_file(file))
    except RuntimeError:
        raise DataError(f"{file}: does not fit the network of the current code. Run: dvc repro train@{name}") from None
    return network.to(memory_format=torch.channels_last).eval()
