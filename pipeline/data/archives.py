"""The archives of a data set: found or fetched, checked, and unpacked into its raw folder."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from deeplab.errors import DataError, naming
from pipeline.data.fetch import Patience, WrongFileError, fetch, verify
from pipeline.data.unpack import unpack
from pipeline.files import claimed
from pipeline.progress import meter
from pipeline.settings.schema import DatasetConfig, Download

RECEIPT = ".download.json"  # in a raw folder that was unpacked here: the archives it came from


def bring(name: str, config: DatasetConfig, archives: Path, raw: Path, patience: Patience) -> dict[str, Any]:
    """Fetch what is missing, unpack everything, and make the raw folder appear in one step. Returns its record.

    Raises DataError when an archive is missing and has no address, or no address gave it.
    """
    if missing := [a.name for a in config.archives if not a.urls and not (archives / a.name).exists()]:
        raise DataError(explain(name, config, archives, raw, missing))
    target = raw.resolve()  # a link to an empty folder stays a link
    partial = target.with_name(f".{target.name}.part")
    if partial.exists():  # from a killed run
        shutil.rmtree(partial)
    partial.mkdir(parents=True)  # before hours of fetching: can anything be written here?
    try:
        sources = []
        for archive in config.archives:
            with claimed(archives / f".{archive.name}.lock", archive.name, "downloaded"):  # data sets may share it
                sources.append(provide(archive, archives, patience))
        for archive in config.archives:
            with meter(f"unpack {archive.name}", None) as advance:
                unpack(archives / archive.name, partial, archive.folders, archive.max_unpacked, advance)
        record = record_of(name, "unpacked from these archives", sources)
        with naming(partial):
            (partial / RECEIPT).write_text(json.dumps(record), encoding="utf-8")
        os.sync()  # otherwise a crash may leave empty files; fsync of each takes minutes
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return record


def provide(archive: Download, archives: Path, patience: Patience) -> dict[str, Any]:
    """Make sure that `archive` is in the folder `archives` and right. Returns where it is from."""
    path = archives / archive.name
    if path.exists():
        print(f"{archive.name}: found, checking it", flush=True)
        try:
            return source_of(path, verify(archive, path), f"found in {archives}")
        except WrongFileError as problem:
            if not archive.urls:
                raise DataError(f"{path}: {problem}. It is incomplete or another file: download it again.") from None
            print(f"{archive.name}: {problem}. Moved to {archive.name}.bad, fetching it again", flush=True)
            path.replace(path.with_name(f"{archive.name}.bad"))
    url, sha256 = fetch(archive, archives, patience)
    return source_of(path, sha256, url)


def source_of(path: Path, sha256: str, source: str) -> dict[str, Any]:
    """The entry of an archive in a record."""
    return {"name": path.name, "size": path.stat().st_size, "sha256": sha256, "from": source}


def record_of(name: str, raw: str, archives: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The record of a download. The same data gives the same record, so nothing is prepared again without need."""
    return {"dataset": name, "raw": raw, "archives": archives or []}


def read_receipt(path: Path) -> dict[str, Any]:
    """The record that an earlier run wrote into the raw folder it unpacked. Raises DataError for a damaged one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict) or "raw" not in record:
        raise DataError(f"{path}: damaged. Remove this file to keep the folder as your own data.")
    return record


def explain(name: str, config: DatasetConfig, archives: Path, raw: Path, missing: list[str]) -> str:
    """All ways to get what cannot be fetched, as one message."""
    them = "them" if len(missing) > 1 else "it"
    how = BY_HAND.get(config.format, "Put {them} there")
    how = how.format(them=them, archives=archives, missing=" ".join(missing))
    return (
        f"{archives}: missing {' and '.join(missing)} of {name}: no public address has {them}. {how}. "
        f"Then run the same command again. Or put or link the unpacked folders at {raw}."
    )


BY_HAND = {
    "cityscapes": (
        "With an account of your own, download {them} in a browser from https://www.cityscapes-dataset.com/downloads/ "
        "and put {them} there, or run: pip install cityscapesscripts && csDownload -d {archives} {missing}"
    )
}
