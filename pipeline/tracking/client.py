"""MLflow, as this project uses it: one experiment per data set, one flat run per cell and seed, found again by tags.

MLflow is a record that can be made again from the files at any time, and never the reason why something fails: whatever
it raises comes out as TrackingError. It is imported late, because that takes seconds.
"""

import csv
import fcntl
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.errors import describe
from pipeline.files import readable

Facts = dict[str, Any]  # what the trainer wrote down about one seed of a cell
Curves = list[tuple[int, dict[str, float]]]  # step, and what was measured there

SQLITE = "sqlite:///"
PREFIX = "deeplabv3-"  # of an experiment's name, and of the models'; the data set follows
VIEW = "grid"
# Read by the page of the runs and documented nowhere: without it that page shows no metric and hides all but ten runs.
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
SHOWN = (
    *(f"metrics.`{name}`" for name in ("final/mIoU", "final/pixel_accuracy", "final/mean_accuracy", "perf/seconds")),
    *(f"params.`{name}`" for name in ("backbone", "output_stride", "epochs")),
    *(f"tags.`{name}`" for name in ("seed", "current")),
)


class TrackingError(RuntimeError):
    """MLflow does not answer, or refuses."""


class Experiment:
    """The runs of one data set. To be used inside `open_experiment`, since its methods raise what MLflow raises."""

    def __init__(self, client: Any, uri: str, number: str) -> None:
        self.client, self.uri, self.number = client, uri, number
        self.sent: dict[tuple[str, str], int] = {}  # run and metric -> last step that has arrived

    def runs(self, **tags: str) -> list[Any]:
        """The runs with all of `tags`, the newest first."""
        words = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        order = ["attributes.start_time DESC"]
        return list(self.client.search_runs([self.number], words, max_results=10_000, order_by=order))

    def create(self, name: str, tags: dict[str, str], start: int | None) -> str:
        """Begin an incomplete run and return its id. `start` is in milliseconds since 1970; None is now."""
        tags = {**tags, "complete": "0"}
        return str(self.client.create_run(self.number, start_time=start, tags=tags, run_name=name).info.run_id)

    def set_tags(self, run: str, tags: dict[str, str]) -> None:
        """Set or overwrite `tags`."""
        from mlflow.entities import RunTag

        self.client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items()])

    def set_params(self, run: str, params: dict[str, Any]) -> None:
        """Set those of `params` that the run does not have yet: MLflow refuses to change one."""
        from mlflow.entities import Param

        known = self.client.get_run(run).data.params
        self.client.log_batch(run, params=[Param(key, str(value)) for key, value in params.items() if key not in known])

    def add_curves(self, run: str, curves: Curves, moment: Callable[[int], int]) -> None:
        """Send the points beyond the last that has arrived. `moment`: step -> milliseconds since 1970."""
        from mlflow.entities import Metric

        last: dict[str, int] = {}
        points = []
        for step, values in curves:
            for key, value in values.items():
                # a resumed run made some steps twice, and their speeds stand there twice
                if step > last.setdefault(key, self._last_step(run, key)):
                    points.append(Metric(key, value, moment(step), step))
                    last[key] = step
        for start in range(0, len(points), 1000):  # one by one would take thirty times as long
            part = points[start : start + 1000]
            self.client.log_batch(run, metrics=part)
            self.sent.update({(run, point.key): point.step for point in part})

    def _last_step(self, run: str, key: str) -> int:
        if (run, key) not in self.sent:
            steps = [point.step for point in self.client.get_metric_history(run, key)]
            self.sent[run, key] = max(steps, default=-1)
        return self.sent[run, key]

    @property
    def page(self) -> str:
        """Where the runs are shown, below the address of the server."""
        view = f"workflowType=machine_learning&viewStateShareKey={VIEW}&compareRunsMode=TABLE"
        return f"#/experiments/{self.number}/runs?{view}"


@contextmanager
def open_experiment(dataset: str, *, timeout: int) -> Iterator[Experiment]:
    """The experiment of a data set, made if there is none; what MLflow raises in the block comes out as TrackingError.

    `timeout` is in seconds and for one request.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")  # true by default; nothing here needs it
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # seven by default: minutes when the server is down
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(timeout))
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # its tracebacks: the error comes out below
    uri = tracking_uri()
    try:
        with locked(uri):  # two processes that create the database at once break it for good
            create_database(uri)
            experiment = find_experiment(MlflowClient(uri), uri, f"{PREFIX}{dataset}")
        yield experiment
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise TrackingError(without_password(f"{uri}: {cause(error)}")) from error


def cause(error: Exception) -> str:
    """The line of `error` that says what is wrong, and what to do about it if that is known.

    The database's own stands below what SQLAlchemy did then.
    """
    if isinstance(error, OSError):
        return describe(error)
    lines = str(error).splitlines() or [type(error).__name__]
    line = next((line for line in lines if not line.startswith("(raised as a result of")), lines[0])
    return next((f"{line.rstrip('.')}. {remedy}" for words, remedy in REMEDIES.items() if words in line), line)


def without_password(text: str) -> str:
    """`text` with the credentials left out of its addresses."""
    return re.sub(r"//[^/\s]*@", "//", text)


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the database of this folder: absolute, so that it does not move with the process."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{Path('mlflow.db').resolve()}"


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """Keep out other processes that write to this database, or from this folder to this server."""
    path = Path(f"{uri.removeprefix(SQLITE)}.lock" if uri.startswith(SQLITE) else "mlflow.db.lock")
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def create_database(uri: str) -> None:
    """Make the SQLite database of `uri` if there is none, or an empty file; whole or not at all.

    MLflow does it in many steps, and cannot open any more what a kill between two of them has left. OSError when it
    cannot be opened at all: MLflow would try that for minutes.
    """
    from mlflow import MlflowClient

    if not uri.startswith(SQLITE):
        return
    path = Path(uri.removeprefix(SQLITE)).resolve()  # a link stays a link
    if path.exists():
        with path.open("rb") as file:
            if file.read(1):
                return
    path.parent.stat()  # an OSError of ours
    partial = path.with_name(f"{path.name}.part")
    partial.unlink(missing_ok=True)
    try:
        MlflowClient(f"{SQLITE}{partial}").search_experiments(max_results=1)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def find_experiment(client: Any, uri: str, name: str) -> Experiment:
    """The experiment called `name`, with the view that shows its results."""
    found = client.get_experiment_by_name(name)
    if found is None:
        folder = Path(uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts" / name
        client.create_experiment(name, artifact_location=folder.as_uri() if uri.startswith(SQLITE) else None)
        found = client.get_experiment_by_name(name)
    view = {"selectedColumns": SHOWN, "orderByKey": SHOWN[0], "orderByAsc": False, "runsHiddenMode": "SHOW_ALL"}
    if found.tags.get(VIEW_TAG) != json.dumps(view):
        client.set_experiment_tag(found.experiment_id, VIEW_TAG, json.dumps(view))
    return Experiment(client, uri, found.experiment_id)


def pages() -> dict[str, str]:
    """Name of each experiment of this project -> where its runs are shown, below the address of the server."""
    from mlflow import MlflowClient

    client, uri = MlflowClient(tracking_uri()), tracking_uri()
    found = client.search_experiments(filter_string=f"name LIKE '{PREFIX}%'", order_by=["experiment_id ASC"])
    return {each.name: Experiment(client, uri, each.experiment_id).page for each in found}


def identity_tags(cell: str, seed: int, fingerprint: dict[str, str]) -> dict[str, str]:
    """What must agree before a run may stand for a seed of a cell."""
    return {"cell": cell, "seed": str(seed), **{f"{part}_fingerprint": value for part, value in fingerprint.items()}}


def training_tags(facts: Facts) -> dict[str, str]:
    """What must agree before a run may be that of a training. `started` is when its last stretch began."""
    return {**identity_tags(facts["cell"], facts["seed"], facts["fingerprint"]), "started": facts["started"]}


def origin_tags(dataset: str, facts: Facts) -> dict[str, str]:
    """What a run says about where it comes from."""
    known = {
        name: str(facts[name])
        for name in ("commit", "dirty", "device", "gpus_per_cell", "torch", "timm", "parameters", "departs")
        if facts.get(name) not in (None, "")
    }
    source = {"mlflow.source.name": "pipeline.stages.train", "mlflow.source.type": "LOCAL"}
    return {"dataset": dataset, **known, **source, "mlflow.source.git.commit": known.get("commit", "")}


def run_name(cell: str, seed: int) -> str:
    """The cell's name; further seeds say which they are."""
    return f"{cell}_seed{seed}" if seed else cell


def start_time(facts: Facts) -> int:
    """Start of the training in milliseconds since 1970."""
    return int(1000 * datetime.fromisoformat(facts["started"]).timestamp())


def read_curves(path: Path, seed: int | None = None, columns: tuple[str, ...] | None = None) -> Curves:
    """The rows of a CSV file that has a step in each; a line that is still being written is left out.

    `columns` names the columns of a file without a head.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines(), columns)
    with readable(path, "Bring it back (dvc checkout --force), or remove it to do without curves."):
        return [
            (
                int(row["step"]),
                {key: float(row[key]) for key in row if key not in ("seed", "step", "epoch") and row[key]},
            )
            for row in rows
            if seed is None or row["seed"] == str(seed)
        ]


AGAIN = "move it away, then make it anew from the files: dvc repro --force --single-item --glob 'tables@*'"
DAMAGED = f"It is damaged: {AGAIN}"

# What SQLite or MLflow says of a database -> what to do.
REMEDIES = {
    "malformed": DAMAGED,
    "file is not a database": DAMAGED,
    "Could not decode to UTF-8": DAMAGED,
    "out-of-date database schema": f"If a newer MLflow made it, install that one, or {AGAIN}",
    "disk is full": "Free some space.",
}
