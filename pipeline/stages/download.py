"""Bring the raw data of a data set: fetch its published archives and unpack them, unless the raw folder is there."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from deeplab.errors import DataError, naming
from pipeline.data.fetch import Patience, WrongFileError, fetch, meter, verify
from pipeline.data.unpack import unpack
from pipeline.errors import run_command
from pipeline.files import claimed, write_whole
from pipeline.settings.params import load_params
from pipeline.settings.schema import Archive, DatasetConfig

RECEIPT = ".download.json"  # in a raw folder that was unpacked here: which archives it came from


def run(
    name: str, config: DatasetConfig, archives: Path, raw: Path, out: Path, patience: Patience | None = None
) -> None:
    """Make sure that the raw folder of the data set `name` is complete, and write to `out` where it is from.

    A raw folder, or a link, that holds anything is left alone. DataError when an archive is neither in `archives` nor
    to be had.
    """
    if raw.is_symlink() and not raw.exists():
        raise DataError(f"{raw}: links to {raw.readlink()}, which is not there. Mount it, or remove the link.")
    if raw.exists() and not raw.is_dir():
        raise DataError(f"{raw}: a file, expected the folder of the unpacked data. Move it away.")
    receipt = raw / RECEIPT
    if raw.exists() and any(raw.iterdir()):
        record = read_receipt(receipt) if receipt.exists() else record_of(name, "placed by the user")
    elif config.archives:
        archives.mkdir(parents=True, exist_ok=True)
        with claimed(archives / f".{name}.lock", name, "downloaded"):
            record = bring(name, config, archives, raw, patience or Patience())
    else:
        record = record_of(name, "nothing to download")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, json.dumps(record, indent=1) + "\n")
    print(f"{name}: {raw}: {record['raw']}")


def bring(name: str, config: DatasetConfig, archives: Path, raw: Path, patience: Patience) -> dict[str, Any]:
    """Fetch what is missing, unpack all, and let the raw folder appear in one step."""
    if missing := [a.name for a in config.archives if not a.urls and not (archives / a.name).exists()]:
        raise DataError(explain(name, config, archives, raw, missing))
    target = raw.resolve()  # a link to an empty folder stays a link
    partial = target.with_name(f".{target.name}.part")
    if partial.exists():  # of a run that was killed
        shutil.rmtree(partial)
    partial.mkdir(parents=True)  # before hours of fetching: may anything be written here?
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
        os.sync()  # else a crash may leave empty files behind the new name; one by one takes minutes
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return record


def provide(archive: Archive, archives: Path, patience: Patience) -> dict[str, Any]:
    """Make sure that `archive` is in the folder `archives` and right, and say where it is from."""
    path = archives / archive.name
    if path.exists():
        print(f"{archive.name}: is there, checking it", flush=True)
        try:
            return source_of(path, verify(archive, path), f"found in {archives}")
        except WrongFileError as problem:
            if not archive.urls:
                raise DataError(f"{path}: {problem}. It is cut short or another file: get it again.") from None
            print(f"{archive.name}: {problem}. Moved to {archive.name}.bad, fetching it again", flush=True)
            path.replace(path.with_name(f"{archive.name}.bad"))
    url, sha256 = fetch(archive, archives, patience)
    return source_of(path, sha256, url)


def source_of(path: Path, sha256: str, source: str) -> dict[str, Any]:
    """An archive in a record."""
    return {"name": path.name, "size": path.stat().st_size, "sha256": sha256, "from": source}


def record_of(name: str, raw: str, archives: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The record of a download; the same for the same data, so that nothing is prepared again for nothing."""
    return {"dataset": name, "raw": raw, "archives": archives or []}


def read_receipt(path: Path) -> dict[str, Any]:
    """What an earlier run wrote into the raw folder that it unpacked."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict) or "raw" not in record:
        raise DataError(f"{path}: not readable. Remove this file to keep the folder as your own data.")
    return record


def explain(name: str, config: DatasetConfig, archives: Path, raw: Path, missing: list[str]) -> str:
    """All ways to bring what cannot be fetched."""
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.stages.download", description=__doc__)
    parser.add_argument("dataset", help="a key of `datasets` in params.yaml")
    parser.add_argument("--archives", type=Path, required=True, help="the folder of the archives")
    parser.add_argument("--raw", type=Path, required=True, help="the folder for the unpacked data")
    parser.add_argument("--out", type=Path, required=True, help="the file that says where the data is from")
    args = parser.parse_args()
    run(args.dataset, load_params().dataset(args.dataset), args.archives, args.raw, args.out)


if __name__ == "__main__":
    run_command(main)
