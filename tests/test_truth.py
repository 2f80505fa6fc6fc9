"""`grid predict --truth`: the scores of an evaluation, for images that were never prepared."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from deeplab import load_model
from deeplab.errors import DataError, LabelError
from pipeline import cli
from pipeline.errors import ParamsError
from pipeline.predict import predict
from pipeline.predict.truth import reader
from pipeline.settings.places import Places
from tests.tiny import tiny_params, write_weights

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("a", "b", "trip_c")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Three photos, the weights of a tiny network, and its own predictions as the truth."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    model = load_model(write_weights(tmp_path / "w.safetensors"))
    for folder in ("photos", "masks"):
        (tmp_path / folder).mkdir()
    for name in NAMES:
        image = np.kron(rng.integers(0, 256, (5, 6, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
        Image.fromarray(image).save(f"photos/{name}.png")
        Image.fromarray(model.predict(image)).save(f"masks/{name}_mask.png")
    return tmp_path


def scored(here, name="w.safetensors", photos="photos", masks="masks"):
    found = CliRunner().invoke(
        cli.grid, ["predict", name, photos, "--out", "out", "--truth", masks], standalone_mode=False
    )
    if found.exception:
        raise found.exception
    return found.output, json.loads((here / "out/scores.json").read_text())


def change(path, edit):
    mask = np.array(Image.open(path))
    edit(mask)
    Image.fromarray(mask).save(path)


def test_predictions_against_themselves_are_all_right(here):
    output, scores = scored(here)
    assert (scores["images"], scores["mIoU"], scores["pixel_accuracy"]) == (3, 1.0, 1.0)
    assert "mIoU 100.00 %" in output


def test_scores_are_over_the_pixels_of_all_images_without_those_of_255(here):
    predicted = np.concatenate([np.array(Image.open(f"masks/{name}_mask.png")).ravel() for name in NAMES])
    change("masks/a_mask.png", lambda mask: mask.__setitem__(slice(0, 10), 255))
    change("masks/b_mask.png", lambda mask: mask.__setitem__(slice(0, 20), 0))
    truth = np.concatenate([np.array(Image.open(f"masks/{name}_mask.png")).ravel() for name in NAMES])
    predicted, truth = predicted[truth != 255], truth[truth != 255]
    _, scores = scored(here)
    union = [((truth == k) | (predicted == k)).sum() for k in range(3)]
    iou = [((truth == k) & (predicted == k)).sum() / union[k] if union[k] else None for k in range(3)]
    assert list(scores["IoU"].values()) == pytest.approx(iou, abs=1e-6)
    assert scores["mIoU"] == pytest.approx(np.mean([each for each in iou if each is not None]), abs=1e-6)
    assert scores["mIoU_low"] <= scores["mIoU"] <= scores["mIoU_high"]


def test_masks_of_a_cell_are_read_as_prepare_reads_them(here):
    def folder(params):
        params["datasets"]["tiny"] |= {
            "format": "folder",
            "folder": {"images": "i", "masks": "m", "classes": "classes.txt", "ignore": [9], "map": {7: 3}},
        }

    tiny_params(here / "params.yaml", folder)
    raw = here / "data/raw/tiny"
    raw.mkdir(parents=True)
    (raw / "classes.txt").write_text("3 road\n5 sky\n7 lane\n9 void\n")
    Image.fromarray(np.array([[3, 5, 7, 9]], np.uint8)).save("one.png")
    assert reader("tiny_os8", 2, Places())(here / "one.png").ids.tolist() == [[0, 1, 0, 255]]


def test_problems_are_named_before_the_network_runs(here, monkeypatch):
    monkeypatch.setattr(predict, "run", None)
    (here / "masks/b_mask.png").unlink()
    with pytest.raises(DataError, match=r"masks: no mask for 1 of 3 images, for example .*photos/b.png"):
        scored(here)
    (here / "empty").mkdir()
    (here / "film.mp4").write_bytes(b"")
    for photos, masks, match in (
        ("photos", "nowhere", "^nowhere: no such file or folder$"),
        ("nowhere.png", "masks/a_mask.png", "^nowhere.png: no such file or folder$"),
        ("photos", "empty", "^empty: no picture in this folder$"),
        ("empty", "masks", "^empty: no picture in this folder$"),
        ("photos/a.png", "masks", "--truth: got masks for photos/a.png, expected a mask for an image"),
        ("photos", "masks/a_mask.png", "--truth: got masks/a_mask.png for photos, expected .* a folder for a folder"),
        ("film.mp4", "masks/a_mask.png", "--truth: got masks/a_mask.png for film.mp4, expected a mask for an image"),
    ):
        with pytest.raises((DataError, ParamsError), match=match):
            scored(here, photos=photos, masks=masks)


@pytest.mark.parametrize(("photos", "masks"), [("photos/a.png", "masks/b_mask.png"), ("one", "other")])
def test_one_image_is_scored_against_one_mask(here, photos, masks):
    """Whatever they are called; in folders of one each, too."""
    for folder, file in (("one", "photos/a.png"), ("other", "masks/b_mask.png")):
        (here / folder).mkdir()
        shutil.copy(file, folder)
    shutil.copy("masks/a_mask.png", "kept.png")
    _, scores = scored(here, photos=photos, masks=masks)
    predicted, truth = (np.array(Image.open(path)) for path in ("kept.png", "masks/b_mask.png"))
    assert scores["images"] == 1
    assert scores["pixel_accuracy"] == pytest.approx((predicted == truth).mean(), abs=1e-6)


def test_masks_that_do_not_fit_are_named(here):
    shutil.copy("masks/a_mask.png", "kept.png")
    change("masks/a_mask.png", lambda mask: mask.__setitem__((2, 3), 3))
    with pytest.raises(
        LabelError, match=r"a_mask.png: label 3 at row 2, column 3 is out of range, expected 0..2 or 255"
    ):
        scored(here)
    Image.open("kept.png").crop((0, 0, 48, 39)).save("masks/a_mask.png")
    with pytest.raises(DataError, match=r"a_mask.png: 39x48 pixels, but its image .*a.png has 40x48"):
        scored(here)


def test_masks_of_a_cell_with_annotations_are_read_by_their_labels(here):
    def coco(params):
        params["datasets"]["tiny"] |= {
            "format": "coco",
            "folder": {"images": "i", "annotations": "a.json", "classes": "classes.txt"},
        }

    tiny_params(here / "params.yaml", coco)
    (here / "data/raw/tiny").mkdir(parents=True)
    (here / "data/raw/tiny/classes.txt").write_text("0 background\n4 car\n")
    Image.fromarray(np.array([[0, 4]], np.uint8)).save("one.png")
    assert reader("tiny_os8", 2, Places())(here / "one.png").ids.tolist() == [[0, 1]]


def test_an_image_that_only_predict_finds_has_no_mask_either(here):
    (here / "more").mkdir()
    shutil.copy("photos/a.png", "more/d.png")
    (here / "photos/linked").symlink_to(here / "more")
    with pytest.raises(DataError, match=r"masks: no mask for 1 of 4 images, for example .*linked/d.png"):
        scored(here)


def test_no_score_when_an_image_cannot_be_read_though_an_older_prediction_is_there(here):
    scored(here)
    (here / "out/scores.json").unlink()
    (here / "photos/a.png").write_bytes(b"no picture")
    found = CliRunner().invoke(
        cli.grid, ["predict", "w.safetensors", "photos", "--out", "out", "--truth", "masks"], standalone_mode=False
    )
    assert isinstance(found.exception, DataError)
    assert "no score: not every image could be read" in str(found.exception)
    assert not (here / "out/scores.json").exists()
