"""Get the raw data of a data set: fetch and unpack its published archives, unless the raw folder is there."""

import argparse
import json
from pathlib import Path

from deeplab.errors import DataError
from pipeline.data.archives import RECEIPT, bring, read_receipt, record_of
from pipeline.data.fetch import Patience
from pipeline.errors import run_command
from pipeline.files import claimed, write_whole
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.settings.schema import DatasetConfig


def run(name: str, places: Places = Places()) -> None:
    """Get the raw data of the data set `name` and record where it is from."""
    config = load_params(places.params).dataset(name)
    get(name, config, places.archives, places.raw(name), places.download(name))


def get(
    name: str, config: DatasetConfig, archives: Path, raw: Path, out: Path, patience: Patience = Patience()
) -> None:
    """Make sure that the folder `raw` is complete, and write to `out` where it is from.

    A raw folder, or a link, that has any content is left alone. Raises DataError when an archive is neither in
    `archives` nor at one of its addresses.
    """
    if raw.is_symlink() and not raw.exists():
        raise DataError(f"{raw}: links to {raw.readlink()}, which is missing. Mount it, or remove the link.")
    if raw.exists() and not raw.is_dir():
        raise DataError(f"{raw}: a file, expected the folder of the unpacked data. Move it away.")
    receipt = raw / RECEIPT
    if raw.exists() and any(raw.iterdir()):
        record = read_receipt(receipt) if receipt.exists() else record_of(name, "placed by the user")
    elif config.archives:
        archives.mkdir(parents=True, exist_ok=True)
        with claimed(archives / f".{name}.lock", name, "downloaded"):
            record = bring(name, config, archives, raw, patience)
    else:
        record = record_of(name, "nothing to download")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, json.dumps(record, indent=1) + "\n")
    print(f"{name}: {raw}: {record['raw']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="a key of `datasets` in params.yaml")
    run(parser.parse_args().dataset)


if __name__ == "__main__":
    run_command(main)
