"""Prove the numbers of the README: follow each back to its record, and compute it again from the released weights.

    python -m pipeline.verify.committed                  every number
    python -m pipeline.verify.committed voc_resnet50_os8 one cell
    python -m pipeline.verify.committed --fast           the committed files only, in seconds

Fast, each number must be the same in the README, the table, its csv, the record and the metrics; the record must be of
today's settings and code, give the key that the csv names, and be the file that dvc.lock says; what else is there
(weights, counts of each image, statistics) must agree. In full, its run must stand in MLflow with the same number,
weights, data and commit, and the weights in the store must give it again. Exits with 1 at the first that does not.
Fast cannot see when every file and dvc.lock were made up together and neither weights nor counts are here.
The full proof can.
"""

import argparse
import csv
import hashlib
import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from deeplab.errors import DataError
from pipeline.errors import run_command
from pipeline.files import readable
from pipeline.results.records import INTERVAL, SCORES, Result, read_results
from pipeline.settings.params import EXAMPLES, PARAMS, Params, load_params
from pipeline.settings.stage_names import short
from pipeline.settings.yaml import read_yaml
from pipeline.stages.readme import check as shows_table
from pipeline.training.provenance import file_sha256
from pipeline.verify.recompute import MismatchError, check_runs, recompute

Locked = dict[str, Any]  # stage -> what dvc.lock says of it


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where everything lies."""

    readme: Path = Path("README.md")
    reports: Path = Path("reports")
    runs: Path = Path("runs")
    data: Path = Path("data")
    lock: Path = Path("dvc.lock")
    params: Path = PARAMS

    def of(self, dataset: str, params: Params) -> "Place":
        """Where it lies for `dataset`: the examples have a dvc.lock and reports of their own."""
        if dataset not in params.examples:
            return self
        own = self.params.parent / EXAMPLES
        return replace(self, reports=own / self.reports.name, lock=own / self.lock.name)


def run(names: list[str], place: Place, fast: bool) -> list[str]:
    """Verify the cells `names`, or all that show a number; a line about each. MismatchError at the first that fails."""
    params = load_params(place.params)
    for name in names:
        params.cell(name)
    lines = []
    for dataset in params.datasets:
        wanted = [name for name in names if params.cell(name).dataset == dataset]
        if names and not wanted:
            continue
        shown = check_files(dataset, params, place.of(dataset, params))
        if missing := [name for name in wanted if name not in shown]:
            stage = params.stage("readme", dataset)
            raise MismatchError(f"{missing[0]}: {place.readme} shows no number. Run: dvc repro {stage}")
        for name, results in shown.items():
            if wanted and name not in wanted:
                continue
            if not fast:
                check_runs(name, results, params)
                if results:
                    recompute(name, results, params, place.runs / name / "weights", place.data / dataset)
            lines.append(f"{name}: " + describe(results, fast))
    return lines


def describe(results: list[Result], fast: bool) -> str:
    """What was found out about a cell."""
    if not results:
        return f"a colleague's: its run is in MLflow{', where nobody looked' if fast else ''}"
    return f"{100 * fmean(result.scores['mIoU'] for result in results):.2f} %, " + ("as recorded" if fast else "again")


def check_files(dataset: str, params: Params, place: Place) -> dict[str, list[Result]]:
    """Check what is committed about `dataset`; the results behind each number, none where they are a colleague's."""
    locked: Locked = (read_yaml(place.lock) if place.lock.exists() else {}).get("stages", {})
    table, sheet = (place.reports / "tables" / f"{dataset}.{kind}" for kind in ("md", "csv"))
    made_by, filled_by = params.stage("tables", dataset), params.stage("readme", dataset)
    if not table.exists():
        raise MismatchError(f"{table}: not there. Run: dvc repro {made_by}")
    if not shows_table(dataset, table, place.readme):
        raise MismatchError(
            f"{place.readme}: the block results:{dataset} is not {table}. Run: dvc repro -s -f {filled_by}"
        )
    cells = {name: cell for name, cell in params.cells.items() if cell.dataset == dataset}
    rows = dict(zip(cells, read_table(table), strict=False))
    values = read_sheet(sheet)
    if not list(cells) == list(rows) == list(values):
        raise MismatchError(f"{table}, {sheet}: not the cells of {place.params}. Run: dvc repro {made_by}")
    measured = {name for name, row in rows.items() if row["mIoU"] != "-"}
    records = place.reports / "records" / dataset
    manifest = place.data / dataset / "manifest.json"
    try:
        results, reasons = read_results(cells, params, records, place.reports, manifest)
    except DataError as error:
        raise MismatchError(str(error)) from None
    found: dict[str, list[Result]] = {}
    for name in (name for name in cells if name in measured):
        record = records / f"{name}.json"
        compare_text(name, table, rows[name]["mIoU"], shown_miou(values[name]))
        own = [results[name, seed] for seed in params.seeds if (name, seed) in results]
        if not own and record.exists():
            raise MismatchError(f"{name}: {reasons[name]}")
        found[name] = own
        if own:
            compare_sheet(name, sheet, values[name], own)
            metrics, plot = place.reports / "metrics" / f"{name}.json", place.reports / "plots" / name / "classes.csv"
            check_lock(params.stage("evaluate", name), place.lock, locked, [record, metrics, plot])
            check_extras(name, own, params, place)
        check_links(name, rows[name]["Download"], place)
    if measured:
        check_lock(made_by, place.lock, locked, [table, sheet])
    return found


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a Markdown table by their head."""
    with readable(path, "Run: dvc repro -f tables"):
        head, _, *rows = [line.strip("| \n").split(" | ") for line in path.read_text(encoding="utf-8").splitlines()]
        return [dict(zip(head, row, strict=False)) for row in rows]


def read_sheet(path: Path) -> dict[str, dict[str, str]]:
    """The rows of the csv by cell."""
    if not path.exists():
        raise MismatchError(f"{path}: not there")
    with readable(path, "Run: dvc repro -f tables"), path.open(encoding="utf-8", newline="") as file:
        return {row["cell"]: row for row in csv.DictReader(file)}


def shown_miou(row: dict[str, str]) -> str:
    """What the table shows for a row of its csv."""
    if not row["mIoU"]:
        return "-"
    return f"{100 * float(row['mIoU']):.2f}%" + (f" ± {100 * float(row['mIoU_std']):.2f}" if row["mIoU_std"] else "")


def compare_text(name: str, where: Path, said: str, expected: str) -> None:
    if said != expected:
        raise MismatchError(f"{name}: {where} says {said}, expected {expected}")


def compare_sheet(name: str, sheet: Path, row: dict[str, str], results: list[Result]) -> None:
    """Hold a row of the csv against the results that it is made of."""
    first = results[0]
    exact = {
        "keys": " ".join(result.key for result in results),
        "weights_sha256": " ".join(result.weights["sha256"] for result in results),
        **{f"{part}_fingerprint": first.fingerprint[part] for part in ("cell", "data", "code")},
    }
    for column, expected in exact.items():
        compare_text(name, sheet, f"{column} {row[column]}", f"{column} {expected}")
    for score in (*SCORES, *INTERVAL):
        held = [result.scores[score] for result in results if score in result.scores]
        if held and row.get(score) and abs(float(row[score]) - fmean(held)) > 1e-9:
            raise MismatchError(f"{name}: {sheet} says {score} {row[score]}, the record {fmean(held)}")


def check_lock(stage: str, lock: Path, locked: Locked, files: list[Path]) -> None:
    """The files must be those that DVC recorded when the stage made them: nobody edited them by hand since."""
    remedy = f"Run: dvc repro -f {stage}"
    entry = locked.get(short(stage))
    if entry is None:
        raise MismatchError(f"{lock}: knows no {short(stage)}. {remedy}")
    recorded = {out["path"]: out.get("md5") for out in entry.get("outs", [])}
    for file in files:
        if not file.exists():
            raise MismatchError(f"{file}: not there. {remedy}")
        if hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() != recorded.get(file.as_posix()):
            raise MismatchError(f"{file}: not the file that {stage} wrote, says {lock}. {remedy}")


def check_extras(name: str, results: list[Result], params: Params, place: Place) -> None:
    """Hold what is not everywhere against the record, where it is: weights, counts of each image, statistics."""
    dataset = params.cell(name).dataset
    for result in results:
        file = place.runs / name / "weights" / result.weights["file"]
        if file.exists() and file_sha256(file) != result.weights["sha256"]:
            raise MismatchError(f"{name}: {file} is not what was evaluated: other SHA-256. Run: dvc checkout {file}")
    counts = place.reports / "images" / dataset / f"{name}.npz"
    if counts.exists():
        from pipeline.stages.compare import read_runs

        try:
            read_runs(counts, results, params)
        except DataError as error:
            raise MismatchError(f"{name}: {error}") from None
    statistics = place.reports / "statistics" / f"{dataset}.json"
    if statistics.exists():
        mean = fmean(result.scores["mIoU"] for result in results)
        stage = params.stage("compare", dataset)
        with readable(statistics, f"Run: dvc repro -f {stage}"):
            cell = json.loads(statistics.read_bytes())["cells"].get(name)
            differs = cell and abs(cell["mIoU"] - mean) > 2e-6
        if differs:
            raise MismatchError(
                f"{name}: {statistics} says mIoU {cell['mIoU']}, the record {mean}. Run: dvc repro {stage}"
            )


def check_links(name: str, links: str, place: Place) -> None:
    """What is committed and linked must be there; weights and logs are where DVC has them."""
    for path in re.findall(r"\(([^)]*)\)", links):
        file = place.readme.parent / path
        if place.reports.name in Path(path).parts[:2] and not file.exists():
            raise MismatchError(f"{name}: {place.readme} links to {path}, which is not there")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", help="keys of `grid` in params.yaml; all that show a number by default")
    parser.add_argument("--fast", action="store_true", help="check the committed files only")
    arguments = parser.parse_args()
    try:
        lines = run(arguments.cells, Place(), arguments.fast)
    except MismatchError as error:
        sys.exit(f"error: {error}")
    print(*lines or ["the README shows no number"], sep="\n")


if __name__ == "__main__":
    run_command(main)
