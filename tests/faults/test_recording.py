"""A recording that ends in the middle, or whose server's answer is lost, is completed by the next one, once."""

import threading
from contextlib import suppress

import pytest

from pipeline.tracking.client import TrackingError, open_experiment
from tests.faults.proxy import Proxy
from tests.faults.recording import KilledError, interrupt
from tests.faults.small_grid import record
from tests.records import CELL

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own


@pytest.fixture
def folder(folder):
    """A working folder with a database of its own and a cell that was trained and measured."""
    folder.train(CELL)
    folder.evaluate(CELL)
    folder.measure(CELL, 0.5)
    return folder


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
    "after a call that creates something",
    "the next `tables` leaves one complete run, one model, one version",
)
@pytest.mark.parametrize(
    "name", ["create_run", "create_logged_model", "create_registered_model", "create_model_version"]
)
def test_what_a_lost_answer_has_created_is_found_by_the_next_recording(folder, name):
    shown, calls = recorded(folder, "answer lost", name)
    assert calls[-1] == name
    check_once(shown)


@pytest.mark.fault(
    "server",
    "an answer of the server is lost",
    "a server that hangs up, or answers with 500",
    "a request is sent once, so nothing is created twice",
)
@pytest.mark.parametrize("fault", ["down", "500"])
def test_a_request_without_an_answer_is_not_repeated(monkeypatch, fault):
    with Proxy(0) as server:
        server.meet(fault)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        with pytest.raises(TrackingError), open_experiment("shapes", timeout=5):
            pass
        server.shutdown()
        thread.join()
    assert server.calls == 1


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
