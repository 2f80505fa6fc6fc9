"""A released network, ready to use: a weights file carries its settings, class names and colours."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from deeplab.config import Inference, ModelConfig, Protocol
from deeplab.errors import DataError, SettingsError
from deeplab.inference import Size, predict_batch, predict_tiles
from deeplab.model import DeepLabV3
from deeplab.store import Bytes, Color

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # of a folder in the form of a Hugging Face repository
WHOLE = Protocol(scales=(1.0,), flip=False, window=None, stride=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmenter:
    """A network in evaluation mode, and what its output means."""

    network: DeepLabV3
    settings: Inference
    classes: tuple[str, ...]
    palette: tuple[Color, ...]  # RGB of each class
    about: dict[str, Any]  # the metadata of the file
    device: torch.device

    def predict(self, image: Bytes) -> Bytes:
        """Segment one image: uint8 (H, W, 3) RGB -> class indices, uint8 (H, W); as `evaluate` does it."""
        labels: Bytes = self.predict_batch(image[None])[0]
        return labels

    def predict_batch(self, images: Bytes) -> Bytes:
        """Segment images of one size: uint8 (N, H, W, 3) RGB -> uint8 (N, H, W)."""
        return predict_batch(self.network, images, self.settings, WHOLE, self.device)

    def predict_tiles(self, image: Bytes, window: Size, stride: Size) -> Bytes:
        """Segment an image of any size tile by tile, at its own scale: uint8 (H, W, 3) RGB -> uint8 (H, W)."""
        return predict_tiles(self.network, image, self.settings, window, stride, self.device)


def load_model(path: Path, device: str = "cpu") -> Segmenter:
    """Load a weights file of this project, or a folder with model.safetensors and config.json.

    Raises DataError for a file that is missing, damaged or without settings, SettingsError for a device that torch does
    not have.
    """
    file = path / WEIGHTS if path.is_dir() else path
    about = read_about(file)
    try:
        settings = read_settings(about["settings"])
        classes = tuple(str(name) for name in about["classes"])
        palette = tuple((int(r), int(g), int(b)) for r, g, b in about["palette"])
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise DataError(
            f"{file}: does not contain the settings to use it ({what}). Train the cell again with the current code."
        ) from None
    if len(palette) != len(classes):
        raise DataError(f"{file}: {len(palette)} colours for {len(classes)} classes")
    if odd := [color for color in palette if not all(0 <= channel <= 255 for channel in color)]:
        raise DataError(f"{file}: the colour {list(odd[0])}, expected three numbers from 0 to 255")
    if not fits(file, settings.model, len(classes)):
        raise DataError(f"{file}: does not fit the network that its settings describe")
    network = DeepLabV3(replace(settings.model, pretrained=False), len(classes))
    try:
        network.load_state_dict(load_file(file))
        place = torch.device(device)
        network.to(place).to(memory_format=torch.channels_last)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file}: damaged ({error})") from None
    except (RuntimeError, AssertionError) as error:
        if "state_dict" in str(error):
            raise DataError(f"{file}: does not fit the network that its settings describe") from None
        raise SettingsError(f"device: got {device!r}: {str(error).partition(chr(10))[0]}") from None
    return Segmenter(
        network=network.eval().requires_grad_(False),
        settings=settings,
        classes=classes,
        palette=palette,
        about=about,
        device=place,
    )


def read_settings(settings: dict[str, Any]) -> Inference:
    """What prediction reads of the settings in a weights file. Raises ValidationError or KeyError for odd ones."""
    train = settings["train"]
    recipe = settings["recipe"]
    found = {"model": settings["model"], "resize": recipe["resize"], "align": recipe.get("align", False)}
    found |= {"precision": train["precision"], "tf32": train["tf32"]}
    return TypeAdapter(Inference).validate_json(json.dumps(found))


def fits(file: Path, model: ModelConfig, classes: int) -> bool:
    """Whether the heads in `file` have the sizes that its settings claim, which might exceed the memory."""
    with safe_open(file, framework="numpy") as content:
        names = set(content.keys())
        found = tuple(content.get_slice("classifier.weight").get_shape()) if "classifier.weight" in names else None
        auxiliary = content.get_slice("auxiliary.2.weight").get_shape()[1] if "auxiliary.2.weight" in names else 0
    atrous = {name.split(".")[2] for name in names if name.startswith("aspp.atrous.")}
    return (
        found == (classes, model.aspp_channels, 1, 1)
        and auxiliary == model.auxiliary_channels
        and len(atrous) == len(model.aspp_rates)
    )


def read_about(file: Path) -> dict[str, Any]:
    """The metadata of a weights file, or the content of config.json beside it. Raises DataError without either."""
    try:
        with safe_open(file, framework="numpy") as content:
            said = (content.metadata() or {}).get("about")
        config = file.with_name(CONFIG)
        about = json.loads(said or (config.read_text(encoding="utf-8") if config.exists() else "null"))
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{file}: not a weights file, or damaged, or a config.json beside it is ({error})") from None
    if not isinstance(about, dict):
        raise DataError(f"{file}: not weights of this project: no description in the file and no {CONFIG} beside it")
    return about
