import json

import numpy as np
import pytest
from PIL import Image

from deeplab.store import Store
from deeplab.store_writer import StoreWriter
from pipeline.data.card import write_card
from pipeline.pictures.sheet import SAMPLES, TILE, write_sheet
from pipeline.stages import prepare
from tests.raw import dataset_config
from tests.tiny import write_store

RED, BLUE = (200, 0, 0), (0, 0, 200)


def write_known(folder, sizes=((4, 6), (8, 2), (4, 6))):
    """Two training samples and one to validate on; in each the upper half is `sky`, the lower `road`, one pixel ignored."""
    with StoreWriter(folder, ("sky", "road", "train | track"), (BLUE, RED, (0, 200, 0))) as writer:
        for index, size in enumerate(sizes):
            mask = np.zeros(size, np.uint8)
            mask[size[0] // 2 :] = 1
            mask[0, 0] = 255
            writer.add("val" if index == 2 else "train", f"sample {index}", np.zeros((*size, 3), np.uint8), mask)
    return Store(folder)


def test_a_card_counts_images_sizes_classes_and_ignored_pixels(tmp_path):
    store = write_known(tmp_path / "store")
    write_card(store, "known", {"train": 2, "val": 1}, [], tmp_path / "card")
    card = json.loads((tmp_path / "card/card.json").read_text())
    assert card["dataset"] == "known"
    assert card["fingerprint"] == store.fingerprint
    assert card["splits"]["train"] == {
        "images": 2, "published": 2, "width": {"min": 2, "median": 4, "max": 6},
        "height": {"min": 4, "median": 6, "max": 8}, "ignored_share": 0.05,
    }  # fmt: skip
    sky, road, unseen = card["classes"]
    assert sky["pixel_share"] == {"train": round(18 / 38, 6), "val": round(11 / 23, 6)}
    assert road["images"] == {"train": 2, "val": 1}
    assert unseen["images"] == {"train": 0, "val": 0}
    assert road["color"] == list(RED)


def test_the_markdown_has_the_same_numbers_and_names_a_subset(tmp_path):
    store = write_known(tmp_path / "store")
    write_card(store, "known", {"train": 5, "val": 1}, [], tmp_path)
    lines = (tmp_path / "card.md").read_text().splitlines()
    assert lines[0] == "# Data card: known"
    assert "| train | 2 | 2 / 4 / 6 | 4 / 6 / 8 | 5.00% |" in lines
    assert "| road | 52.63% | 2 | 52.17% | 1 |" in lines
    assert r"| train \| track | 0.00% | 0 | 0.00% | 0 |" in lines
    assert "**Not the published set:** 2 of 5 train images." in lines
    assert "**No image of train shows:** train \\| track." in lines


def test_the_card_names_the_scores_of_predictors_that_see_no_image(tmp_path):
    store = write_known(tmp_path / "store", sizes=((8, 8), (8, 8), (8, 8)))
    write_card(store, "known", {"train": 2, "val": 1}, [], tmp_path)
    # Half road, half sky less the ignored pixel: road everywhere is right for 32 of 63 pixels.
    assert json.loads((tmp_path / "card.json").read_text())["trivial_mIoU"] == {"majority": 0.253968, "prior": 1.0}
    assert (
        "Trivial baselines (from the training masks): always the commonest class 25.40% mIoU; "
        "the commonest class at each position 100.00%.\n"
    ) in (tmp_path / "card.md").read_text()


def test_a_complete_set_is_not_called_a_subset(tmp_path):
    write_card(write_known(tmp_path / "store"), "known", {"train": 2, "val": 1}, [], tmp_path)
    assert "Not the published set" not in (tmp_path / "card.md").read_text()


def test_the_same_store_has_the_same_card_and_the_same_sheet(tmp_path):
    store = Store(write_store(tmp_path / "store", {"train": 20, "val": 1}))
    for name in ("a", "b"):
        write_card(store, "tiny", {"train": 20, "val": 1}, [], tmp_path / name)
        write_sheet(store, "train", tmp_path / name / "sheet.png")
    for file in ("card.md", "card.json", "sheet.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_split_whose_pixels_are_all_ignored_has_a_card(tmp_path):
    with StoreWriter(tmp_path / "store", ("sky",), (BLUE,)) as writer:
        writer.add("train", "a", np.zeros((2, 2, 3), np.uint8), np.full((2, 2), 255, np.uint8))
    store = Store(tmp_path / "store")
    write_card(store, "dark", {"train": 1}, [], tmp_path)
    write_sheet(store, "train", tmp_path / "sheet.png")
    assert "| sky | 0.00% | 0 |" in (tmp_path / "card.md").read_text()


@pytest.mark.parametrize("size", [(4, 6), (1, 3000), (3000, 1), (1200, 2400)])
def test_a_sheet_is_as_wide_for_any_size_of_image(tmp_path, size):
    write_sheet(write_known(tmp_path / "store", [size] * 3), "train", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        width, height = picture.size
    assert width == 4 * TILE[0] + 5 * 10
    assert height < TILE[1] + 100


def test_a_sheet_has_sixteen_samples_of_a_larger_split_under_their_colours(tmp_path):
    store = Store(write_store(tmp_path / "store", {"train": 40, "val": 1}, classes=2))
    write_sheet(store, "train", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as opened:
        picture = np.asarray(opened)
    step = TILE[0] + 10
    tiles = [
        picture[top : top + 100, left + 10 : left + 110]
        for top in range(30, 4 * (TILE[1] + 32), TILE[1] + 32)
        for left in range(0, 4 * step, step)
    ]
    assert len({tile.tobytes() for tile in tiles}) == SAMPLES
    assert not any((tile == 255).all() for tile in tiles)


def test_prepare_writes_the_card_and_a_sheet_of_the_training_split(tmp_path):
    config = dataset_config("shapes", {"train": 3, "val": 1})
    prepare.build("demo", config, ("train", "val"), tmp_path, tmp_path / "store", workers=1, card=tmp_path / "card")
    store = Store(tmp_path / "store")
    assert json.loads((tmp_path / "card/card.json").read_text())["fingerprint"] == store.fingerprint
    write_sheet(store, "train", tmp_path / "again.png")
    assert (tmp_path / "store/sheet.png").read_bytes() == (tmp_path / "again.png").read_bytes()
