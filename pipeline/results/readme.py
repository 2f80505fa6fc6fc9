"""The tables in the README: each between two marker lines, all other bytes as they are."""

import shutil
from pathlib import Path

from deeplab.errors import DataError
from pipeline.files import locked, whole
from pipeline.settings.places import Places


def put(dataset: str, places: Places) -> None:
    """Replace the block of `dataset` in the README with its table. Raises DataError without a table."""
    table = read_table(dataset, places)
    readme = places.readme.resolve(strict=True)  # a link stays a link
    with locked(readme):
        old = readme.read_bytes()
        new = fill(old, dataset, table, readme)
        if new != old:
            with whole(readme) as partial:
                partial.write_bytes(new)
                shutil.copymode(readme, partial)


def stale(dataset: str, places: Places) -> str:
    """A message when the block of `dataset` in the README is not its table, else nothing.

    Raises DataError without a table, or with half a block.
    """
    old, readme = places.readme.read_bytes(), places.readme
    if fill(old, dataset, read_table(dataset, places), readme) == old:
        return ""
    return (
        f"{readme}: the block results:{dataset} is stale or was edited by hand: it is not {places.table(dataset)}. "
        f"Run: dvc repro -s -f readme@{dataset}"
    )


def read_table(dataset: str, places: Places) -> bytes:
    table = places.table(dataset)
    if not table.exists():
        raise DataError(f"{table}: not found. Run: grid run tables@{dataset}")
    return table.read_bytes()


def fill(old: bytes, dataset: str, table: bytes, readme: Path) -> bytes:
    """`old` with `table` in the block of `dataset`, with the line ends of `old`; a new block at the end where there is
    none. Raises DataError for half a block, or two.
    """
    begin, end = f"<!-- results:{dataset} -->".encode(), f"<!-- /results:{dataset} -->".encode()
    line_end = b"\r\n" if b"\r\n" in old else b"\n"
    if begin not in old and end not in old:
        old = line_end.join([old.rstrip(), b"", begin, end, b""])
    first, last = old.find(begin) + len(begin), old.find(end)
    if old.count(begin) != 1 or old.count(end) != 1 or first > last or b"results:" in old[first:last]:
        raise DataError(
            f"{readme}: found {old.count(begin)} times {begin.decode()} and {old.count(end)} times {end.decode()}, "
            f"expected one of each in this order and no other block between. Put both lines where the table belongs."
        )
    return old[:first] + line_end + table.replace(b"\n", line_end) + old[last:]
