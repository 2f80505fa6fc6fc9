"""Groups of images that stay together when images are divided, and where the hash of a group puts it."""

import hashlib
import re
from typing import Final

COPY: Final = re.compile(r"_(?:jpe?g|png)\.rf\.\w+$")  # how Roboflow ends the names of the changed copies of an image


def group_of(name: str, pattern: str | None) -> str | None:
    """What `pattern` finds in `name`, or its first group; None where it finds nothing. Copies of an image are one."""
    name = COPY.sub("", name)
    if pattern is None:
        return name
    found = re.search(pattern, name)
    return found and found[1 if found.re.groups else 0]


def position(group: str) -> float:
    """Where the hash of `group` is between 0 and 1: the same on every machine, whatever other groups there are."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) / 2**64
