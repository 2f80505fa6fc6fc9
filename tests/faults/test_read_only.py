"""Folders in which nothing can be written: a real mount, for permission bits do not stop root."""

import subprocess
from pathlib import Path

import pytest

from deeplab import load_model
from pipeline.predict import export, predict
from pipeline.settings.places import Places
from pipeline.stages import download, prepare, readme
from tests.faults.disk import mounted, outcome
from tests.raw import dataset_config, write_ade20k
from tests.tiny import tiny_params, write_weights

READ_ONLY = "read-only file system. Choose another location or remount it writable."


@pytest.fixture
def read_only(tmp_path):
    """A function that makes a folder read-only until the end of the test."""
    stack = []

    def make(folder):
        mount = mounted(folder, "--bind", str(folder))
        mount.__enter__()
        stack.append(mount)
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (folder / "probe").touch()

    yield make
    for mount in reversed(stack):
        mount.__exit__(None, None, None)


@pytest.mark.fault(
    "disk",
    "the data can only be read",
    "a read-only bind mount as raw folder, and as photos",
    "prepare, download and predict write nothing there and end well",
)
def test_data_that_can_only_be_read_is_enough(tmp_path, read_only):
    raw = tmp_path / "raw"
    write_ade20k(raw)
    images = raw / "ADEChallengeData2016/images/training"
    read_only(raw)
    config = dataset_config("ade20k", {"training": 2, "validation": 1, "train": 2, "val": 1})
    assert outcome(lambda: download.get("a", config, tmp_path / "archives", raw, tmp_path / "a.json")) == (0, [])
    run = lambda: prepare.build("a", config, ("train", "val"), raw, tmp_path / "store", workers=1)  # noqa: E731
    assert outcome(run) == (0, [])
    model = load_model(write_weights(tmp_path / "seed0.safetensors"))
    assert outcome(lambda: predict.segment(model, images, tmp_path / "out", 2, None) and None) == (0, [])
    assert len(list((tmp_path / "out/masks").iterdir())) == 2


@pytest.mark.fault(
    "disk",
    "a place that can only be read is to be written to",
    "a read-only bind mount as place of results",
    "exit code 74, one line that names it, before the work where that can be",
)
@pytest.mark.parametrize("name", ["predict", "prepare", "download", "readme"])
def test_a_place_that_can_only_be_read_is_named(tmp_path, read_only, name):
    place, raw = tmp_path / "place", tmp_path / "raw"
    place.mkdir()
    (place / "README.md").write_text("<!-- results:voc -->\n<!-- /results:voc -->\n")
    tiny_params(place / "params.yaml")
    table = Places(place).table("voc")
    table.parent.mkdir(parents=True)
    table.write_text("| 1 |\n")
    write_ade20k(raw)
    config = dataset_config("ade20k", {"train": 2, "val": 1})
    model = load_model(write_weights(tmp_path / "seed0.safetensors")) if name == "predict" else None
    read_only(place)
    commands = {
        "predict": lambda: predict.segment(model, raw, place / "out", 2, None),
        "prepare": lambda: prepare.build("a", config, ("train", "val"), raw, place / "store", workers=1),
        "download": lambda: download.get("a", config, tmp_path / "archives", raw, place / "a.json"),
        "readme": lambda: readme.run("voc", Places(place)),
    }
    code, said = outcome(commands[name])
    assert (code, len(said)) == (74, 1), said
    assert said[0].startswith(f"error: {place}/")
    assert said[0].endswith(READ_ONLY)


@pytest.mark.fault(
    "disk",
    "a file where a folder is to be",
    "a file as --out of predict and of an export, and below it",
    "exit code 78, one line that names it; the file stays",
)
@pytest.mark.parametrize("command", ["predict", "export"])
@pytest.mark.parametrize("out", ["taken", "taken/below"])
def test_a_file_in_the_way_of_results_is_named(tmp_path, monkeypatch, command, out):
    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path / "seed0.safetensors")
    Path("photos").mkdir()
    Path("taken").write_text("precious")
    commands = {
        "predict": lambda: predict.run("seed0.safetensors", Path("photos"), Path(out), device="cpu"),
        "export": lambda: export.run("seed0.safetensors", "huggingface", Path(out)),
    }
    code, said = outcome(commands[command])
    assert (code, said) == (78, [f"error: --out: {out}: a file is in the way, expected a folder or a new name"])
    assert Path("taken").read_text() == "precious"
