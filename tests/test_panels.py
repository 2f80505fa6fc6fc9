"""Which images are drawn, and that their parts show what the store and the network say."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from deeplab.config import Protocol
from deeplab.inference import predict
from deeplab.metrics import confusion_matrix, score
from deeplab.model import DeepLabV3
from deeplab.store import IGNORE, Store
from pipeline.data.formats import ade20k, cityscapes, shapes, voc
from pipeline.data.formats.folder import default_palette
from pipeline.pictures.colors import COLORS, RIGHT, WRONG
from pipeline.pictures.overlay import UNLABELLED
from pipeline.pictures.panels import choose, image_score, image_scores, write_figures
from tests.tiny import tiny_cell, write_store

PROTOCOL = Protocol(scales=(1.0,), flip=False, window=None, stride=None)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The store, the folder, and what it says of itself: 12 images, the third of which is the best, the last the worst."""
    base = tmp_path_factory.mktemp("panels")
    store = Store(write_store(base / "data", {"train": 2, "val": 12}, classes=3))
    cell = tiny_cell()
    torch.manual_seed(0)
    network = DeepLabV3(cell.model, 3).eval()
    scores = [0.5] * 2 + [0.9] + [0.4] * 8 + [0.1]
    segment = partial(predict, network, settings=cell.inference, protocol=PROTOCOL, device=torch.device("cpu"))
    write_figures(base / "out", store, store.split("val"), segment, "0abc", scores)
    return store, base / "out", json.loads((base / "out/parts/about.json").read_text())


def test_each_image_has_its_three_parts_and_the_spread_ones_a_picture(drawn):
    _, folder, about = drawn
    stems = [image["stem"] for image in about["images"]]
    assert len(stems) == len(set(stems)) == 8 + 4 + 4
    parts = {path.name for path in (folder / "parts").iterdir()} - {"about.json"}
    assert parts == {f"{stem}.{part}" for stem in stems for part in ("image.jpg", "truth.png", "prediction.png")}
    assert len(list(folder.glob("*.jpg"))) == 8
    assert about["weights"] == "0abc"


def test_the_best_and_the_worst_image_come_first_of_their_kind(drawn):
    _, _, about = drawn
    first = {image["why"]: image for image in reversed(about["images"])}
    assert (first["best"]["id"], first["worst"]["id"]) == ("val_2", "val_11")


def test_the_truth_is_kept_pixel_by_pixel_in_the_colours_of_the_classes(drawn):
    store, folder, about = drawn
    split = store.split("val")
    image = about["images"][3]
    with Image.open(folder / "parts" / f"{image['stem']}.truth.png") as picture:
        assert np.array_equal(np.asarray(picture), split.mask(image["index"]))
        colors = np.asarray(picture.convert("RGB"))
    mask = split.mask(image["index"])
    assert (colors[mask == 1] == store.palette[1]).all()
    assert (colors[mask == IGNORE] == 255).all()


def test_without_scores_of_the_images_only_the_spread_ones_are_drawn():
    assert choose(3, None) == [(0, "spread"), (1, "spread"), (2, "spread")]


def test_an_image_without_a_labelled_pixel_is_neither_best_nor_worst():
    chosen = choose(4, [float("nan"), 0.2, 0.7, 0.4])
    assert [index for index, why in chosen if why != "spread"] == [1, 2]


def test_the_score_of_an_image_is_that_of_its_own_confusion_matrix():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 3, (2, 8, 9), dtype=np.uint8)
    matrix = confusion_matrix(truth, predicted, 3)
    hits, total = matrix.diagonal(), matrix.sum(axis=0) + matrix.sum(axis=1)
    found = image_scores(np.array([hits, 0 * hits]), np.array([total - hits, 0 * hits]))
    assert found[0] == pytest.approx(score(matrix).mean_iou)
    assert found[0] == pytest.approx(image_score(truth, predicted), abs=1e-6)
    assert np.isnan(found[1])
    assert image_score(np.full((2, 2), IGNORE, np.uint8), predicted[:2, :2]) is None


def lab(colors):
    """sRGB (N, 3) of 0..255 as CIELAB, where distances are those that a person sees."""
    linear = np.asarray(colors) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    x, y, z = np.moveaxis(np.cbrt(np.maximum(xyz / [0.9505, 1, 1.089], 0.008856)), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def test_the_colours_of_cells_and_errors_differ_from_each_other_and_from_those_of_all_classes():
    """2 to 3 is the least that a person sees. ADE20k has 150 colours, which leave less room."""
    own = lab([RIGHT, WRONG, UNLABELLED, *(tuple(bytes.fromhex(color[1:])) for color in COLORS)])
    between = np.linalg.norm(own[:, None] - own, axis=-1) + 1000 * np.eye(len(own))
    assert between.min() > 20
    several = [
        *shapes.PALETTE.values(),
        *voc.colormap(21),
        *(row[2] for row in cityscapes.CLASSES),
        *default_palette(20),
    ]
    for palette, least in ((several, 18), (ade20k.official_palette(), 13)):
        marks = np.delete(own, 2, axis=0)  # white means "not labelled" everywhere
        assert np.linalg.norm(marks[:, None] - lab(palette), axis=-1).min() > least
