"""The runs of results: each result has one complete run in MLflow, identified by the hash of its content.

Recording twice changes nothing, so a fresh clone, a restored stage and a lost database all end up with the same runs.
"""

import json
import socket
import sys
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

from pipeline.files import BROKEN, readable
from pipeline.pictures.colors import COLORS
from pipeline.results.records import FINGERPRINTS, Result, numbers_in
from pipeline.results.scores import read_rows, rows_of
from pipeline.results.splits import SplitResult
from pipeline.settings.params import Params
from pipeline.settings.places import Places
from pipeline.settings.published import departs
from pipeline.tracking.client import Experiment, identity_tags, origin_tags, run_name, start_time, training_tags
from pipeline.tracking.variants import changes_of
from pipeline.training.curves import read_curves
from pipeline.training.facts import Facts, flat_settings, read_run

COST = ("images_per_second", "seconds", "peak_memory", "flops")  # of Facts


class Recording:
    """The recording of `result` as a run of `experiment`, with the files about it in `places`.

    `complete` finds or begins the run with its tags, then adds settings, curves, final numbers, data set, data card and
    artifacts, ends the run, and sets the tag `complete` last. Every step may be repeated, so the next call finishes a
    recording that was interrupted.
    """

    def __init__(self, experiment: Experiment, result: Result, params: Params, places: Places) -> None:
        self.experiment, self.result, self.places = experiment, result, places
        self.cell, self.client = params.cell(result.cell), experiment.client
        self.protocol = next(iter(params.protocols))
        own = changes_of(result.cell, self.cell, places) or params.overrides[result.cell]
        self.name = run_name(result.cell, result.seed, own)
        self.facts = training_facts(result, places)

    def complete(self) -> None:
        """Give the result a complete run. Continues a begun one, or the live run of its training, if there is one."""
        run = self.begin()
        self.experiment.set_params(run, flat_settings(self.cell, self.result.seed))
        end = self.add_curves(run)
        self.add_finals(run)
        self.add_dataset(run)
        self.add_data_card(run)
        self.add_artifacts(run)
        self.client.set_terminated(run, end_time=end)
        self.client.set_tag(run, "complete", "1")

    def begin(self) -> str:
        """The id of the run to record in, which then has all tags."""
        result, facts = self.result, self.facts
        begun = self.experiment.runs(key=result.key, complete="0")
        if facts and not begun:
            begun = self.experiment.runs(**training_tags(facts), complete="0")
        tags = identity_tags(result.cell, result.seed, result.fingerprint) | origin_tags(self.cell.dataset, facts)
        tags |= {f"weights_{name}": value for name, value in result.weights.items()}
        tags |= {"images": json.dumps(result.images), "key": result.key}
        if result.splits:
            splits = {split: {"images": each.images, "data": each.data} for split, each in result.splits.items()}
            tags["splits"] = json.dumps(splits)
        if words := departs(self.cell):
            tags["departs"] = words
        if begun:
            run = str(begun[0].info.run_id)
            self.experiment.set_tags(run, tags)
            self.client.update_run(run, name=self.name)
            return run
        start = start_time(facts) if facts else None
        return self.experiment.create(self.name, tags, start)

    def add_curves(self, run: str) -> int | None:
        """Add the history of the training. Returns its end in milliseconds since 1970, None when that is unknown."""
        if not self.facts or self.facts.seconds is None:
            return None
        length, iterations = 1000 * self.facts.seconds, self.facts.iterations
        end = start_time(self.facts) + int(length)
        history = read_curves(self.places.history(self.result.cell), self.result.seed)
        self.experiment.add_curves(run, history, lambda step: end - int(length / iterations * (iterations - step)))
        return end

    def add_finals(self, run: str) -> None:
        """Add scores and cost at step 0: MLflow then draws them as bars over all cells."""
        start = self.client.get_run(run).info.start_time
        finals = {f"final/{name}": value for name, value in self.result.scores.items()}
        for split, measured in self.result.splits.items():
            finals |= {f"final/{split}/{name}": value for name, value in measured.scores.items()}
        written = self.facts.plain() if self.facts else {}
        finals |= {f"perf/{name}": written[name] for name in COST if name in written}
        self.experiment.add_curves(run, [(0, finals)], lambda _: start)

    def add_dataset(self, run: str) -> None:
        """Name the data by its fingerprint, without a copy."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset, result = self.cell.dataset, self.result
        source = json.dumps({"uri": self.places.manifest(dataset).as_posix()})
        data = Dataset(dataset, result.fingerprint["data"][:16], "local", source, profile=json.dumps(result.images))
        self.client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", "training, evaluation")])])

    def add_data_card(self, run: str) -> None:
        """Add the card of the data and its sheet of images, if they exist and belong to the data of the result."""
        dataset = self.cell.dataset
        card = self.places.data_card(dataset)
        facts = card / "card.json"
        with readable(facts, f"Run: dvc repro -f prepare@{dataset}"):
            seen = json.loads(facts.read_bytes())["fingerprint"] if facts.exists() else None
        if seen == self.result.fingerprint["data"]:
            for file in (card / "card.md", self.places.store(dataset) / "sheet.png"):
                if file.exists():
                    self.client.log_artifact(run, str(file), "data")

    def add_artifacts(self, run: str) -> None:
        """Add the files about the result that exist: a fresh clone lacks the large ones."""
        from pipeline.pictures.charts import class_picture, confusion_picture

        name, seed = self.result.cell, self.result.seed
        plots, is_first = self.places.plots(name), True
        if (plots / "classes.csv").exists():
            with readable(plots, f"Run: dvc repro -f evaluate@{name}"):
                rows = read_rows(plots / "classes.csv")
                is_first = rows[0]["seed"] == str(seed)
                classes = rows_of(rows, seed, self.protocol)
                pictures = {"classes.png": class_picture(classes)}
                if (plots / "confusion.csv").exists():
                    pairs = rows_of(read_rows(plots / "confusion.csv"), seed, self.protocol)
                    pictures["confusion.png"] = confusion_picture([row["class"] for row in classes], pairs)
            self.client.log_artifact(run, str(plots / "classes.csv"))
            # Not log_table, which appends to the table of an interrupted call.
            table = {"columns": list(rows[0]), "data": [list(row.values()) for row in classes]}
            self.client.log_dict(run, table, "classes.json")
            self.client.set_tag(run, "mlflow.loggedArtifacts", '[{"path": "classes.json", "type": "table"}]')
            for title, picture in pictures.items():
                self.client.log_figure(run, picture, title)
        if is_first:  # evaluate draws overlays for the first seed only
            for overlay in sorted(self.places.figures(name).glob("*.jpg"))[:8]:
                self.client.log_artifact(run, str(overlay), "overlays")
        history = self.places.history(name)
        if self.facts and history.exists():
            self.client.log_artifact(run, str(history))


def training_facts(result: Result, places: Places) -> Facts | None:
    """The facts of the training that gave the weights of `result`; None when run.json is about other weights."""
    facts = read_run(places.facts(result.cell)).get(str(result.seed))
    return facts if facts and facts.weights and facts.weights.plain() == result.weights else None


def read_back(runs: list[Any], tags: dict[str, str]) -> Result | None:
    """The first of `runs` with `tags`, as a result; None, with a warning, when its content does not give its key."""
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
            splits={
                split: SplitResult(**about, scores=numbers_in(metrics, f"final/{split}/"))
                for split, about in json.loads(held.get("splits", "{}")).items()
            },
        )
        if result.key == held["key"]:
            return result
    print(
        f"warning: left out MLflow's run {found.info.run_id} of {held.get('cell')}: it is not what was recorded. "
        "Delete the run there, and the next `tables` records again what this folder has.",
        file=sys.stderr,
    )
    return None


def mark_current(experiment: Experiment, runs: list[Any], shown: list[str]) -> None:
    """Tag the complete `runs` that the table shows with current=1 and a color, in its order, and the others with 0.

    MLflow itself would give the same color to some runs.
    """
    colors = dict(zip(shown, cycle(COLORS), strict=False))
    for run in runs:
        color = colors.get(run.info.run_id)
        tags = {"current": "1", "mlflow.runColor": color} if color else {"current": "0"}
        if not tags.items() <= run.data.tags.items():
            experiment.set_tags(run.info.run_id, tags)


def end_leftovers(experiment: Experiment, runs: list[Any]) -> None:
    """End the live runs of trainings that are over on this machine; others may still be running. `runs` are complete.

    A live run that only repeated a complete training is deleted. One that was given up ends as KILLED.
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
