"""A recording that ends in the middle, or whose server's answer is lost, is completed by the next one, once."""

from contextlib import suppress

import pytest

from tests.faults.recording import KilledError, interrupt
from tests.faults.small_grid import record
from tests.records import CELL, Folder, blank_database

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own


@pytest.fixture
def folder(tmp_path, tmp_path_factory, monkeypatch):
    """A working folder with a database of its own and a cell that was trained and measured."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    here = Folder(tmp_path, blank_database(tmp_path_factory.getbasetemp()))
    here.train(CELL)
    here.evaluate(CELL)
    here.measure(CELL, 0.5)
    return here


def recorded(folder, fault, which):
    """What MLflow shows after a recording with the fault and one without, and the calls that the first came to."""
    with pytest.MonkeyPatch.context() as patch:
        calls = interrupt(patch, fault, which)
        with suppress(KilledError):
            folder.tables()
    folder.tables()
    return record(folder.path), calls


@pytest.mark.fault(
    "server",
    "an answer of the server is lost",
    "MLflow's client asks again for what has been done",
    "the next `tables` leaves one complete run, one model, one version",
)
@pytest.mark.parametrize("name", ["create_run", "create_model_version"])
def test_what_was_asked_for_twice_is_there_once(folder, name):
    shown, calls = recorded(folder, "asked twice", name)
    assert calls.count(name) == 1
    check_once(shown)


@pytest.mark.fault(
    "server",
    "a recording ends while it makes a model",
    "killed before or after a call, an answer lost",
    "the next `tables` goes on with the same model: one score, one link with its run",
)
@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("killed after", "create_logged_model"),
        ("killed after", "log_outputs"),
        ("answer lost", "log_metric"),
        ("killed before", "finalize_logged_model"),
    ],
)
def test_a_model_that_was_only_begun_is_finished(folder, fault, name):
    shown, calls = recorded(folder, fault, name)
    assert calls[-1] == name
    check_once(shown)


def check_once(shown):
    """One complete run with each point once, linked with its data and its model; one score, one version."""
    (runs,) = shown["runs"].values()
    assert [(run["status"], run["tags"]["complete"], run["twice"]) for run in runs] == [("FINISHED", "1", [])]
    assert runs[0]["links"] == [("DATASET", "RUN"), ("RUN_OUTPUT", "MODEL_OUTPUT")]
    assert [status for _, status in shown["models"]] == [2]  # ready
    assert shown["scores"] == [("model/mIoU", 0.5)]
    assert [version for _, version in shown["versions"]] == [1]
    assert shown["aliases"] == [("deeplabv3-shapes", "best")]
