"""MLflow, as this project uses it: one experiment per data set, one flat run per cell and seed, found by its tags.

The files can fill MLflow again at any time, so it is never a reason to fail: whatever it raises becomes a
TrackingError. It is imported late, because the import takes seconds.
"""

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
from pipeline.files import locked, whole
from pipeline.training.curves import Curves
from pipeline.training.facts import Facts

SQLITE = "sqlite:///"
PREFIX = "deeplabv3-"  # of the names of experiments and models; the data set follows
VIEW = "grid"
# Undocumented. Without it, MLflow's list of runs shows no metrics and hides all but ten runs.
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
SHOWN = (
    *(f"metrics.`{name}`" for name in ("final/mIoU", "final/pixel_accuracy", "final/mean_accuracy", "perf/seconds")),
    *(f"params.`{name}`" for name in ("backbone", "output_stride", "epochs")),
    *(f"tags.`{name}`" for name in ("seed", "current")),
)
ORIGIN = ("commit", "dirty", "device", "gpus_per_cell", "torch", "timm", "parameters", "departs")  # of Facts


class TrackingError(RuntimeError):
    """MLflow does not answer, or refuses."""


class Experiment:
    """The runs of one data set. Use it inside `open_experiment`: its methods raise what MLflow raises."""

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
                # a resumed run repeats some steps, and its speeds are in the file twice
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
        """The page of the runs, below the address of the server."""
        view = f"workflowType=machine_learning&viewStateShareKey={VIEW}&compareRunsMode=TABLE"
        return f"#/experiments/{self.number}/runs?{view}"


@contextmanager
def open_experiment(dataset: str, *, timeout: int) -> Iterator[Experiment]:
    """The experiment of a data set, created if needed. What MLflow raises in the block becomes a TrackingError.

    `timeout` is in seconds, for one request.
    """
    with connection(timeout) as uri:
        from mlflow import MlflowClient

        with locked(lock_of(uri)):  # two processes that create the database at once break it for good
            create_database(uri)
            experiment = find_experiment(MlflowClient(uri, uri), uri, f"{PREFIX}{dataset}")
        yield experiment


def pages() -> dict[str, str]:
    """Name of each experiment of this project -> the page of its runs, below the address of the server."""
    with connection(timeout=20) as uri:
        from mlflow import MlflowClient

        client = MlflowClient(uri, uri)
        found = client.search_experiments(filter_string=f"name LIKE '{PREFIX}%'", order_by=["experiment_id ASC"])
        return {each.name: Experiment(client, uri, each.experiment_id).page for each in found}


@contextmanager
def connection(timeout: int) -> Iterator[str]:
    """Prepare MLflow in this process, and yield its address. What it raises in the block becomes a TrackingError.

    Requests are not repeated: MLflow would repeat one whose answer was lost, and create runs and models twice. The next
    call finds what the lost request created.
    """
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")  # true by default; nothing here needs it
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(timeout))
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it would print a traceback beside our error
    uri = tracking_uri()
    try:
        yield uri
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise TrackingError(without_password(f"{uri}: {cause(error)}")) from error


def cause(error: Exception) -> str:
    """The line of `error` that says what is wrong, and the remedy if one is known."""
    if isinstance(error, OSError):
        return describe(error)
    lines = str(error).splitlines() or [type(error).__name__]
    # SQLAlchemy puts a line of its own above that of the database
    line = next((line for line in lines if not line.startswith("(raised as a result of")), lines[0])
    return next((f"{line.rstrip('.')}. {remedy}" for words, remedy in REMEDIES.items() if words in line), line)


def without_password(text: str) -> str:
    """`text` without the credentials in its addresses."""
    return re.sub(r"//[^/\s]*@", "//", text)


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, by default the database in the current folder, as an absolute path."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{Path('mlflow.db').resolve()}"


def lock_of(uri: str) -> Path:
    """The file that processes lock to write to a database, or from this folder to a server."""
    return Path(f"{uri.removeprefix(SQLITE)}.lock" if uri.startswith(SQLITE) else "mlflow.db.lock")


def create_database(uri: str) -> None:
    """Create the SQLite database of `uri`, atomically, if it is missing or an empty file.

    MLflow creates it in many steps, and cannot open what a kill between two of them leaves. Raises OSError when it
    cannot be opened at all: MLflow would retry for minutes.
    """
    from mlflow import MlflowClient

    if not uri.startswith(SQLITE):
        return
    path = Path(uri.removeprefix(SQLITE)).resolve()  # a link stays a link
    if path.exists():
        with path.open("rb") as file:
            if file.read(1):
                return
    path.parent.stat()  # raises OSError with the name of a missing folder
    with whole(path) as partial:
        partial.unlink(missing_ok=True)
        MlflowClient(f"{SQLITE}{partial}").search_experiments(max_results=1)


def find_experiment(client: Any, uri: str, name: str) -> Experiment:
    """The experiment called `name`, created if needed, with the view that shows its results."""
    found = client.get_experiment_by_name(name)
    if found is None:
        folder = Path(uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts" / name
        client.create_experiment(name, artifact_location=folder.as_uri() if uri.startswith(SQLITE) else None)
        found = client.get_experiment_by_name(name)
    view = {"selectedColumns": SHOWN, "orderByKey": SHOWN[0], "orderByAsc": False, "runsHiddenMode": "SHOW_ALL"}
    if found.tags.get(VIEW_TAG) != json.dumps(view):
        client.set_experiment_tag(found.experiment_id, VIEW_TAG, json.dumps(view))
    return Experiment(client, uri, found.experiment_id)


# --- The tags of a run


def identity_tags(cell: str, seed: int, fingerprint: dict[str, str]) -> dict[str, str]:
    """What a run must agree in to count as the run of a seed of a cell."""
    return {"cell": cell, "seed": str(seed), **{f"{part}_fingerprint": value for part, value in fingerprint.items()}}


def training_tags(facts: Facts) -> dict[str, str]:
    """What a run must agree in to be the run of a training. `started` is when its last stretch began."""
    return {**identity_tags(facts.cell, facts.seed, facts.fingerprint), "started": facts.started}


def origin_tags(dataset: str, facts: Facts | None) -> dict[str, str]:
    """Where a run comes from."""
    written = facts.plain() if facts else {}
    known = {name: str(written[name]) for name in ORIGIN if written.get(name) not in (None, "")}
    source = {"mlflow.source.name": "pipeline.stages.train", "mlflow.source.type": "LOCAL"}
    return {"dataset": dataset, **known, **source, "mlflow.source.git.commit": known.get("commit", "")}


def run_name(cell: str, seed: int, overrides: str) -> str:
    """The cell's name, followed by the seed if it is not 0, and by what its row overrides."""
    return (f"{cell}_seed{seed}" if seed else cell) + (f" ({overrides})" if overrides else "")


def start_time(facts: Facts) -> int:
    """Start of the training in milliseconds since 1970."""
    return int(1000 * datetime.fromisoformat(facts.started).timestamp())


AGAIN = "move it away, then fill a new one from the files: dvc repro --force --single-item --glob 'tables@*'"
DAMAGED = f"It is damaged: {AGAIN}"

# Words in an error of SQLite or MLflow -> remedy.
REMEDIES = {
    "malformed": DAMAGED,
    "file is not a database": DAMAGED,
    "Could not decode to UTF-8": DAMAGED,
    "out-of-date database schema": f"If a newer MLflow made it, install that one, or {AGAIN}",
    "disk is full": "Free some space.",
    "must be in the 'active' state": (
        "It was deleted in MLflow: restore it with `mlflow experiments restore --experiment-id` and its number, or "
        "remove it for good with `mlflow gc`. MLFLOW_TRACKING_URI names the database for both"
    ),
}
