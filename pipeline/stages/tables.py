"""Fill a data set's table: complete the record in MLflow, then read the results back from it.

A number stands in the table when its run's fingerprints of settings, data, code and protocol are today's, whoever
trained it; else the cell shows `-`, and why is said on stderr. Without MLflow the committed records alone fill it.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deeplab.config import Cell
from pipeline.errors import run_command
from pipeline.files import whole, write_whole
from pipeline.markdown import plain
from pipeline.results.model_card import write_cards
from pipeline.results.records import (
    INTERVAL,
    SCORES,
    Place,
    Result,
    manifest_fingerprint,
    read_results,
    todays_fingerprint,
)
from pipeline.results.row import Row
from pipeline.settings.params import PARAMS, load_params
from pipeline.settings.published import departs
from pipeline.tracking.client import (
    SQLITE,
    TrackingError,
    identity_tags,
    locked,
    open_experiment,
    tracking_uri,
    without_password,
)
from pipeline.tracking.models import register, write_notes
from pipeline.tracking.runs import end_leftovers, mark_current, read_back, record

TITLES = {
    "resnet18": "ResNet18",
    "resnet34": "ResNet34",
    "resnet50": "ResNet50-7x7stem",
    "resnet101": "ResNet101-7x7stem",
    "resnet50c": "ResNet50",
    "resnet101c": "ResNet101",
}


def run(
    dataset: str, records: Path, runs: Path, reports: Path, data: Path, out: Path, params_file: Path = PARAMS
) -> None:
    """Write `out`/`dataset`.md and .csv from the results in `records`, and those of others in MLflow; and model cards.

    `runs` and `reports` hold what goes into the record with a result, `data` the prepared store if it is there.
    """
    params = load_params(params_file)
    config = params.dataset(dataset)
    cells = {name: cell for name, cell in params.cells.items() if cell.dataset == dataset}
    manifest = data / "manifest.json"
    local, reasons = read_results(cells, params, records, reports, manifest)
    results, page = local, ""
    # Nothing can be looked up as long as nothing says what the data must be.
    known = manifest_fingerprint(manifest) or next((result.fingerprint["data"] for result in local.values()), None)
    if known:
        wanted = {
            (name, seed): identity_tags(name, seed, todays_fingerprint(cell, params, known))
            for name, cell in cells.items()
            for seed in params.seeds
        }
        try:
            results, page = synchronise(dataset, cells, local, wanted, runs, reports, data)
        except TrackingError as error:
            print(f"warning: no MLflow, so {records} alone fills the table, unrecorded: {error}", file=sys.stderr)
    rows, cards = [], reports / "cards" / dataset
    for name, cell in cells.items():
        found = tuple(results[name, seed] for seed in params.seeds if (name, seed) in results)
        if len(found) < len(params.seeds):
            print(f"{name}: shown as -: {reasons[name]}", file=sys.stderr)
            found = ()
        here = runs / name if name not in reasons else None
        card = cards / f"{name}.md" if found and here else None
        rows.append(Row(name=name, cell=cell, dataset=config, results=found, folder=here, card=card))
    write_cards(rows, cards, config.title, next(iter(params.protocols.values())))
    table = markdown(rows)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / f"{dataset}.md", table)
    write_csv(rows, out / f"{dataset}.csv")
    print(f"{config.title}\n\n{table}\nin {out}/{dataset}.md and .csv")
    if page:
        show_off(dataset, rows, runs, params.runtime.log_weights)
        print(f"the runs: {how_to_look(page)}")


def synchronise(
    dataset: str,
    cells: dict[str, Cell],
    local: dict[Place, Result],
    wanted: dict[Place, dict[str, str]],
    runs: Path,
    reports: Path,
    data: Path,
) -> tuple[dict[Place, Result], str]:
    """Record `local`; return the results as MLflow has them, and the page that shows them. Raises TrackingError.

    The folder's own result comes before a colleague's, so that the table agrees with the records beside it.
    """
    results: dict[Place, Result] = {}
    with open_experiment(dataset, timeout=20) as experiment, locked(experiment.uri):
        # All at once: a search for each of 200 cells takes half a minute.
        recorded = {run.data.tags.get("key") for run in experiment.runs(complete="1")}
        for result in local.values():
            if result.key in recorded:
                continue
            cell = cells[result.cell]
            record(experiment, dataset, result, settings(cell, result.seed), runs, reports, data, departs(cell))
        complete = experiment.runs(complete="1")
        for place, tags in wanted.items():
            own = local.get(place)
            found = read_back(complete, {"key": own.key} if own else tags) or own
            if found:
                results[place] = found
        mark_current(experiment, complete, [result.run for result in results.values()])
        end_leftovers(experiment, complete)
        return results, experiment.page


def show_off(dataset: str, rows: list[Row], runs: Path, log_weights: bool) -> None:
    """Make the runs of the table easy to find in MLflow, which answered a moment ago; a failure costs a warning."""
    results = [result for row in rows for result in row.results if result.run]  # the run of another is damaged
    if not results:
        return
    shown = {row.name: {title: column(row) for title, column in COLUMNS.items()} for row in rows}
    try:
        with open_experiment(dataset, timeout=20) as experiment, locked(experiment.uri):
            write_notes(experiment, rows[0].dataset.title, shown, results)
            register(experiment, dataset, results, runs, log_weights)
    except TrackingError as error:
        print(f"warning: no notes and models in MLflow: {error}", file=sys.stderr)


def settings(cell: Cell, seed: int) -> dict[str, Any]:
    """The cell as the flat params of a run."""
    sections = json.loads(json.dumps(asdict(cell)))
    flat = {key: value for name in ("model", "recipe", "train") for key, value in sections[name].items()}
    return {"dataset": cell.dataset, "seed": seed, **flat}


def markdown(rows: list[Row]) -> str:
    """The table in the form of the README."""
    lines = [list(COLUMNS), [":-:"] * len(COLUMNS), *([column(row) for column in COLUMNS.values()] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_csv(rows: list[Row], path: Path) -> None:
    """The table for programs: shares instead of percent, and where each number comes from."""
    import pandas as pd

    with whole(path) as partial:
        pd.DataFrame([csv_row(row) for row in rows]).to_csv(partial, index=False, lineterminator="\n")


def csv_row(row: Row) -> dict[str, Any]:
    recipe, results = row.cell.recipe, row.results
    first = results[0] if results else None
    return {
        "cell": row.name,
        "backbone": row.cell.model.backbone,
        "output_stride": row.cell.model.output_stride,
        "crop": "x".join(map(str, recipe.crop)),
        "batch_size": recipe.batch_size,
        "epochs": recipe.epochs,
        "seeds": " ".join(str(result.seed) for result in results),
        **{score: row.mean(score) if results else None for score in SCORES},
        "mIoU_std": row.spread("mIoU"),
        **{end: row.mean_end(end) for end in INTERVAL},
        **{f"{part}_images": first and first.images.get(split) for part, split in splits(row).items()},
        "keys": " ".join(result.key for result in results),
        "cell_fingerprint": row.cell.fingerprint,
        "data_fingerprint": first and first.fingerprint["data"],
        "code_fingerprint": first and first.fingerprint["code"],
        "weights_sha256": " ".join(result.weights["sha256"] for result in results),
        "departs": departs(row.cell),
    }


def splits(row: Row) -> dict[str, str]:
    return {"train": row.cell.recipe.train_split, "eval": row.cell.recipe.val_split}


def backbone(row: Row) -> str:
    model = row.cell.model
    pretrained = "ImageNet" if model.pretrained else "none"
    return f"{plain(TITLES.get(model.backbone, model.backbone))} (OS={model.output_stride}, PRE={pretrained})"


def crop(row: Row) -> str:
    return "x".join(map(str, row.cell.recipe.crop))


def schedule(row: Row) -> str:
    """The schedule, and where the cell departs from the published recipe."""
    recipe = row.cell.recipe
    text = f"LR/POLICY/BS/EPOCH: {recipe.lr:g}/{recipe.policy}/{recipe.batch_size}/{recipe.epochs}"
    return text + (f" (departs: {departs(row.cell)})" if departs(row.cell) else "")


def sets(row: Row) -> str:
    """The splits; a result on fewer images than the data set has says so."""
    names = splits(row).values()
    title = plain("/".join(names))
    if not row.results:
        return title
    used = [row.results[0].images[name] for name in names]
    published = [row.dataset.images[name] for name in names]
    if all(have >= whole for have, whole in zip(used, published, strict=True)):
        return title
    return f"{title} (subset: {'/'.join(map(str, used))} of {'/'.join(map(str, published))} images)"


def mean_iou(row: Row) -> str:
    """Percent, with the standard deviation when there are several seeds."""
    if not row.results:
        return "-"
    spread = row.spread("mIoU")
    return f"{100 * row.mean('mIoU'):.2f}%" + (f" ± {100 * spread:.2f}" if spread is not None else "")


def download(row: Row) -> str:
    """Links to what DVC keeps for the cell, weights for each seed and the history of all, and to its model card."""
    if not row.results or not row.folder:
        return "-"
    one = len(row.results) == 1
    links = {"model" if one else f"model {result.seed}": f"weights/{result.weights['file']}" for result in row.results}
    paths = {name: row.folder / path for name, path in (links | {"log": "history.csv"}).items()}
    paths |= {"card": row.card} if row.card else {}
    return " · ".join(f"[{name}]({path.as_posix()})" for name, path in paths.items())


def how_to_look(page: str) -> str:
    """What shows the runs."""
    uri = tracking_uri()
    if not uri.startswith(SQLITE):
        return f"{without_password(uri)}/{page}"
    return f"make ui, then http://127.0.0.1:5000/{page}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a key of `datasets` in params.yaml")
    parser.add_argument("--records", type=Path, required=True, help="where evaluate writes the data set's results")
    parser.add_argument("--runs", type=Path, required=True, help="where train writes weights and histories")
    parser.add_argument("--reports", type=Path, required=True, help="where evaluate writes plots and figures")
    parser.add_argument("--data", type=Path, required=True, help="the prepared store, if it is there")
    parser.add_argument("--out", type=Path, required=True, help="where the table goes")
    arguments = parser.parse_args()
    run(arguments.dataset, arguments.records, arguments.runs, arguments.reports, arguments.data, arguments.out)


# Title of a column -> what a row shows there.
COLUMNS: dict[str, Callable[[Row], str]] = {
    "Backbone": backbone,
    "Crop Size": crop,
    "Schedule": schedule,
    "Train/Eval Set": sets,
    "mIoU": mean_iou,
    "Download": download,
}

if __name__ == "__main__":
    run_command(main)
