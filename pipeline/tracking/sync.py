"""Keep MLflow in step with a data set's table: record its results, read them back, and mark what the table shows.

MLflow that does not answer costs one warning, and the table is filled from the records alone.
"""

import sys
from dataclasses import replace

from pipeline.files import locked
from pipeline.results.records import Place, Result, Row, current_fingerprint
from pipeline.results.splits import manifest_fingerprint
from pipeline.results.table import COLUMNS
from pipeline.settings.params import Params
from pipeline.settings.places import Places
from pipeline.tracking.client import (
    SQLITE,
    TrackingError,
    identity_tags,
    lock_of,
    open_experiment,
    tracking_uri,
    without_password,
)
from pipeline.tracking.models import register, write_notes
from pipeline.tracking.runs import Recording, end_leftovers, mark_current, read_back
from pipeline.tracking.variants import is_variant

Results = dict[Place, Result]


def synchronise(dataset: str, local: Results, params: Params, places: Places) -> tuple[Results, str]:
    """Record the results `local` in MLflow. Returns the results for the table, and where to look at their runs.

    The folder's own result takes precedence over somebody else's, so that the table agrees with the records beside it.
    """
    wanted = wanted_tags(dataset, local, params, places)
    if not wanted:
        return local, ""
    results: Results = {}
    try:
        with open_experiment(dataset, timeout=20) as experiment, locked(lock_of(experiment.uri)):
            # All at once: a search for each of 200 cells takes half a minute.
            recorded = {run.data.tags.get("key") for run in experiment.runs(complete="1")}
            for result in local.values():
                if result.key not in recorded:
                    Recording(experiment, result, params, places).complete()
            complete = experiment.runs(complete="1")
            for place, tags in wanted.items():
                own = local.get(place)
                if found := read_back(complete, {"key": own.key} if own else tags) or own:
                    results[place] = replace(found, versions=own.versions) if own else found
            if not is_variant(places):
                mark_current(experiment, complete, [result.run for result in results.values()])
            end_leftovers(experiment, complete)
            return results, address_of(experiment.page)
    except TrackingError as error:
        records = places.records(dataset)
        print(f"warning: no MLflow: {records} alone fills the table, and is not recorded: {error}", file=sys.stderr)
        return local, ""


def wanted_tags(dataset: str, local: Results, params: Params, places: Places) -> dict[Place, dict[str, str]]:
    """The tags of the runs that may fill the table; none while neither the store nor a record says what the data is."""
    data = manifest_fingerprint(places.manifest(dataset))
    data = data or next((result.fingerprint["data"] for result in local.values()), None)
    if not data:
        return {}
    return {
        (name, seed): identity_tags(name, seed, current_fingerprint(name, params, places, data))
        for name, cell in params.cells.items()
        if cell.dataset == dataset
        for seed in params.runs[name]
    }


def show_rows(dataset: str, rows: list[Row], params: Params, places: Places) -> None:
    """Make the runs of the table easy to find in MLflow, unless it is that of a variant; a failure costs a warning."""
    if is_variant(places):
        return
    results = [result for row in rows for result in row.results if result.run]  # without runs that are damaged
    if not results:
        return
    shown = {row.name: {title: column(row) for title, column in COLUMNS.items()} for row in rows}
    try:
        with open_experiment(dataset, timeout=20) as experiment, locked(lock_of(experiment.uri)):
            write_notes(experiment, rows[0].dataset.title, shown, results)
            folds = [row.name for row in rows if row.cell.recipe.folds]
            register(experiment, dataset, results, places if params.runtime.log_weights else None, folds)
    except TrackingError as error:
        print(f"warning: no notes and models in MLflow: {error}", file=sys.stderr)


def address_of(page: str) -> str:
    """Where a page of MLflow can be seen."""
    uri = tracking_uri()
    if not uri.startswith(SQLITE):
        return f"{without_password(uri)}/{page}"
    return "grid ui"  # which knows its port
