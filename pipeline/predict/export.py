"""Export a trained network for use elsewhere, and compare what was written with the network: `grid export CELL onnx`.

Input: RGB in 0..255 as float32, (N, 3, H, W), any number of images, each side at least 32 pixels; normalised inside.
Output: logits (N, K, H, W); the largest one gives a pixel's class. The file states its classes, its colours and the box
that images are resized into for the numbers of the tables. The format huggingface is a folder as a Hugging Face
repository has it, which `deeplab.load_model` reads. The format submission holds masks instead: see `submission`.
"""

import io
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deeplab.errors import DataError
from deeplab.inference import pad_to_multiple
from deeplab.model import upsample
from deeplab.segmenter import CONFIG, WEIGHTS, Segmenter, load_model
from pipeline.errors import ParamsError
from pipeline.files import writable, write_whole
from pipeline.predict import submission
from pipeline.predict.predict import allow_tf32, pick_device
from pipeline.predict.weights import find_weights, is_cell
from pipeline.settings.params import load_params
from pipeline.settings.places import Places

TOLERANCE = 1e-3  # on logits
SIZES = ((1, 3, 65, 97), (2, 3, 96, 64))  # checked: each differs from TRACED in number, height and width
TRACED = (2, 3, 64, 80)
SUBMISSION = "submission"

Network = Callable[[Tensor], Tensor]


def run(
    name: str, kind: str, out: Path, *, seed: int = 0, images: Path | None = None, places: Places = Places()
) -> Path:
    """Write the network `name` (a cell, a weights file, or a folder of one) to the folder `out`; `kind` is in FORMATS.

    Or what it predicts for a test server, or for `images`, when `kind` is SUBMISSION. Returns the path of what was
    written. Raises ParamsError for an unknown format or a missing package, and DataError when the exported network
    gives other logits than the original; then nothing is written.
    """
    check_format(kind)
    if images and kind != SUBMISSION:
        raise ParamsError(f"--images: got {images}, which belongs to the format {SUBMISSION}")
    file = find_weights(name, seed, places)
    if kind == SUBMISSION:
        model = load_model(file, pick_device(None))
        allow_tf32(model.settings.tf32)
        return submission.write(model, images, out, places)
    return write(load_model(file), file, kind, out, card_of(name, places) if is_cell(name) else None)


def card_of(cell: str, places: Places) -> Path | None:
    """The model card of `cell`, if it has one; a data set that was removed may have left one of the same name."""
    card = places.cards(load_params(places.params).cell(cell).dataset) / f"{cell}.md"
    return card if card.exists() else None


def check_format(kind: str) -> None:
    """ParamsError for an unknown format, or for one that needs a package which is not installed."""
    known = (*FORMATS, SUBMISSION)
    if kind not in known:
        raise ParamsError(f"format: got {kind!r}, expected one of {', '.join(known)}")
    for package in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ():
        if find_spec(package) is None:
            raise ParamsError(f"format onnx: the package {package} is missing. Run: pip install {package}")


def write(model: Segmenter, weights: Path, kind: str, out: Path, card: Path | None = None) -> Path:
    """As `run`, for a `model` loaded from `weights`; `card` becomes the README.md of a repository."""
    writable(out)
    if kind == "huggingface":
        return write_repository(model, weights, out, card)
    suffix, make = FORMATS[kind]
    path = out / f"model{suffix}"
    network = Deployable(model).eval()
    content, reloaded = make(network, about(model))
    torch.manual_seed(0)
    worst = 0.0
    for size in SIZES:
        images = 255 * torch.rand(size)
        with torch.inference_mode():
            worst = max(worst, float((reloaded(images) - network(images)).abs().max()))
    if not worst <= TOLERANCE:
        raise DataError(
            f"{path}: not written: its logits differ by {worst:.2g} from the network's, expected {TOLERANCE:g} at most"
        )
    write_whole(path, content)
    print(f"{path}: largest difference of a logit {worst:.1e} on {' and '.join('x'.join(map(str, s)) for s in SIZES)}")
    return path


class Deployable(nn.Module):
    """The network from raw pixels to logits at their size: (N, 3, H, W) RGB in 0..255 -> (N, K, H, W)."""

    mean: Tensor
    std: Tensor
    stride: int  # 0: no padding

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.network = model.network.to(memory_format=torch.contiguous_format)  # a pt2 holds no other
        self.stride = model.settings.model.output_stride if model.settings.align else 0
        self.register_buffer("mean", torch.tensor(model.settings.model.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(model.settings.model.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        x = (images - self.mean) / self.std
        if self.stride:
            x = pad_to_multiple(x, self.stride)
        return upsample(self.network(x), *x.shape[-2:])[..., :height, :width]


def about(model: Segmenter) -> dict[str, str]:
    """What the file states about itself."""
    return {
        "classes": json.dumps(model.classes),
        "palette": json.dumps(model.palette),
        "resize": json.dumps(model.settings.resize),
        "input": "float32 RGB in 0..255, (N, 3, H, W)",
        "output": "logits (N, K, H, W)",
    }


def dynamic_axes() -> dict[int, Any]:
    """The axes of the input whose length is left open.

    AUTO, because a network with "same" padding, as EfficientNet-Lite, asks whether a side is even: a named axis refuses
    that. What was fixed by mistake is found on SIZES.
    """
    return dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)


def make_onnx(network: nn.Module, metadata: dict[str, str]) -> tuple[bytes, Network]:
    """The content of the file, and the network that onnxruntime loads from it."""
    import numpy as np
    import onnx
    import onnxruntime

    program = torch.onnx.export(
        network,
        (torch.zeros(TRACED),),
        dynamo=True,
        external_data=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=(dynamic_axes(),),
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, metadata)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: torch.from_numpy(np.asarray(session.run(None, {"images": images.numpy()})[0]))


def make_pt2(network: nn.Module, metadata: dict[str, str]) -> tuple[bytes, Network]:
    """The content of the file, and the network that torch loads from it."""
    if network.stride:
        raise DataError("format pt2: torch cannot save whether an aligned network has to pad. Use onnx.")
    buffer = io.BytesIO()  # saving to a file hides a full disk behind an unrelated error
    try:
        exported = torch.export.export(network, (torch.zeros(TRACED),), dynamic_shapes=(dynamic_axes(),))
        torch.export.save(exported, buffer, extra_files=metadata)
    except Exception as error:  # noqa: BLE001  torch raises private types, an AssertionError among them
        raise DataError(
            "format pt2: torch cannot save this network for images of any size "
            f"({str(error).partition(chr(10))[0][:80]}). So it is with the padding of EfficientNet-Lite. Use onnx."
        ) from None
    loaded: Network = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    return buffer.getvalue(), loaded


def write_repository(model: Segmenter, weights: Path, out: Path, card: Path | None) -> Path:
    """Write model.safetensors, config.json and, when the cell has one, its card as README.md."""
    source = weights / WEIGHTS if weights.is_dir() else weights
    if source.resolve() != (out / WEIGHTS).resolve():
        write_whole(out / WEIGHTS, source.read_bytes())
    write_whole(out / CONFIG, json.dumps(model.about, indent=2, sort_keys=True) + "\n")
    if card:
        write_whole(out / "README.md", card.read_bytes())
    load_model(out)
    print(f"{out}: {WEIGHTS}, {CONFIG}" + (", README.md" if card else ", but no README.md: no model card was found"))
    return out


# Name -> suffix of the file, and what makes its content and loads it again.
FORMATS: dict[str, tuple[str, Any]] = {
    "onnx": (".onnx", make_onnx),
    "pt2": (".pt2", make_pt2),
    "huggingface": ("", write_repository),
}
