"""Put a data set's table between its two markers in the README, and touch nothing else there."""

import argparse
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deeplab.errors import DataError, naming
from pipeline.errors import run_command

STALE = "{readme}: the block results:{dataset} is stale or was edited by hand: it is not {table}. {remedy}"


def run(dataset: str, table: Path, readme: Path) -> None:
    """Fill the block of `dataset` in `readme` with `table`, at once or not at all; DataError without its markers."""
    text = read(table, dataset)
    readme = readme.resolve()  # a link stays a link
    with locked(readme):
        old = readme.read_bytes()
        new = fill(old, dataset, text, readme)
        if new != old:
            replace(readme, new)


def check(dataset: str, table: Path, readme: Path) -> bool:
    """Whether the block of `dataset` in `readme` shows `table`."""
    old = readme.read_bytes()
    return fill(old, dataset, read(table, dataset), readme) == old


def read(table: Path, dataset: str) -> bytes:
    """The content of `table`."""
    if not table.exists():
        raise DataError(f"{table}: not there. Run: python -m pipeline.runner.run tables@{dataset}")
    return table.read_bytes()


def fill(old: bytes, dataset: str, table: bytes, readme: Path) -> bytes:
    """`old` with `table`, in the line ends of `old`, in the block of `dataset`; all else keeps its very bytes."""
    begin, end = f"<!-- results:{dataset} -->".encode(), f"<!-- /results:{dataset} -->".encode()
    first, last = old.find(begin) + len(begin), old.find(end)
    if old.count(begin) != 1 or old.count(end) != 1 or first > last or b"results:" in old[first:last]:
        raise DataError(
            f"{readme}: found {old.count(begin)} times {begin.decode()} and {old.count(end)} times {end.decode()}, "
            f"expected one of each in this order and no other block between. Put both lines where the table belongs."
        )
    line_end = b"\r\n" if b"\r\n" in old else b"\n"
    return old[:first] + line_end + table.replace(b"\n", line_end) + old[last:]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from filling `path`. Who has waited opens it anew, for meanwhile it was replaced."""
    while True:
        with path.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                yield
                return


def replace(path: Path, content: bytes) -> None:
    """Replace the content of `path`, keeping its mode; whatever goes wrong, the old content stays."""
    part = path.with_name(f".{path.name}.part")  # always the same, so that a kill leaves at most one, for the next call
    try:
        with naming(path), part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(path, part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="a key of `datasets` in params.yaml")
    parser.add_argument("--table", type=Path, required=True, help="what tables wrote")
    parser.add_argument("--readme", type=Path, required=True, help="the file to fill")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 when the block is not the table"
    )
    arguments = parser.parse_args()
    if not arguments.check:
        run(arguments.dataset, arguments.table, arguments.readme)
    elif not check(arguments.dataset, arguments.table, arguments.readme):
        remedy = "Run the same without --check"
        sys.exit(STALE.format(readme=arguments.readme, dataset=arguments.dataset, table=arguments.table, remedy=remedy))


if __name__ == "__main__":
    run_command(main)
