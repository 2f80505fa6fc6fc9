"""What makes the shown runs easy to find in MLflow: a note with the table's row, a model, and the alias of the best.

A model is a name for the weights that DVC keeps: their SHA-256, their scores, and what goes in and out of it; and with
`runtime.log_weights` the safetensors file too. Nothing is ever pickled.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.markdown import plain
from pipeline.results.records import Result
from pipeline.tracking.client import PREFIX, Experiment, cause

NOTE = "mlflow.note.content"  # shown above a run or an experiment, as Markdown
BEST = "best"
VERSIONS = "mlflow.modelVersions"  # of a model: what the list of models shows as registered
HIDDEN = ("mIoU", "Download")  # columns: the first is said before the others, the links are of this folder


def write_notes(
    experiment: Experiment, title: str, rows: Mapping[str, Mapping[str, str]], results: list[Result]
) -> None:
    """Write above each run, and all together above the experiment, its row: `rows` is cell -> column -> text.

    As lines of text: above a run MLflow draws no tables.
    """
    lines = {
        cell: f"**{row['mIoU']}** " + ", ".join(row[name] for name in row if name not in HIDDEN)
        for cell, row in rows.items()
    }
    note(experiment, f"{plain(title)}\n\n" + "".join(f"- `{cell}`: {line}\n" for cell, line in lines.items()))
    runs = {run.info.run_id: run.data.tags for run in experiment.runs(current="1")}
    for result in results:
        weights = f"runs/{result.cell}/weights/{result.weights['file']}"
        own = f"Seed {result.seed}: {result.scores['mIoU']:.2%}, `{weights}`, SHA-256 `{result.weights['sha256']}`"
        text = f"{lines[result.cell]}\n\n{own}\n"
        if runs.get(result.run, {}).get(NOTE) != text:
            experiment.set_tags(result.run, {NOTE: text})


def note(experiment: Experiment, text: str) -> None:
    """Write `text` above the experiment."""
    if experiment.client.get_experiment(experiment.number).tags.get(NOTE) != text:
        experiment.client.set_experiment_tag(experiment.number, NOTE, text)


def register(experiment: Experiment, dataset: str, results: list[Result], runs: Path, log_weights: bool) -> None:
    """Give each result a model and a version of `deeplabv3-<dataset>`; the best one has the alias `best`.

    A server without a registry costs a warning, not the table.
    """
    from mlflow.exceptions import MlflowException

    try:
        name = f"{PREFIX}{dataset}"
        found = {} if log_weights else registered(experiment, name)
        versions = {
            result.key: found.get(result.key) or version_of(experiment, name, result, runs, log_weights)
            for result in results
        }
        best = max(results, key=lambda result: result.scores["mIoU"])
        known = experiment.client.get_registered_model(name).aliases
        if str(known.get(BEST)) != versions[best.key]:
            experiment.client.set_registered_model_alias(name, BEST, versions[best.key])
    except MlflowException as error:
        print(f"warning: no models in MLflow: {cause(error)}", file=sys.stderr)


def registered(experiment: Experiment, name: str) -> dict[str, str]:
    """Key of a result -> the number of its version, where its one model and version are as `version_of` leaves them."""
    client = experiment.client
    models = every(partial(client.search_logged_models, [experiment.number], max_results=500))
    said = {
        model.tags.get("key"): model.tags.get(VERSIONS) for model in reversed(models) if str(model.status) == "READY"
    }
    versions = every(partial(client.search_model_versions, f"name = '{name}'", max_results=500))
    times = Counter(each.tags.get("key") for each in versions)
    times.update(each.tags.get("key") for each in models)
    return {
        key: str(version.version)
        for version in versions
        if times[key := version.tags.get("key")] == 2 and said.get(key) == versions_tag(name, str(version.version))
    }


def every(search: Callable[..., Any]) -> list[Any]:
    """What `search` finds, over all its pages."""
    page = search()
    found = list(page)
    while page.token:
        page = search(page_token=page.token)
        found += page
    return found


def version_of(experiment: Experiment, name: str, result: Result, runs: Path, log_weights: bool) -> str:
    """The number of the version that is `result`, made if there is none."""
    client = experiment.client
    model = model_of(experiment, name, result)
    weights = runs / result.cell / "weights" / result.weights["file"]
    if log_weights and weights.exists():
        add_weights(client, model, weights)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=f"DeepLabv3 on {name.removeprefix(PREFIX)}")
    found = client.search_model_versions(f"name = '{name}' and tags.key = '{result.key}'")
    if found:
        version, *doubles = (str(each.version) for each in sorted(found, key=lambda each: int(each.version)))
        for double in doubles:  # the server made one and its answer was lost, so that it was asked again
            client.delete_model_version(name, double)
        show_version(experiment, model, name, version)
        return version
    tags = {"key": result.key, "cell": result.cell, "seed": str(result.seed), "mIoU": f"{result.scores['mIoU']:.6f}"}
    with as_default(experiment.uri):
        made = client.create_model_version(name, f"models:/{model}", result.run, tags=tags, model_id=model)
    version = str(made.version)
    show_version(experiment, model, name, version)
    return version


def add_weights(client: Any, model: str, weights: Path) -> None:
    """Copy `weights` to the model, unless they are there: a copy that was killed is shorter than they are."""
    sizes = [file.file_size for file in client.list_logged_model_artifacts(model, "weights")]
    if sizes != [weights.stat().st_size]:
        client.log_model_artifact(model, str(weights), "weights")


@contextmanager
def as_default(uri: str) -> Iterator[None]:
    """Name `uri` to clients that MLflow makes for itself.

    Its own guess has the blanks of this folder's name in the form %20, and it makes a folder that is called so.
    """
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before


def show_version(experiment: Experiment, model: str, name: str, version: str) -> None:
    """Say on the model under which version it is registered."""
    said = versions_tag(name, version)
    if experiment.client.get_logged_model(model).tags.get(VERSIONS) != said:
        experiment.client.set_logged_model_tags(model, {VERSIONS: said})


def versions_tag(name: str, version: str) -> str:
    """What a model says of its version."""
    return json.dumps([{"name": name, "version": version}])


def model_of(experiment: Experiment, name: str, result: Result) -> str:
    """The id of the model that is `result`: the one that is there, finished if it was only begun, or else a new one."""
    client = experiment.client
    found = client.search_logged_models([experiment.number], f"tags.key = '{result.key}'")
    # A call made twice leaves two. Of those that were only begun the newest is gone on with: its id was the answer.
    found = sorted(found, key=lambda model: (str(model.status) == "READY", model.creation_timestamp), reverse=True)
    for double in found[1:]:
        client.delete_logged_model(double.model_id)
    if found:
        model = found[0]
    else:
        params = {"cell": result.cell, "seed": str(result.seed)}
        tags = {"key": result.key, "weights_sha256": result.weights["sha256"], "mlflow.model.isExternal": "true"}
        model = client.create_logged_model(experiment.number, result.cell, result.run, tags, params)
    if str(model.status) != "READY":
        finish_model(client, model, name, result)
    return str(model.model_id)


def finish_model(client: Any, model: Any, name: str, result: Result) -> None:
    """Link `model` with its run, and give it its score: both once, for it may have been begun before."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    describe(client, model)
    if model.model_id not in [output.model_id for output in client.get_run(result.run).outputs.model_outputs]:
        client.log_outputs(result.run, [LoggedModelOutput(model.model_id, step=0)])
    score, digest = result.scores["mIoU"], result.fingerprint["data"][:16]  # the digest of the run's data set, too
    client.log_metric(
        result.run,
        "model/mIoU",
        score,
        timestamp=model.creation_timestamp,  # the same when it is said again, so that it stands there once
        model_id=model.model_id,
        dataset_name=name.removeprefix(PREFIX),
        dataset_digest=digest,
    )
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def describe(client: Any, model: Any) -> None:
    """Write what goes in and out of the model: an image of any size, and a class for each of its pixels."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.models.utils import get_external_mlflow_model_spec
    from mlflow.types import Schema, TensorSpec

    spec = get_external_mlflow_model_spec(model)
    pixel = np.dtype(np.uint8)
    spec.signature = ModelSignature(
        inputs=Schema([TensorSpec(pixel, (-1, -1, 3), "image")]),
        outputs=Schema([TensorSpec(pixel, (-1, -1), "classes")]),
    )
    with TemporaryDirectory() as folder:
        spec.save(str(Path(folder) / "MLmodel"))
        client.log_model_artifacts(model.model_id, folder)
