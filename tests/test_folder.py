from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab.errors import DataError
from deeplab.store import IGNORE, Store
from pipeline.data.formats import folder
from pipeline.errors import ParamsError
from pipeline.settings.params import load_params
from pipeline.settings.schema import FolderOptions, SplitOptions
from pipeline.stages import prepare
from tests.faults import tried
from tests.raw import dataset_config, labels, write_grey_mask, write_image, write_palette_mask
from tests.tiny import tiny_params

SHARED = Path(__file__).parents[2] / "shared/data"
NAMES = "0 sky\n1 brick wall\n2 cat\n\n# said twice\n11 Unlabelled (ignore)\n"
COLORS = "0 sky 10 20 30\n1 brick wall 0 0 0\n2 cat 255 0 1\n11 void 255 255 255\n"
PLAIN = {"images": "{split}", "masks": "{split}annot", "classes": "classes.txt", "ignore": (11,)}


@pytest.fixture
def raw(tmp_path):
    """Images and masks of the labels 0, 1, 2 and 11 in paired folders: two to train on, one to validate on."""
    for name in ("train/a", "train/b", "val/c"):
        write_image(tmp_path / f"raw/{name}.jpg")
        write_grey_mask(tmp_path / f"raw/{name.replace('/', 'annot/')}.png", labels((0, 1, 2, 11)))
    (tmp_path / "raw/classes.txt").write_text(NAMES)
    return tmp_path / "raw"


def config(**changes):
    return dataset_config("folder", {"train": 2, "val": 1}, folder=FolderOptions(**{**PLAIN, **changes}))


def scan(raw, **changes):
    return folder.scan(raw, config(**changes), ("train", "val"))


def mask_of(layout):
    return folder.load_mask(layout.samples["train"][0]).ids


def refused(raw, error=DataError, **changes):
    with pytest.raises(error) as caught:
        scan(raw, **changes)
    return str(caught.value)


# --- Pairs


def test_an_image_and_a_mask_of_the_same_name_are_a_pair(raw):
    (raw / "train/.hidden.jpg").touch()
    (raw / "train/notes.txt").touch()
    layout = scan(raw)
    assert [(s.id, s.image, s.mask) for s in layout.samples["train"]] == [
        ("train/a", raw / "train/a.jpg", raw / "trainannot/a.png"),
        ("train/b", raw / "train/b.jpg", raw / "trainannot/b.png"),
    ]
    assert [s.id for s in layout.samples["val"]] == ["val/c"]


def test_the_same_name_in_train_and_val_is_another_image(raw):
    for kind, ending in (("", "jpg"), ("annot", "png")):
        (raw / f"val{kind}/c.{ending}").rename(raw / f"val{kind}/a.{ending}")
    prepare.build("own", config(), ("train", "val"), raw, raw.parent / "store", workers=1)
    assert [record.id for record in Store(raw.parent / "store").records] == ["train/a", "train/b", "val/a"]


def test_a_pattern_pairs_files_whose_names_differ_even_in_one_folder(raw):
    for name in ("train/a", "train/b", "val/c"):
        write_image(raw / f"all/{name}.v1.png")
        write_grey_mask(raw / f"all/{name}.v1_mask.png", labels((0,)))
    layout = scan(raw, images="all/{split}/{name}.png", masks="all/{split}/{name}_mask.png")
    assert [s.id for s in layout.samples["train"]] == ["all/train/a.v1", "all/train/b.v1"]
    assert layout.samples["val"][0].mask == raw / "all/val/c.v1_mask.png"


def test_a_list_names_the_pairs_and_a_tab_allows_blanks(raw):
    (raw / "list_train.txt").write_text("\ufefftrain/b.jpg trainannot/a.png\n\n", encoding="utf-8")
    (raw / "list_val.txt").write_text("my pictures/c 1.jpg\tvalannot/c.png\n")
    layout = scan(raw, images=None, masks=None, pairs="list_{split}.txt")
    assert [(s.id, s.image, s.mask) for split in ("train", "val") for s in layout.samples[split]] == [
        ("train/b", raw / "train/b.jpg", raw / "trainannot/a.png"),
        ("my pictures/c 1", raw / "my pictures/c 1.jpg", raw / "valannot/c.png"),
    ]


@tried.LISTS
def test_all_files_without_a_partner_are_listed_together(raw):
    (raw / "train/a.jpg").unlink()
    (raw / "valannot/c.png").rename(raw / "valannot/C.png")
    assert refused(raw).split("\n  ") == [
        f"{raw}: 3 problems in pairing images and masks:",
        f"2 alike, for example {raw}/trainannot/a.png: no image of this name",
        f"{raw}/val/c.jpg: no mask of this name",
    ]
    for index in range(20):
        write_image(raw / f"train/{index}.jpg")
    assert refused(raw).startswith(f"{raw}: 23 problems in pairing images and masks:")


@tried.LISTS
def test_two_images_of_one_name_and_names_that_cannot_be_printed_are_problems(raw):
    write_image(raw / "train/a.png")
    (raw / "train/x\ny.jpg").touch()
    message = refused(raw)
    assert f"{raw}/train/a.png: a.jpg has the same name. Remove or rename one of them." in message
    assert rf"{raw}/train: the file name 'x\ny.jpg' cannot be printed. Rename the file." in message


@tried.LISTS
def test_what_is_wrong_with_the_lines_of_a_list_is_said_together(raw):
    (raw / "train.txt").write_text("train/a.jpg\ntrain/b.jpg trainannot/b.png\ntrain/b.jpg x.png\na.jpg\tb\0.png\n")
    (raw / "val.txt").write_text("")
    assert refused(raw, images=None, masks=None, pairs="{split}.txt").split("\n  ")[1:] == [
        f"{raw}/train.txt:1: got 'train/a.jpg', expected `image mask`, with a tab if a path has spaces",
        f"{raw}/train.txt:3: the image train/b is already listed above",
        f"{raw}/train.txt:4: got 'a.jpg\\tb\\x00.png', expected `image mask`, with a tab if a path has spaces",
    ]


@tried.LISTS
def test_folders_and_lists_that_are_not_there_are_named(raw):
    assert refused(raw / "nowhere") == (
        f"{raw}/nowhere: not found. Put or link the folder with your images and masks there."
    )
    assert refused(raw, masks="{split}masks") == (
        f"{raw}/trainmasks: not found. This is where folder.images or folder.masks looks for 'train'."
    )
    assert f"{raw}/t_train.txt: not found. Write a text file with lines `image mask`." in refused(
        raw, images=None, masks=None, pairs="t_{split}.txt"
    )
    assert f"{raw}/names: not found. Write a text file with lines `label name`." in refused(raw, classes="names")


# --- Classes, labels and colours


def test_classes_are_numbered_in_the_order_of_their_labels_without_the_ignored(raw):
    (raw / "classes.txt").write_text("5 cat\n11 void\n0 sky\n")
    write_palette_mask(raw / "trainannot/a.png", labels((0, 5, 11)))
    layout = scan(raw)
    assert layout.classes == ("sky", "cat")
    np.testing.assert_array_equal(mask_of(layout), labels((0, 1, IGNORE)))


def test_a_label_may_count_as_another_or_be_ignored_without_being_a_class(raw):
    write_grey_mask(raw / "trainannot/a.png", labels((0, 1, 7, 8, 255)))
    layout = scan(raw, ignore=(11, 255), map={1: 0, 7: 2, 8: 11})
    assert layout.classes == ("sky", "cat")
    np.testing.assert_array_equal(mask_of(layout), labels((0, 0, 1, IGNORE, IGNORE)))


@tried.MASKS
def test_an_unknown_label_is_told_with_file_value_and_first_pixel(raw):
    write_grey_mask(raw / "trainannot/a.png", labels((0, 1, 12, 255)))
    with pytest.raises(DataError) as caught:
        mask_of(scan(raw))
    assert str(caught.value) == (
        f"{raw}/trainannot/a.png: label 12 at row 0, column 18 is out of range, expected 0..2 or 11 (432 such pixels)"
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_become_the_labels_of_the_classes_file(raw, mode):
    (raw / "classes.txt").write_text(COLORS)
    expected = labels((1, 0, 2, 11), size=(7, 12))
    palette = np.array([[10, 20, 30], [0, 0, 0], [255, 0, 1], *[[255, 255, 255]] * 9], np.uint8)
    picture = Image.fromarray(palette[expected])
    (picture.quantize(4) if mode == "P" else picture.convert(mode)).save(raw / "trainannot/a.png")
    layout = scan(raw, masks_are="colors")
    assert layout.palette == ((10, 20, 30), (0, 0, 0), (255, 0, 1))
    np.testing.assert_array_equal(mask_of(layout), np.where(expected == 11, IGNORE, expected))


@pytest.mark.parametrize("color", [(0, 0, 1), (255, 255, 254), (255, 0, 0), (10, 30, 20)])
@tried.MASKS
def test_an_unknown_colour_is_told_with_file_value_and_first_pixel(raw, color):
    (raw / "classes.txt").write_text(COLORS)
    picture = np.zeros((24, 36, 3), np.uint8)
    picture[3, 5], picture[20, 1] = color, color
    Image.fromarray(picture).save(raw / "trainannot/a.png")
    with pytest.raises(DataError) as caught:
        mask_of(scan(raw, masks_are="colors"))
    assert str(caught.value) == (
        f"{raw}/trainannot/a.png: colour {color[0]} {color[1]} {color[2]} at row 3, column 5 is none of the 4 in the "
        "table of classes (2 pixels have such a colour)"
    )


def test_black_and_white_masks_are_two_colours(raw):
    (raw / "classes.txt").write_text("0 background 0 0 0\n1 thing 255 255 255\n")
    for mode in ("1", "L"):
        Image.fromarray(labels((0, 255))).convert(mode).save(raw / "trainannot/a.png")
        np.testing.assert_array_equal(mask_of(scan(raw, masks_are="colors")), labels((0, 1)))


@pytest.mark.parametrize("masks_are", ["labels", "colors"])
@tried.MASKS
def test_a_mask_saved_as_jpeg_is_refused_for_it_blurs(raw, masks_are):
    (raw / "classes.txt").write_text(COLORS)
    (raw / "trainannot/a.png").unlink()
    Image.fromarray(labels((0, 1))).save(raw / "trainannot/a.jpg")
    with pytest.raises(DataError, match=r"trainannot/a.jpg: a mask saved as JPEG, which blurs labels. Use the orig"):
        mask_of(scan(raw, masks_are=masks_are))


@tried.MASKS
def test_colours_where_labels_are_expected_name_the_setting(raw):
    Image.new("RGB", (36, 24), "red").save(raw / "trainannot/a.png")
    with pytest.raises(DataError, match=r"a.png: a picture of mode RGB, .* folder has masks_are: colors"):
        mask_of(scan(raw))


@pytest.mark.parametrize("count", [2, 21, 255])
def test_every_class_of_the_default_palette_has_a_colour_of_its_own(count):
    palette = folder.default_palette(count)
    assert len(set(palette)) == count
    assert all(max(color) - min(color) > 60 for color in palette)  # no greys, which a photograph has everywhere
    assert np.abs(np.diff(palette, axis=0)).sum(1).min() > 100


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ("sky\n", {}, "classes.txt:1: got 'sky', expected `label name` or `label name red green blue` with numbers"),
        ("0 sky\n1\n", {}, "classes.txt:2: got '1', expected `label name`"),
        ("256 sky\n", {}, "classes.txt:1: got '256 sky', expected"),
        ("0 sky 1 2 256\n", {}, "classes.txt:1: got '0 sky 1 2 256', expected"),
        ("0 sky\n0 cat\n", {}, "classes.txt:2: got '0 cat', but this label or name is already in use above"),
        ("0 sky\n1 sky\n", {}, "classes.txt:2: got '1 sky', but this label or name is already in use above"),
        ("0 sky 1 2 3\n1 cat\n", {}, "classes.txt: 'cat' has no colour, but other classes do. Add it, or remove all"),
        ("11 void\n", {}, "classes.txt: 0 classes remain without ignore and map, expected 2 to 255"),
        ("1 thing\n", {}, "classes.txt: 1 classes remain without ignore and map, expected 2 to 255: a network of one"),
        (NAMES, {"masks_are": "colors"}, "classes.txt: no colours, but folder.masks_are is colors. Write red green blue"),
        ("0 a 1 1 1\n1 b 1 1 1\n", {"masks_are": "colors"}, "classes.txt: 'a' and 'b' have the same colour"),
        (NAMES, {"map": {5: 6}}, "folder.map: label 5 is mapped to 6, which is neither in"),
    ],
)  # fmt: skip
@tried.LISTS
def test_a_classes_file_that_cannot_be_meant_is_refused_with_its_line(raw, content, changes, message):
    (raw / "classes.txt").write_text(content)
    assert message in refused(raw, error=(DataError, ParamsError), **changes)


# --- Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clases": "x"}, "datasets.tiny.folder: unknown name 'clases'; did you mean 'classes'?"),
        ({"classes": None}, "datasets.tiny.folder.classes: got None, expected a valid string"),
        ({"masks_are": "colours"}, "datasets.tiny.folder.masks_are: got 'colours', expected 'labels', 'colors' or 'binary'"),
        ({"ignore": [256]}, "datasets.tiny.folder.ignore.0: got 256, expected less than or equal to 255"),
        ({"images": None}, "datasets.tiny.folder.images: expected images and masks, or pairs instead of both"),
        ({"pairs": "a.txt"}, "datasets.tiny.folder.pairs: expected without images, masks and ids"),
        ({"images": {"split": None}}, "datasets.tiny.folder.images: got {'split': None}, expected a valid string"),
        ({"masks": "{spilt}"}, "folder.masks: got '{spilt}', expected only {split} and {name} in braces, {name} behind"),
        ({"masks": "{name}/a.png"}, "folder.masks: got '{name}/a.png', expected only {split} and {name} in braces"),
        ({"map": {11: 0}}, "datasets.tiny.folder.map: label 11 is in ignore too"),
        ({"map": {1: 2, 2: 0}}, "datasets.tiny.folder.map: label 1 counts as 2, which counts as 0 itself"),
    ],
)  # fmt: skip
@tried.SETTINGS
def test_a_mistake_in_the_options_is_answered_with_its_place_and_the_remedy(tmp_path, changes, message):
    def edit(params):
        options = {**PLAIN, **changes}
        params["datasets"]["tiny"] |= {"format": "folder", "folder": options}

    with pytest.raises(ParamsError) as caught:
        load_params(tiny_params(tmp_path / "params.yaml", edit))
    assert message in str(caught.value)


@pytest.mark.parametrize("changes", [{"format": "folder"}, {"folder": PLAIN}])
@tried.SETTINGS
def test_the_options_and_the_format_come_together(tmp_path, changes):
    with pytest.raises(
        ParamsError, match="datasets.tiny.folder: expected with the formats folder, coco, .* and only there, got"
    ):
        load_params(tiny_params(tmp_path / "params.yaml", lambda params: params["datasets"]["tiny"].update(changes)))


# --- The whole road


def test_all_problems_of_a_folder_are_listed_together(raw):
    (raw / "train/a.jpg").write_bytes(b"broken")
    write_grey_mask(raw / "trainannot/b.png", labels((0, 9)))
    write_image(raw / "val/c.jpg", size=(24, 30))
    with pytest.raises(DataError) as caught:
        prepare.build("own", config(), ("train", "val"), raw, raw.parent / "store", workers=1)
    message = str(caught.value)
    assert f"{raw}/train/a.jpg: not a readable image, or cut short" in message
    assert f"{raw}/trainannot/b.png: label 9 at row 0, column 18 is out of range, expected 0..2 or 11" in message
    assert f"{raw}/valannot/c.png: the mask is 36x24, but {raw}/val/c.jpg is 30x24" in message


@pytest.mark.skipif(not SHARED.exists(), reason="CamVid is not here")
def test_camvid_is_prepared_by_params_alone(tmp_path):
    def edit(params):
        params["datasets"]["tiny"] |= {
            "format": "folder", "images": {"train": 367, "val": 101}, "folder": {**PLAIN, "ignore": [11]}, "store": "files",
        }  # fmt: skip

    params = load_params(tiny_params(tmp_path / "params.yaml", edit))
    prepare.build("tiny", params.datasets["tiny"], ("train", "val"), SHARED / "camvid", tmp_path / "store")
    store = Store(tmp_path / "store")
    assert (len(store.split("train")), len(store.split("val")), len(store.classes)) == (367, 101, 11)
    assert {label for record in store.records for label in record.pixels} == {*range(11), IGNORE}
    by_list = scan(SHARED / "camvid", images=None, masks=None, pairs="{split}.txt").samples
    by_name = scan(SHARED / "camvid").samples
    for split in ("train", "val"):
        assert [(s.id, s.image, s.mask) for s in by_list[split]] == [(s.id, s.image, s.mask) for s in by_name[split]]


# --- Arrays, and lists of other programs


def test_masks_may_be_arrays_of_numpy(raw):
    for shape, kind in (((24, 36), np.uint8), ((24, 36, 1), np.int64), ((1, 24, 36), np.float32)):
        np.save(raw / "trainannot/a.npy", labels((0, 1, 2, 11)).reshape(shape).astype(kind))
        (raw / "train.txt").write_text("train/a.jpg trainannot/a.npy\n")
        layout = scan(raw, images=None, masks=None, pairs="train.txt")
        np.testing.assert_array_equal(
            mask_of(layout), np.where(labels((0, 1, 2, 11)) == 11, IGNORE, labels((0, 1, 2, 11)))
        )


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((24, 36, 3), np.uint8), "an array (24, 36, 3) of uint8, expected (height, width) of finite numbers"),
        (np.zeros((0, 36)), "an array (0, 36) of float64, expected (height, width) of finite numbers"),
        (
            np.full((24, 36), 300),
            "label 300.0 at row 0, column 0 is not a whole number from 0 to 255 (864 such pixels)",
        ),
        (np.full((24, 36), np.nan), "an array (24, 36) of float64, expected (height, width) of finite numbers"),
        (np.array([["a"]]), "an array (1, 1) of <U1, expected (height, width) of finite numbers"),
        (np.array([[None]]), "not a readable array of numpy, or cut short (ValueError)"),
        (b"\x93NUMPY", "not a readable array of numpy, or cut short"),
        (b"", "empty file"),
        (np.full((24, 36), 7), "label 7 at row 0, column 0 is out of range, expected 0..2 or 11"),
    ],
)
def test_an_array_that_is_no_mask_is_named(raw, array, message):
    path = raw / "trainannot/a.npy"
    path.write_bytes(array) if isinstance(array, bytes) else np.save(path, array)
    (raw / "train.txt").write_text("train/a.jpg trainannot/a.npy\n")
    with pytest.raises(DataError) as caught:
        mask_of(scan(raw, images=None, masks=None, pairs="train.txt"))
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    "lines",
    ["image,mask\n{}.jpg,{}.png\n", "Image_Path, Mask_Path\n{}.jpg, {}.png\n", '"{}.jpg","{}.png"\n', "filename\tlabel\n{}.jpg\t{}.png\n"],
)  # fmt: skip
def test_a_table_of_pairs_may_have_commas_quotes_and_a_header(raw, lines):
    (raw / "pairs.csv").write_text(lines.format("train/a", "trainannot/a"))
    layout = scan(raw, images=None, masks=None, pairs="pairs.csv")
    assert [(s.image.name, s.mask.name) for s in layout.samples["train"]] == [("a.jpg", "a.png")]


def test_a_list_of_pairs_is_divided_by_the_settings(raw):
    (raw / "all.txt").write_text(
        "".join(f"{name}.jpg {name.replace('/', 'annot/')}.png\n" for name in ("train/a", "train/b", "val/c"))
    )
    layout = scan(raw, images=None, masks=None, pairs="all.txt", split=SplitOptions(val=0.4, group="^[a-z]+"))
    ids = {split: {sample.id for sample in samples} for split, samples in layout.samples.items()}
    assert sorted(map(sorted, ids.values())) == [["train/a", "train/b"], ["val/c"]]


def test_masks_in_black_and_white_are_read_by_one_word(raw):
    (raw / "classes.txt").write_text("0 background\n1 thing\n")
    for path in raw.glob("*annot/*.png"):
        write_grey_mask(path, labels((0, 255)))
    layout = scan(raw, masks_are="binary", ignore=())
    np.testing.assert_array_equal(mask_of(layout), labels((0, 1)))
    write_grey_mask(raw / "trainannot/a.png", labels((0, 128)))
    with pytest.raises(DataError, match="colour 128 128 128 at row 0, column .* is none of the 2"):
        mask_of(layout)
