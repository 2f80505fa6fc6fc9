"""DeepLabv3 as a pure library: tensors, arrays and frozen settings in and out."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deeplab.segmenter import Segmenter


def load_model(path: str | Path, device: str = "cpu") -> "Segmenter":
    """The trained network in `path`, ready to use: `load_model("seed0.safetensors").predict(image)`.

    See deeplab.segmenter.load_model, which this imports when it is called: torch takes seconds.
    """
    from deeplab.segmenter import load_model

    return load_model(Path(path), device)
