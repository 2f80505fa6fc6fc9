import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deeplab import load_model
from deeplab.errors import DataError, SettingsError
from deeplab.inference import evaluate, predict
from deeplab.metrics import confusion_matrix
from deeplab.model import DeepLabV3
from deeplab.segmenter import WHOLE
from deeplab.store import Store
from pipeline.training.publish import save_weights
from tests.faults import tried
from tests.tiny import recipe_config, tiny_cell, write_store, write_weights

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


@pytest.fixture
def weights(tmp_path):
    return write_weights(tmp_path / "seed0.safetensors")


def test_what_training_released_is_loaded_in_one_line_and_scores_as_evaluated(tmp_path):
    store, cell = Store(write_store(tmp_path / "data")), tiny_cell()
    torch.manual_seed(0)
    network = DeepLabV3(cell.model, len(store.classes)).eval()
    fingerprint = {"cell": cell.fingerprint, "data": "d", "code": "c"}
    save_weights(network, tmp_path / "a.safetensors", store, cell, fingerprint)
    model = load_model(tmp_path / "a.safetensors")
    assert (model.settings.model, model.classes, model.palette) == (cell.model, store.classes, store.palette)
    assert model.about["settings"] == json.loads(json.dumps(asdict(cell)))
    assert not model.network.training
    split = store.split("val")
    matrix = sum(confusion_matrix(split.mask(index), model.predict(split.image(index)), 3) for index in range(3))
    np.testing.assert_array_equal(matrix, evaluate(network, split, 3, cell.inference, WHOLE, torch.device("cpu")))


def test_a_folder_as_of_a_hugging_face_repository_is_loaded_with_its_config(tmp_path, weights):
    model = load_model(str(weights))
    folder = tmp_path / "repository"
    folder.mkdir()
    save_file(load_file(weights), folder / "model.safetensors")  # without metadata, as other tools write it
    with pytest.raises(DataError, match=r"no description in the file and no config\.json beside it"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps(model.about))
    np.testing.assert_array_equal(load_model(folder).predict(IMAGE), model.predict(IMAGE))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors: no such file"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), r"model\.safetensors: no such file"),
        (lambda folder: torch.save({"a": torch.zeros(1)}, folder / "model.safetensors"), "not a weights file, or damaged"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "segformer"}'), "settings to use it .no 'settings'"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"no description in the file and no config\.json"),
        (lambda folder: (folder / "config.json").write_text("no JSON"), "not a weights file, or damaged, or a config.json beside it is"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "not a weights file, or damaged, or a config.json beside it is"),
    ],
)  # fmt: skip
@tried.WEIGHTS
def test_a_folder_of_something_else_is_named_in_one_line(tmp_path, weights, spoil, message):
    folder = tmp_path / "repository"
    folder.mkdir()
    save_file(load_file(weights), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(load_model(weights).about))
    spoil(folder)
    with pytest.raises(DataError, match=rf"repository/.*{message}") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_batch_and_tiles_are_predicted_by_the_same_network(weights):
    model = load_model(weights)
    together = model.predict_batch(np.stack([IMAGE, IMAGE[:, ::-1]]))
    assert (together[0] == model.predict(IMAGE)).mean() > 0.999
    assert len(np.unique(together)) > 1
    tiles = model.predict_tiles(IMAGE, (64, 64), (32, 32))
    native = tiny_cell(recipe=recipe_config(resize=(48, 40)))
    np.testing.assert_array_equal(tiles, predict(model.network, IMAGE, native.inference, WHOLE, model.device))


def test_weights_from_before_a_setting_of_training_was_added_or_dropped_stay_of_use(weights):
    before = load_model(weights)
    settings = before.about["settings"]
    del settings["train"]["momentum"], settings["augment"]
    settings["train"]["a setting of the past"] = 1
    write_weights(weights, settings=settings)
    np.testing.assert_array_equal(load_model(weights).predict(IMAGE), before.predict(IMAGE))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a weights file, or damaged"),
        (lambda path: path.write_bytes(b"no weights"), "not a weights file, or damaged"),
        (lambda path: save_file(load_file(path), path), "not weights of this project"),
        (
            lambda path: save_file(load_file(path), path, {"about": "{}"}),
            "does not contain the settings to use it .no 'settings'",
        ),
        (lambda path: write_weights(path, palette=[[0, 0, 0]]), "1 colours for 3 classes"),
        (lambda path: write_weights(path, palette=[[0, 0, 0], [0, 256, 0], [9, 9, 9]]), r"the colour \[0, 256, 0\]"),
        (lambda path: write_weights(path, settings={"model": {}}), "does not contain the settings to use it"),
        (lambda path: write_weights(path, classes=4, palette=[[0, 0, 0]] * 3, settings=asdict(tiny_cell())), "4"),
    ],
)
@tried.WEIGHTS
def test_weights_that_cannot_be_used_are_named_in_one_line(weights, spoil, message):
    spoil(weights)
    with pytest.raises(DataError, match=rf"seed0\.safetensors: .*{message}") as caught:
        load_model(weights)
    assert "\n" not in str(caught.value)


@tried.WEIGHTS
def test_weights_of_another_network_than_they_say_are_refused(weights):
    tensors = load_file(weights)
    tensors.pop("classifier.bias")
    about = load_model(weights).about
    save_file(tensors, weights, {"about": json.dumps(about)})
    with pytest.raises(DataError, match="does not fit the network that its settings describe"):
        load_model(weights)


def test_a_device_that_torch_does_not_have_is_told(weights):
    with pytest.raises(SettingsError, match="device: got 'gpu'"):
        load_model(weights, device="gpu")
