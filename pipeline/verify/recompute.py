"""The part of verify that needs more than the committed files: the runs, the weights and the data."""

from functools import partial
from pathlib import Path

from deeplab.errors import DataError
from pipeline.errors import MismatchError
from pipeline.progress import shown
from pipeline.results.records import Result
from pipeline.results.splits import folder_of
from pipeline.settings.links import remedy
from pipeline.settings.params import Params
from pipeline.settings.places import Places
from pipeline.tracking.client import SQLITE, TrackingError, open_experiment, tracking_uri
from pipeline.tracking.runs import read_back
from pipeline.tracking.sync import Results, wanted_tags
from pipeline.training.provenance import differing, versions

TOLERANCE = 1e-4  # a hundredth of a percent: another GPU rounds differently


def results_of_others(dataset: str, local: Results, params: Params, places: Places) -> Results:
    """The results in MLflow for the cells that have none in `local`; none without a database."""
    wanted = {place: tags for place, tags in wanted_tags(dataset, local, params, places).items() if place not in local}
    if not wanted or not database_exists():
        return {}
    try:
        with open_experiment(dataset, timeout=20) as experiment:
            complete = experiment.runs(complete="1")
            found = {place: read_back(complete, tags) for place, tags in wanted.items()}
    except TrackingError as error:
        raise MismatchError(f"{dataset}: cannot look up its runs in MLflow: {error}") from None
    return {place: result for place, result in found.items() if result}


def check_runs(name: str, results: list[Result], params: Params) -> None:
    """Each result must have a complete run in MLflow with the same number, weights and data, and its commit."""
    dataset = params.cell(name).dataset
    if not database_exists():
        cause = f"{tracking_uri()} does not exist"
        raise MismatchError(f"{name}: cannot find its run: {cause}. Run: dvc repro -s -f tables@{dataset}")
    try:
        with open_experiment(dataset, timeout=20) as experiment:
            runs = {run.data.tags.get("key"): run for run in experiment.runs(cell=name, complete="1")}
            current = [run for run in runs.values() if run.data.tags.get("current") == "1"]
    except TrackingError as error:
        raise MismatchError(f"{name}: cannot look up its run in MLflow: {error}") from None
    if not results and not current:
        raise MismatchError(f"{name}: no run in MLflow, and no record here. Run: grid run tables@{dataset}")
    for result in results:
        if result.key not in runs:
            raise MismatchError(
                f"{name}: no run in MLflow has the key {result.key}. Run: dvc repro -f tables@{dataset}"
            )
        run = runs[result.key]
        tags, metrics = run.data.tags, run.data.metrics
        expected = {"data_fingerprint": result.fingerprint["data"], "weights_sha256": result.weights["sha256"]}
        for tag, value in expected.items():
            if tags.get(tag) != value:
                raise MismatchError(f"{name}: run {run.info.run_id} says {tag} {tags.get(tag)}, the record {value}")
        scores = {"": result.scores, **{f"{split}/": each.scores for split, each in result.splits.items()}}
        for split, own in scores.items():
            if (miou := metrics.get(f"final/{split}mIoU")) != own["mIoU"]:
                raise MismatchError(f"{name}: run {run.info.run_id} says {split}mIoU {miou}, the record {own['mIoU']}")
    for run in [runs[result.key] for result in results] or current:
        if run.data.tags.get("commit", "unknown") == "unknown":
            raise MismatchError(
                f"{name}: run {run.info.run_id} has no commit: it was recorded without the trainer's run.json, or "
                f"trained outside git"
            )


def database_exists() -> bool:
    """Whether there is an MLflow database or server to look into; opening a missing database would create it."""
    uri = tracking_uri()
    return not uri.startswith(SQLITE) or Path(uri.removeprefix(SQLITE)).exists()


def recompute(name: str, results: list[Result], params: Params, places: Places) -> None:
    """Evaluate the weights again: they must give the numbers of `results`, apart from rounding."""
    from deeplab.store import Store

    if not results:
        return
    cell = params.cell(name)
    files = {result.seed: places.weights(name) / result.weights["file"] for result in results}
    if missing := [file for file in files.values() if not file.exists()]:
        raise MismatchError(f"{name}: {missing[0]} not found. {remedy(name, cell.dataset, places)}")
    try:
        store = Store(places.store(cell.dataset))
        further = {split: Store(folder_of(split, cell.dataset, params, places)) for split in results[0].splits}
    except DataError as error:
        run = f"Run: dvc repro prepare@{cell.dataset}"
        raise MismatchError(f"{name}: no data to compute it on: {error} {run}") from None
    expected = {split: each.data for split, each in results[0].splits.items()}
    for split, own in {"": store, **further}.items():
        if own.fingerprint != expected.get(split, results[0].fingerprint["data"]):
            raise MismatchError(f"{name}: {own.folder} is not the data of its record. Run: grid run evaluate@{name}")

    from deeplab.images import evaluation_images
    from deeplab.inference import evaluate
    from deeplab.metrics import score
    from pipeline.training.device import select_device, set_arithmetic
    from pipeline.training.weights import load_network

    device = select_device(params.runtime.device)
    set_arithmetic(cell.train)
    protocol = next(iter(params.protocols.values()))
    for result in results:
        file: Path = files[result.seed]
        network = load_network(file, name, cell, len(store.classes), protocol).to(device)
        progress = partial(shown, title=f"{name} seed {result.seed}")
        numbers = {str(store.folder): (evaluation_images(store, cell.recipe, result.seed), result.scores["mIoU"])}
        for split, each in result.splits.items():
            numbers[f"{split} of {further[split].folder}"] = (further[split].split(split), each.scores["mIoU"])
        for where, (images, said) in numbers.items():
            matrix = evaluate(network, images, len(store.classes), cell.inference, protocol, device, progress)
            if abs((again := score(matrix).mean_iou) - said) > TOLERANCE:
                changed = differing(result.versions, versions(device))
                hint = f"measured with other versions ({changed}): " if changed else ""
                raise MismatchError(
                    f"{name}: {hint}{file} gives mIoU {again:.6f} on {where}, but the record says {said}"
                )
