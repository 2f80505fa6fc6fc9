"""Nothing silent: inputs that people reported in public, each read right or refused with its reason.

`pytest -m cases` runs these and those of test_cases_around; with `CASES=write` it writes the table of docs/reports.md.
"""

import struct
import subprocess
import sys
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab.decode import orientation, read_image
from deeplab.errors import DataError
from deeplab.store import IGNORE, Store
from pipeline.pictures.sheet import shrink
from pipeline.predict import predict
from pipeline.settings.schema import FolderOptions
from pipeline.stages import prepare
from tests.raw import dataset_config
from tests.reported import case

ROOT = Path(__file__).parents[1]
COLORS = np.array([(20, 20, 20), (220, 30, 30), (30, 220, 30)], np.uint8)  # of the things in the pictures
SAMPLES = [("train", "a", 1), ("train", "b", 2), ("val", "c", 3)]
STORED = {  # by the orientation that an image viewer undoes: how the pixels lie in the file
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip


class Own:
    """A folder of own images and masks with the classes 0, 1 and 2. Each class has its colour in the pictures."""

    def __init__(self, root, classes="0 bg\n1 red\n2 green\n", **options):
        self.raw, self.root = root / "raw", root
        self.options = {"images": "{split}", "masks": "{split}_mask", "classes": "classes.txt", **options}
        self.raw.mkdir(parents=True)
        (self.raw / "classes.txt").write_text(classes, encoding="utf-8")

    def fill(self, image=".png", mask=".png", save_image=None, save_mask=None, kinds=3):
        """Write SAMPLES. The functions write a picture, or a mask as an array, to a path."""
        for split, name, seed in SAMPLES:
            labels = blocks(seed, kinds)
            paths = self.raw / split / f"{name}{image}", self.raw / f"{split}_mask" / f"{name}{mask}"
            for path, save, content in zip(paths, (save_image, save_mask), (painted(labels), labels), strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                (save or (lambda content, path: Image.fromarray(content).save(path)))(content, path)
        return self

    def prepared(self):
        """The store, after a check that each thing lies under its label."""
        config = dataset_config("folder", {"train": 2, "val": 1}, folder=FolderOptions(**self.options))
        prepare.build(
            "own", config, ("train", "val"), self.raw, self.root / "store", workers=1, card=self.root / "card"
        )
        store = Store(self.root / "store")
        for split in ("train", "val"):
            samples = store.split(split)
            for index in range(len(samples)):
                image, mask = samples.image(index).astype(int), samples.mask(index)
                for label in np.unique(mask[mask != IGNORE]):
                    assert np.abs(image[mask == label].mean(axis=0) - COLORS[label]).max() < 25, samples.records[
                        index
                    ].id
        return store


class Painter:
    """A network that predicts the nearest of COLORS, and remembers what it was shown."""

    classes, palette = ("bg", "red", "green"), tuple(map(tuple, COLORS.tolist()))

    def __init__(self):
        self.seen = []

    def predict_batch(self, images):
        self.seen += list(images)
        return np.abs(images[:, :, :, None].astype(int) - COLORS).sum(-1).argmin(-1).astype(np.uint8)


def blocks(seed, kinds=3, size=(48, 64)):
    """A mask (H, W) with a square of each class beside the background, nowhere symmetric."""
    mask = np.zeros(size, np.uint8)
    for kind in range(1, kinds):
        mask[3 + 5 * kind + seed : 15 + 5 * kind + seed, 22 * kind - 18 : 22 * kind - 4] = kind
    return mask


def painted(mask):
    """The picture (H, W, 3) that belongs to a mask, with a little noise."""
    noise = np.random.default_rng(int(mask.sum())).integers(0, 8, (*mask.shape, 3))
    return (COLORS[mask] + noise).astype(np.uint8)


def with_exif(value, turn=None):
    """A function that saves a picture with an orientation, and its pixels as that says."""

    def save(content, path):
        picture = Image.fromarray(content)
        exif = picture.getexif()
        exif[0x0112] = value
        stored = picture.transpose(STORED[value]) if value in STORED else picture
        stored.save(path, exif=exif, **({"quality": 95} if path.suffix != ".png" else {}))

    return save


def depth(convert):
    """A function that saves what `convert` makes of an array."""
    return lambda content, path: convert(content).save(path)


def segmented(folder, capsys=None):
    """The names of the masks that predict writes for `folder`, its exit code, and what the network was shown."""
    painter, out = Painter(), folder.parent / "out"
    code = predict.segment(painter, folder, out, 8, None)
    masks = {path.relative_to(out / "masks").as_posix() for path in (out / "masks").rglob("*.png")}
    return masks, code, painter


def photo(path, seed=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    photo_of(blocks(seed), path)


def photo_of(mask, path):
    Image.fromarray(painted(mask)).save(path, "JPEG" if path.suffix == ".jfif" else None)


# --- One reader


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("tag", [1, *STORED])
@pytest.mark.cases
def test_training_sheet_and_prediction_see_the_same_picture(tmp_path, ending, tag):
    own = Own(tmp_path).fill(image=ending, save_image=with_exif(tag))
    store = own.prepared()
    _, _, painter = segmented(own.raw / "train")
    samples = store.split("train")
    sheet = np.asarray(Image.open(tmp_path / "store/sheet.png"))
    for index, (name, seen) in enumerate(zip("ab", painter.seen, strict=True)):
        path = own.raw / f"train/{name}{ending}"
        assert orientation(path) == tag
        np.testing.assert_array_equal(samples.image(index), read_image(path))
        np.testing.assert_array_equal(seen, samples.image(index))
        shown, _ = shrink(samples.image(index), samples.mask(index))
        left, top = 10 + index * 2 * (360 + 10), 22
        np.testing.assert_array_equal(sheet[top : top + shown.shape[0], left : left + shown.shape[1]], shown)


@case("pictures", "photos with an EXIF orientation, masks drawn on the upright picture: half a turn",
      source="Peterande/D-FINE#308")  # fmt: skip
def test_exif_half_turn(tmp_path, capsys):
    Own(tmp_path).fill(image=".jpg", save_image=with_exif(3)).prepared()
    assert "own: 3 images were turned upright by their EXIF orientation, for example" in capsys.readouterr().out


@case("pictures", "the same, a quarter turn of 64x48, beside photos without an orientation")
def test_exif_quarter_turn_of_some(tmp_path):
    own = Own(tmp_path).fill(image=".jpg", save_image=with_exif(6))
    photo(own.raw / "train/a.jpg", 1)
    own.prepared()


@case("pictures", "a quarter turn, but the mask was drawn on the pixels as stored",
      "when turned upright by its EXIF orientation 6. Turn the mask, or remove the orientation")  # fmt: skip
def test_exif_mask_as_stored(tmp_path):
    turned = depth(lambda mask: Image.fromarray(mask).transpose(Image.Transpose.ROTATE_90))
    Own(tmp_path).fill(image=".jpg", save_image=with_exif(6), save_mask=turned).prepared()


@case("pictures", "masks with an orientation of their own, as a phone app writes them",
      source="robmarkcole/streamlit-segmentation-app#1")  # fmt: skip
def test_exif_in_masks(tmp_path):
    Own(tmp_path).fill(image=".jpg", save_image=with_exif(8), save_mask=with_exif(3)).prepared()


@case("pictures", "TIFF photos with an orientation tag, for predict: as a viewer shows them, not turned twice")
def test_tiff_orientation_predict(tmp_path):
    for tag in STORED:
        (tmp_path / "photos").mkdir(exist_ok=True)
        with_exif(tag)(painted(blocks(1)), tmp_path / f"photos/o{tag}.tif")
    masks, code, _ = segmented(tmp_path / "photos")
    assert code == 0
    for name in masks:
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/masks" / name)), blocks(1))


def deep(factor):
    return lambda content, path: cv2.imwrite(str(path), content.astype(np.uint16)[..., ::-1] * factor)


@case("pictures", "PNG of 16 bits per channel that use 12 of them: 16 levels would be left",
      "16 bits per channel, but its values end at", source="opencv/opencv#15969")  # fmt: skip
def test_image_12_bit(tmp_path):
    Own(tmp_path).fill(save_image=deep(16)).prepared()


@case("pictures", "the same as grey TIFF, for predict", "16 bits per channel, but its values end at")
def test_image_12_bit_grey_predict(tmp_path):
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos/a.tif"), painted(blocks(1))[..., 0].astype(np.uint16) * 16)
    read_image(tmp_path / "photos/a.tif")


@case("pictures", "PNG and TIFF that use all 16 bits")
def test_image_16_bit(tmp_path):
    for number, ending in enumerate((".png", ".tif")):
        Own(tmp_path / str(number)).fill(image=ending, save_image=deep(257)).prepared()


@case("pictures", "TIFF of 32-bit floats", "a TIFF of 32-bit floats, expected 8 bits, grey or RGB")
def test_tiff_of_floats(tmp_path, capfd):
    save = depth(lambda image: Image.fromarray(image.mean(2).astype(np.float32) / 255))
    try:
        Own(tmp_path).fill(image=".tif", save_image=save).prepared()
    finally:
        assert capfd.readouterr().err == ""


def bands(count):
    """A function that saves a TIFF of `count` bands."""

    def save(content, path):
        (height, width), place = content.shape[:2], 8 + 2 + 12 * 9 + 4
        data = np.repeat(content[..., :1], count, axis=2).tobytes()
        tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, count, place), (259, 3, 1, 1), (262, 3, 1, 2),
                (273, 4, 1, place + 2 * count), (277, 3, 1, count), (278, 4, 1, height), (279, 4, 1, len(data))]  # fmt: skip
        entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
        head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
        path.write_bytes(head + struct.pack(f"<{count}H", *[8] * count) + data)

    return save


@case("pictures", "TIFF of eight bands", "a TIFF of 8 bands, expected grey or RGB")
def test_tiff_of_eight_bands(tmp_path, capfd):
    try:
        Own(tmp_path).fill(image=".tif", save_image=bands(8)).prepared()
    finally:
        assert capfd.readouterr().err == ""


@case("pictures", "an animation among the photos", "has 3 pages or frames, expected one picture")
def test_animation(tmp_path):
    frames = [Image.fromarray(painted(blocks(seed))) for seed in (1, 2, 3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    read_image(tmp_path / "a.gif")


@case("pictures", "a TIFF with an overview of itself, as GeoTIFF writes")
def test_tiff_with_overview(tmp_path):
    full = Image.fromarray(painted(blocks(1)))
    small = full.resize((32, 24))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    full.save(tmp_path / "a.tif", save_all=True, append_images=[small])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.asarray(full))


@case("pictures", "JPEG of four inks (CMYK), grey with alpha, palette and 1-bit images",
      source="vlfeat/matconvnet#360")  # fmt: skip
def test_modes_of_images(tmp_path):
    picture = Image.fromarray(painted(blocks(1)))
    for mode, name in (("CMYK", "a.jpg"), ("LA", "b.png"), ("P", "c.png"), ("1", "d.png"), ("RGBA", "e.webp")):
        picture.convert(mode).save(tmp_path / name)
        expected = np.asarray(picture.convert(mode).convert("RGB"), int)
        assert np.abs(read_image(tmp_path / name).astype(int) - expected).mean() < 12, mode


# --- Masks


def with_palette(order_of):
    """A function that saves a mask with a palette of its own, in which `order_of(mask)` are the classes by index."""

    def save(content, path):
        indices = np.zeros_like(content)
        order = order_of(content)
        for index, kind in enumerate(order):
            indices[content == kind] = index
        picture = Image.fromarray(indices)
        picture.putpalette([int(value) for kind in order for value in COLORS[kind]])
        picture.save(path)

    return save


TURNING = [(0, 1, 2), (2, 0, 1), (1, 2, 0)]
turning = with_palette(lambda mask: TURNING[int(mask.argmax()) % 3])
COLORED = "0 bg 20 20 20\n1 red 220 30 30\n2 green 30 220 30\n"


@case("masks", "palettes that differ from file to file: the same colours, other indices",
      "masks differ from those before them, for example index", source="NVIDIA/DIGITS#1676")  # fmt: skip
def test_palette_per_mask(tmp_path):
    Own(tmp_path).fill(save_mask=turning).prepared()


@case("masks", "the same with masks_are: colors")
def test_palette_per_mask_by_colour(tmp_path):
    Own(tmp_path, COLORED, masks_are="colors").fill(save_mask=turning).prepared()


@case("masks", "one palette for all masks, but its colours are those of other classes in classes.txt",
      "index 1 of its palette has the colour (30, 220, 30) of the class 2")  # fmt: skip
def test_palette_against_classes(tmp_path):
    Own(tmp_path, COLORED).fill(save_mask=with_palette(lambda _: (0, 2, 1))).prepared()


@case("masks", "greys that a GIF renumbers: 0, 1, 2 of a palette that shows 0, 2, 1",
      "of its palette is the grey 2, and both are labels")  # fmt: skip
def test_palette_of_greys(tmp_path):
    def save(content, path):
        picture = Image.fromarray(content)
        picture.putpalette([0, 0, 0, 2, 2, 2, 1, 1, 1])
        picture.save(path)

    Own(tmp_path).fill(save_mask=save).prepared()


@case("masks", "one bit per pixel")
def test_mask_of_one_bit(tmp_path):
    Own(tmp_path, "0 bg\n1 red\n").fill(kinds=2, save_mask=depth(lambda m: Image.fromarray(m.astype(bool)))).prepared()


@case("masks", "16 bits with labels up to 2")
def test_mask_of_16_bits(tmp_path):
    Own(tmp_path).fill(save_mask=lambda m, path: cv2.imwrite(str(path), m.astype(np.uint16))).prepared()


@case("masks", "32-bit integers and floats (TIFF) with whole numbers")
def test_mask_of_32_bits(tmp_path):
    for mode in ("I", "F"):
        Own(tmp_path / mode).fill(mask=".tif", save_mask=depth(lambda m: Image.fromarray(m).convert(mode))).prepared()  # noqa: B023


@case("masks", "grey with an opaque alpha channel, and RGB of three equal channels", source="wkentaro/labelme#785")
def test_mask_of_equal_channels(tmp_path):
    for mode in ("LA", "RGB", "RGBA"):
        Own(tmp_path / mode).fill(save_mask=depth(lambda m: Image.fromarray(m).convert(mode))).prepared()  # noqa: B023


@case("masks", "16 bits with instance numbers beyond 255 (label = 256 times class)",
      "is not a whole number from 0 to 255")  # fmt: skip
def test_mask_of_instances(tmp_path):
    Own(tmp_path).fill(save_mask=lambda m, path: cv2.imwrite(str(path), m.astype(np.uint16) * 256)).prepared()


@case("masks", "colours where labels are expected: one line for all files",
      "3 of 3 samples cannot be used", source="wkentaro/labelme#785")  # fmt: skip
def test_mask_of_colours(tmp_path):
    own = Own(tmp_path).fill(save_mask=depth(lambda m: Image.fromarray(COLORS[m])))
    with pytest.raises(DataError) as caught:
        own.prepared()
    assert len(str(caught.value).splitlines()) == 3
    assert "3 alike, for example " in str(caught.value)
    raise caught.value


@case("masks", "a page for each class (one-hot TIFF)", "has 3 pages or frames, expected one picture",
      source="cgohlke/tifffile#30")  # fmt: skip
def test_mask_of_pages(tmp_path):
    def save(content, path):
        pages = [Image.fromarray((content == kind).astype(np.uint8)) for kind in range(3)]
        pages[0].save(path, save_all=True, append_images=pages[1:])

    Own(tmp_path).fill(mask=".tif", save_mask=save).prepared()


@case("masks", "GIF, named by a pattern")
def test_gif_masks(tmp_path):
    own = Own(tmp_path, masks="{split}_mask/{name}_mask.gif")
    own.fill(image=".jpg", mask="_mask.gif").prepared()


@case("masks", "black and white as 0 and 255", "For masks in black and white: masks_are: binary",
      source="datvuthanh/HybridNets#60")  # fmt: skip
def test_mask_black_and_white(tmp_path):
    Own(tmp_path, "0 bg\n1 red\n").fill(kinds=2, save_mask=depth(lambda m: Image.fromarray(m * 255))).prepared()


@case("masks", "the same with 255 ignored: one class is left", "hold 'bg' alone, beside ignored pixels")
def test_mask_black_and_white_ignored(tmp_path):
    own = Own(tmp_path, "0 bg\n1 red\n", ignore=(255,))
    own.fill(kinds=2, save_mask=depth(lambda m: Image.fromarray(m * 255))).prepared()


@case("masks", "one class, the rest ignored: any network scores 100 %", "a network of one class has nothing to decide",
      source="open-mmlab/mmsegmentation#2125")  # fmt: skip
def test_one_class(tmp_path):
    Own(tmp_path, "1 thing\n", ignore=(0,)).fill(kinds=2).prepared()


@case("masks", "JPEG", "a mask saved as JPEG, which blurs labels")
def test_mask_as_jpeg(tmp_path):
    Own(tmp_path).fill(mask=".jpg").prepared()


# --- Names and lists


@case("names", "images from a Mac (decomposed letters), masks from elsewhere (composed)")
def test_nfd_names(tmp_path):
    own = Own(tmp_path).fill()
    for path in sorted(own.raw.rglob("*.png")):
        form = "NFC" if "mask" in path.parent.name else "NFD"
        path.rename(path.with_name(unicodedata.normalize(form, f"\u00dcbung_\ud55c\uae00_{path.name}")))
    own.prepared()


@case("names", "two images whose names differ in their Unicode form only", "has the same name. Remove or rename one")
def test_nfd_twice(tmp_path):
    own = Own(tmp_path).fill()
    for form in ("NFC", "NFD"):
        photo(own.raw / "train" / unicodedata.normalize(form, "\u00dc.png"))
    own.prepared()


@case("names", "images and masks one level deeper than the folders that are named")
def test_nested_folders(tmp_path):
    own = Own(tmp_path).fill()
    for path in sorted(own.raw.rglob("*.png")):
        (path.parent / "cityA").mkdir(exist_ok=True)
        path.rename(path.parent / "cityA" / path.name)
    own.prepared()


@case("names", "masks in a folder within that of the images")
def test_masks_within_images(tmp_path):
    own = Own(tmp_path, masks="{split}/masks").fill()
    for split in ("train", "val"):
        (own.raw / f"{split}_mask").rename(own.raw / split / "masks")
    own.prepared()


@case("names", "folders that are empty", "no picture for 'train'")
def test_empty_folders(tmp_path):
    own = Own(tmp_path)
    for name in ("train", "train_mask", "val", "val_mask"):
        (own.raw / name).mkdir()
    own.prepared()


@case("names", "camera files end in .JPG, the pattern in .jpg", source="replicate/lora-training#9")
def test_upper_case_ending(tmp_path):
    Own(tmp_path, images="{split}/{name}.jpg", masks="{split}_mask/{name}.png").fill(image=".JPG").prepared()


@case("names", "images that end in .jfif")
def test_jfif(tmp_path):
    Own(tmp_path).fill(
        image=".jfif", save_image=lambda c, path: Image.fromarray(c).save(path, "JPEG", quality=95)
    ).prepared()


@case("names", "the pattern says .jpg, the files end in .jpeg", "a.jpeg is there: *.jpg is expected",
      source="AtharvaTaras/Dog-Breeds-Dataset#1")  # fmt: skip
def test_other_ending(tmp_path):
    Own(tmp_path, images="{split}/{name}.jpg", masks="{split}_mask/{name}.png").fill(image=".jpeg").prepared()


@case("names", "masks as .npy", "no mask of this name, but ")
def test_masks_as_arrays(tmp_path):
    Own(tmp_path).fill(mask=".npy", save_mask=lambda mask, path: np.save(path, mask)).prepared()


@case("names", "what macOS, a NAS and Jupyter leave in the folders of prepare", source="apple/turicreate#641")
def test_litter_in_raw(tmp_path):
    own = Own(tmp_path).fill()
    for name in ("._a.png", ".DS_Store", "Thumbs.db", "@eaDir/a.png", ".ipynb_checkpoints/a-checkpoint.png"):
        for folder in ("train", "train_mask"):
            path = own.raw / folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"\0\5\x16\7" + bytes(100))
    own.prepared()


VOC = {"images": "JPEGImages/{name}.jpg", "masks": "SegmentationClass/{name}.png"}


def voc_layout(root, lines=("a\nb\n", "c\n"), **options):
    """Own classes in the layout of VOC, with ids in a list for each split."""
    own = Own(root, ids="ImageSets/Segmentation/{split}.txt", **VOC, **options)
    (own.raw / "ImageSets/Segmentation").mkdir(parents=True)
    for split, text in zip(("train", "val"), lines, strict=True):
        (own.raw / f"ImageSets/Segmentation/{split}.txt").write_text(text)
    for folder, ending in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png")):
        (own.raw / folder).mkdir()
        for _, name, seed in (*SAMPLES, ("none", "unlisted", 4)):
            content = blocks(seed) if ending == ".png" else painted(blocks(seed))
            Image.fromarray(content).save(
                own.raw / folder / f"{name}{ending}", **({"quality": 95} if ending == ".jpg" else {})
            )
    return own


@case("lists", "own classes in VOC's layout: one id a line in ImageSets/Segmentation/train.txt")
def test_own_classes_voc_layout(tmp_path):
    assert len(voc_layout(tmp_path).prepared().records) == 3


@case("lists", "the same with endings in the lists, as some tools export them")
def test_voc_layout_with_endings(tmp_path):
    voc_layout(tmp_path, lines=("a.jpg\nb.jpg\n", "c.jpg\n")).prepared()


@case("lists", "an id in the list without files", "JPEGImages/d: no image of this name".replace("JPEGImages/", ""))
def test_voc_layout_missing(tmp_path):
    voc_layout(tmp_path, lines=("a\nb\nd\n", "c\n")).prepared()


def listed(root, encoding="utf-8", edit=str):
    own = Own(root, images=None, masks=None, pairs="{split}.txt").fill()
    for split in ("train", "val"):
        lines = [f"{split}/{name}.png {split}_mask/{name}.png\r\n" for where, name, _ in SAMPLES if where == split]
        (own.raw / f"{split}.txt").write_bytes("".join(map(edit, lines)).encode(encoding))
    return own


@case("lists", "UTF-16, as PowerShell redirects, and UTF-8 with a byte order mark",
      source="tesseract-ocr/tesseract#794")  # fmt: skip
def test_lists_of_other_encodings(tmp_path):
    for encoding in ("utf-16", "utf-8-sig"):
        listed(tmp_path / encoding, encoding).prepared()


@case("lists", "backslashes between folders", source="PaddlePaddle/PaddleSeg#284")
def test_lists_with_backslashes(tmp_path):
    listed(tmp_path, edit=lambda line: line.replace("/", "\\")).prepared()


@case("lists", "commas between image and mask, endings in capitals")
def test_lists_with_commas(tmp_path):
    listed(tmp_path, edit=lambda line: line.replace(" ", ",").replace(".png", ".PNG")).prepared()


@case("lists", "a list in Latin-1", "not a text in UTF-8 or UTF-16. Save it as UTF-8.")
def test_lists_in_latin1(tmp_path):
    listed(tmp_path, "latin-1", edit=lambda line: line.replace("a.png", "\u00e4.png")).prepared()


@case("lists", "classes.txt with colours as #rrggbb")
def test_hex_colours(tmp_path):
    own = Own(tmp_path, "0 bg #141414\n1 red #DC1E1E\n2 green #1edc1e\n", masks_are="colors")
    store = own.fill(save_mask=depth(lambda m: Image.fromarray(COLORS[m]))).prepared()
    assert (store.classes, store.palette) == (("bg", "red", "green"), tuple(map(tuple, COLORS.tolist())))


@case("lists", "a colour that is no #rrggbb stays a part of the name only where it cannot be a colour",
      "'bg' has no colour, but other classes do")  # fmt: skip
def test_hex_colours_of_some(tmp_path):
    Own(tmp_path, "0 bg\n1 red #DC1E1E\n2 green #1edc1e\n").fill().prepared()


# --- Photos


@case("photos", "a folder from a Mac, a NAS and Jupyter", source="d8ahazard/sd_dreambooth_extension#44")
def test_litter_in_photos(tmp_path):
    photos = tmp_path / "photos"
    for name in ("a.jpg", "b.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg"):
        photo(photos / name)
    (photos / "__MACOSX").mkdir()
    for name in ("._a.jpg", "__MACOSX/._b.jpg", ".DS_Store", "Thumbs.db"):
        (photos / name).write_bytes(b"\0\5\x16\7")
    assert segmented(photos)[:2] == ({"a.png", "b.png"}, 0)


@case("photos", "a link to a second folder, .jfif, .gif, and a film, which is counted")
def test_photos_left_out(tmp_path, capsys):
    for name in ("photos/a.jpg", "elsewhere/b.jpg", "photos/c.jfif", "photos/d.gif"):
        photo(tmp_path / name)
    (tmp_path / "photos/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/round").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/e.mp4").write_bytes(b"x")
    masks, code, _ = segmented(tmp_path / "photos")
    assert (masks, code) == ({"a.png", "c.png", "d.png", "more/b.png"}, 0)
    assert (
        capsys.readouterr().err == "left out: 1 files that are no images: 1 .mp4. Name a film itself to segment it.\n"
    )


@case("photos", "a.jpg, a.png and a.jpg.png in one folder")
def test_names_that_collide(tmp_path):
    for seed, name in enumerate(("a.jpg", "a.png", "a.jpg.png", "b.jpg")):
        photo(tmp_path / "photos" / name, seed)
    masks, _, _ = segmented(tmp_path / "photos")
    assert masks == {"a.jpg.png", "a.png.png", "a.jpg.png.png", "b.png"}
    assert len({line.split(",")[0] for line in (tmp_path / "out/classes.csv").read_text().splitlines()[1:]}) == 4


@case("photos", "names of 250 bytes, in Latin letters and in Hangul")
def test_long_names(tmp_path):
    for name in ("n" * 246, "\ud55c" * 82, "z"):
        photo(tmp_path / "photos" / f"{name}.jpg")
    masks, code, _ = segmented(tmp_path / "photos")
    assert (len(masks), code) == (3, 0)


# --- Films


def film(path, rate):
    writer = cv2.VideoWriter(
        str(path), cv2.VideoWriter.fourcc(*("mp4v" if path.suffix == ".mp4" else "MJPG")), rate, (64, 48)
    )
    for number in range(30):
        writer.write(np.full((48, 64, 3), 8 * number, np.uint8))
    writer.release()
    return path


@case("films", "66.667, 119.987 and 211.222 frames a second, as phones write them",
      source="ultralytics/ultralytics#308, DeepLabCut/DeepLabCut#1952")  # fmt: skip
def test_video_frame_rate(tmp_path, capfd):
    for rate in (29.97, 66.667, 119.987, 211.222):
        path = film(tmp_path / f"{rate}.avi", rate)
        assert predict.segment(Painter(), path, tmp_path / "out", 8, None) == 0
        made = cv2.VideoCapture(str(tmp_path / "out/overlay.mp4"))
        assert made.get(cv2.CAP_PROP_FPS) == pytest.approx(rate, rel=1e-3)
    assert capfd.readouterr().err == ""


def boxes(content, start, end):
    """The place, size and kind of each box of an MP4 file."""
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", content[start : start + 8])
        yield start, size, kind
        start += size


def vary(path):
    """Make the first 20 of 30 frames half as long, and the last ten twice as long."""
    content, trail, start = bytearray(path.read_bytes()), [], 0
    end = len(content)
    for wanted in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"):
        start, size, _ = next(found for found in boxes(content, start, end) if found[2] == wanted)
        trail.append(start)
        start, end = start + 8, start + size
    _, delta = struct.unpack(">II", content[trail[-1] + 16 : trail[-1] + 24])
    content[trail[-1] + 12 : trail[-1] + 24] = struct.pack(">IIIII", 2, 20, delta // 2, 10, 2 * delta)
    for place in trail:
        content[place : place + 4] = struct.pack(">I", struct.unpack(">I", content[place : place + 4])[0] + 8)
    path.write_bytes(content)


@case("films", "a frame rate that varies: `seconds` in classes.csv are those of the film, and a line tells the drift",
      source="Breakthrough/PySceneDetect#168")  # fmt: skip
def test_video_variable_rate(tmp_path, capsys):
    vary(film(tmp_path / "film.mp4", 30))
    predict.segment(Painter(), tmp_path / "film.mp4", tmp_path / "out", 8, None)
    seconds = dict(line.split(",")[:2] for line in (tmp_path / "out/classes.csv").read_text().splitlines())
    assert (seconds["19"], seconds["29"]) == ("0.317", "0.933")
    assert "its frame rate varies, but" in capsys.readouterr().err


@case("films", "a file that is no film", "not a video that OpenCV can read")
def test_video_that_is_none(tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"x" * 100)
    predict.segment(Painter(), tmp_path / "film.mp4", tmp_path / "out", 8, None)


# --- Neighbours


@case("pictures", "an EXIF orientation that does not exist (9), and EXIF data that is cut")
def test_exif_that_is_broken(tmp_path):
    own = Own(tmp_path).fill(image=".jpg", save_image=with_exif(9))
    path = own.raw / "train/a.jpg"
    content = path.read_bytes()
    place = content.index(b"Exif\0\0")
    path.write_bytes(content[: place + 14] + b"\xff\xff" + content[place + 16 :])
    own.prepared()


@case("pictures", "an iPhone's photo that ends in .jpg but is a HEIC file", "not a readable image, or cut short")
def test_heic_named_jpg(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x24ftypheic\0\0\0\0mif1MiHEmiafMiHBheic" + bytes(500))
    read_image(tmp_path / "a.jpg")


@case("pictures", "a PNG that ends in .jpg, and a JPEG that ends in .png: the content decides")
def test_endings_that_lie(tmp_path):
    Own(tmp_path).fill(image=".jpg", save_image=lambda c, path: Image.fromarray(c).save(path, "PNG")).prepared()


@case("masks", "a palette shortened to the colours of each mask, in one order")
def test_palette_shortened(tmp_path):
    own = Own(tmp_path).fill(save_mask=with_palette(lambda mask: range(int(mask.max()) + 1)))
    with_palette(lambda _: (0, 1))(blocks(1, kinds=2), own.raw / "train_mask/a.png")
    photo_of(blocks(1, kinds=2), own.raw / "train/a.png")
    own.prepared()


@case("masks", "the same, sorted by what occurs: index 1 is green where red is missing",
      "masks differ from those before them, for example index 1")  # fmt: skip
def test_palette_of_what_occurs(tmp_path):
    own = Own(tmp_path).fill(save_mask=with_palette(lambda _: (0, 1, 2)))
    green = np.where(blocks(1) == 1, 0, blocks(1)).astype(np.uint8)
    with_palette(lambda _: (0, 2))(green, own.raw / "train_mask/a.png")
    photo_of(green, own.raw / "train/a.png")
    own.prepared()


@case("masks", "grey with an alpha channel that is not opaque", "a mask with transparent pixels (mode LA)")
def test_mask_with_transparent_pixels(tmp_path):
    def save(content, path):
        alpha = Image.fromarray(np.where(content, 255, 0).astype(np.uint8))
        Image.merge("LA", [Image.fromarray(content), alpha]).save(path)

    Own(tmp_path).fill(save_mask=save).prepared()


@case("masks", "two classes of which training shows one", "hold 'bg' alone, beside ignored pixels")
def test_training_of_one_class(tmp_path):
    own = Own(tmp_path).fill()
    for name in "ab":
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(own.raw / f"train_mask/{name}.png")
    config = dataset_config("folder", {"train": 2, "val": 1}, folder=FolderOptions(**own.options))
    prepare.build("own", config, ("train", "val"), own.raw, own.root / "store", workers=1)


@case("lists", "names in composed letters, files of a Mac in decomposed ones")
def test_lists_with_composed_names(tmp_path):
    own = listed(tmp_path, edit=lambda line: line.replace("/a.png", "/\u00e4.png"))
    for folder in ("train", "train_mask"):
        (own.raw / folder / "a.png").rename(own.raw / folder / unicodedata.normalize("NFD", "\u00e4.png"))
    own.prepared()


@case("lists", "one word in a line", "got 'train/a.png', expected `image mask`")
def test_lists_of_images_alone(tmp_path):
    listed(tmp_path, edit=lambda line: f"{line.split()[0]}\n").prepared()


@case("names", "a folder of images that is a link to another disk")
def test_linked_folder_of_images(tmp_path):
    own = Own(tmp_path).fill()
    (own.raw / "train").rename(tmp_path / "elsewhere")
    (own.raw / "train").symlink_to(tmp_path / "elsewhere")
    own.prepared()


@case("photos", "a link to a photo that is gone: named, and exit code 1")
def test_link_to_nothing(tmp_path, capsys):
    photo(tmp_path / "photos/a.jpg")
    (tmp_path / "photos/b.jpg").symlink_to(tmp_path / "gone.jpg")
    assert segmented(tmp_path / "photos")[:2] == ({"a.png"}, 1)
    assert "photos/b.jpg: missing" in capsys.readouterr().err


@case("photos", "names in composed and in decomposed letters in one folder")
def test_photos_of_two_unicode_forms(tmp_path):
    for form in ("NFC", "NFD"):
        photo(tmp_path / "photos" / unicodedata.normalize(form, "\u00dc.jpg"))
    assert len(segmented(tmp_path / "photos")[0]) == 2


@case("films", "an odd size (63x47), of which OpenCV would cut the last row and column")
def test_video_of_odd_size(tmp_path, monkeypatch):
    frames = [(np.full((47, 63, 3), 8 * number, np.uint8), number / 30) for number in range(5)]
    monkeypatch.setattr("pipeline.predict.video.read_frames", lambda _: iter(frames))  # OpenCV writes no such film
    assert predict.segment(Painter(), film(tmp_path / "film.avi", 30), tmp_path / "out", 8, None) == 0
    made = cv2.VideoCapture(str(tmp_path / "out/overlay.mp4"))
    assert made.read()[1].shape == (48, 64, 3)


@case("films", "1000 frames a second")
def test_video_of_1000_frames_a_second(tmp_path):
    path = film(tmp_path / "film.avi", 1000)
    assert predict.segment(Painter(), path, tmp_path / "out", 8, None) == 0
    assert cv2.VideoCapture(str(tmp_path / "out/overlay.mp4")).get(cv2.CAP_PROP_FPS) == pytest.approx(1000)


@case("films", "a film that is cut: the frames up to there, and a line")
def test_video_that_is_cut(tmp_path):
    path = film(tmp_path / "film.avi", 30)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code = (
        "from pathlib import Path; from pipeline.predict import predict; from tests.test_cases import Painter;"
        f"predict.segment(Painter(), Path({str(path)!r}), Path({str(tmp_path / 'out')!r}), 8, None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.startswith(f"warning: {path}: ends after ")
    assert done.stderr.count("\n") == 1  # none of ffmpeg
