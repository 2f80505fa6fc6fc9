"""Photos, videos and weights as users bring them to predict: one line each, and what is right is segmented."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab import load_model
from pipeline.predict import predict
from tests.faults import tried
from tests.faults.disk import outcome
from tests.tiny import write_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(write_weights(tmp_path_factory.mktemp("weights") / "seed0.safetensors"))


@pytest.fixture
def good(tmp_path):
    """A picture's bytes by the ending of its file."""

    def content(ending):
        path = tmp_path / f"good{ending}"
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 255, (33, 45, 3), dtype=np.uint8)).save(path)
        found = path.read_bytes()
        path.unlink()
        return found

    return content


PHOTOS = {
    "empty": (".png", lambda content: b""),
    "one byte": (".jpg", lambda content: content[:1]),
    "half": (".jpg", lambda content: content[: len(content) // 2]),
    "half a PNG": (".png", lambda content: content[: len(content) // 2]),
    "half a TIFF": (".tif", lambda content: content[: len(content) // 2]),
    "half a BMP": (".bmp", lambda content: content[:20]),
    "half a WebP": (".webp", lambda content: content[: len(content) // 2]),
    "text": (".jpg", lambda content: b"this is no picture\n"),
    "a web page": (".png", lambda content: b"<!DOCTYPE html><html></html>"),
    "zeros behind its half": (".jpg", lambda content: content[: len(content) // 2] + bytes(len(content) // 2)),
    "a flipped bit in a PNG": (".png", lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:]),
    "a head alone": (".png", lambda content: content[:33]),
    "sizes of zero": (".png", lambda content: content[:16] + bytes(8) + content[24:]),
    "a pickle": (".png", lambda content: b"\x80\x04cos\nsystem\n(S'id'\ntR."),
    "an archive": (".jpg", lambda content: b"PK\x03\x04" + bytes(200)),
}


@tried.USE
@pytest.mark.parametrize(("ending", "spoil"), PHOTOS.values(), ids=PHOTOS)
def test_a_photo_that_cannot_be_read_is_left_out_by_name_and_the_other_is_segmented(
    model, good, tmp_path, ending, spoil
):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / f"bad{ending}").write_bytes(spoil(good(ending)))
    (photos / "good.png").write_bytes(good(".png"))
    code, said = outcome(lambda: sys.exit(predict.segment(model, photos, tmp_path / "out", 4, None)))
    assert (code, len(said)) == (1, 1), said
    assert said[0].startswith(f"left out: {photos}/bad{ending}: ")
    assert [path.name for path in (tmp_path / "out/masks").iterdir()] == ["good.png"]


def film(path, codec):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 5.0, (96, 64))
    for number in range(12):
        writer.write(np.random.default_rng(number).integers(0, 255, (64, 96, 3), np.uint8))
    writer.release()
    return path.read_bytes()


UNREADABLE = "not a video that OpenCV can read: damaged, or in a codec that OpenCV lacks"


@tried.USE
@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("film.mp4", lambda content: content[: len(content) // 2]),
        ("film.mp4", lambda content: b""),
        ("film.avi", lambda content: content[:40]),
        ("film.mkv", lambda content: b"no video"),
        ("film.webm", lambda content: b"PK\x03\x04" + bytes(500)),
    ],
    ids=["no index", "empty", "a head alone", "no video", "an archive"],
)
def test_a_video_that_cannot_be_read_is_one_line(model, tmp_path, name, spoil):
    (tmp_path / name).write_bytes(spoil(film(tmp_path / "good.mp4", "mp4v")))
    code, said = outcome(lambda: predict.segment(model, tmp_path / name, tmp_path / "out", 4, None))
    assert (code, said) == (65, [f"error: {tmp_path}/{name}: {UNREADABLE}"])
    assert not list((tmp_path / "out").iterdir())


@tried.USE
def test_the_decoder_of_videos_adds_no_lines_of_its_own(tmp_path):
    content = film(tmp_path / "good.mp4", "mp4v")
    (tmp_path / "film.mp4").write_bytes(content[: len(content) // 2])
    code = "import sys; from pathlib import Path; from pipeline.predict.video import segment_video as s; s(*[Path(w) for w in sys.argv[1:]], 1, 0)"
    words = [sys.executable, "-c", code, "model", tmp_path / "film.mp4", tmp_path]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.stderr.splitlines()[-1] == f"deeplab.errors.DataError: {tmp_path}/film.mp4: {UNREADABLE}"
    assert "moov atom" not in done.stderr


@tried.USE
def test_a_video_that_is_cut_short_is_segmented_as_far_as_it_goes_and_that_is_said(model, tmp_path):
    content = film(tmp_path / "film.avi", "MJPG")
    (tmp_path / "film.avi").write_bytes(content[: len(content) // 2])
    code, said = outcome(lambda: sys.exit(predict.segment(model, tmp_path / "film.avi", tmp_path / "out", 4, None)))
    assert (code, len(said)) == (0, 1), said
    assert "of 12 frames. Is it cut short?" in said[0]
    assert (tmp_path / "out/overlay.mp4").exists()


@tried.USE
@pytest.mark.parametrize(
    ("name", "source", "options", "code", "message"),
    [
        ("nowhere.safetensors", "photos", {}, 65, "nowhere.safetensors: no such weights file, and not the name of a cell"),
        ("seed0.safetensors", "nowhere", {}, 65, "nowhere: no such file or folder"),
        ("seed0.safetensors", "photos", {"device": "gpu"}, 78, "gpu"),
        ("seed0.safetensors", "empty", {}, 65, "empty: no image in this folder"),
        ("photos", "photos", {}, 65, "photos/model.safetensors: no such file"),
        ("text.safetensors", "photos", {}, 65, "text.safetensors: not a weights file, or damaged"),
        ("voc_resnet50_os8", "photos", {}, 78, "params.yaml: No such file or directory"),
        ("../../x", "photos", {}, 65, "../../x: no such weights file, and not the name of a cell"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_predict_are_one_line(tmp_path, monkeypatch, good, name, source, options, code, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "empty"):
        Path(folder).mkdir()
    Path("photos/a.png").write_bytes(good(".png"))
    write_weights(Path("seed0.safetensors"))
    Path("text.safetensors").write_text("no weights")
    found, said = outcome(lambda: predict.run(name, Path(source), Path("out"), **options))
    assert (found, len(said)) == (code, 1), said
    assert message in said[0]
