"""What MLflow loads for a registered model, in `mlflow.pyfunc.load_model` and in `mlflow models serve`.

The file MLmodel names this module and the folder of the weights, so that nothing is pickled.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab.errors import DataError

if TYPE_CHECKING:
    from deeplab.segmenter import Segmenter
    from deeplab.store import Bytes

INPUT = "image"


class Served:
    """A network behind MLflow's `predict`."""

    def __init__(self, model: "Segmenter") -> None:
        self.model = model

    def predict(self, inputs: Any) -> "Bytes":
        """Segment one image: (H, W, 3) RGB in 0..255, alone or under the name `image` -> class indices, uint8 (H, W).

        Raises MlflowException, for which a server answers 400, for anything else.
        """
        from mlflow.exceptions import MlflowException

        try:
            return self.model.predict(image_in(inputs))
        except DataError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


def image_in(inputs: Any) -> "Bytes":
    """The image in the body of a request, checked. Raises DataError."""
    import numpy as np

    if isinstance(inputs, Mapping):
        if inputs.keys() != {INPUT}:
            raise DataError(f"inputs: got {sorted(inputs)}, expected {INPUT!r} alone")
        inputs = inputs[INPUT]
    try:
        image = np.asarray(inputs)
    except ValueError:
        raise DataError(f"{INPUT}: got rows of different lengths, expected (height, width, 3)") from None
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(f"{INPUT}: got shape {image.shape}, expected (height, width, 3), RGB")
    if image.dtype.kind not in "ui":
        raise DataError(f"{INPUT}: got {image.dtype}, expected whole numbers in 0..255")
    if image.min() < 0 or image.max() > 255:
        raise DataError(f"{INPUT}: got values in {image.min()}..{image.max()}, expected 0..255")
    return image.astype(np.uint8)


def _load_pyfunc(folder: str) -> Served:
    """MLflow calls this with the folder of the weights. Raises DataError when they were not copied to MLflow."""
    from deeplab.segmenter import load_model
    from pipeline.training.device import select_device

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise DataError(
            f"{folder}: no weights in MLflow. Set runtime.log_weights to true in params.yaml where they are, and run: "
            "dvc repro -f tables@<data set>"
        )
    return Served(load_model(files[0], str(select_device("auto"))))
