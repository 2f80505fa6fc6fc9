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
LARGEST_RATE = 65_535
MOST_DRIFT = 0.1  # seconds between film and overlay without a warning


def segment_video(model: "Segmenter", source: Path, out: Path, batch: int, tiling: Tiling | None) -> None:
    """Write `out`/overlay.mp4 and `out`/classes.csv, a row per frame and class, one batch of frames at a time.

    Raises DataError when OpenCV cannot read the video or cannot write one, OSError when the disk is full.
    """
    from deeplab.decode import opencv
    from pipeline.pictures.overlay import tint

    cv2 = opencv()
    reader = cv2.VideoCapture(str(source))
    frames = read_frames(reader)
    first = next(frames, None)
    if first is None:
        raise DataError(f"{source}: not a video that OpenCV can read: damaged, or in a codec that OpenCV lacks")
    frames = chain([first], frames)
    rate, expected = possible_rate(reader.get(cv2.CAP_PROP_FPS)), int(reader.get(cv2.CAP_PROP_FRAME_COUNT))
    height, width = (side + side % 2 for side in first[0].shape[:2])  # OpenCV would cut an odd row and column off
    path = out / "overlay.mp4"
    done, drift = 0, 0.0
    with whole(path) as partial, class_table(out / "classes.csv", ("frame", "seconds"), model) as add_rows:
        writer = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*CODEC), rate, (width, height))
        if not writer.isOpened():
            partial.write_bytes(bytes(4096))  # OSError when the disk is full: OpenCV does not tell the two apart
            raise DataError(f"{path}: OpenCV cannot write a video here: no {CODEC} codec, or not for this size")
        while some := list(islice(frames, batch)):
            for (image, shown), mask in zip(some, labels_of(model, [each for each, _ in some], tiling), strict=True):
                writer.write(evened(cv2.cvtColor(tint(image, mask, model.palette), cv2.COLOR_RGB2BGR)))
                seconds = done / rate if shown is None else shown
                drift = max(drift, abs(seconds - done / rate))
                add_rows((done, f"{seconds:.3f}"), mask)
                done += 1
            if sys.stdout.isatty():
                print(f"{done} frames", end="\r", flush=True)
        writer.release()
        check_frames(partial, done)
    if done < expected:
        print(f"warning: {source}: ends after {done} of {expected} frames. Is it cut short?", file=sys.stderr)
    if drift > MOST_DRIFT:
        print(
            f"warning: {source}: its frame rate varies, but {path} has {rate:g} frames a second: it is up to "
            f"{drift:.2f} s apart. The column seconds of classes.csv is that of the film.",
            file=sys.stderr,
        )
    print(f"{done} frames segmented: {path}, {out}/classes.csv")


def evened(picture: "Bytes") -> "Bytes":
    """`picture` (H, W, 3) with its last row and column repeated where the number is odd."""
    import numpy as np

    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def possible_rate(rate: float) -> float:
    """The rate nearest to `rate`, in frames per second, that MPEG-4 can state; 25 for none at all.

    It counts time in at most 65,535 parts of a second, and OpenCV writes a rate as a decimal fraction.
    """
    if not 0 < rate < LARGEST_RATE:  # nan too
        return 25.0
    return next(found for digits in (3, 2, 1, 0) if (found := round(rate, digits)) * 10**digits <= LARGEST_RATE)


def check_frames(path: Path, expected: int) -> None:
    """OSError when the video at `path` lacks frames: OpenCV does not report a full disk."""
    import cv2

    reader = cv2.VideoCapture(str(path))
    found = int(reader.get(cv2.CAP_PROP_FRAME_COUNT))
    reader.release()
    if found != expected:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_frames(reader: Any) -> "Iterator[tuple[Bytes, float | None]]":
    """Each frame, (H, W, 3) RGB, and the second at which it is shown, None when the film does not say."""
    import cv2

    last = -1.0
    while (found := reader.read())[0]:
        seconds = reader.get(cv2.CAP_PROP_POS_MSEC) / 1000
        known = seconds > last  # 0 for each frame of a film without times
        last = max(last, seconds)
        yield cv2.cvtColor(found[1], cv2.COLOR_BGR2RGB), seconds if known else None
