import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab import load_model
from deeplab.decode import read_image
from deeplab.errors import DataError
from pipeline.errors import ParamsError
from pipeline.predict import predict
from pipeline.predict.weights import find_weights
from pipeline.settings.params import PARAMS
from pipeline.settings.places import Places
from pipeline.training.provenance import file_sha256
from tests.faults import tried
from tests.tiny import write_weights

ROOT = Path(__file__).parents[1]
CELL = "shapes_resnet18_os8"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(write_weights(tmp_path_factory.mktemp("weights") / "seed0.safetensors"))


@pytest.fixture
def photos(tmp_path):
    """Three images, one in a folder below, two of one size."""
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (40, 48)), ("b.png", (40, 48)), ("trip/c.jpg", (33, 61))):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size[::-1], Image.Resampling.NEAREST).save(path)
    return tmp_path / "photos"


def segmented(model, source, batch=8, tiling=None):
    out = source.parent / "out"
    return predict.segment(model, source, out, batch, tiling), out


def rows(out):
    with (out / "classes.csv").open() as file:
        return list(csv.DictReader(file))


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_folder_gives_masks_overlays_and_a_class_table_at_the_size_of_each_image(model, photos, monkeypatch):
    batches = []
    whole = type(model).predict_batch
    monkeypatch.setattr(
        type(model), "predict_batch", lambda self, images: batches.append(len(images)) or whole(self, images)
    )
    code, out = segmented(model, photos)
    assert code == 0
    assert batches[:2] == [2, 1]  # those of one size together
    for name in ("a", "b", "trip/c"):
        (file,) = photos.glob(f"{name}.*")
        image = pixels(file)
        mask = pixels(out / f"masks/{name}.png")
        assert mask.shape == image.shape[:2]
        assert (mask == model.predict(image)).mean() > 0.999
        with Image.open(out / f"masks/{name}.png") as picture:
            assert picture.mode == "P"
            assert picture.getpalette()[:9] == [channel for color in model.palette for channel in color]
        assert pixels(out / f"overlays/{name}.png").shape == image.shape
        own = [row for row in rows(out) if row["image"] == name]
        assert {row["class"]: int(row["pixels"]) for row in own} == {
            f"class {k}": n for k, n in enumerate(np.bincount(mask.reshape(-1)).tolist()) if n
        }
        assert {row["color"] for row in own} == {
            "#{:02x}{:02x}{:02x}".format(*model.palette[int(row["index"])]) for row in own
        }
        assert sum(float(row["share"]) for row in own) == pytest.approx(1, abs=1e-5)


def test_a_later_call_into_the_same_folder_keeps_the_rows_of_other_images(model, photos):
    _, out = segmented(model, photos / "a.png")
    first = rows(out)
    segmented(model, photos / "b.png")
    assert {row["image"] for row in rows(out)} == {"a", "b"}
    assert [row for row in rows(out) if row["image"] == "a"] == first
    before = (out / "classes.csv").read_bytes()
    segmented(model, photos / "b.png")
    assert sorted(before.splitlines()) == sorted((out / "classes.csv").read_bytes().splitlines())
    (out / "classes.csv").write_bytes(b"\xef\xbb\xbf" + before.replace(b"\n", b"\r\n") + b"\r\n")  # by an editor
    segmented(model, photos / "b.png")
    assert sorted(before.splitlines()) == sorted((out / "classes.csv").read_bytes().splitlines())
    (out / "classes.csv").write_bytes(before + b"caf\xe9")
    with pytest.raises(DataError, match=r"classes\.csv: damaged, .* Move it away, or name another --out"):
        segmented(model, photos / "b.png")
    (out / "classes.csv").write_text("of,somebody,else\n1,2,3\n")
    segmented(model, photos / "b.png")
    assert {row["image"] for row in rows(out)} == {"b"}


@tried.USE
def test_a_broken_image_is_named_the_rest_goes_on_and_the_exit_code_says_so(model, photos, capsys):
    (photos / "b.png").write_bytes(b"not an image")
    cut = (photos / "trip/c.jpg").read_bytes()
    (photos / "trip/cut.jpg").write_bytes(cut[: len(cut) // 2])
    code, out = segmented(model, photos)
    assert code == 1
    said = capsys.readouterr()
    assert [Path(line.split(": ")[1]).name for line in said.err.splitlines() if "left out" in line] == [
        "b.png",
        "cut.jpg",
    ]
    assert "2 of 4 images segmented" in said.out
    assert {row["image"] for row in rows(out)} == {"a", "trip/c"}


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.webp", "photo.tif"])
def test_a_photo_is_turned_as_its_exif_tag_says(tmp_path, name, tag):
    corners = np.kron(np.array([[0, 60, 120], [140, 180, 250]], np.uint8), np.ones((16, 16), np.uint8))
    picture = Image.fromarray(np.stack([corners] * 3, axis=2))
    exif = picture.getexif()
    exif[0x0112] = tag
    picture.save(tmp_path / name, exif=exif, **({"lossless": True} if name.endswith("webp") else {}))
    turn = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    turn |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
    expected = picture if tag == 1 else picture.transpose(Image.Transpose[turn[tag]])
    np.testing.assert_allclose(read_image(tmp_path / name), np.asarray(expected), atol=3)  # JPEG loses


def test_the_results_of_an_earlier_call_in_the_same_folder_are_not_segmented(model, photos):
    for _ in range(2):
        assert predict.segment(model, photos, photos, 8, None) == 0
    assert len({row["image"] for row in rows(photos)}) == 3


def test_two_images_whose_names_differ_in_their_ending_do_not_overwrite_each_other(model, photos):
    Image.open(photos / "a.png").save(photos / "a.bmp")
    _, out = segmented(model, photos)
    assert {path.name for path in (out / "masks").glob("*.png")} == {"a.png.png", "a.bmp.png", "b.png"}


def test_a_large_image_is_cut_into_tiles(model, photos):
    _, out = segmented(model, photos / "a.png", tiling=((32, 32), (16, 16)))
    expected = model.predict_tiles(pixels(photos / "a.png"), (32, 32), (16, 16))
    np.testing.assert_array_equal(pixels(out / "masks/a.png"), expected)


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (48, 32))
    for frame in range(7):
        writer.write(np.full((32, 48, 3), 30 * frame, np.uint8))
    writer.release()
    return path


def test_a_video_gives_one_with_the_overlay_and_a_table_per_frame(model, film):
    code, out = segmented(model, film, batch=3)
    assert code == 0
    reader = cv2.VideoCapture(str(out / "overlay.mp4"))
    assert (reader.get(cv2.CAP_PROP_FRAME_COUNT), reader.get(cv2.CAP_PROP_FPS)) == (7, 5)
    assert reader.read()[1].shape == (32, 48, 3)
    found = rows(out)
    assert sorted({int(row["frame"]) for row in found}) == list(range(7))
    assert sum(int(row["pixels"]) for row in found) == 7 * 32 * 48
    assert found[-1]["seconds"] == "1.200"


@pytest.mark.parametrize(
    ("spoil", "codec", "message"),
    [
        (lambda film: film.write_bytes(b"no video"), "mp4v", "film.avi: not a video that OpenCV can read"),
        (lambda film: None, "none", "overlay.mp4: OpenCV cannot write a video here: no none codec"),
    ],
)
@tried.USE
def test_a_video_without_a_codec_is_reported(model, film, monkeypatch, spoil, codec, message):
    spoil(film)
    monkeypatch.setattr("pipeline.predict.video.CODEC", codec)
    with pytest.raises(DataError, match=message):
        segmented(model, film)


@tried.USE
def test_a_folder_without_images_and_a_missing_source_are_reported(model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no image in this folder, expected files that end in"):
        segmented(model, tmp_path / "empty")
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        segmented(model, tmp_path / "nowhere")


@tried.USE
def test_an_out_folder_that_cannot_be_written_is_named_before_anything_is_segmented(model, photos):
    (photos.parent / "out").write_text("a file")
    with pytest.raises(ParamsError, match=r"--out: .*/out: a file is in the way, expected a folder or a new name"):
        segmented(model, photos)


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [
        ((8, 8), (8, 9), r"--stride: got \(8, 9\), expected at most the window, \(8, 8\)"),
        (None, (8, 8), "--stride: got one without --window"),
        ((8, 0), None, "expected 1 or more"),
    ],
)
@tried.USE
def test_tiles_that_leave_gaps_are_refused(window, stride, message):
    with pytest.raises(ParamsError, match=message):
        predict.tiling_of(window, stride)
    assert predict.tiling_of((8, 6), None) == ((8, 6), (4, 3))


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An empty project with the settings of this one."""
    (tmp_path / PARAMS).write_text((ROOT / PARAMS).read_text())
    monkeypatch.chdir(tmp_path)
    return Places()


def test_a_cell_means_its_weights(places):
    with pytest.raises(DataError, match=rf"seed0\.safetensors: no such weights\. Nobody .*: dvc repro train@{CELL}"):
        find_weights(CELL, 0, places)
    file = write_weights(places.weights(CELL) / "seed0.safetensors")
    assert find_weights(CELL, 0, places) == file == find_weights(str(file), 0, places)
    with pytest.raises(ParamsError, match=rf"unknown name 'shapes_resnet18_os9'; did you mean '{CELL}'"):
        find_weights("shapes_resnet18_os9", 0, places)
    with pytest.raises(
        DataError, match=r"other/weights\.safetensors: no such weights file, and not the name of a cell"
    ):
        find_weights("other/weights.safetensors", 0, places)


@tried.WEIGHTS
def test_weights_that_are_not_those_of_the_record_are_refused_under_the_name_of_the_cell(places):
    file = write_weights(places.weights(CELL) / "seed0.safetensors")
    record = places.record("shapes", CELL)
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"weights": {"0": {"file": file.name, "sha256": file_sha256(file)}}}))
    assert find_weights(CELL, 0, places) == file
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"not the weights that .*{CELL}\.json describes"):
        find_weights(CELL, 0, places)
    assert find_weights(str(file), 0, places) == file


def test_the_command_leaves_out_what_it_cannot_read_and_its_exit_code_is_1(places, photos, capsys):
    write_weights(places.weights(CELL) / "seed0.safetensors")
    (photos / "b.png").write_bytes(b"")
    assert predict.run(CELL, photos, Path("out"), device="cpu") == 1
    assert capsys.readouterr().err == f"left out: {photos}/b.png: empty file\n"
    assert len(list(Path("out/masks").rglob("*.png"))) == 2
