"""Export a trained network for use elsewhere, and hold what was written against the network itself.

In: RGB in 0..255 as float32, (N, 3, H, W), any number of images, each side 32 pixels or more; normalised inside. Out:
logits (N, K, H, W), of which the largest is a pixel's class. The file says its classes, colours and the box that images
are resized into for the numbers of the tables. The format huggingface is a folder as a repository has it, which
`deeplab.load_model` reads.
"""

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab.errors import DataError
from pipeline.errors import ParamsError
from pipeline.files import writable, write_whole

if TYPE_CHECKING:
    import torch
    from torch import nn

    from deeplab.segmenter import Segmenter

TOLERANCE = 1e-3  # on logits
SIZES = ((1, 3, 65, 97), (2, 3, 96, 64))  # on which it is checked: another number, height and width than traced
TRACED = (2, 3, 64, 80)
SMALLEST = 32  # pixels of a side: at output stride 16 fewer could leave a single feature, which is another case

Runner = Callable[["torch.Tensor"], "torch.Tensor"]


def check_format(name: str) -> None:
    """ParamsError for a format that there is not, or that lacks a package."""
    if name not in FORMATS:
        raise ParamsError(f"--export: got {name!r}, expected one of {', '.join(FORMATS)}")
    if name == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            try:
                __import__(package)
            except ImportError:
                raise ParamsError(
                    f"--export onnx: the package {package} is missing. Run: pip install {package}"
                ) from None


def run(model: "Segmenter", weights: Path, name: str, out: Path, card: Path | None = None) -> Path:
    """Write `model`, loaded from `weights`, in the format `name` to the folder `out`; the path of what was written.

    `card` is the cell's model card, which becomes the README.md of a repository.

    Raises DataError when the exported network gives other logits than the one it was made from; it is not written then.
    """
    check_format(name)
    writable(out)
    if name == "huggingface":
        return write_repository(model, weights, out, card)
    import torch

    from pipeline.predict.deployable import Deployable

    suffix, make = FORMATS[name]
    path = out / f"model{suffix}"
    network = Deployable(model).eval()
    with warnings.catch_warnings():
        # Deprecated or not, this is what was asked for, and the check below says whether it works.
        warnings.simplefilter("ignore")
        content, reloaded = make(network, about(model))
        torch.manual_seed(0)
        worst = 0.0
        for size in SIZES:
            images = 255 * torch.rand(size)
            with torch.inference_mode():
                expected = network(images)
                worst = max(worst, float((reloaded(images) - expected).abs().max()))
    if not worst <= TOLERANCE:
        raise DataError(
            f"{path}: not written: its logits differ by {worst:.2g} from the network's, expected {TOLERANCE:g} at most"
        )
    write_whole(path, content)
    print(f"{path}: largest difference of a logit {worst:.1e} on {' and '.join('x'.join(map(str, s)) for s in SIZES)}")
    return path


def about(model: "Segmenter") -> dict[str, str]:
    """What the file says of itself."""
    return {
        "classes": json.dumps(model.classes),
        "palette": json.dumps(model.palette),
        "resize": json.dumps(model.settings.resize),
        "input": "float32 RGB in 0..255, (N, 3, H, W)",
        "output": "logits (N, K, H, W)",
    }


def dynamic_axes() -> dict[int, Any]:
    """The axes of the input whose length is left open."""
    from torch.export import Dim

    return {0: Dim("batch"), 2: Dim("height", min=SMALLEST), 3: Dim("width", min=SMALLEST)}


def make_onnx(network: "nn.Module", said: dict[str, str]) -> tuple[bytes, Runner]:
    import numpy as np
    import onnx
    import onnxruntime
    import torch

    axes = dynamic_axes()
    program = torch.onnx.export(
        network,
        (torch.zeros(TRACED),),
        dynamo=True,
        external_data=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=(axes,),
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, said)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: torch.from_numpy(np.asarray(session.run(None, {"images": images.numpy()})[0]))


def make_torchscript(network: "nn.Module", said: dict[str, str]) -> tuple[bytes, Runner]:
    import torch

    with torch.inference_mode():
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            network, torch.zeros(TRACED), check_trace=False
        )
    buffer = io.BytesIO()  # saving to a file hides a full disk behind an unrelated error
    torch.jit.save(traced, buffer, _extra_files=said)
    loaded: Runner = torch.jit.load(io.BytesIO(buffer.getvalue()))  # type: ignore[no-untyped-call]
    return buffer.getvalue(), loaded


def make_pt2(network: "nn.Module", said: dict[str, str]) -> tuple[bytes, Runner]:
    import torch

    axes = dynamic_axes()
    exported = torch.export.export(network, (torch.zeros(TRACED),), dynamic_shapes=(axes,))
    buffer = io.BytesIO()
    torch.export.save(exported, buffer, extra_files=said)
    loaded: Runner = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    return buffer.getvalue(), loaded


def write_repository(model: "Segmenter", weights: Path, out: Path, card: Path | None) -> Path:
    """model.safetensors, config.json and, when the cell has one, its card as README.md."""
    from deeplab.segmenter import CONFIG, WEIGHTS, load_model

    source = weights / WEIGHTS if weights.is_dir() else weights
    if source.resolve() != (out / WEIGHTS).resolve():
        write_whole(out / WEIGHTS, source.read_bytes())
    write_whole(out / CONFIG, json.dumps(model.about, indent=2, sort_keys=True) + "\n")
    if card:
        write_whole(out / "README.md", card.read_bytes())
    load_model(out)
    print(f"{out}: {WEIGHTS}, {CONFIG}" + (", README.md" if card else ", but no README.md: there is no card of a cell"))
    return out


# Name -> ending of the file, and what makes its content and loads it again.
FORMATS: dict[str, tuple[str, Any]] = {
    "onnx": (".onnx", make_onnx),
    "torchscript": (".pt", make_torchscript),
    "pt2": (".pt2", make_pt2),
    "huggingface": ("", write_repository),
}
