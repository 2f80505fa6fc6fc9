"""A video under the colours of its classes, through OpenCV."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab.errors import DataError
from pipeline.labels import Table, Tiling, labels_of

if TYPE_CHECKING:
    from deeplab.pretrained import Segmenter
    from deeplab.store import Bytes

CODEC = "mp4v"


def segment_video(model: "Segmenter", source: Path, out: Path, batch: int, tiling: Tiling | None) -> None:
    """Write `out`/overlay.mp4 and `out`/classes.csv, a row per frame and class; frames are held a batch at a time.

    Raises DataError for a video that OpenCV cannot read, or where it cannot write one.
    """
    import cv2

    from pipeline.figures import tint

    reader = cv2.VideoCapture(str(source))
    frame = read_frame(reader)
    if frame is None:
        raise DataError(f"{source}: not a video that OpenCV can read: damaged, or in a codec it does not have")
    rate = reader.get(cv2.CAP_PROP_FPS) or 25.0
    height, width = frame.shape[:2]
    path = out / "overlay.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*CODEC), rate, (width, height))
    if not writer.isOpened():
        raise DataError(f"{path}: OpenCV cannot write a video here: it has no {CODEC} codec, or not for this size")
    done = 0
    try:
        with Table(out / "classes.csv", ("frame", "seconds"), model.classes) as table:
            while frame is not None:
                frames: list[Bytes] = []
                while frame is not None and len(frames) < batch:
                    frames.append(frame)
                    frame = read_frame(reader)
                for image, mask in zip(frames, labels_of(model, frames, tiling), strict=True):
                    writer.write(cv2.cvtColor(tint(image, mask, model.palette), cv2.COLOR_RGB2BGR))
                    table.add((done, f"{done / rate:.3f}"), mask)
                    done += 1
                if sys.stdout.isatty():
                    print(f"{done} frames", end="\r", flush=True)
    finally:
        reader.release()
        writer.release()
    print(f"{done} frames segmented: {path}, {out}/classes.csv")


def read_frame(reader: Any) -> Any:
    """The next frame as (H, W, 3) RGB; None at the end."""
    import cv2

    there, frame = reader.read()
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if there else None
