import csv
import hashlib
import json
import re
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from deeplab.config import Protocol
from deeplab.counts import read_counts
from deeplab.errors import DataError
from deeplab.inference import evaluate
from deeplab.intervals import interval
from deeplab.metrics import score
from deeplab.model import DeepLabV3
from deeplab.store import Store
from deeplab.store_writer import StoreWriter
from pipeline.errors import ParamsError
from pipeline.pictures.colors import WRONG
from pipeline.pictures.panels import comparison
from pipeline.results.scores import write_plots
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.stages.evaluate import run
from pipeline.training.device import select_device
from tests.faults import tried

CELL = "shapes_resnet18_os16"
CLASSES = ("background", "disc", "never seen")
ROOT = Path(__file__).parents[1]
PARAMS = (
    (ROOT / "params.yaml")
    .read_text()
    .replace("seeds: [0]", "seeds: [0, 1]")
    .replace("device: auto", "device: cpu")
    .replace("protocols:\n", "protocols:\n  first: {scales: [1.0], flip: true, window: null, stride: null}\n")
)


class Place:
    """A tiny store, weights for two seeds, and where the results go."""

    def __init__(self, folder):
        self.folder = folder
        self.places = Places(folder)
        self.places.params.write_text(PARAMS)
        self.weights = self.places.weights(CELL)
        self.weights.mkdir(parents=True)
        rng = np.random.default_rng(0)
        with StoreWriter(self.places.store("shapes"), CLASSES, ((0, 0, 0), (220, 20, 60), (0, 90, 200))) as writer:
            for index in range(11):
                mask = np.zeros((24, 32), np.uint8)
                mask[:, 2 * index :] = 1
                image = (rng.integers(0, 128, (24, 32, 3)) + 127 * mask[:, :, None]).astype(np.uint8)
                mask[:2] = 255
                writer.add("val" if index else "train", f"city/no {index}", image, mask)
        self.store = Store(self.places.store("shapes"))
        self.cell = load_params(self.places.params).cell(CELL)
        self.said = {
            "cell": self.cell.fingerprint,
            "data": self.store.fingerprint,
            "code": "c0de",
            "classes": list(CLASSES),
        }
        for seed in (0, 1):
            torch.manual_seed(seed)
            network = DeepLabV3(self.cell.model, len(CLASSES))
            sample = torch.from_numpy(self.store.split("val").image(6) / 64 - 2).float().permute(2, 0, 1)[None]
            with torch.inference_mode():
                usual = network.eval()(sample).mean(dim=(0, 2, 3))
            network.classifier.bias.data -= usual.clone()  # about as often the first class as the second
            network.classifier.bias.data[2] = -1e6  # and never the last
            save_file(network.state_dict(), self.weights / f"seed{seed}.safetensors", {"about": json.dumps(self.said)})

    def run(self):
        """Evaluate; returns the folder of the reports."""
        self.printed = StringIO()
        with redirect_stdout(self.printed):
            run(CELL, self.places)
        return self.places.reports

    def say(self, seed, **changed):
        """Change the metadata of a seed's weights."""
        path = self.weights / f"seed{seed}.safetensors"
        save_file(load_file(path), path, {"about": json.dumps(self.said | changed)})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("evaluate"))
    return place, place.run()


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_the_metrics_are_those_of_the_library_and_their_mean_over_seeds(done):
    place, out = done
    result = json.loads((out / f"records/shapes/{CELL}.json").read_text())
    metrics = json.loads((out / f"metrics/{CELL}.json").read_text())
    expected = []
    for seed in (0, 1):
        network = DeepLabV3(place.cell.model, len(CLASSES)).eval()
        network.load_state_dict(load_file(place.weights / f"seed{seed}.safetensors"))
        protocol = Protocol(scales=(1.0,), flip=True, window=None, stride=None)
        split = place.store.split("val")
        expected.append(
            score(evaluate(network, split, len(CLASSES), place.cell.inference, protocol, torch.device("cpu")))
        )
        assert result["seeds"][str(seed)]["first"] == {
            "mIoU": round(expected[seed].mean_iou, 6),
            "pixel_accuracy": round(expected[seed].pixel_accuracy, 6),
            "mean_accuracy": round(expected[seed].mean_accuracy, 6),
            "classes_evaluated": 2,
        } | {end: result["seeds"][str(seed)]["first"][end] for end in ("mIoU_low", "mIoU_high")}
    assert set(metrics) == {"mIoU", "pixel_accuracy", "mean_accuracy", "classes_evaluated"}
    assert metrics["mIoU"] == pytest.approx((expected[0].mean_iou + expected[1].mean_iou) / 2, abs=1e-6)
    assert expected[0].mean_iou != expected[1].mean_iou


def test_a_protocol_evaluates_the_same_weights_at_another_output_stride(place):
    text = PARAMS.replace(
        "protocols:\n",
        "protocols:\n  at_8: {scales: [1.0], flip: false, window: null, stride: null, align: true, output_stride: 8}\n",
    ).replace("flip: true", "flip: false")
    place.places.params.write_text(text)
    found = json.loads((place.run() / f"records/shapes/{CELL}.json").read_text())
    assert found["protocols"]["at_8"] == {
        "scales": [1.0],
        "flip": False,
        "window": None,
        "stride": None,
        "align": True,
        "output_stride": 8,
    }
    assert "output_stride" not in found["protocols"]["first"]
    for seed in (0, 1):
        network = DeepLabV3(replace(place.cell.model, output_stride=8), len(CLASSES)).eval()
        network.load_state_dict(load_file(place.weights / f"seed{seed}.safetensors"))
        settings = replace(place.cell.inference, model=replace(place.cell.model, output_stride=8), align=True)
        split, whole = place.store.split("val"), Protocol(scales=(1.0,), flip=False, window=None, stride=None)
        expected = score(evaluate(network, split, len(CLASSES), settings, whole, torch.device("cpu")))
        assert found["seeds"][str(seed)]["at_8"]["mIoU"] == round(expected.mean_iou, 6)
        assert found["seeds"][str(seed)]["at_8"]["mIoU"] != found["seeds"][str(seed)]["first"]["mIoU"]


def test_an_output_stride_that_no_network_has_is_refused(place):
    place.places.params.write_text(PARAMS.replace("flip: true", "flip: true, output_stride: 4"))
    with pytest.raises(ParamsError, match=r"protocols\.first\.output_stride.*4"):
        run(CELL, place.places)


def test_the_record_has_its_documented_form(done):
    place, out = done
    result = json.loads((out / f"records/shapes/{CELL}.json").read_text())
    files = {str(seed): place.weights / f"seed{seed}.safetensors" for seed in (0, 1)}
    plain = {"scales": [1.0], "flip": False, "window": None, "stride": None}
    assert set(result) == {"cell", "dataset", "images", "protocols", "seeds", "fingerprint", "weights", "versions"}
    assert result["versions"].keys() > {"torch", "timm", "numpy", "packages"}
    assert (result["cell"], result["dataset"]) == (CELL, "shapes")
    assert result["images"] == {"train": 1, "val": 10}
    assert result["protocols"] == {"first": plain | {"flip": True}, "single_scale": plain}
    assert result["fingerprint"] == {
        "cell": place.cell.fingerprint,
        "data": hashlib.sha256(place.places.manifest("shapes").read_bytes()).hexdigest(),
        "code": "c0de",
    }
    assert result["weights"] == {
        seed: {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for seed, file in files.items()
    }
    assert all(set(protocols) == {"first", "single_scale"} for protocols in result["seeds"].values())


def test_the_counts_of_each_image_add_up_to_the_scores_of_the_record(done):
    _, out = done
    found = read_counts(out / f"images/shapes/{CELL}.npz")
    assert list(found) == [(seed, protocol) for seed in (0, 1) for protocol in ("first", "single_scale")]
    result = json.loads((out / f"records/shapes/{CELL}.json").read_text())
    for (seed, protocol), counts in found.items():
        assert list(counts.images) == [f"city/no {index + 1}" for index in range(10)]
        assert tuple(counts.classes) == CLASSES
        per_image = np.bincount(counts.image, counts.pixels)
        assert per_image.tolist() == [22 * 32] * 10
        said = result["seeds"][str(seed)][protocol]
        assert said["mIoU"] == round(score(counts.matrix).mean_iou, 6)
        assert said["mIoU_low"] == round(interval([counts]).low, 6) < said["mIoU"] < said["mIoU_high"]


def test_the_plots_hold_every_class_and_every_pair_that_occurred(done):
    _, out = done
    with (out / f"plots/{CELL}/classes.csv").open() as file:
        classes = list(csv.DictReader(file))
    with (out / f"plots/{CELL}/confusion.csv").open() as file:
        pairs = list(csv.DictReader(file))
    runs = [(seed, protocol) for seed in "01" for protocol in ("first", "single_scale")]
    assert [(row["seed"], row["protocol"], row["class"]) for row in classes] == [
        (*r, name) for r in runs for name in CLASSES
    ]
    assert {(row["IoU"], row["accuracy"], row["pixels"]) for row in classes if row["class"] == "never seen"} == {
        ("", "", "0")
    }
    for run_ in runs:
        ours = [row for row in pairs if (row["seed"], row["protocol"]) == run_]
        assert sum(int(row["pixels"]) for row in ours) == 10 * 22 * 32
        for row in classes[:2]:
            shares = [float(pair["share"]) for pair in ours if pair["truth"] == row["class"]]
            assert sum(shares) == pytest.approx(1, abs=1e-5)
    result = json.loads((out / f"records/shapes/{CELL}.json").read_text())
    assert float(classes[0]["IoU"]) + float(classes[1]["IoU"]) == pytest.approx(
        2 * result["seeds"]["0"]["first"]["mIoU"], abs=3e-6
    )


@pytest.mark.parametrize(
    ("plot", "template", "x", "y"),
    [("classes", "class_iou", "IoU", "class"), ("confusion", "confusion_share", "predicted", "truth")],
)
def test_the_plots_fill_their_templates(done, plot, template, x, y):
    from dvc_render.vega import VegaRenderer

    with (done[1] / f"plots/{CELL}/{plot}.csv").open() as file:
        rows = [row | {"rev": "workspace"} for row in csv.DictReader(file)]
    folder = str(ROOT / ".dvc/plots")
    content = VegaRenderer(rows, plot, template=template, template_dir=folder, x=x, y=y).get_filled_template()
    text = json.dumps(content | {"data": None})
    assert content["data"]["values"] == rows
    assert "<DVC_METRIC" not in text
    computed = {step["as"] for step in content["transform"]}
    assert set(re.findall(r'"field": "(\w+)"', text)) <= computed | set(rows[0])
    assert set(re.findall(r"datum\.(\w+)", text)) <= set(rows[0])


def test_the_figures_are_eight_images_spread_over_the_split(done):
    _, out = done
    figures = sorted((out / f"figures/{CELL}").glob("*.jpg"))
    assert [figure.name for figure in figures] == [
        f"{place}_city_no_{index + 1}.jpg" for place, index in enumerate((0, 1, 2, 3, 5, 6, 7, 8))
    ]
    with Image.open(figures[0]) as picture:
        picture.load()
        assert picture.width > 4 * 32


def test_a_figure_shows_image_truth_prediction_and_error_in_the_colours_of_the_classes():
    image = np.full((10, 20, 3), 100, np.uint8)
    truth, predicted = np.full((10, 20), 1, np.uint8), np.full((10, 20), 255, np.uint8)
    predicted[:, :10] = 2
    palette = ((0, 0, 0), (200, 0, 0), (0, 0, 250))
    picture = np.asarray(comparison(image, truth, predicted, CLASSES, palette))
    height, width = picture.shape[:2]
    row = picture[height // 2, [width // 8, 3 * width // 8, width // 2 + 30, 3 * width // 4 - 30, width - 30]]
    assert row.tolist() == [[100, 100, 100], [170, 30, 30], [30, 30, 205], [208, 208, 208], list(WRONG)]


def test_the_same_inputs_give_the_same_bytes(done):
    place, out = done
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(before) == 5 + 8 + 3 * (8 + 4 + 4) + 1  # parts of spread, best and worst images; about.json
    place.run()
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_the_scores_are_printed_with_a_dash_for_a_class_that_does_not_occur(done):
    lines = done[0].printed.getvalue().splitlines()
    assert "seed 1, single_scale" in lines
    assert ["never", "seen", "-", "-"] in [line.split() for line in lines]
    assert lines[-1].startswith("mIoU ")
    assert lines[-1].endswith("2 of 3 classes")


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"cell": "other"}, "settings"),
        ({"data": "other"}, "data"),
        ({"cell": "other", "classes": '["a"]'}, "settings and classes"),
    ],
)
@tried.WEIGHTS
def test_weights_of_something_else_are_refused(place, changed, what):
    place.say(1, **changed)
    expected = rf"seed1\.safetensors: trained with different {what}\. Run: dvc repro train@{CELL}"
    with pytest.raises(DataError, match=expected):
        place.run()
    assert not place.places.reports.exists()


@tried.WEIGHTS
def test_seeds_trained_by_different_code_are_refused(place):
    place.say(1, code="newer")
    with pytest.raises(DataError, match=f"different versions of the code. Run: dvc repro train@{CELL}"):
        place.run()


@tried.WEIGHTS
def test_missing_weights_are_told_with_the_command_that_makes_them(place):
    (place.weights / "seed1.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"seed1\.safetensors: weights not found\. Run: dvc repro train@{CELL}"
    ):
        place.run()


@tried.WEIGHTS
def test_a_cut_weights_file_is_told_as_damaged(place):
    path = place.weights / "seed0.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=rf"seed0\.safetensors: .*damaged.*\. Run: dvc repro train@{CELL}"):
        place.run()


@tried.WEIGHTS
def test_weights_of_another_network_are_refused_although_their_settings_agree(place):
    path = place.weights / "seed0.safetensors"
    tensors = load_file(path)
    del tensors["classifier.bias"]
    save_file(tensors, path, {"about": json.dumps(place.said)})
    with pytest.raises(DataError, match="does not fit the network of the current code"):
        place.run()


def test_a_device_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(ParamsError, match=r"params\.yaml: runtime\.device: got 'cuda:99', expected one of auto, cpu"):
        select_device("cuda:99")
    with pytest.raises(ParamsError, match="got 'gpu'"):
        select_device("gpu")
    assert select_device("cpu") == torch.device("cpu")
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_plot_of_confusions_has_all_classes_in_their_order(tmp_path):
    """`c` does not occur, `a` is never predicted."""
    matrix = np.array([[0, 4, 0], [0, 5, 1], [0, 0, 0]])
    write_plots(tmp_path, ("a", "b", "c"), {(0, "p"): matrix}, {(0, "p"): score(matrix)})
    rows = [line.split(",")[2:] for line in (tmp_path / "confusion.csv").read_text().splitlines()[1:]]
    assert rows == [
        ["a", "a", "0", "0.000000"],
        ["b", "b", "5", "0.833333"],
        ["c", "c", "0", ""],
        ["a", "b", "4", "1.000000"],
        ["b", "c", "1", "0.166667"],
    ]
