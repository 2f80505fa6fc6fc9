"""Segment a video through OpenCV."""

import errno
import os
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab.errors import DataError
from pipeline.files import whole
from pipeline.predict.class_table import Tiling, class_table, labels_of

if TYPE_CHECKING:
    from deeplab.segmenter import Segmenter
    from deeplab.store import Bytes

CODEC = "mp4v"


def segment_video(model: "Segmenter", source: Path, out: Path, batch: int, tiling: Tiling | None) -> None:
    """Write `out`/overlay.mp4 and `out`/classes.csv, a row per frame and class, one batch of frames at a time.

    Raises DataError when OpenCV cannot read the video or cannot write one, OSError when the disk is full.
    """
    import cv2

    from pipeline.pictures.overlay import tint

    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # silences a line for each damaged block
    reader = cv2.VideoCapture(str(source))
    frames = read_frames(reader)
    first = next(frames, None)
    if first is None:
        raise DataError(f"{source}: not a video that OpenCV can read: damaged, or in a codec that OpenCV lacks")
    frames = chain([first], frames)
    rate, expected = reader.get(cv2.CAP_PROP_FPS) or 25.0, int(reader.get(cv2.CAP_PROP_FRAME_COUNT))
    height, width = first.shape[:2]
    path = out / "overlay.mp4"
    done = 0
    with whole(path) as partial, class_table(out / "classes.csv", ("frame", "seconds"), model) as add_rows:
        writer = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*CODEC), rate, (width, height))
        if not writer.isOpened():
            partial.write_bytes(bytes(4096))  # OSError when the disk is full: OpenCV does not tell the two apart
            raise DataError(f"{path}: OpenCV cannot write a video here: no {CODEC} codec, or not for this size")
        while images := list(islice(frames, batch)):
            for image, mask in zip(images, labels_of(model, images, tiling), strict=True):
                writer.write(cv2.cvtColor(tint(image, mask, model.palette), cv2.COLOR_RGB2BGR))
                add_rows((done, f"{done / rate:.3f}"), mask)
                done += 1
            if sys.stdout.isatty():
                print(f"{done} frames", end="\r", flush=True)
        writer.release()
        check_frames(partial, done)
    if done < expected:
        print(f"warning: {source}: ends after {done} of {expected} frames. Is it cut short?", file=sys.stderr)
    print(f"{done} frames segmented: {path}, {out}/classes.csv")


def check_frames(path: Path, expected: int) -> None:
    """OSError when the video at `path` lacks frames: OpenCV does not report a full disk."""
    import cv2

    reader = cv2.VideoCapture(str(path))
    found = int(reader.get(cv2.CAP_PROP_FRAME_COUNT))
    reader.release()
    if found != expected:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_frames(reader: Any) -> "Iterator[Bytes]":
    """The frames, (H, W, 3) RGB each."""
    import cv2

    while (found := reader.read())[0]:
        yield cv2.cvtColor(found[1], cv2.COLOR_BGR2RGB)
