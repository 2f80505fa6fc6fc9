"""The tables in the README, each between two marker lines, and numbers in prose; all other bytes as they are."""

import re
import shutil
from pathlib import Path

from deeplab.errors import DataError
from pipeline.files import locked, whole
from pipeline.results.values import check_values, fill_values, first_difference, line_of, pages
from pipeline.settings.params import Params, load_params
from pipeline.settings.places import Places

BEGIN = re.compile(rb"<!-- results:(\S+) -->")


def put(dataset: str, places: Places) -> None:
    """Replace the block of `dataset` in the README with its table, and the values of its cells in each of `pages`.

    Raises DataError without a table, for half a block, and for an unknown value.
    """
    table, params = read_table(dataset, places), load_params(places.params)
    for path in pages(params, places):
        page = path.resolve(strict=True)  # a link stays a link
        with locked(page):
            old = page.read_bytes()
            new = fill(old, dataset, table, page) if path == places.readme else old
            new = fill_values(new, dataset, path, params, places)
            if new != old:
                with whole(page) as partial:
                    partial.write_bytes(new)
                    shutil.copymode(page, partial)


def stale(dataset: str, places: Places) -> str:
    """A message when the block of `dataset` in the README is not its table, or a value of its cells is another one.

    Raises DataError without a table, with half a block, and for an unknown value.
    """
    remedy = f"Run: dvc repro -s -f readme@{dataset}"
    old, readme, params = places.readme.read_bytes(), places.readme, load_params(places.params)
    if fill(old, dataset, read_table(dataset, places), readme) != old:
        said = f"the block results:{dataset} is stale or was edited by hand: it is not {places.table(dataset)}"
        return f"{readme}: {said}. {remedy}"
    for path in pages(params, places):
        old = path.read_bytes()
        if said := first_difference(old, fill_values(old, dataset, path, params, places)):
            return f"{path}:{said}, by {places.sheet(dataset)}. {remedy}"
    return ""


def left_behind(params: Params, places: Places) -> str:
    """A message when the README has the block of a data set that params.yaml no longer has: nothing checks it."""
    text = places.readme.read_bytes()
    for block in BEGIN.finditer(text):
        if (name := block[1].decode(errors="replace")) not in params.datasets:
            said = f"the block results:{name} is of no data set of {places.params}. Remove it, or rename it"
            return f"{places.readme}:{line_of(text, block.start())}: {said}"
    return ""


def check_pages(params: Params, places: Places) -> None:
    """Raise DataError or ParamsError for a page with values that cannot be filled, before anything is trained."""
    for path in pages(params, places):
        check_values(path.read_bytes() if path.exists() else b"", path, params)


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
