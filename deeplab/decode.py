"""Image files -> arrays. One decoder, so that training, the sheet of samples and prediction see the same picture:

- upright, as an image viewer shows it: the EXIF or TIFF orientation is applied;
- RGB with 8 bits per channel. Grey is repeated, a palette becomes its colours, an alpha channel is dropped;
- 16 bits per channel become their upper 8. A file that leaves the upper two bits empty, as 12-bit cameras write, is
  refused, and so are floats, more than four bands and several pages: nobody knows how to scale or choose them.

Anything wrong with a file raises a DataError that names it.
"""

import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from deeplab.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

ENDINGS: Final = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".gif", ".webp")
JPEG_NOTES = b"\xe1"  # the segment of EXIF
JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
JPEG_MARK = re.compile(rb"\xff+([^\x00\xff\x01\xd0-\xd7])")  # not those without a length
PNG_START = b"\x89PNG\r\n\x1a\n"
TIFF_STARTS = b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"
NEW_SUBFILE, BITS, BANDS, FORM, ORIENTATION = 254, 258, 277, 339, 274  # tags of TIFF and EXIF
SMALLER_OR_MASK = 0b101  # in NEW_SUBFILE: an overview or a transparency mask, as GeoTIFF has them
KINDS = ("PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP", "PPM")  # Pillow reads more: for EPS it starts Ghostscript
MAX_PAGES: Final = 1000  # counted of one TIFF
RANGE: Final = 1 << 16  # values of 16 bits
MAX_PIXELS: Final = 178_956_970  # in one picture, where Pillow stops; a file of a few kB can claim billions
MAX_SCANS: Final = 100  # of one JPEG: encoders make about ten, and each takes a pass over all pixels


def read_image(path: Path) -> NDArray[np.uint8]:
    """The picture in `path` as (H, W, 3) RGB, upright. Raises DataError for what the module's docstring refuses."""
    cv2 = opencv()
    content = read_content(path)
    check_header(path, content)
    check_scans(path, content)
    buffer = np.frombuffer(content, np.uint8)
    try:
        image = cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB) if is_whole(content) else None
        if image is not None and is_deep(content):
            check_range(path, cv2.imdecode(buffer, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR))
    except cv2.error:
        image = None
    if image is None:
        raise DataError(f"{path}: not a readable image, or cut short")
    return np.asarray(image, dtype=np.uint8)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width in the header of the picture in `path`, as stored: a quarter turn of its EXIF swaps the two."""
    try:
        with path.open("rb") as file, open_picture(file) as picture:
            return picture.height, picture.width
    except Exception as error:  # noqa: BLE001  for a broken file Pillow raises nearly anything
        raise unreadable(path, "image", error) from None


def check_scans(path: Path, content: bytes) -> None:
    """Raise DataError for a JPEG of thousands of scans: 100 kB of them take minutes to decode."""
    if not content.startswith(JPEG_START) or content.count(JPEG_SCAN) <= MAX_SCANS:
        return  # too few even if every match is a scan
    if (scans := sum(kind == JPEG_SCAN[1:] for kind in jpeg_segments(content))) > MAX_SCANS:
        raise DataError(f"{path}: a JPEG of {scans:,} scans, expected at most {MAX_SCANS}. Save it again.")


def is_whole(content: bytes) -> bool:
    """Whether a JPEG or a PNG has its end; True for any other file.

    A cut JPEG that was filled up with zeros still decodes, to a picture that is grey from there on.
    """
    if content.startswith(PNG_START):
        return png_ends(content)
    if content.startswith(JPEG_START):  # the second is for a photo followed by a film
        return content.rfind(JPEG_END) > content.rfind(JPEG_SCAN) or JPEG_END[1:] in jpeg_segments(content)
    return True


def check_header(path: Path, content: bytes) -> None:
    """Raise DataError for what is no single picture of up to four bands, or too large, before it is decoded."""
    try:
        if content.startswith(TIFF_STARTS):
            check_bands(path, content)
        with open_picture(io.BytesIO(content)) as picture:
            check_pages(path, content, picture)
    except Exception as error:  # noqa: BLE001  for a broken file Pillow raises nearly anything
        raise unreadable(path, "image", error) from None


def unreadable(path: Path, kind: str, error: Exception) -> DataError:
    """What to raise for an `error` of Pillow about `path`, an image or a mask by `kind`."""
    if isinstance(error, DataError):
        return error
    if type(error).__name__ == "DecompressionBombError":
        return DataError(
            f"{path}: too large, expected at most {MAX_PIXELS:,} pixels in one picture. Cut it into pieces."
        )
    return DataError(f"{path}: not a readable {kind}, or cut short ({type(error).__name__})")


def check_pages(path: Path, content: bytes, picture: "Image.Image") -> None:
    """Raise DataError for several pages or frames. Smaller copies of a page and the preview of a phone do not count."""
    if content.startswith(TIFF_STARTS):
        count = sum(not page.get(NEW_SUBFILE, 0) & SMALLER_OR_MASK for page in tiff_pages(content))
    else:
        count = getattr(picture, "n_frames", 1) if picture.format != "MPO" else 1
    if count > 1:
        raise DataError(f"{path}: has {count} pages or frames, expected one picture. Save the one that is meant.")


def check_bands(path: Path, content: bytes) -> None:
    """Raise DataError for a TIFF whose first page is no picture of up to four bands of 8 or 16 bits."""
    page = (tiff_pages(content) or [{}])[0]
    bits, form, bands = int(np.max(page.get(BITS, 1))), int(np.max(page.get(FORM, 1))), page.get(BANDS, 1)
    if form != 1 or bits > 16:
        kind = {1: "integers", 2: "signed integers", 3: "floats"}.get(form, "numbers of another kind")
        raise DataError(f"{path}: a TIFF of {bits}-bit {kind}, expected 8 bits, grey or RGB. Scale all images alike.")
    if bands > 4:
        raise DataError(f"{path}: a TIFF of {bands} bands, expected grey or RGB. Save the three to train on.")


def tiff_pages(content: bytes) -> list[dict[int, Any]]:
    """The tags of each page of a TIFF. Raises what Pillow raises for a broken one."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    file = io.BytesIO(content)
    directory = ImageFileDirectory_v2(content[: 16 if content[2:3] == b"+" else 8])  # of BigTIFF
    pages: dict[int, dict[int, Any]] = {}
    while (place := directory.next) and place not in pages and len(pages) < MAX_PAGES:
        file.seek(place)
        with quiet():
            directory.load(file)
            pages[place] = {tag: directory[tag] for tag in (NEW_SUBFILE, BITS, BANDS, FORM) if tag in directory}
    return list(pages.values())


def is_deep(content: bytes) -> bool:
    """Whether a picture may have more than 8 bits per channel."""
    return content.startswith(TIFF_STARTS) or (content.startswith(PNG_START) and content[24] == 16)


def check_range(path: Path, picture: Any) -> None:
    """Raise DataError for a picture of 16 bits per channel that uses less than a quarter of their range."""
    if picture is not None and picture.dtype == np.uint16 and (largest := int(picture.max())) < RANGE // 4:
        raise DataError(
            f"{path}: 16 bits per channel, but its values end at {largest:,} of {RANGE - 1:,}: as 8 bits only "
            f"{largest // 256 + 1} levels would be left. Scale all images by one factor, to 0..255 with 8 bits."
        )


def orientation(path: Path) -> int:
    """The EXIF or TIFF orientation of the picture in `path`, 1..8; 1 for none, or when it cannot be read."""
    try:
        content = path.read_bytes()
        if has_notes(content):
            with quiet(), open_picture(io.BytesIO(content)) as picture:
                found = picture.getexif().get(ORIENTATION, 1)
                return found if found in range(1, 9) else 1
    except Exception:  # noqa: BLE001  whatever is wrong with the file, read_image reports it
        return 1
    return 1


def has_notes(content: bytes) -> bool:
    """Whether a picture may have EXIF data. Opening each by Pillow would take a tenth of the time of decoding."""
    if content.startswith(JPEG_START):
        return JPEG_NOTES in takewhile(lambda kind: kind != JPEG_SCAN[1:], jpeg_segments(content))
    return content.startswith(TIFF_STARTS) or b"eXIf" in content or b"EXIF" in content  # of PNG and WebP


def opencv() -> Any:
    """OpenCV, which no longer prints: what it has to say of a file becomes the message of an error."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read when the first film is opened
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


def open_picture(file: BinaryIO) -> "Image.Image":
    """The picture in `file`, opened by Pillow but not decoded. Raises nearly anything for a broken one."""
    from PIL import Image

    with quiet():
        return Image.open(file, formats=KINDS)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Pillow from printing what it thinks of a file."""
    if (logger := logging.getLogger("PIL")).level != logging.CRITICAL:  # setting it takes longer than looking
        logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def jpeg_segments(content: bytes) -> Iterator[bytes]:
    """The types of the segments of a JPEG up to its end, without those of a thumbnail or of a film after it."""
    place = len(JPEG_START)
    while mark := JPEG_MARK.search(content, place):
        yield mark[1]
        if mark[1] == JPEG_END[1:]:
            return
        place = mark.end() + int.from_bytes(content[mark.end() : mark.end() + 2], "big")


def png_ends(content: bytes) -> bool:
    """Whether all chunks of a PNG are complete: OpenCV allocates what a chunk claims, up to 4 GB."""
    place, kind = len(PNG_START), b""
    while kind != b"IEND" and place < len(content):
        length, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        place += length + 12  # and the length, the kind and the checksum
    return kind == b"IEND" and place <= len(content)


def read_content(path: Path) -> bytes:
    """The content of `path`. Raises DataError when it is missing, empty or unreadable."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: missing") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if not content:
        raise DataError(f"{path}: empty file")
    return content
