"""Fetch an archive: resumed after a cut, from mirrors, and under its name only when size and checksums are right."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab.errors import DataError, naming
from pipeline.settings.schema import Archive

if TYPE_CHECKING:
    from requests import Response, Session

CHUNK = 1 << 16  # bytes; what a cut may lose
PROGRESS = 1 << 20  # bytes; a try that brought as many does not count as failed
TRY_AGAIN = (408, 425, 429)  # of the answers 4xx; all others are final
SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a server is waited for."""

    connect: float = 20.0  # seconds
    silence: float = 60.0  # seconds without a byte
    tries: int = 8  # that fail one after the other
    pause: float = 1.0  # seconds after the first failed try; doubles up to a minute


class RefusedError(Exception):
    """This address does not have the archive, and asking again will not change that."""


class CutError(Exception):
    """The answer was no use, or not all of it came; the next may be better."""


class WrongFileError(Exception):
    """A file is not the published one."""


def fetch(archive: Archive, folder: Path, patience: Patience) -> tuple[str, str]:
    """Fetch `archive` into `folder` and return the address that it came from, and its sha256.

    DataError, with what each address answered, when none gave it. What came so far stays in NAME.part for the next run.
    """
    from requests import Session

    final = folder / archive.name
    part = folder / f"{archive.name}.part"
    addresses, answers, failed = list(archive.urls), dict[str, str](), 0
    with Session() as session:  # follows redirects to http and https only
        while addresses and failed < patience.tries:
            url, before = addresses[0], size_of(part)
            try:
                sha256 = attempt(session, url, archive, part, patience)
                publish(part, final)
                return url, sha256
            except RefusedError as error:
                answers[url] = str(error)
                print(f"{archive.name}: {url}: {error}", flush=True)
                addresses.remove(url)
            except CutError as error:
                answers[url] = str(error)
                failed = 0 if size_of(part) - before >= PROGRESS else failed + 1
                if failed:
                    addresses.append(addresses.pop(0))  # perhaps a mirror does better
                if failed < patience.tries:
                    pause = min(60.0, patience.pause * 2 ** max(0, failed - 1))
                    print(f"{archive.name}: {url}: {error}. Trying again in {pause:.0f} s.", flush=True)
                    time.sleep(pause)
    told = "; ".join(f"{url}: {answer}" for url, answer in answers.items())
    kept = f" {size_of(part):,} bytes are kept." if size_of(part) else ""
    raise DataError(
        f"{final}: could not be fetched: {told}.{kept} "
        "Run the same command again later, or put the file there yourself."
    )


def attempt(session: Session, url: str, archive: Archive, part: Path, patience: Patience) -> str:
    """Ask `url` once for what `part` lacks, and return the sha256 of the whole."""
    from requests import RequestException, TooManyRedirects
    from requests.exceptions import InvalidSchema, InvalidURL
    from urllib3.exceptions import HTTPError

    try:
        in_one_piece = receive(session, url, archive, part, patience)
    except (InvalidSchema, InvalidURL, TooManyRedirects) as error:
        raise RefusedError(str(error)) from None
    except (RequestException, HTTPError) as error:
        raise CutError(describe(error, patience)) from None
    try:
        return verify(archive, part)
    except WrongFileError as error:
        bad = part.with_name(f"{archive.name}.bad")
        part.replace(bad)
        answer = f"a wrong file, kept as {bad.name}: {error}"
        # What came in pieces may just not belong together.
        raise (RefusedError if in_one_piece else CutError)(answer) from None


def receive(session: Session, url: str, archive: Archive, part: Path, patience: Patience) -> bool:
    """Bring `part` to its full length from `url`, and return whether all of it came in this one answer."""
    note = part.with_name(f"{part.name}.json")
    offset, known = size_of(part), read_note(note)
    if offset and offset == (archive.size or known.get("total")):
        return False  # all of it came before, and then the process ended
    # The bytes as they are published: no compression on the way.
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if known.get("url") == url and known.get("validator"):
            headers["If-Range"] = known["validator"]
    wait = (patience.connect, patience.silence)
    with session.get(url, headers=headers, stream=True, timeout=wait) as response:
        resumed = is_the_rest(response, part, offset, known.get("total"))
        offset = offset if resumed else 0
        left = response.headers.get("Content-Length", "")
        total = offset + int(left) if left.isdigit() else None
        chunks = response.raw.stream(CHUNK, decode_content=False)
        first = next(chunks, b"")
        if not resumed:  # a part from an earlier run is overwritten only by what can be the archive
            check_answer(response, first, archive, total)
        if total is not None:
            check_space(part, total - offset, 0 if resumed else size_of(part))
        if not resumed:
            with naming(note):
                note.write_text(json.dumps({"url": url, "validator": validator(response), "total": total}))
        with (
            naming(part),
            part.open("ab" if resumed else "wb") as file,
            meter(f"fetch {archive.name}", archive.size or total, offset) as advance,
        ):
            chunk = first
            while chunk:
                offset += len(chunk)
                if offset > (archive.size or archive.max_unpacked):
                    part.unlink()
                    raise RefusedError(f"sends more than {archive.size or archive.max_unpacked:,} bytes")
                file.write(chunk)
                advance(len(chunk))
                chunk = next(chunks, b"")
            file.flush()
            os.fsync(file.fileno())
    if archive.size and offset < archive.size:
        raise CutError(f"cut after {offset:,} of {archive.size:,} bytes")
    return not resumed


def is_the_rest(response: Response, part: Path, offset: int, total: int | None) -> bool:
    """Whether the answer continues `part` at `offset`; if not, it is the whole file. Any other answer is an error."""
    status = response.status_code
    if status == 200:
        return False
    if status == 206 and offset:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        same_length = found and (total is None or found[2] in ("*", str(total)))
        if found and int(found[1]) == offset and same_length:
            return True
    if status in (206, 416):  # not the rest of what is here: the file has changed, or the server counts wrongly
        part.unlink(missing_ok=True)
        raise CutError(f"does not continue at byte {offset:,}, so it starts over")
    answer = f"answered {status} {response.reason}"
    if 400 <= status < 500 and status not in TRY_AGAIN:
        raise RefusedError(answer)
    raise CutError(answer)


def check_answer(response: Response, first: bytes, archive: Archive, total: int | None) -> None:
    """Refuse a web page, which is what a login or a hotel network sends, and a file of another length."""
    start = first[:1024].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")) or "text/html" in response.headers.get("Content-Type", ""):
        title = re.search(rb"<title[^>]*>\s*(.{1,80}?)\s*</title>", first, re.IGNORECASE | re.DOTALL)
        called = f" ({' '.join(title[1].decode('utf-8', 'replace').split())!a})" if title else ""
        raise RefusedError(f"sends a web page{called} and not the archive")
    if archive.size and total is not None and total != archive.size:
        raise RefusedError(f"has a file of {total:,} bytes, expected {archive.size:,}")


def check_space(part: Path, needed: int, freed: int) -> None:
    """Refuse to begin what cannot be finished."""
    free = shutil.disk_usage(part.parent).free + freed
    if needed > free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{part} ({needed:,} bytes needed, {free:,} free)")


def validator(response: Response) -> str:
    """What tells this version of the file from another one, for If-Range; empty if the server has no such thing."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")  # a weak one may not be used


def read_note(path: Path) -> dict[str, Any]:
    """What is known of a part; nothing if that cannot be read."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


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


def publish(part: Path, final: Path) -> None:
    """Give a part that is complete and right its final name."""
    part.replace(final)
    part.with_name(f"{part.name}.json").unlink(missing_ok=True)


def verify(archive: Archive, path: Path) -> str:
    """The sha256 of `path`; WrongFileError if it does not have the published size and checksums."""
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
    """In bytes; 0 if it is not there."""
    return path.stat().st_size if path.exists() else 0


@contextmanager
def meter(title: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Count bytes: a bar on a terminal, and now and then a line elsewhere."""
    from tqdm import tqdm

    terminal, said = sys.stderr.isatty(), time.monotonic()
    of = f" of {total / 1e6:,.0f}" if total else ""

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        bar.update(count)
        if not terminal and time.monotonic() - said >= SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            print(f"{title}: {done / 1e6:,.0f}{of} MB", flush=True)

    with tqdm(desc=title, total=total, initial=done, unit="B", unit_scale=True, disable=not terminal) as bar:
        yield advance
