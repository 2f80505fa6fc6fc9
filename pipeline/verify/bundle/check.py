"""Check a bundle, anywhere and without a project: every file, the signature, and the numbers against the records.

Numbers are compared, not layouts, and nothing is read from the settings or the code of this version: a later one gives
the same answer. Of the numbers of `columns` in params.yaml, those in the record are compared with it, the others are
compared between CSV and LaTeX alone.
"""

import csv
import io
import re
import tempfile
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from statistics import fmean, stdev

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from deeplab.errors import DataError
from pipeline.data.unpack import unpack
from pipeline.errors import MismatchError, ParamsError
from pipeline.files import readable
from pipeline.results.columns import columns_of
from pipeline.results.latex import escape
from pipeline.results.records import INTERVAL, SCORES, Record, Scores, check_against, end_of_mean, numbers_in
from pipeline.results.values import texts_of
from pipeline.settings.places import Places
from pipeline.settings.yaml import read_yaml
from pipeline.training.provenance import file_sha256
from pipeline.verify.bundle.keys import SIGNATURE, SUMS, check_signature

MAX_BYTES = 1 << 28  # of text; that of the demo is below 1 MB
IN_LATEX = re.compile(r"gridvalue:(\S+)\\endcsname\{(.*)\}\n")
LATEX_LINE = re.compile(r"(.* & .*) \\\\\n")
NOT_PROVEN = "not proven: that the networks give these numbers. That takes their weights and data; README.md says how"


def check(bundle: Path | None, signer: Ed25519PublicKey | None) -> list[str]:
    """Check `bundle`, and that `signer` signed it, if given; a line about each thing that holds.

    Raises MismatchError for the first thing that does not, ParamsError for a wrong name.
    """
    path = require_name(bundle)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            unpack(path, folder, ["."], MAX_BYTES)
            files = f"{check_files(folder)} files, as in {SUMS}"
            return [files, check_signature(folder, signer), *check_tables(Places(folder)), NOT_PROVEN]
        except (DataError, MismatchError, ParamsError) as error:
            said = str(error).replace(f"{folder}/", "").removeprefix(f"{path}: ").strip()
            raise MismatchError(f"{path}: {said}") from None


def require_name(bundle: Path | None) -> Path:
    """`bundle`. Raises ParamsError unless its name is one of a zip."""
    if bundle is None or bundle.suffix != ".zip":
        raise ParamsError(f"--bundle: got {bundle}, expected a file whose name ends in .zip")
    return bundle


def check_files(folder: Path) -> int:
    """The number of listed files. Raises MismatchError with all that are changed, missing or not listed."""
    lines = (line.partition("  ") for line in text_of(folder / SUMS).splitlines())
    listed = {name: sha256 for sha256, _, name in lines}
    own = {name: file_sha256(path) for name, path in files_in(folder).items() if name not in (SUMS, SIGNATURE)}
    if wrong := [name for name in sorted(listed | own) if listed.get(name) != own.get(name)]:
        why = {name: "missing" if name not in own else "changed" if name in listed else "not listed" for name in wrong}
        raise MismatchError(f"not as in {SUMS}: {', '.join(f'{name} ({what})' for name, what in why.items())}")
    return len(listed)


def files_in(folder: Path) -> dict[str, Path]:
    """Name -> path of each file below `folder`, in one order."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def check_tables(places: Places) -> list[str]:
    """A line about each number of the tables. Raises MismatchError or DataError where it is not as recorded."""
    lines = []
    for dataset in sorted(path.stem for path in places.tables.glob("*.csv")):
        for row in read_table(dataset, places):
            check_record(row, dataset, places)
            lines.append(f"{row['cell']}: {texts_of(row)['mIoU']}, as recorded")
    if not lines:
        raise MismatchError("no table in it shows a number")
    return lines


def read_table(dataset: str, places: Places) -> list[dict[str, str]]:
    """The measured rows of a CSV table. Raises MismatchError where the Markdown or the LaTeX shows something else."""
    sheet, table, paper = places.sheet(dataset), places.table(dataset), places.latex(dataset)
    settings = read_yaml(places.params)
    with readable(places.params, ""):
        columns = columns_of(settings.get("columns", ()), settings["protocols"])
    with readable(sheet, ""):
        rows = list(csv.DictReader(io.StringIO(text_of(sheet)), strict=True))
        texts = {row["cell"]: texts_of(row, columns) for row in rows}
    shown = {cell: own["mIoU"] for cell, own in texts.items()}
    lines = [line.strip("| ").split(" | ") for line in text_of(table).splitlines() if line.count(" | ") > 1]
    require_same(table, dict(zip_longest(shown, column("mIoU", lines, table)[1:], fillvalue="")), shown)
    lines = [line.split(" & ") for line in LATEX_LINE.findall(text_of(paper))]
    printed = dict(zip_longest(shown, column("mIoU", lines, paper), fillvalue=""))
    require_same(paper, printed, {cell: escape(text) for cell, text in shown.items()})
    values = {f"{cell}.{name}": escape(text) for cell, own in texts.items() for name, text in own.items()}
    require_same(paper, dict(IN_LATEX.findall(text_of(paper))), values)
    return [row for row in rows if row["mIoU"]]


def column(title: str, lines: list[list[str]], path: Path) -> list[str]:
    """The texts below `title`, which is in the first of `lines`. Raises DataError where there are none."""
    with readable(path, ""):
        place = lines[0].index(title)
        return [line[place] for line in lines[1:]]


def check_record(row: dict[str, str], dataset: str, places: Places) -> None:
    """Raise MismatchError or DataError unless the record of a cell gives the scores and hashes of its `row`."""
    path = places.record(dataset, row["cell"])
    with readable(path, ""):
        text_of(path)
        record = Record.read(path)
        check_against(record, row["cell"], places.metrics(row["cell"]))
        protocol, *_ = read_yaml(places.params)["protocols"]
        seeds = row["seeds"].split()
        expected = {
            **columns_in(record, seeds, protocol, row),
            **means([record.seeds[seed][protocol] for seed in seeds], folds=len(record.images) == 1),
            "weights_sha256": " ".join(record.weights[seed].sha256 for seed in seeds),
            **{f"{name}_fingerprint": value for name, value in record.fingerprint.model_dump().items()},
        }
        for split in [name.removesuffix(".mIoU") for name in row if name.endswith(".mIoU") and row[name]]:
            there = (record.splits or {})[split].seeds
            found = means([there[seed][protocol] for seed in seeds], folds=False)
            expected |= {f"{split}.{name}": value for name, value in found.items()}
    require_same(places.sheet(dataset), row, row | expected)


def columns_in(record: Record, seeds: list[str], protocol: str, row: Mapping[str, str]) -> dict[str, str]:
    """The numbers of `row` that are measures or scores of further protocols in the record, with their spread."""
    runs = [record.seeds[seed] for seed in seeds]
    held = [run[protocol].measures | {f"mIoU_{title}": own.mIoU for title, own in run.items()} for run in runs]
    found: dict[str, str] = {}
    for name in [name for name in held[0] if row.get(name)]:
        values = [own[name] for own in held]
        found |= {name: str(fmean(values)), f"{name}_std": str(stdev(values)) if len(values) > 1 else ""}
    return found


def means(runs: list[Scores], folds: bool) -> dict[str, str]:
    """The mean of each score over `runs`, as in a CSV table: empty for ends and spread that do not exist."""
    scores = [numbers_in(run.model_dump(exclude_unset=True)) for run in runs]
    found: dict[str, float | None] = {name: fmean(own[name] for own in scores) for name in SCORES}
    found |= {end: end_of_mean(scores, end, folds) for end in INTERVAL}
    found["mIoU_std"] = stdev(own["mIoU"] for own in scores) if len(scores) > 1 else None
    return {name: "" if value is None else str(value) for name, value in found.items()}


def require_same(path: Path, said: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raise MismatchError with the first entry of `path` that is not as expected."""
    for key in [*expected, *said]:
        if said.get(key) != expected.get(key):
            raise MismatchError(f"{path}: {key} is {said.get(key)}, expected {expected.get(key)}")


def text_of(path: Path) -> str:
    """The content of `path`. Raises MismatchError where it is missing, DataError where it is no text."""
    if not path.is_file():
        raise MismatchError(f"{path} is missing, which `grid report --bundle` writes")
    with readable(path, ""):
        return path.read_text(encoding="utf-8")
