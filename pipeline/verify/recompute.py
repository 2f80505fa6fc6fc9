"""The part of verify that needs more than the committed files: the runs, the weights and the data."""

from functools import partial
from pathlib import Path

from deeplab.errors import DataError
from pipeline.progress import shown
from pipeline.results.records import Result
from pipeline.settings.params import Params
from pipeline.tracking.client import SQLITE, TrackingError, open_experiment, tracking_uri

TOLERANCE = 1e-4  # a hundredth of a percent: another GPU rounds differently


class MismatchError(Exception):
    """A number that is not what it claims to be."""


def check_runs(name: str, results: list[Result], params: Params) -> None:
    """Each result must have a complete run in MLflow with the same number, weights and data, and its commit."""
    dataset, uri = params.cell(name).dataset, tracking_uri()
    stage = params.stage("tables", dataset)
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():  # opening it would make an empty one
        raise MismatchError(f"{name}: no MLflow to find its run in: {uri} is not there. Run: make mlflow.db")
    try:
        with open_experiment(dataset, timeout=20) as experiment:
            runs = {run.data.tags.get("key"): run for run in experiment.runs(cell=name, complete="1")}
            current = [run for run in runs.values() if run.data.tags.get("current") == "1"]
    except TrackingError as error:
        raise MismatchError(f"{name}: no MLflow to find its run in: {error}") from None
    if not results and not current:
        raise MismatchError(f"{name}: no run in MLflow, and no record here. Run: dvc repro {stage}")
    for result in results:
        if result.key not in runs:
            raise MismatchError(f"{name}: no run in MLflow has the key {result.key}. Run: dvc repro -f {stage}")
        run = runs[result.key]
        tags, miou = run.data.tags, run.data.metrics.get("final/mIoU")
        expected = {"data_fingerprint": result.fingerprint["data"], "weights_sha256": result.weights["sha256"]}
        for tag, value in expected.items():
            if tags.get(tag) != value:
                raise MismatchError(f"{name}: run {run.info.run_id} says {tag} {tags.get(tag)}, the record {value}")
        if miou != result.scores["mIoU"]:
            raise MismatchError(f"{name}: run {run.info.run_id} says mIoU {miou}, the record {result.scores['mIoU']}")
    for run in [runs[result.key] for result in results] or current:
        if run.data.tags.get("commit", "unknown") == "unknown":
            raise MismatchError(
                f"{name}: run {run.info.run_id} knows no commit: it was recorded without the trainer's run.json, or "
                f"trained outside git"
            )


def recompute(name: str, results: list[Result], params: Params, weights: Path, data: Path) -> None:
    """The `weights` must give the number of the record again on the store `data`, but for rounding."""
    from deeplab.store import Store

    cell = params.cell(name)
    files = {result.seed: weights / result.weights["file"] for result in results}
    if missing := [file for file in files.values() if not file.exists()]:
        raise MismatchError(f"{name}: {missing[0]} is not there. Run: dvc pull {missing[0].parent}")
    try:
        store = Store(data)
    except DataError as error:
        raise MismatchError(f"{name}: no data to compute it on: {error}") from None
    if store.fingerprint != results[0].fingerprint["data"]:
        stage = params.stage("evaluate", name)
        raise MismatchError(f"{name}: {store.folder} is not the data of its record. Run: dvc repro {stage}")

    from deeplab.inference import evaluate
    from deeplab.metrics import score
    from pipeline.stages.evaluate import load_network
    from pipeline.training.device import select_device, set_arithmetic

    device = select_device(params.runtime.device)
    set_arithmetic(cell.train)
    split = store.split(cell.recipe.val_split)
    protocol = next(iter(params.protocols.values()))
    for result in results:
        file: Path = files[result.seed]
        network = load_network(file, name, cell, len(store.classes)).to(device)
        progress = partial(shown, title=f"{name} seed {result.seed}")
        matrix = evaluate(network, split, len(store.classes), cell.inference, protocol, device, progress)
        again, said = score(matrix).mean_iou, result.scores["mIoU"]
        if abs(again - said) > TOLERANCE:
            raise MismatchError(f"{name}: {file} gives mIoU {again:.6f} on {store.folder}, but the record says {said}")
