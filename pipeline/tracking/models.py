"""What makes the runs of a table easy to find in MLflow: a note with the table's row, a model, and the alias `best`.

A model names the weights that DVC keeps: their SHA-256, their scores, and their input and output. With
`runtime.log_weights` it also holds the safetensors file. Nothing is pickled.
"""

import json
import platform
import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.markdown import plain
from pipeline.results.records import Result
from pipeline.settings.places import Places
from pipeline.tracking.client import PREFIX, Experiment, cause

NOTE = "mlflow.note.content"  # Markdown above a run or an experiment
BEST = "best"
VERSIONS = "mlflow.modelVersions"  # tag of a model: the list of models shows it as registered
WEIGHTS = "weights"  # folder of a model's artifacts
HIDDEN = ("mIoU", "Download")  # columns: the note begins with the first, the links of the other are of this folder


def write_notes(
    experiment: Experiment, title: str, rows: Mapping[str, Mapping[str, str]], results: list[Result]
) -> None:
    """Write the row of each run above it, and all rows above the experiment. `rows` is cell -> column -> text.

    Lines of text, because MLflow draws no tables above a run.
    """
    lines = {
        cell: f"**{row['mIoU']}** " + ", ".join(row[name] for name in row if name not in HIDDEN)
        for cell, row in rows.items()
    }
    text = f"{plain(title)}\n\n" + "".join(f"- `{cell}`: {line}\n" for cell, line in lines.items())
    if experiment.client.get_experiment(experiment.number).tags.get(NOTE) != text:
        experiment.client.set_experiment_tag(experiment.number, NOTE, text)
    runs = {run.info.run_id: run.data.tags for run in experiment.runs(current="1")}
    for result in results:
        weights = f"runs/{result.cell}/weights/{result.weights['file']}"
        own = f"Seed {result.seed}: {result.scores['mIoU']:.2%}, `{weights}`, SHA-256 `{result.weights['sha256']}`"
        text = f"{lines[result.cell]}\n\n{own}\n"
        if runs.get(result.run, {}).get(NOTE) != text:
            experiment.set_tags(result.run, {NOTE: text})


def register(
    experiment: Experiment, dataset: str, results: list[Result], weights: Places | None, folds: Collection[str] = ()
) -> None:
    """Give each result a model and a version of `deeplabv3-<dataset>`; the best one has the alias `best`.

    `weights` is where to copy weights from, None to copy none. `folds` are the cells with folds. A server without a
    registry costs a warning.
    """
    from mlflow.exceptions import MlflowException

    client, name = experiment.client, f"{PREFIX}{dataset}"
    try:
        found = {} if weights else registered(experiment, name)
        versions = {
            result.key: found.get(result.key) or version_of(experiment, name, result, weights) for result in results
        }
        best = best_of(results, folds)
        if str(client.get_registered_model(name).aliases.get(BEST)) != versions[best.key]:
            client.set_registered_model_alias(name, BEST, versions[best.key])
    except MlflowException as error:
        print(f"warning: no models in MLflow: {cause(error)}", file=sys.stderr)


def best_of(results: list[Result], folds: Collection[str]) -> Result:
    """The result with the highest mIoU. One of a fold, which has images of its own, only where all are of folds."""
    comparable = [result for result in results if result.cell not in folds]
    return max(comparable or results, key=lambda result: result.scores["mIoU"])


def registered(experiment: Experiment, name: str) -> dict[str, str]:
    """Key of a result -> the number of its version, for those that `version_of` has finished."""
    client = experiment.client
    models = every(partial(client.search_logged_models, [experiment.number], max_results=500))
    finished = {model.tags.get(VERSIONS) for model in models if str(model.status) == "READY"}
    versions = every(partial(client.search_model_versions, f"name = '{name}'", max_results=500))
    return {
        each.tags["key"]: str(each.version)
        for each in versions
        if versions_tag(name, str(each.version)) in finished and "key" in each.tags
    }


def every(search: Callable[..., Any]) -> list[Any]:
    """What `search` finds, over all its pages."""
    page = search()
    found = list(page)
    while page.token:
        page = search(page_token=page.token)
        found += page
    return found


def version_of(experiment: Experiment, name: str, result: Result, weights: Places | None) -> str:
    """The number of the version that is `result`, created if needed."""
    client = experiment.client
    model = model_of(experiment, name, result)
    file = weights.weights(result.cell) / result.weights["file"] if weights else None
    if file and file.exists():
        add_weights(client, model.model_id, file)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=f"DeepLabv3 on {name.removeprefix(PREFIX)}")
    found = client.search_model_versions(f"name = '{name}' and tags.key = '{result.key}'")
    if found:
        version = str(found[0].version)
    else:
        tags = {"key": result.key, "cell": result.cell, "seed": str(result.seed)}
        tags["mIoU"] = f"{result.scores['mIoU']:.6f}"
        # The location, not models:/ID: MLflow would look the ID up by a client of its own, in another database.
        source = model.artifact_location
        made = client.create_model_version(name, source, result.run, tags=tags, model_id=model.model_id)
        version = str(made.version)
    said = versions_tag(name, version)
    if model.tags.get(VERSIONS) != said:
        client.set_logged_model_tags(model.model_id, {VERSIONS: said})
    return version


def add_weights(client: Any, model: str, weights: Path) -> None:
    """Copy `weights` to the model, unless they are there. A copy that was interrupted has another size."""
    sizes = [file.file_size for file in client.list_logged_model_artifacts(model, WEIGHTS)]
    if sizes != [weights.stat().st_size]:
        client.log_model_artifact(model, str(weights), WEIGHTS)


def versions_tag(name: str, version: str) -> str:
    """What a model says of its version."""
    return json.dumps([{"name": name, "version": version}])


def model_of(experiment: Experiment, name: str, result: Result) -> Any:
    """The model that is `result`: an existing one, finished if it was only begun, else a new one."""
    client = experiment.client
    found = client.search_logged_models([experiment.number], f"tags.key = '{result.key}'")
    if found:
        model = found[0]
    else:
        params = {"cell": result.cell, "seed": str(result.seed)}
        tags = {"key": result.key, "weights_sha256": result.weights["sha256"], "mlflow.model.isExternal": "true"}
        model = client.create_logged_model(experiment.number, result.cell, result.run, tags, params)
    if str(model.status) != "READY":
        finish_model(client, model, name, result)
    return model


def finish_model(client: Any, model: Any, name: str, result: Result) -> None:
    """Link `model` with its run, and give it its score. Repeating it after an interruption adds nothing twice."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    describe(client, model)
    if model.model_id not in [output.model_id for output in client.get_run(result.run).outputs.model_outputs]:
        client.log_outputs(result.run, [LoggedModelOutput(model.model_id, step=0)])
    score, digest = result.scores["mIoU"], result.fingerprint["data"][:16]  # the digest of the run's data set, too
    client.log_metric(
        result.run,
        "model/mIoU",
        score,
        timestamp=model.creation_timestamp,  # the same each time, so that MLflow keeps one point
        model_id=model.model_id,
        dataset_name=name.removeprefix(PREFIX),
        dataset_digest=digest,
    )
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def describe(client: Any, model: Any) -> None:
    """Write how MLflow loads the model, and the signature of what it gives back.

    None of what it takes: MLflow would cast an image of floats in 0..1 to uint8 and give back the mask of a black one.
    """
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    spec = Model(
        artifact_path=model.artifact_location,
        model_uuid=model.model_id,
        model_id=model.model_id,
        run_id=model.source_run_id,
        signature=ModelSignature(outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1), "classes")])),
    )
    loaded_by = {"loader_module": "pipeline.tracking.served", "data": WEIGHTS}
    spec.add_flavor("python_function", **loaded_by, python_version=platform.python_version())
    with TemporaryDirectory() as folder:
        spec.save(str(Path(folder) / "MLmodel"))
        client.log_model_artifacts(model.model_id, folder)
