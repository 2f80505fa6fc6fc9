"""Small files that would fill the memory or the disk are refused before anything is decoded."""

import json
import struct
import tracemalloc
import zipfile
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from deeplab import load_model
from deeplab.counts import read_counts
from deeplab.decode import JPEG_SCAN, MAX_PIXELS, jpeg_segments, read_image, read_size
from deeplab.errors import DataError
from pipeline.data.formats.masks import color_lookup, read_colors, read_labels
from pipeline.predict import predict
from pipeline.settings.schema import FolderOptions
from pipeline.stages import prepare
from tests.faults.hostile import PICTURES, bmp, jpeg, jpeg_of_scans, png, tiff
from tests.raw import dataset_config, write_grey_mask, write_image
from tests.tiny import model_config, tiny_cell, write_weights

BOMB = pytest.mark.fault(
    "security",
    "a picture that claims more pixels than memory holds",
    "headers of PNG, JPEG, BMP and TIFF that say 60,000 x 60,000, as image and as mask, to prepare and to predict",
    "refused by its header, with its name; nothing is decoded",
)
SIDE = 60_000  # as an image it would take 11 GB


@pytest.mark.parametrize("kind", PICTURES)
@BOMB
def test_a_picture_that_claims_billions_of_pixels_is_refused_by_its_header(tmp_path, kind, monkeypatch):
    path = tmp_path / f"bomb.{kind}"
    path.write_bytes(PICTURES[kind](SIDE, SIDE))
    monkeypatch.setattr("cv2.imdecode", lambda *_: pytest.fail("decoded"))
    for read in (read_image, read_size):
        with pytest.raises(DataError, match=rf"bomb\.{kind}: too large, expected at most"):
            read(path)


@pytest.mark.parametrize("kind", ["png", "bmp", "tif"])
@BOMB
def test_a_mask_that_claims_billions_of_pixels_is_refused_by_its_header(tmp_path, kind):
    path = tmp_path / f"bomb.{kind}"
    path.write_bytes(PICTURES[kind](SIDE, SIDE))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=rf"bomb\.{kind}: too large, expected at most"):
            read_labels(path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_the_limit_is_the_one_of_pillow():
    assert MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", [b"IDAT", b"tEXt", b"IEND"])
@BOMB
def test_a_png_is_not_decoded_when_a_part_of_it_claims_more_than_there_is(tmp_path, kind, monkeypatch):
    content = bytearray(png(8, 8, 8 * bytes(9)))
    if kind == b"tEXt":
        content[33:33] = bytes(4) + kind + bytes(4)
    place = content.index(kind)
    content[place - 4 : place] = struct.pack(">I", 2**31 - 1)
    (tmp_path / "bomb.png").write_bytes(content)
    monkeypatch.setattr("cv2.imdecode", lambda *_: pytest.fail("decoded"))  # to a buffer of 2 GB
    with pytest.raises(DataError, match=r"bomb\.png: not a readable image, or cut short"):
        read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("mode", ["P", "RGB"])
@BOMB
def test_a_mask_of_colours_takes_a_few_bytes_for_each_pixel(tmp_path, mode):
    side = 2000
    Image.new(mode, (side, side)).save(tmp_path / "a.png")
    color_lookup.cache_clear()
    tracemalloc.start()
    try:
        assert not read_colors(tmp_path / "a.png", {(0, 0, 0): 0, (9, 9, 9): 1}).any()
        assert tracemalloc.get_traced_memory()[1] - 2 * 2**24 < 8 * side**2  # the table of colours is always as large
    finally:
        tracemalloc.stop()


@pytest.mark.fault(
    "security",
    "a small picture that is decoded for minutes",
    "a progressive JPEG of thousands of scans, which takes a pass over all pixels for each",
    "refused by their number, with its name; nothing is decoded",
)
def test_a_picture_of_thousands_of_scans_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("cv2.imdecode", lambda *_: pytest.fail("decoded"))
    path = tmp_path / "bomb.jpg"
    path.write_bytes(jpeg_of_scans(64, more=5000))
    with pytest.raises(DataError, match=r"bomb\.jpg: a JPEG of 5,010 scans, expected at most 100"):
        read_image(path)


def test_what_only_looks_like_scans_does_not_count(tmp_path):
    content, like = jpeg_of_scans(64, more=0), 5000 * b"\xff\xda\0\2"
    note = b"\xff\xfe" + struct.pack(">H", 2 + len(like)) + like
    for name, more in (
        ("a thumbnail.jpg", content[:2] + note + content[2:]),
        ("a film.jpg", content + like + b"\xff\xd9"),
        ("a film without an end.jpg", content + like),
    ):
        (tmp_path / name).write_bytes(more)
        assert list(jpeg_segments(more)).count(JPEG_SCAN[1:]) == 10
        assert read_image(tmp_path / name).shape == (64, 64, 3)


@BOMB
def test_prepare_names_the_picture_and_reserves_no_disk_for_it(tmp_path):
    raw = tmp_path / "raw"
    for split in ("train", "val"):
        for name in ("a", "b"):
            write_image(raw / f"images/{split}/{name}.png")
            write_grey_mask(raw / f"masks/{split}/{name}.png", np.zeros((24, 36), np.uint8))
    (raw / "classes.txt").write_text("0 ground\n1 thing\n")
    (raw / "images/train/b.png").write_bytes(png(SIDE, SIDE))
    options = FolderOptions(images="images/{split}", masks="masks/{split}", classes="classes.txt")
    config = dataset_config("folder", {"train": 2, "val": 2}, folder=options)
    with pytest.raises(DataError, match=r"b\.png: too large, expected at most 178,956,970 pixels"):
        prepare.build("mine", config, ("train", "val"), raw, tmp_path / "out", workers=1)
    assert not list((tmp_path / "out").glob("*.bin"))


@BOMB
def test_predict_leaves_the_picture_out_and_goes_on(tmp_path, capsys):
    model = load_model(write_weights(tmp_path / "seed0.safetensors"))
    write_image(tmp_path / "photos/good.png")
    for name, content in (("a.png", png), ("b.jpg", jpeg), ("c.bmp", bmp), ("d.tif", tiff)):
        (tmp_path / "photos" / name).write_bytes(content(SIDE, SIDE))
    assert predict.segment(model, tmp_path / "photos", tmp_path / "out", 8, None) == 1
    said = capsys.readouterr()
    assert said.err.count("left out: ") == 4
    assert "1 of 5 images segmented" in said.out


@pytest.mark.fault(
    "security",
    "counts that unpack to more than the disk holds",
    "an .npz whose members say 3 GB; one whose array says 10^15 numbers",
    "refused, with its name",
)
@pytest.mark.parametrize("how", ["a long member", "a long array"])
def test_counts_that_unpack_without_end_are_refused(tmp_path, how, monkeypatch):
    path = tmp_path / "counts.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,), }\n"
        names = ["images", "classes", *(f"0/single_scale/{name}" for name in ("image", "truth", "predicted", "pixels"))]
        for name in names:
            packed.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    if how == "a long member":
        content = bytearray(path.read_bytes())
        place = content.index(b"PK\x01\x02") + 24  # the length that the table of contents tells
        content[place : place + 4] = (3_000_000_000).to_bytes(4, "little")
        path.write_bytes(content)
    if how == "a long member":
        monkeypatch.setattr("numpy.load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(DataError, match=r"counts\.npz: not counts as evaluate writes them"):
        read_counts(path)


@pytest.mark.fault(
    "security",
    "weights that ask for a network of any size",
    "a weights file whose text claims a million channels, or a hundred branches",
    "refused by comparing the text with the tensors, before a network is built",
)
@pytest.mark.parametrize(
    "model",
    [
        {"aspp_channels": 1_000_000},
        {"auxiliary_channels": 1_000_000},
        {"aspp_rates": tuple(range(1, 101))},
    ],
    ids=["channels", "auxiliary channels", "branches"],
)
def test_weights_that_claim_another_size_than_they_have_are_refused_unbuilt(tmp_path, model, monkeypatch):
    settings = asdict(tiny_cell(model=model_config(**model)))
    path = write_weights(tmp_path / "seed0.safetensors", settings=json.loads(json.dumps(settings)))
    monkeypatch.setattr("deeplab.segmenter.DeepLabV3", lambda *_: pytest.fail("built"))
    with pytest.raises(DataError, match="does not fit the network that its settings describe"):
        load_model(path)


@pytest.mark.fault(
    "security",
    "a picture that is a program",
    "PostScript (EPS) under the name of a mask, for which Pillow would start Ghostscript",
    "refused, with its name; no process is started",
)
def test_a_mask_that_is_postscript_is_not_run(tmp_path, monkeypatch):
    Image.new("L", (8, 8)).save(tmp_path / "mask.png", "EPS")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("run"))
    with pytest.raises(DataError, match=r"mask\.png: not a readable mask"):
        read_labels(tmp_path / "mask.png")
