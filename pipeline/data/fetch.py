"""Fetch an archive from its addresses, continue after a cut, and name it only when size and checksums are right."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deeplab.errors import DataError, naming
from pipeline.progress import meter
from pipeline.settings.schema import Download

if TYPE_CHECKING:
    from requests import Response, Session

CHUNK = 1 << 16  # bytes; what a cut may lose
PROGRESS = 1 << 20  # bytes; a try that brought as many does not count as failed
TRY_AGAIN = (408, 416, 425, 429)  # of the answers 4xx; all others are final


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for a server."""

    connect: float = 20.0  # seconds
    silence: float = 60.0  # seconds without a byte
    tries: int = 8  # that fail one after the other
    pause: float = 1.0  # seconds after the first failed try; doubles up to a minute


class RefusedError(Exception):
    """This address does not have the archive, and asking again will not help."""


class CutError(Exception):
    """The answer was unusable or incomplete. The next one may be better."""


class WrongFileError(Exception):
    """A file is not the published one."""


def fetch(archive: Download, folder: Path, patience: Patience) -> tuple[str, str]:
    """Fetch `archive` into `folder`. Returns the address that had it, and its SHA-256.

    Raises DataError with the answer of each address when none had it. NAME.part keeps what arrived for the next run.
    """
    from requests import Session

    final, part = folder / archive.name, folder / f"{archive.name}.part"
    addresses, answers, failed = list(archive.urls), dict[str, str](), 0
    with Session() as session:  # follows redirects to http and https only
        while addresses and failed < patience.tries:
            url, before = addresses[0], size_of(part)
            try:
                sha256 = attempt(session, url, archive, part, patience)
                part.replace(final)
                return url, sha256
            except RefusedError as error:
                answers[url] = str(error)
                print(f"{archive.name}: {url}: {error}", flush=True)
                addresses.remove(url)
            except CutError as error:
                answers[url] = str(error)
                failed = 0 if size_of(part) - before >= PROGRESS else failed + 1
                if failed:
                    addresses.append(addresses.pop(0))  # a mirror may do better
                if failed < patience.tries:
                    pause = min(60.0, patience.pause * 2 ** max(0, failed - 1))
                    print(f"{archive.name}: {url}: {error}. Trying again in {pause:.0f} s.", flush=True)
                    time.sleep(pause)
    listed = "; ".join(f"{url}: {answer}" for url, answer in answers.items())
    kept = f" {size_of(part):,} bytes are kept." if size_of(part) else ""
    remedy = "Run the same command again later, or put the file there yourself."
    raise DataError(f"{final}: could not be fetched: {listed}.{kept} {remedy}")


def attempt(session: Session, url: str, archive: Download, part: Path, patience: Patience) -> str:
    """Ask `url` once for what `part` lacks. Returns the SHA-256 of the whole.

    A wrong checksum of what came in pieces starts over: the pieces may be of different files.
    """
    from requests import RequestException, TooManyRedirects
    from requests.exceptions import InvalidSchema, InvalidURL
    from urllib3.exceptions import HTTPError

    in_pieces = size_of(part) > 0
    try:
        if not archive.size or size_of(part) != archive.size:
            in_pieces = receive(session, url, archive, part, patience)
        return verify(archive, part)
    except (InvalidSchema, InvalidURL, TooManyRedirects) as error:
        raise RefusedError(str(error)) from None
    except (RequestException, HTTPError) as error:
        raise CutError(describe(error, patience)) from None
    except WrongFileError as error:
        if in_pieces:
            part.unlink()
            raise CutError(f"the pieces are not the archive ({error}), so it starts over") from None
        bad = part.with_name(f"{archive.name}.bad")
        part.replace(bad)
        raise RefusedError(f"a wrong file, kept as {bad.name}: {error}") from None


def receive(session: Session, url: str, archive: Download, part: Path, patience: Patience) -> bool:
    """Bring `part` to its full length from `url`. Returns whether it continued what was there before."""
    offset = size_of(part)
    headers = {"Accept-Encoding": "identity"}  # the bytes as published: no compression on the way
    if offset:
        headers["Range"] = f"bytes={offset}-"
    wait = (patience.connect, patience.silence)
    with session.get(url, headers=headers, stream=True, timeout=wait) as response:
        resumed = bool(offset) and response.status_code == 206
        if not resumed and response.status_code != 200:
            raise refusal(response, part)
        begin = offset if resumed else 0
        left = response.headers.get("Content-Length", "")
        total = begin + int(left) if left.isdigit() else None
        chunks = response.raw.stream(CHUNK, decode_content=False)
        first = next(chunks, b"")
        if not resumed:  # only what can be the archive overwrites a part from an earlier run
            check_answer(response, first, archive, total)
        if total is not None:
            check_space(part, total - begin, 0 if resumed else offset)
        limit = archive.size or archive.max_unpacked
        with (
            naming(part),
            part.open("ab" if resumed else "wb") as file,
            meter(f"fetch {archive.name}", archive.size or total, begin) as advance,
        ):
            chunk = first
            while chunk:
                begin += len(chunk)
                if begin > limit:
                    part.unlink()
                    raise RefusedError(f"sends more than {limit:,} bytes")
                file.write(chunk)
                advance(len(chunk))
                chunk = next(chunks, b"")
            file.flush()
            os.fsync(file.fileno())
    if archive.size and begin < archive.size:
        raise CutError(f"cut after {begin:,} of {archive.size:,} bytes")
    return resumed


def refusal(response: Response, part: Path) -> Exception:
    """What an answer without content means. A range that cannot be had starts over."""
    status = response.status_code
    if status in (206, 416):
        part.unlink(missing_ok=True)
    answer = f"answered {status} {response.reason}"
    return RefusedError(answer) if 400 <= status < 500 and status not in TRY_AGAIN else CutError(answer)


def check_answer(response: Response, first: bytes, archive: Download, total: int | None) -> None:
    """Raise RefusedError for a web page, which a login or a hotel network sends, and for a file of another length."""
    start = first[:1024].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")) or "text/html" in response.headers.get("Content-Type", ""):
        title = re.search(rb"<title[^>]*>\s*(.{1,80}?)\s*</title>", first, re.IGNORECASE | re.DOTALL)
        called = f" ({' '.join(title[1].decode('utf-8', 'replace').split())!a})" if title else ""
        raise RefusedError(f"sends a web page{called}, not the archive")
    if archive.size and total is not None and total != archive.size:
        raise RefusedError(f"has a file of {total:,} bytes, expected {archive.size:,}")


def check_space(part: Path, needed: int, freed: int) -> None:
    """Raise OSError when the disk cannot hold the rest."""
    free = shutil.disk_usage(part.parent).free + freed
    if needed > free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{part} ({needed:,} bytes needed, {free:,} free)")


def describe(error: Exception, patience: Patience) -> str:
    """The cause below the layers of the libraries, in a few words."""
    from requests import ConnectTimeout, ReadTimeout
    from urllib3.exceptions import IncompleteRead, ReadTimeoutError

    if isinstance(error, ConnectTimeout):
        return f"no connection within {patience.connect:g} s"
    if isinstance(error, (ReadTimeout, ReadTimeoutError)):
        return f"silent for {patience.silence:g} s"
    if isinstance(error.__cause__, IncompleteRead):
        return "cut before its end"
    cause: BaseException = error
    while below := cause.__cause__ or cause.__context__:
        cause = below
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def verify(archive: Download, path: Path) -> str:
    """The SHA-256 of `path`. Raises WrongFileError when size or checksums are not the published ones."""
    if archive.size and size_of(path) != archive.size:
        raise WrongFileError(f"{size_of(path):,} bytes, expected {archive.size:,}")
    hashes = {kind: hashlib.new(kind, usedforsecurity=False) for kind in (*archive.checksums, "sha256")}
    with path.open("rb") as file:
        while content := file.read(1 << 20):
            for each in hashes.values():
                each.update(content)
    for kind, expected in archive.checksums.items():
        if hashes[kind].hexdigest() != expected:
            raise WrongFileError(f"{kind} {hashes[kind].hexdigest()}, expected {expected}")
    return hashes["sha256"].hexdigest()


def size_of(path: Path) -> int:
    """The size in bytes; 0 for a missing file."""
    return path.stat().st_size if path.exists() else 0
