"""A registered model as MLflow loads and serves it: the masks of `predict`, and one clear error for each bad request."""

import json

import mlflow
import numpy as np
import pytest
from fastapi.testclient import TestClient

from deeplab import load_model
from deeplab.errors import DataError
from tests.records import CELL, OTHER, Folder, blank_database
from tests.tiny import write_weights

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),  # MLflow's own, when its serving part is imported
]
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
MODEL = "models:/deeplabv3-shapes@best"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two measured cells in MLflow, and the weights of the better one."""
    base = tmp_path_factory.mktemp("served")
    here = Folder(base, blank_database(tmp_path_factory.getbasetemp()))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(base)
        here.raw["runtime"]["log_weights"] = True
        here.write_params()
        here.measure(CELL, 0.5)
        here.measure(OTHER, 0.6)
        write_weights(base / f"runs/{OTHER}/weights/seed0.safetensors")
        here.tables()
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{base}/mlflow.db")
        yield base
        mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def model(folder):
    return mlflow.pyfunc.load_model(MODEL)


@pytest.fixture(scope="module")
def expected(folder):
    labels = load_model(folder / f"runs/{OTHER}/weights/seed0.safetensors").predict(IMAGE)
    assert len(np.unique(labels)) > 1
    return labels


def test_the_loaded_model_gives_the_mask_of_predict(model, expected):
    np.testing.assert_array_equal(model.predict({"image": IMAGE}), expected)


def test_a_model_without_weights_says_where_they_are(folder):
    with pytest.raises(DataError, match="no weights in MLflow. Set runtime.log_weights to true"):
        mlflow.pyfunc.load_model("models:/deeplabv3-shapes/1")


@pytest.fixture(scope="module")
def ask(model):
    with pytest.MonkeyPatch.context() as patch:
        from mlflow.pyfunc import scoring_server

        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "false")  # which the server sets: undone after the tests
        client = TestClient(scoring_server.init(model), raise_server_exceptions=False)
        yield lambda body: client.post("/invocations", content=body, headers={"Content-Type": "application/json"})


def test_a_server_gives_the_mask_of_predict(ask, expected):
    found = ask(json.dumps({"inputs": {"image": IMAGE.tolist()}}))
    assert found.status_code == 200
    np.testing.assert_array_equal(found.json()["predictions"], expected)


GOOD = json.dumps({"inputs": {"image": IMAGE[:4, :4].tolist()}})
BAD = [
    "",
    "null",
    "[]",
    "{}",
    "no JSON",
    *(GOOD[:length] for length in range(1, 150)),  # cut short
    *(
        json.dumps({"inputs": {"image": value}})
        for value in (None, 1, "photo.jpg", [], [[]], [[[]]], [[[1, 2]]], [[1, 2, 3]])
    ),
    *(json.dumps({"inputs": {"image": [[[1, 2, value]]]}}) for value in (-1, 256, 1.5, 1e300, "red", None, [1], {})),
    *(json.dumps({"inputs": {name: [[[1, 2, 3]]]}}) for name in ("Image", "photo", "")),
    *(json.dumps({"inputs": {"image": np.zeros((4, 4, depth), int).tolist()}}) for depth in (0, 1, 2, 4, 5, 12)),
    json.dumps({"inputs": {"image": [[[1, 2, 3]], [[1, 2, 3], [4, 5, 6]]]}}),  # rows of two lengths
    *(json.dumps({name: [[1, 2, 3]]}) for name in ("instances", "dataframe_split", "dataframe_records", "other")),
]


def test_each_bad_request_gets_one_clear_error_and_the_server_goes_on(ask, expected):
    for body in BAD:
        found = ask(body)
        said = found.json()
        assert 400 <= found.status_code < 500, (body, said)
        assert said["error_code"] in ("BAD_REQUEST", "INVALID_PARAMETER_VALUE"), (body, said)
        assert len(said["message"]) > 20, (body, said)
    assert ask(GOOD).status_code == 200
