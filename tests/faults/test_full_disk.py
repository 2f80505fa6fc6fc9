"""Each command on a disk that is full: one line, exit code 74, no old file touched, and with space it goes on."""

import re
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from deeplab import load_model
from pipeline.predict import export, predict
from pipeline.predict.video import check_frames
from pipeline.settings.places import Places
from pipeline.stages import compare, readme, report
from tests.fake_grid import FakeGrid
from tests.faults.disk import NO_SPACE, no_file_longer_than, outcome, small_disk
from tests.records import CELL, OTHER, Folder, blank_database, measured
from tests.test_evaluate import Place
from tests.tiny import tiny_params, write_weights

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own

COMMANDS = (
    "the README",
    "tables and cards",
    "comparison",
    "the page",
    "evaluation",
    "masks",
    "video",
    "exported model",
)
PROMISE = (
    "exit code 74, one line that names the file, every file old or new and whole, no half file; with space it goes on"
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def prepared(tmp_path, tmp_path_factory, monkeypatch):
    """By the name of a command: do it once on the disk, change what it depends on, and give the second call."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    blank = blank_database(tmp_path_factory.getbasetemp())
    (tmp_path / "mlflow.db").write_bytes(blank.read_bytes())

    def prepare(name, folder):
        monkeypatch.chdir(folder)
        return MAKERS[name](folder, tmp_path)

    return prepare


def fill_readme(folder, _):
    tiny_params(Path("params.yaml"))
    Path("README.md").write_text("# A title\n<!-- results:voc -->\n<!-- /results:voc -->\n" + "prose\n" * 3000)
    table = Places().table("voc")
    table.parent.mkdir(parents=True)
    table.write_text("| mIoU |\n| - |\n")
    readme.run("voc")
    table.write_text("| mIoU |\n| 77.72% |\n")
    return partial(readme.run, "voc")


def fill_tables(folder, _):
    place = Folder(folder)
    place.measure(CELL, 0.5)
    place.tables()
    place.measure(OTHER, 0.6)
    return place.tables


def make_comparison(folder, _):
    place = Folder(folder)
    command = partial(compare.run, "shapes")
    measured(place, CELL, 0.80)
    command()
    measured(place, OTHER, 0.82)
    return command


def make_page(folder, _):
    grid = FakeGrid(folder)
    command = partial(report.run, Places(folder))
    command()
    grid.params_file.write_text(grid.params_file.read_text().replace("title: PASCAL VOC", "title: Another"))
    return command


def evaluate(folder, _):
    place = Place(folder)
    place.places.params.write_text(place.places.params.read_text().replace("seeds: [0, 1]", "seeds: [1]"))
    place.run()
    place.places.params.write_text(place.places.params.read_text().replace("seeds: [1]", "seeds: [0]"))
    return place.run


def photos(folder, color):
    (folder / "photos").mkdir(exist_ok=True)
    for name in "ab":
        Image.fromarray(np.full((60, 80, 3), color, np.uint8)).save(folder / f"photos/{name}.png")


def segment_images(folder, roomy):
    photos(roomy, 40)
    command = partial(predict.segment, loaded(roomy), roomy / "photos", folder / "out", 1, None)
    command()
    photos(roomy, np.random.default_rng(0).integers(0, 255, (60, 80, 3)))
    return command


def segment_video(folder, roomy):
    def film(seed):
        writer = cv2.VideoWriter(str(roomy / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (192, 128))
        for _ in range(12):
            writer.write(np.random.default_rng(seed).integers(0, 255, (128, 192, 3), np.uint8))
        writer.release()

    film(0)
    command = partial(predict.segment, loaded(roomy), roomy / "film.avi", folder / "out", 4, None)
    command()
    film(1)
    return command


def export_model(folder, roomy):
    model = loaded(roomy)
    export.write(model, roomy / "seed0.safetensors", "huggingface", folder / "out")
    (roomy / "card.md").write_text("a card\n" * 100)
    again = load_model(write_weights(roomy / "other.safetensors", seed=1))
    return partial(export.write, again, roomy / "other.safetensors", "huggingface", folder / "out", roomy / "card.md")


def export_to(name):
    def prepare(folder, roomy):
        (folder / "out").mkdir()
        (folder / f"out/model{export.FORMATS[name][0]}").write_bytes(b"of an older network")
        return partial(export.write, loaded(roomy), roomy / "seed0.safetensors", name, folder / "out")

    return prepare


def loaded(roomy):
    return load_model(write_weights(roomy / "seed0.safetensors"))


MAKERS = dict(
    zip(
        COMMANDS,
        (
            fill_readme, fill_tables, make_comparison, make_page, evaluate, segment_images, segment_video, export_model,
        ),
        strict=True,
    )
)  # fmt: skip


def check(command, files, free):
    """See `command` fail as promised while `free` has not been called; `files` tells what is on the disk."""
    before = files()
    code, said = outcome(command)
    failed = files()
    free()
    assert (code, [line for line in said if not re.match(r"warning: |\S+: shown as -", line)][1:]) == (74, []), said
    assert said[-1].endswith(NO_SPACE)
    assert re.match(r"error: \S+: ", said[-1])
    assert outcome(command)[0] == 0
    after = files()
    assert after != before
    assert failed.keys() <= before.keys() | after.keys()
    for path, content in failed.items():
        assert content in (before.get(path), after.get(path)), path
    return before, failed


@pytest.mark.fault("disk", "a full disk", "a tmpfs without a free byte", PROMISE)
@pytest.mark.parametrize("name", COMMANDS)
def test_on_a_full_disk_a_command_says_so_in_one_line_and_loses_nothing(prepared, tmp_path, name):
    with small_disk(tmp_path / "disk", "200m") as disk:
        command = prepared(name, disk.path)
        disk.fill()
        before, failed = check(command, disk.files, disk.free)
        assert failed == before


@pytest.mark.fault("disk", "a disk that fills up in the middle", "a tmpfs with a few free pages", PROMISE)
@pytest.mark.parametrize(
    ("name", "left"), [("tables and cards", 4096), ("evaluation", 20_480), ("masks", 8192), ("video", 12_288)]
)
def test_a_disk_that_fills_up_in_the_middle_leaves_each_file_old_or_new(prepared, tmp_path, name, left):
    with small_disk(tmp_path / "disk", "200m") as disk:
        command = prepared(name, disk.path)
        disk.fill(left)
        check(command, disk.files, disk.free)


def test_a_video_that_was_written_without_its_frames_is_a_full_disk(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(OSError, match="No space left on device"):
        check_frames(tmp_path / "a.mp4", 12)


@pytest.mark.fault("disk", "a limit on the size of files", "RLIMIT_FSIZE of 200 bytes", PROMISE)
@pytest.mark.parametrize(
    "name", ["the README", "tables and cards", "comparison", "the page", "masks", "exported model"]
)
def test_a_limit_on_files_is_told_as_a_full_disk(prepared, tmp_path, name):
    (tmp_path / "disk").mkdir()
    command = prepared(name, tmp_path / "disk")

    def limited():
        with no_file_longer_than(200):
            command()

    def files():
        found = (path for path in (tmp_path / "disk").rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in found}

    calls = iter([limited, command])
    check(lambda: next(calls)(), files, lambda: None)
