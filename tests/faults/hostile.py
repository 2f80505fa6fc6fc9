"""Files that do harm when they are believed, and the file that would tell of it."""

import io
import pickle
import struct
import zlib
from pathlib import Path


class Touch:
    """Unpickling one creates the file `path`."""

    def __init__(self, path):
        self.path = Path(path)

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickled(canary):
    """A plain pickle."""
    return pickle.dumps({"weights": Touch(canary)}, protocol=2)  # that of torch


def torch_file(canary):
    """What `torch.save` writes of an object."""
    import torch

    buffer = io.BytesIO()
    torch.save({"weights": Touch(canary)}, buffer)
    return buffer.getvalue()


def numpy_file(canary):
    """An array of objects, as `numpy.save` writes it."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, np.array([Touch(canary)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def numpy_archive(canary):
    """The same as .npz, under the names that `evaluate` writes."""
    import numpy as np

    buffer = io.BytesIO()
    harm = np.array([Touch(canary)], dtype=object)
    np.savez(buffer, allow_pickle=True, images=harm, classes=harm, **{"0/single_scale/image": harm})
    return buffer.getvalue()


PICKLES = {"pickle": pickled, "torch": torch_file, "npy": numpy_file, "npz": numpy_archive}


def png(width, height, pixels=b""):
    """A grey PNG that says it is so large; without `pixels` it holds none."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg(width, height):
    """A small JPEG whose header says it is so large."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def jpeg_of_scans(side, more):
    """A progressive JPEG whose last scan is there so many times more."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (10, 20, 30)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    return content[:end] + more * content[last:end] + content[end:]


def bmp(width, height):
    """The header of a BMP that says it is so large."""
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def tiff(width, height):
    """The header of a TIFF that says it is so large: one strip of 8 bits a pixel."""
    entries = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 8)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + body + struct.pack("<I", 0)


PICTURES = {"png": png, "jpg": jpeg, "bmp": bmp, "tif": tiff}
