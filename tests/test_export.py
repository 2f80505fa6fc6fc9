import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deeplab import load_model
from deeplab.errors import DataError
from pipeline.errors import ParamsError
from pipeline.predict import export
from pipeline.settings.places import Places
from tests.tiny import write_weights

ROOT = Path(__file__).parents[1]
CELL = "shapes_resnet18_os8"
CLASSES = ["class 0", "class 1", "class 2"]
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)  # already as large as the recipe's box
PIXELS = torch.from_numpy(IMAGE).permute(2, 0, 1)[None].float()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "seed0.safetensors")


def agrees(model, logits):
    """Whether raw pixels gave the classes that the project itself predicts."""
    assert logits.shape == (1, 3, 32, 48)
    return (logits.argmax(1)[0].numpy() == model.predict(IMAGE)).mean() > 0.999


def test_onnx_runs_elsewhere_on_any_size_and_says_what_it_is(weights, tmp_path, capsys):
    import onnxruntime

    model = load_model(weights)
    path = export.write(model, weights, "onnx", tmp_path)
    assert "largest difference of a logit" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == CLASSES
    assert agrees(model, torch.from_numpy(session.run(None, {"images": PIXELS.numpy()})[0]))


def test_pt2_is_loaded_without_this_project(weights, tmp_path):
    model = load_model(weights)
    said = {"classes": ""}
    loaded = torch.export.load(export.write(model, weights, "pt2", tmp_path), extra_files=said)
    assert json.loads(said["classes"]) == CLASSES
    assert agrees(model, loaded.module()(PIXELS))


def test_an_aligned_network_pads_inside_the_file(tmp_path):
    weights = write_weights(tmp_path / "seed0.safetensors", recipe={"align": True})
    model = load_model(weights)
    assert model.settings.align
    with pytest.raises(DataError, match="format pt2: .* Use onnx"):
        export.write(model, weights, "pt2", tmp_path)
    export.write(model, weights, "onnx", tmp_path)  # compares at sizes that are no multiples of the output stride
    odd = torch.randint(0, 256, (1, 3, 41, 52)).float()
    padded = torch.nn.functional.pad((odd - mean_of(model)) / std_of(model), (0, 4, 0, 7))
    with torch.inference_mode():
        expected = torch.nn.functional.interpolate(model.network(padded), size=(48, 56), mode="bilinear")[..., :41, :52]
        torch.testing.assert_close(export.Deployable(model).eval()(odd), expected)


def mean_of(model):
    return torch.tensor(model.settings.model.mean).view(1, 3, 1, 1)


def std_of(model):
    return torch.tensor(model.settings.model.std).view(1, 3, 1, 1)


def test_a_network_that_torch_cannot_save_for_any_size_is_one_line(weights, tmp_path, monkeypatch):
    """As of EfficientNet-Lite, whose padding depends on the size: exporting one takes minutes, so torch's error is made."""

    def refuse(*_, **__):
        raise AssertionError("op ceil is not in _SYM_OPS\nand more")

    monkeypatch.setattr(torch.export, "save", refuse)
    with pytest.raises(DataError, match=r"any size \(op ceil is not in _SYM_OPS\)\. .* Use onnx"):
        export.write(load_model(weights), weights, "pt2", tmp_path)
    assert not (tmp_path / "model.pt2").exists()


def test_a_repository_folder_is_read_by_load_model_without_a_project(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without params.yaml
    model = load_model(weights)
    (tmp_path / "card.md").write_text("the card")
    export.write(model, weights, "huggingface", tmp_path / "repository", tmp_path / "card.md")
    assert (tmp_path / "repository/README.md").read_text() == "the card"
    assert (tmp_path / "repository/model.safetensors").read_bytes() == weights.read_bytes()
    np.testing.assert_array_equal(load_model(tmp_path / "repository").predict(IMAGE), model.predict(IMAGE))


def test_an_export_that_computes_something_else_is_reported_and_not_written(weights, tmp_path, monkeypatch):
    def wrong(network, said):
        return b"", lambda images: network(images) + 0.002

    monkeypatch.setitem(export.FORMATS, "pt2", (".pt2", wrong))
    with pytest.raises(
        DataError, match=r"model\.pt2: not written: its logits differ by 0\.002 from the network's, expected 0\.001"
    ):
        export.write(load_model(weights), weights, "pt2", tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_and_a_missing_package_are_named(monkeypatch):
    with pytest.raises(ParamsError, match="format: got 'onx', expected one of onnx, pt2, huggingface"):
        export.check_format("onx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ParamsError, match="the package onnxruntime is missing. Run: pip install onnxruntime"):
        export.check_format("onnx")


def test_a_cell_is_exported_with_its_card(tmp_path):
    places = Places(tmp_path)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    file = write_weights(places.weights(CELL) / "seed0.safetensors")
    (places.reports / "cards/removed").mkdir(parents=True)
    (places.reports / f"cards/removed/{CELL}.md").write_text("of a data set that params.yaml no longer has")
    out = export.run(CELL, "huggingface", tmp_path / "out", places=places)
    assert not (out / "README.md").exists()
    places.cards("shapes").mkdir(parents=True)
    (places.cards("shapes") / f"{CELL}.md").write_text("the card")
    out = export.run(CELL, "huggingface", tmp_path / "out", places=places)
    assert (out / "README.md").read_text() == "the card"
    assert (out / "model.safetensors").read_bytes() == file.read_bytes()
