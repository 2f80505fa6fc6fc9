"""Complete the record: each result has one complete run in MLflow, known by a hash of its content.

Recording twice changes nothing, so a fresh clone, a restored stage and a lost database all end up with the same runs.
The tag `complete` is written last: what was interrupted before is taken up again.
"""

import csv
import json
import socket
import sys
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

from pipeline.files import BROKEN, readable
from pipeline.results.records import FINGERPRINTS, Result, numbers_in
from pipeline.tracking.client import (
    Experiment,
    Facts,
    identity_tags,
    origin_tags,
    read_curves,
    run_name,
    start_time,
    training_tags,
)

COST = ("images_per_second", "seconds", "peak_memory", "flops")  # of the trainer's facts

# Of the curves: MLflow's own choice gives some runs the same one.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5c4d9d", "#7f7f7f")


def record(
    experiment: Experiment,
    dataset: str,
    result: Result,
    params: dict[str, Any],
    runs: Path,
    reports: Path,
    data: Path,
    departs: str = "",
) -> None:
    """Make sure that `result` has a complete run, going on with the live one of its training if there is one.

    `departs` says where the cell departs from its published recipe.
    """
    if experiment.runs(key=result.key, complete="1"):
        delete_doubles(experiment, result)
        return
    client = experiment.client
    facts = training_facts(runs / result.cell / "run.json", result)
    begun = experiment.runs(key=result.key, complete="0")
    if facts and not begun:
        begun = experiment.runs(**training_tags(facts), complete="0")
    tags = identity_tags(result.cell, result.seed, result.fingerprint) | origin_tags(dataset, facts)
    tags |= {f"weights_{name}": value for name, value in result.weights.items()}
    tags |= {"images": json.dumps(result.images), "key": result.key} | ({"departs": departs} if departs else {})
    if begun:
        run = begun[0].info.run_id
        experiment.set_tags(run, tags)
    else:
        run = experiment.create(run_name(result.cell, result.seed), tags, start_time(facts) if facts else None)
    experiment.set_params(run, params)
    start = client.get_run(run).info.start_time
    end = None
    if facts:
        length = 1000 * facts["seconds"]
        end = start_time(facts) + int(length)
        pace = length / facts["iterations"]
        history = read_curves(runs / result.cell / "history.csv", result.seed)
        experiment.add_curves(run, history, lambda step: end - int(pace * (facts["iterations"] - step)))
    # Not on the axis of steps, so that they are drawn as bars over all cells.
    finals = {f"final/{name}": value for name, value in result.scores.items()}
    finals |= {f"perf/{name}": facts[name] for name in COST if name in facts}
    experiment.add_curves(run, [(0, finals)], lambda _: start)
    add_dataset(experiment, run, dataset, result, data)
    add_card(experiment, run, result, reports / "data" / dataset, data)
    add_artifacts(experiment, run, result, facts, runs, reports)
    client.set_terminated(run, end_time=end)
    client.set_tag(run, "complete", "1")
    delete_doubles(experiment, result)


def delete_doubles(experiment: Experiment, result: Result) -> None:
    """Delete what was begun for `result` beside its complete run: MLflow asks twice when an answer is lost."""
    for run in experiment.runs(key=result.key, complete="0"):
        experiment.client.delete_run(run.info.run_id)


def training_facts(path: Path, result: Result) -> Facts:
    """What the trainer wrote down about the weights of `result`; nothing when `path` tells of other weights."""
    if not path.exists():
        return {}
    with readable(path, f"Run: dvc checkout --force train@{result.cell}"):
        facts: Facts = json.loads(path.read_bytes())["seeds"].get(str(result.seed), {})
        return facts if facts.get("weights") == result.weights else {}


def add_dataset(experiment: Experiment, run: str, dataset: str, result: Result, data_folder: Path) -> None:
    """Name the data by its fingerprint, without a copy."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": (data_folder / "manifest.json").as_posix()})
    data = Dataset(dataset, result.fingerprint["data"][:16], "local", source, profile=json.dumps(result.images))
    experiment.client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", "training, evaluation")])])


def add_card(experiment: Experiment, run: str, result: Result, card: Path, data: Path) -> None:
    """Add the card of the data and its sheet, if they are there and of the data that `result` saw."""
    facts = card / "card.json"
    with readable(facts, f"Run: dvc repro -f prepare@{card.name}"):
        seen = json.loads(facts.read_bytes())["fingerprint"] if facts.exists() else None
    if seen == result.fingerprint["data"]:
        for file in (card / "card.md", data / "sheet.png"):
            if file.exists():
                experiment.client.log_artifact(run, str(file), "data")


def add_artifacts(experiment: Experiment, run: str, result: Result, facts: Facts, runs: Path, reports: Path) -> None:
    """Add the files about `result`, as far as they are there: on a fresh clone the large ones are missing."""
    from pipeline.pictures.charts import class_picture, confusion_picture

    client = experiment.client
    plots, is_first = reports / "plots" / result.cell, True
    if (plots / "classes.csv").exists():
        with readable(plots, f"Run: dvc repro -f evaluate@{result.cell}"):
            rows = read_rows(plots / "classes.csv")
            is_first = rows[0]["seed"] == str(result.seed)
            classes = first_protocol(rows, result.seed)
            pictures = {"classes.png": class_picture(classes)}
            if (plots / "confusion.csv").exists():
                pairs = first_protocol(read_rows(plots / "confusion.csv"), result.seed)
                pictures["confusion.png"] = confusion_picture([row["class"] for row in classes], pairs)
        client.log_artifact(run, str(plots / "classes.csv"))
        # Not log_table, which adds to what an interrupted call has left there.
        client.log_dict(
            run, {"columns": list(rows[0]), "data": [list(row.values()) for row in classes]}, "classes.json"
        )
        client.set_tag(run, "mlflow.loggedArtifacts", '[{"path": "classes.json", "type": "table"}]')
        for name, picture in pictures.items():
            client.log_figure(run, picture, name)
    if is_first:  # evaluate draws overlays for the first seed only
        for overlay in sorted((reports / "figures" / result.cell).glob("*.jpg"))[:8]:
            client.log_artifact(run, str(overlay), "overlays")
    history = runs / result.cell / "history.csv"
    if facts and history.exists():
        client.log_artifact(run, str(history))


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def first_protocol(rows: list[dict[str, str]], seed: int) -> list[dict[str, str]]:
    """The rows of one seed under the protocol that comes first."""
    own = [row for row in rows if row["seed"] == str(seed)]
    return [row for row in own if row["protocol"] == own[0]["protocol"]]


def read_back(runs: list[Any], tags: dict[str, str]) -> Result | None:
    """The first of `runs` with `tags`, as a result; none, and a warning, when it is not what its key was made of."""
    found = next((run for run in runs if tags.items() <= run.data.tags.items()), None)
    if not found:
        return None
    metrics, held = found.data.metrics, found.data.tags
    with suppress(*BROKEN):
        result = Result(
            cell=held["cell"],
            seed=int(held["seed"]),
            scores=numbers_in(metrics, "final/"),
            images=json.loads(held["images"]),
            fingerprint={part: held[f"{part}_fingerprint"] for part in FINGERPRINTS},
            weights={name: held[f"weights_{name}"] for name in ("file", "sha256")},
            run=found.info.run_id,
        )
        if result.key == held["key"]:
            return result
    print(
        f"warning: left out what MLflow's run {found.info.run_id} says of {held.get('cell')}: it is not what was "
        "recorded. Delete the run there, and the next `tables` records anew what this folder has.",
        file=sys.stderr,
    )
    return None


def mark_current(experiment: Experiment, runs: list[Any], shown: list[str]) -> None:
    """Tag those of the complete `runs` that stand in the table, in its order, with current=1 and a colour each.

    All others get 0.
    """
    colors = dict(zip(shown, cycle(COLORS), strict=False))
    for run in runs:
        color = colors.get(run.info.run_id)
        tags = {"current": "1", "mlflow.runColor": color} if color else {"current": "0"}
        if not tags.items() <= run.data.tags.items():
            experiment.set_tags(run.info.run_id, tags)


def end_leftovers(experiment: Experiment, runs: list[Any]) -> None:
    """End the live runs of trainings that are over on this machine; others may still be alive. `runs` are complete.

    One that repeated a training which is complete has nothing of its own and goes; else it was given up, and is killed.
    """
    known = [training_identity(run.data.tags) for run in runs]
    for run in experiment.runs(complete="0"):
        tags = run.data.tags
        here = tags.get("host") == socket.gethostname() and not (Path(tags["folder"]) / "facts.json").exists()
        if run.info.status == "RUNNING" and here:
            if training_identity(tags) in known:
                experiment.client.delete_run(run.info.run_id)
            else:
                experiment.client.set_terminated(run.info.run_id, "KILLED")


def training_identity(tags: dict[str, str]) -> list[str | None]:
    """What two runs of the same training agree in."""
    return [tags.get(name) for name in ("cell", "seed", *(f"{part}_fingerprint" for part in ("cell", "data", "code")))]
