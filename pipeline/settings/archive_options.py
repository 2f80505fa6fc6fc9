"""What params.yaml says about a published archive of a data set."""

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field
from pydantic.dataclasses import dataclass

from deeplab.config import STRICT, Positive

ARCHIVE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.(tar|tgz|tar\.gz|zip)")
CHECKSUM_DIGITS = {"md5": 32, "sha1": 40, "sha256": 64}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Archive:
    """A file as it was published, and what is taken out of it."""

    name: str
    urls: tuple[str, ...]  # the official address, then mirrors; none when it needs an account
    size: Positive | None  # bytes; null where it was not published
    md5: str | None = None  # at least one of the three
    sha1: str | None = None
    sha256: str | None = None
    folders: Annotated[tuple[str, ...], Field(min_length=1)]  # what is unpacked; nothing else is
    max_unpacked: Positive  # bytes; no more is ever unpacked

    def __post_init__(self) -> None:
        if not ARCHIVE_NAME.fullmatch(self.name):
            raise ValueError(f"name: got {self.name!r}, expected a file name that ends in .tar, .tgz, .tar.gz or .zip")
        if odd := [url for url in self.urls if not url.startswith(("http://", "https://"))]:
            raise ValueError(f"urls: got {odd[0]!r}, expected an address that begins with http:// or https://")
        if any("@" in urlsplit(url).netloc for url in self.urls):
            raise ValueError("urls: got an address with a password, expected none: put it into ~/.netrc")
        if not self.checksums:
            raise ValueError(f"name: got {self.name!r} without a checksum, expected md5, sha1 or sha256 beside it")
        for kind, value in self.checksums.items():
            if not re.fullmatch(f"[0-9a-f]{{{CHECKSUM_DIGITS[kind]}}}", value):
                raise ValueError(f"{kind}: got {value!r}, expected {CHECKSUM_DIGITS[kind]} digits 0-9 a-f")

    @property
    def checksums(self) -> dict[str, str]:
        """The published ones by the name of their algorithm."""
        return {kind: value for kind in CHECKSUM_DIGITS if (value := getattr(self, kind)) is not None}
