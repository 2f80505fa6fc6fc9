import hashlib
import os
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab.decode import read_image, read_size
from deeplab.errors import DataError
from deeplab.store import IGNORE
from pipeline.data.formats import FORMATS, ade20k, cityscapes, shapes, voc
from pipeline.data.formats.base import RawSample, read_ids
from pipeline.data.formats.masks import read_labels
from pipeline.errors import ParamsError
from tests.faults import tried
from tests.raw import (
    dataset_config,
    labels,
    write_ade20k,
    write_cityscapes,
    write_grey_mask,
    write_ids,
    write_image,
    write_palette_mask,
    write_sbd_mask,
    write_voc,
)

SHARED = Path(__file__).parents[2] / "shared/data"
ANY = dataset_config("voc", {"train": 2, "trainaug": 4, "val": 1})


def ids(layout, split):
    return [sample.id for sample in layout.samples[split]]


# --- VOC


def test_trainaug_is_voc_train_and_sbd_without_voc_val(tmp_path):
    write_voc(tmp_path, train=["a2", "a1"], val=["b1"], sbd_train=["c2", "a1"], sbd_val=["b1", "c1"])
    layout = voc.scan(tmp_path, ANY, ("trainaug", "val"))
    assert ids(layout, "trainaug") == ["a1", "a2", "c1", "c2"]
    assert ids(layout, "val") == ["b1"]


def test_what_is_in_voc_train_keeps_its_mask_with_the_ignored_border(tmp_path):
    write_voc(tmp_path, train=["a1"], sbd_train=["a1", "c1"])
    masks = {
        sample.id: voc.load_mask(sample).ids for sample in voc.scan(tmp_path, ANY, ("trainaug",)).samples["trainaug"]
    }
    np.testing.assert_array_equal(masks["a1"], labels((0, 1, 2, 255)))
    np.testing.assert_array_equal(masks["c1"], labels((0, 3)))


@pytest.mark.skipif(not SHARED.exists(), reason="the official lists are not here")
@pytest.mark.parametrize("split", ["train", "trainaug", "val"])
def test_the_official_lists_make_the_published_splits(tmp_path, split):
    lists = {name: read_ids(next(SHARED.glob(f"lists/voc2012_{name}_[0-9]*.txt"))) for name in ("train", "val")}
    augmented = read_ids(SHARED / "lists/voc2012_train_aug_10582.txt")
    write_ids(tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt", reversed(lists["train"]))
    write_ids(tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", lists["val"])
    # SBD holds some of VOC's train and val images too.
    write_ids(tmp_path / "benchmark_RELEASE/dataset/train.txt", sorted(set(augmented) - set(lists["train"][:1000])))
    write_ids(tmp_path / "benchmark_RELEASE/dataset/val.txt", lists["val"][::2])
    config = dataset_config("voc", {"train": 1464, "trainaug": 10582, "val": 1449})
    found = ids(voc.scan(tmp_path, config, (split,)), split)
    assert len(found) == config.images[split]
    assert hashlib.sha256("".join(f"{name}\n" for name in found).encode()).hexdigest() == voc.PUBLISHED[split][1]


@tried.LISTS
def test_a_full_list_that_is_not_the_published_one_is_refused_until_accepted(tmp_path):
    write_ids(tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", [f"2007_{n:06}" for n in range(1449)])
    with pytest.raises(DataError, match=r"as many val images as published, but other .* expected cdc1326d"):
        voc.scan(tmp_path, dataset_config("voc", {"val": 1449}), ("val",))
    voc.scan(tmp_path, dataset_config("voc", {"val": 1449}, allow_subset=True), ("val",))


def test_the_colormap_of_voc_is_the_published_one():
    expected = np.zeros((256, 3), np.int64)  # as in the development kit: each round moves three bits
    for label in range(256):
        rest = label
        for shift in range(7, -1, -1):
            for channel in range(3):
                expected[label, channel] |= (rest >> channel & 1) << shift
            rest >>= 3
    np.testing.assert_array_equal(voc.colormap(256), expected)
    assert voc.colormap(21)[15] == (192, 128, 128)  # person


@tried.MASKS
def test_a_broken_sbd_annotation_is_named(tmp_path):
    path = tmp_path / "a.mat"
    for content in (b"not a mat file", b"\0" * 200):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a.mat: not a readable SBD annotation"):
            voc.read_sbd(path)
    write_sbd_mask(path, labels((0, 3)).astype(np.float64))
    with pytest.raises(DataError, match=r"a.mat: GTcls.Segmentation is not a mask of 8-bit labels"):
        voc.read_sbd(path)


# --- ADE20k


def test_ade20k_ignores_other_and_numbers_its_classes_from_zero(tmp_path):
    write_ade20k(tmp_path)
    layout = ade20k.scan(tmp_path, ANY, ("train", "val"))
    assert ids(layout, "train") == ["ADE_train_00000000", "ADE_train_00000001"]
    np.testing.assert_array_equal(ade20k.load_mask(layout.samples["val"][0]).ids, labels((255, 0, 149)))


def test_ade20k_classes_have_the_first_of_their_names(tmp_path):
    write_ade20k(tmp_path)
    layout = ade20k.scan(tmp_path, ANY, ())
    assert (layout.classes[0], layout.classes[149], len(layout.classes)) == ("name 1", "name 150", 150)
    assert len(layout.palette) == 150
    assert layout.palette[:3] == ((120, 120, 120), (180, 120, 120), (6, 230, 230))  # wall, building, sky


@tried.LISTS
def test_an_incomplete_table_of_ade20k_classes_is_refused(tmp_path):
    write_ade20k(tmp_path)
    path = tmp_path / "ADEChallengeData2016/objectInfo150.txt"
    text = path.read_text()
    path.write_text(text[: text.rindex("\n150")])
    with pytest.raises(DataError, match=r"objectInfo150.txt: expected the classes 1 to 150, .* got 149"):
        ade20k.scan(tmp_path, ANY, ())
    path.write_text("Idx\nwall")
    with pytest.raises(DataError, match=r"objectInfo150.txt: not a readable table of classes"):
        ade20k.scan(tmp_path, ANY, ())


# --- Cityscapes


def test_cityscapes_label_ids_become_train_ids(tmp_path):
    write_cityscapes(tmp_path)
    layout = cityscapes.scan(tmp_path, ANY, ("train", "val"))
    assert ids(layout, "train") == ["aachen_0", "bonn_0"]
    np.testing.assert_array_equal(cityscapes.load_mask(layout.samples["val"][0]).ids, labels((255, 0, 18)))


def test_the_cityscapes_table_is_the_published_one():
    published = "7>0 8>1 11>2 12>3 13>4 17>5 19>6 20>7 21>8 22>9 23>10 24>11 25>12 26>13 27>14 28>15 31>16 32>17 33>18"
    expected = dict.fromkeys(range(34), 255) | {int(a): int(b) for a, b in (s.split(">") for s in published.split())}
    assert {label: int(cityscapes.TABLE[label]) for label in range(34)} == expected


@tried.MASKS
def test_cityscapes_train_ids_are_not_taken_for_label_ids(tmp_path):
    write_cityscapes(tmp_path)
    sample = cityscapes.scan(tmp_path, ANY, ("val",)).samples["val"][0]
    write_grey_mask(sample.mask, labels((0, 18, 255)))
    with pytest.raises(DataError, match=r"label 255 at row 0, column 24 is out of range, expected 0..33 "):
        cityscapes.load_mask(sample)


# --- shapes


def shape_samples(split="train", count=40):
    layout = shapes.scan(Path("nowhere"), dataset_config("shapes", {split: count}), (split,))
    return [(shapes.load_image(sample), shapes.load_mask(sample).ids) for sample in layout.samples[split]]


def test_shapes_are_the_same_bits_everywhere():
    crc = 0
    for image, mask in shape_samples():
        crc = zlib.crc32(mask.tobytes(), zlib.crc32(image.tobytes(), crc))
    assert crc == 765766500


def test_shapes_differ_from_sample_to_sample_and_between_splits():
    drawn = {image.tobytes() for split in ("train", "val") for image, _ in shape_samples(split)}
    assert len(drawn) == 80


def test_shapes_have_varying_sizes_and_all_classes():
    masks = [mask for _, mask in shape_samples()]
    sides = {side for mask in masks for side in mask.shape}
    assert min(sides) >= 56
    assert max(sides) <= 80
    assert len(sides) > 10
    assert set(np.concatenate([np.unique(mask) for mask in masks])) == {0, 1, 2, 3, 4, 5, IGNORE}


def test_an_ignored_border_parts_any_two_classes():
    for _, mask in shape_samples():
        for first, second in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
            parted = (first == second) | (first == IGNORE) | (second == IGNORE)
            assert parted.all()


def test_colour_tells_the_class_of_a_shape_often_but_not_always():
    """Guess each pixel's class as the one whose usual colour is nearest: good, and not good enough."""
    usual = np.array(list(shapes.PALETTE.values()))[1:]
    right = []
    for image, mask in shape_samples(count=100):
        pixels, labels = image[(mask > 0) & (mask != IGNORE)].astype(int), mask[(mask > 0) & (mask != IGNORE)]
        nearest = np.abs(pixels[:, None] - usual).sum(axis=2).argmin(axis=1) + 1
        right.append((nearest == labels).mean())
    assert 0.7 < np.mean(right) < 0.95


# --- all formats


@pytest.mark.parametrize("kind", [voc, ade20k, cityscapes])
def test_each_train_id_of_a_format_has_a_name_and_a_colour(tmp_path, kind):
    write_ade20k(tmp_path)
    layout = kind.scan(tmp_path, ANY, ())
    assert len(layout.classes) == len(layout.palette) == len(set(layout.classes))
    assert set(kind.TABLE.tolist()) - {-1, IGNORE} == set(range(len(layout.classes)))


@pytest.mark.parametrize(
    ("kind", "holds"),
    [
        (voc, "VOCdevkit and benchmark_RELEASE"),
        (ade20k, "ADEChallengeData2016"),
        (cityscapes, "leftImg8bit and gtFine"),
    ],
)
@tried.LISTS
def test_a_missing_raw_folder_is_answered_with_what_belongs_there(tmp_path, kind, holds):
    split = "trainaug" if kind is voc else "train"
    raw = tmp_path / "raw"
    with pytest.raises(DataError, match=f"{raw}: not found. Put or link the folder that holds {holds} there."):
        kind.scan(raw, ANY, (split,))
    raw.symlink_to("moved away")
    with pytest.raises(
        DataError, match=f"{raw}: links to moved away, which does not exist. Link the folder that holds"
    ):
        kind.scan(raw, ANY, (split,))
    (tmp_path / "moved away").mkdir()
    with pytest.raises(
        DataError, match=rf"{raw}/.*: not found. {raw} must contain {holds} with the folders of the off"
    ):
        kind.scan(raw, ANY, (split,))


@pytest.mark.parametrize("name", ["voc", "ade20k", "cityscapes", "shapes"])
@tried.LISTS
def test_a_split_that_a_format_does_not_have_is_a_mistake_in_the_settings(tmp_path, name):
    write_ade20k(tmp_path)
    with pytest.raises(ParamsError, match=rf"format {name}: unknown name 'trian'; did you mean 'train"):
        FORMATS[name].scan(tmp_path, dataset_config(name, {"train": 1}), ("trian",))


def test_names_with_spaces_and_other_letters_are_read(tmp_path):
    raw = tmp_path / "Übung 1"
    write_voc(raw, train=["größe"], sbd_train=["größe", "日本"], sbd_val=[])
    layout = voc.scan(raw, ANY, ("trainaug",))
    assert ids(layout, "trainaug") == ["größe", "日本"]
    assert all(voc.load_image(sample).shape == (24, 36, 3) for sample in layout.samples["trainaug"])


@tried.LISTS
def test_a_file_without_its_partner_is_a_sample_that_cannot_be_read(tmp_path):
    write_ade20k(tmp_path)
    root = tmp_path / "ADEChallengeData2016"
    (root / "annotations/training/ADE_train_00000000.png").unlink()
    (root / "images/training/ADE_train_00000001.jpg").unlink()
    (root / "images/training/._ADE_train_00000000.jpg").write_bytes(b"left by another system")
    without_mask, without_image = ade20k.scan(tmp_path, ANY, ("train",)).samples["train"]
    with pytest.raises(DataError, match=r"annotations/training/ADE_train_00000000.png: missing"):
        ade20k.load_mask(without_mask)
    with pytest.raises(DataError, match=r"images/training/ADE_train_00000001.jpg: missing"):
        ade20k.load_image(without_image)


@tried.LISTS
def test_a_file_name_that_is_not_text_is_refused(tmp_path):
    write_ade20k(tmp_path)
    folder = tmp_path / "ADEChallengeData2016/images/training"
    (folder / os.fsdecode(b"caf\xe9.jpg")).touch()
    with pytest.raises(DataError, match=r"training: the file name 'caf\\udce9' cannot be printed. Rename"):
        ade20k.scan(tmp_path, ANY, ("train",))


@tried.LISTS
def test_a_list_with_a_repeated_id_or_more_than_ids_is_refused(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("a\nb\n\na\n")
    with pytest.raises(DataError, match=r"train.txt:4: a is already in line 1"):
        read_ids(path)
    path.write_text("a  1\nb -1\n")
    with pytest.raises(DataError, match=r"train.txt:1: got 'a  1', expected one id per line"):
        read_ids(path)
    path.write_bytes(b"a\xff")
    with pytest.raises(DataError, match=r"train.txt: not a text in UTF-8 or UTF-16. Save it as UTF-8."):
        read_ids(path)
    path.write_bytes("a\r\nb\r\n".encode("utf-16"))
    assert read_ids(path) == ["a", "b"]
    path.write_bytes(b"a\r\nb\r\n")
    assert read_ids(path) == ["a", "b"]


# --- files


def picture(tmp_path, size=(60, 80)):
    """A JPEG of noise."""
    path = tmp_path / "a.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())
    return path


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99, 0.9999])
@pytest.mark.parametrize("filled", [False, True])
@tried.IMAGES
def test_a_cut_jpeg_is_an_error_and_never_a_half_grey_picture(tmp_path, share, filled):
    path = picture(tmp_path)
    content = path.read_bytes()
    kept = content[: int(share * len(content))]
    path.write_bytes(kept + bytes(len(content) - len(kept)) * filled)
    with pytest.raises(DataError, match=r"a.jpg: not a readable image, or cut short"):
        read_image(path)


@pytest.mark.parametrize("ending", [".jpg", ".png", ".bmp", ".webp"])
@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7)])
def test_the_size_in_the_header_is_that_of_the_picture(tmp_path, ending, size):
    path = tmp_path / f"a{ending}"
    write_image(path, size)
    assert read_size(path) == size == read_image(path).shape[:2]


def test_the_size_of_a_jpeg_stands_behind_its_metadata(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees, which the size in the header leaves out
    for progressive in (False, True):
        path = tmp_path / "a.jpg"
        Image.new("RGB", (36, 24)).save(path, exif=exif, icc_profile=b"x" * 3000, comment="y", progressive=progressive)
        assert read_size(path) == (24, 36)


def test_where_the_header_of_a_jpeg_says_nothing_the_picture_is_decoded(tmp_path):
    path = tmp_path / "a.jpg"
    write_image(path)
    content = path.read_bytes()
    path.write_bytes(content[:2] + b"\xff" + content[2:])  # a byte to fill up, which is allowed
    assert read_size(path) == (24, 36)
    for content in (b"\xff\xd8\xff\xc0\x00", b"\xff\xd8" + bytes(100), b"\x89PNG\r\n\x1a\n"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a readable image, or cut short"):
            read_size(path)


def test_a_jpeg_with_something_after_its_end_is_read(tmp_path):
    path = picture(tmp_path)
    whole = read_image(path)
    path.write_bytes(path.read_bytes() + b"camera notes")
    np.testing.assert_array_equal(read_image(path), whole)


def test_images_are_read_as_rgb(tmp_path):
    write_image(tmp_path / "a.png", color=(200, 100, 50))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0, 0], (200, 100, 50))
    Image.new("L", (3, 2), 7).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.full((2, 3, 3), 7))


@pytest.mark.parametrize("read", [read_image, read_labels])
@tried.IMAGES
def test_a_file_that_cannot_be_read_is_named(tmp_path, read):
    path = tmp_path / "a.png"
    with pytest.raises(DataError, match=r"a.png: missing"):
        read(path)
    path.touch()
    with pytest.raises(DataError, match=r"a.png: empty file"):
        read(path)
    path.write_text("<html>Please log in</html>")
    with pytest.raises(DataError, match=r"a.png: not a readable (image|mask), or cut short"):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"a.png: Is a directory"):
        read(path)


@pytest.mark.parametrize("read", [read_image, read_labels])
@tried.IMAGES
def test_a_broken_png_is_an_error(tmp_path, read):
    path = tmp_path / "a.png"
    write_grey_mask(path, np.random.default_rng(0).integers(0, 20, (60, 80), dtype=np.uint8))
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for broken in (content[: len(content) // 2], content[:-20], bytes(flipped)):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"a.png: not a readable (image|mask), or cut short"):
            read(path)


@tried.IMAGES
def test_an_image_of_an_absurd_size_is_an_error(tmp_path):
    Image.new("L", (3, 2)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = (70_000).to_bytes(4, "big") * 2  # width and height
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match="a.png: too large, expected at most 178,956,970 pixels"):
        read_image(tmp_path / "a.png")


def test_a_palette_mask_gives_its_indices_and_not_its_colours(tmp_path):
    write_palette_mask(tmp_path / "a.png", labels((0, 1, 15, 255)))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), labels((0, 1, 15, 255)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@tried.MASKS
def test_a_mask_of_colours_is_refused_with_the_reason(tmp_path, mode):
    Image.new(mode, (4, 3), "red").save(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"a.png: a picture of mode {mode}, expected a mask with one label per pixel"):
        read_labels(tmp_path / "a.png")


@tried.MASKS
def test_a_label_out_of_range_is_named_with_its_first_pixel(tmp_path):
    mask = labels((0, 1))
    mask[5, 7] = mask[6, 0] = 21
    write_image(tmp_path / "a.jpg")
    write_palette_mask(tmp_path / "a.png", mask)
    sample = RawSample(id="a", image=tmp_path / "a.jpg", mask=tmp_path / "a.png")
    expected = r"a.png: label 21 at row 5, column 7 is out of range, expected 0..20 or 255 \(2 such pixels\)"
    with pytest.raises(DataError, match=expected):
        voc.load_mask(sample)
