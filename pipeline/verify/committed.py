"""Prove the numbers of the README: follow each back to its record, and compute it again from the released weights.

Fast, from the committed files in seconds: the table, its CSV, its LaTeX and the model cards must be what the records
and params.yaml give; the README must show that table, and the pages with values its numbers; records, metrics and
tables must be the files that dvc.lock lists; and weights, counts of each image and statistics must agree with the
records where they exist.

In full, each number also needs a run in MLflow with the same number, weights and data, and with a commit, and the
weights must give the number again on the data.

Fast cannot notice when every file and dvc.lock were made up together, and neither weights nor counts exist here. The
full proof can.
"""

import hashlib
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from deeplab.errors import DataError
from pipeline.errors import MismatchError
from pipeline.files import readable
from pipeline.results.latex import latex
from pipeline.results.model_card import make_cards
from pipeline.results.readme import left_behind, stale
from pipeline.results.records import Result, Row, read_results
from pipeline.results.statistics import read_runs
from pipeline.results.table import make_rows, markdown, sheet
from pipeline.settings.params import Params, load_params
from pipeline.settings.places import Places
from pipeline.settings.yaml import read_yaml
from pipeline.training.provenance import file_sha256
from pipeline.verify.recompute import check_runs, recompute, results_of_others

Shown = dict[str, list[Result]]  # cell with a number -> its results here; none when somebody else measured it


def run(names: list[str], places: Places, fast: bool) -> list[str]:
    """Verify the cells `names`, by default all that show a number, and return a line about each.

    Raises MismatchError at the first that fails.
    """
    params = load_params(places.params)
    for name in names:
        params.cell(name)
    lines = []
    for dataset in params.datasets:
        wanted = [name for name in names if params.cell(name).dataset == dataset]
        if names and not wanted:
            continue
        try:
            shown = check_files(dataset, params, places, fast)
        except DataError as error:
            raise MismatchError(str(error)) from None
        if missing := [name for name in wanted if name not in shown]:
            raise MismatchError(f"{missing[0]}: {places.readme} shows no number. Run: grid run readme@{dataset}")
        for name, results in shown.items():
            if wanted and name not in wanted:
                continue
            if not fast:
                check_runs(name, results, params)
                recompute(name, results, params, places)
            lines.append(f"{name}: {describe(results, fast)}")
    if not names and (message := left_behind(params, places)):
        raise MismatchError(message)
    return lines


def describe(results: list[Result], fast: bool) -> str:
    """What was found about a cell."""
    if not results:
        return "measured by somebody else; its run is in MLflow" + (", where --fast does not look" if fast else "")
    return f"{100 * fmean(result.scores['mIoU'] for result in results):.2f} %, {'as recorded' if fast else 'again'}"


def check_files(dataset: str, params: Params, places: Places, fast: bool) -> Shown:
    """Check what is committed about `dataset`; the cells that show a number. `fast` accepts rows without a record."""
    if message := stale(dataset, places):
        raise MismatchError(message)
    local, reasons = read_results(dataset, params, places)
    results = local if fast else local | results_of_others(dataset, local, params, places)
    rows = make_rows(dataset, results, reasons, params, places)
    outdated = {name: why for name, why in reasons.items() if places.record(dataset, name).exists()}
    unknown = reasons.keys() - outdated.keys() if fast else set()
    differing = compare_lines(places.table(dataset), markdown(rows), rows, outdated, unknown)
    compare_lines(places.sheet(dataset), sheet(rows), rows, outdated, unknown)
    paper = places.latex(dataset)
    if not differing and (not paper.exists() or text_of(paper) != latex(dataset, rows)):
        raise MismatchError(f"{paper}: missing, or not what the records give. Run: dvc repro -f tables@{dataset}")
    cards = {places.cards(dataset) / name: text for name, text in make_cards(dataset, rows, params).items()}
    for path, text in cards.items():
        if not path.exists() or text_of(path) != text:
            raise MismatchError(f"{path}: missing, or not what the records give. Run: dvc repro -f tables@{dataset}")
    found = {row.name: [] if row.name in reasons else list(row.results) for row in rows if row.results}
    for name, own in found.items():
        if own:
            files = [places.record(dataset, name), places.metrics(name), places.plots(name) / "classes.csv"]
            check_lock(f"evaluate@{name}", files, places)
            check_extras(name, own, params, places)
    if found or differing:
        check_lock(f"tables@{dataset}", [places.table(dataset), places.sheet(dataset), paper], places)
    return {row.name: found.get(row.name, []) for row in rows if row.name in found or row.name in differing}


def text_of(path: Path) -> str:
    """The content of `path`; bytes that are no text are what no stage writes."""
    return path.read_text(encoding="utf-8", errors="replace")


def compare_lines(path: Path, text: str, rows: list[Row], outdated: dict[str, str], unknown: set[str]) -> set[str]:
    """Compare `path` with `text`: a head, a line for each of `rows`, and in a Markdown table perhaps a note.

    Returns the cells of `unknown` whose lines differ. Raises MismatchError when another line does, with the reason in
    `outdated` if it has one, or when the Markdown line of an unknown cell differs without a number in percent.
    """
    if not path.exists():
        raise MismatchError(f"{path}: not found. Run: grid run tables@{path.stem}")
    said, expected = (content.splitlines() for content in (text_of(path), text))
    head = [""] * (2 if path.suffix == ".md" else 1)
    names = [*head, *(row.name for row in rows), *[""] * (len(expected) - len(head) - len(rows))]
    if len(said) != len(expected):
        raise MismatchError(
            f"{path}: not the cells of params.yaml, or not the versions in its records. "
            f"Run: grid run tables@{path.stem}"
        )
    differing = {name for name, one, other in zip(names, said, expected, strict=True) if one != other}
    for name, one, other in zip(names, said, expected, strict=True):
        if one != other and name not in unknown:
            what = outdated.get(name) or f"{path} says {one}, expected {other}"
            raise MismatchError(f"{name}: {what}" if name else what)
        if one != other and path.suffix == ".md" and "%" not in one:
            raise MismatchError(f"{name}: {path}: a row of other settings. Run: grid run tables@{path.stem}")
    return differing


def check_lock(stage: str, files: list[Path], places: Places) -> None:
    """Raise MismatchError unless `files` are those that DVC recorded when it ran `stage`."""
    remedy = f"Run: dvc repro -f {stage}"
    locked: dict[str, Any] = (read_yaml(places.lock) if places.lock.exists() else {}).get("stages", {})
    if stage not in locked:
        raise MismatchError(f"{places.lock}: does not list {stage}. {remedy}")
    recorded = {out["path"]: out.get("md5") for out in locked[stage].get("outs", [])}
    for file in files:
        if not file.exists():
            raise MismatchError(f"{file}: not found. {remedy}")
        own = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        if own != recorded.get(file.relative_to(places.root).as_posix()):
            raise MismatchError(f"{file}: not the file that {stage} wrote, by {places.lock}. {remedy}")


def check_extras(name: str, results: list[Result], params: Params, places: Places) -> None:
    """Compare with the record what need not exist: weights, counts of each image, statistics."""
    dataset = params.cell(name).dataset
    for result in results:
        file = places.weights(name) / result.weights["file"]
        if file.exists() and file_sha256(file) != result.weights["sha256"]:
            raise MismatchError(f"{name}: {file} has another SHA-256 than the evaluated one. Run: dvc checkout {file}")
    if places.counts(dataset, name).exists():
        read_runs(results, params, places)
    statistics = places.statistics(dataset)
    if statistics.exists():
        mean = fmean(result.scores["mIoU"] for result in results)
        remedy = f"Run: dvc repro -f compare@{dataset}"
        with readable(statistics, remedy):
            cell = json.loads(statistics.read_bytes())["cells"].get(name)
            differs = cell and abs(cell["mIoU"] - mean) > 2e-6
        if differs:
            raise MismatchError(f"{name}: {statistics} says mIoU {cell['mIoU']}, the record {mean}. {remedy}")
