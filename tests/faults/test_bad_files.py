"""Files that a stage wrote, damaged or edited by hand: the next command names the file and what makes it again."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deeplab.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from deeplab.counts import gather, read_counts, write_counts
from deeplab.errors import DataError
from deeplab.store import Store
from pipeline.runner import plan
from pipeline.runner.board import Board
from pipeline.training import publish
from pipeline.training.facts import read_facts
from tests.faults import tried
from tests.faults.disk import outcome
from tests.records import CELL
from tests.tiny import write_store

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own


def change(path, edit):
    """Write the JSON file `path` with what `edit` has done to it, or with the text that `edit` is."""
    if callable(edit):
        value = json.loads(path.read_text())
        edit(value)
        path.write_text(json.dumps(value))
    else:
        path.write_text(edit)


# --- The manifest of a store

MANIFEST = {
    "numbers as text": lambda m: m["samples"][0].update(height="40"),
    "a number with a dot": lambda m: m["samples"][0].update(width=48.0),
    "a negative offset": lambda m: m["samples"][1].update(offset=-1),
    "an offset beyond the end": lambda m: m["samples"][1].update(offset=10**9),
    "a sample without its id": lambda m: m["samples"][0].pop("id"),
    "an unknown key": lambda m: m["samples"][0].update(hight=3),
    "no pixels": lambda m: m["samples"][0].update(pixels=[1, 2]),
    "a split that is no text": lambda m: m["samples"][0].update(split=None),
    "a list of samples that is none": lambda m: m.update(samples={"a": 1}),
    "colours of two channels": lambda m: m.update(palette=[[1, 2]] * 3),
    "colours as text": lambda m: m.update(palette=["red"] * 3),
    "classes that are no text": lambda m: m.update(classes=[1, 2, 3]),
    "a sample fewer": lambda m: m["samples"].pop(),
    "nested without end": "[" * 100_000,
    "another encoding": "\ufeffnone",
    "empty": "",
}


@tried.RESULTS
@pytest.mark.parametrize("edit", MANIFEST.values(), ids=MANIFEST)
def test_a_damaged_manifest_is_named_and_how_to_make_it_again(tmp_path, edit):
    write_store(tmp_path, {"train": 3, "val": 1})
    change(tmp_path / "manifest.json", edit)
    with pytest.raises(DataError, match=r"(manifest\.json|\.bin): .*\. Prepare the data set again\.") as caught:
        Store(tmp_path)
    assert "\n" not in str(caught.value)


@tried.RESULTS
@pytest.mark.parametrize("content", [b"", b"pack", b"files\n", b"files\na\nb\nc\nd\ne\n", b"\xff\xfe"])
def test_a_damaged_list_of_files_is_named(tmp_path, content):
    write_store(tmp_path, {"train": 3, "val": 1})
    (tmp_path / "image_files.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"image_files\.txt: .* Prepare the data set again"):
        Store(tmp_path)


# --- Counts

COUNTS = {
    "an image beyond the last": {"0/a/image": np.array([7], np.int32)},
    "a class beyond the last": {"0/a/truth": np.array([9], np.uint8)},
    "a negative number of pixels": {"0/a/pixels": np.array([-1])},
    "columns of another length": {"0/a/pixels": np.array([1, 2])},
    "columns of another type": {"0/a/pixels": np.array([1.5])},
    "columns of two dimensions": {"0/a/pixels": np.array([[1]])},
    "names that are numbers": {"classes": np.array([1, 2])},
    "a seed that is no number": {"x/a/image": np.array([0], np.int32)},
}


@tried.RESULTS
@pytest.mark.parametrize("changes", COUNTS.values(), ids=COUNTS)
def test_damaged_counts_are_named(tmp_path, changes):
    path = tmp_path / "cell.npz"
    write_counts(path, {(0, "a"): gather([np.array([[5, 0], [0, 0]])], ["one"], ["sky", "cat"])})
    with np.load(path) as file:
        held = dict(file)
    np.savez(path, **held | changes)
    with pytest.raises(DataError, match=r"cell\.npz: not counts as evaluate writes them"):
        read_counts(path)


# --- Checkpoints


def spoiled(folder, content):
    """Put `content` under the name of a checkpoint, with the hash that belongs to it."""
    name = f"step-{9:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    (folder / name).write_bytes(content)


@tried.CHECKPOINTS
@pytest.mark.parametrize(
    "content", [b"", b"no checkpoint", b"PK\x03\x04" + bytes(100), b"\x80\x02cos\nsystem\n(S'id'\ntR."]
)
def test_what_is_no_checkpoint_is_set_aside_although_its_name_is_right(tmp_path, content):
    save_checkpoint(tmp_path, 1, {"step": 1, "weights": torch.ones(3)})
    spoiled(tmp_path, content)
    assert load_checkpoint(tmp_path)["step"] == 1
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".pt", ".damaged"]


@tried.CHECKPOINTS
def test_a_run_whose_checkpoints_are_all_damaged_never_starts_over_by_itself(tmp_path):
    save_checkpoint(tmp_path, 1, {"step": 1})
    checkpoints(tmp_path)[0].write_bytes(b"")
    for _ in range(3):  # a scheduler that tries again
        with pytest.raises(DataError, match="every checkpoint is damaged. Remove the folder to train from the start"):
            load_checkpoint(tmp_path)


@tried.CHECKPOINTS
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"1"])
def test_damaged_facts_of_a_training_are_named(tmp_path, content):
    (tmp_path / "facts.json").write_bytes(content)
    with pytest.raises(DataError, match=r"facts\.json: damaged\. Remove its folder to train the seed again\."):
        read_facts(tmp_path / "facts.json")


@tried.WEIGHTS
def test_finished_weights_that_rot_before_they_are_published_are_not_published(tmp_path):
    work = tmp_path / "seed0"
    work.mkdir()
    (work / "weights.safetensors").write_bytes(b"not what was written")
    facts = {"cell": "cell", "dataset": "tiny", "seed": 0, "started": "now", "iterations": 1}
    facts |= {"fingerprint": {}, "settings": {}, "weights": {"file": "seed0.safetensors", "sha256": "0" * 64}}
    (work / "facts.json").write_text(json.dumps(facts))
    (work / "history.csv").write_text("step\n")
    with pytest.raises(DataError, match="seed0: its weights are damaged. Remove this folder to train the seed again"):
        publish.publish("cell", "tiny", {0: work}, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.safetensors"))


# --- What tables, plan, status and verify read


@pytest.fixture
def folder(folder, monkeypatch):
    """A working folder with a measured cell."""
    monkeypatch.setattr(plan, "this_device", lambda: "cpu")
    folder.measure(CELL, 0.5)
    folder.train(CELL)
    folder.evaluate(CELL)
    return folder


RECORD, RUN = f"reports/records/shapes/{CELL}.json", f"runs/{CELL}/run.json"
HISTORY, CLASSES = f"runs/{CELL}/history.csv", f"reports/plots/{CELL}/classes.csv"
FILES = [
    (RECORD, lambda r: r["seeds"]["0"]["single_scale"].update(mIoU="0.5"), f"dvc repro -f evaluate@{CELL}"),
    (RECORD, lambda r: r["seeds"]["0"]["single_scale"].pop("mIoU"), f"dvc repro -f evaluate@{CELL}"),
    (RECORD, lambda r: r.update(seeds=[]), f"dvc repro -f evaluate@{CELL}"),
    (RECORD, lambda r: r["images"].update(val="64"), f"dvc repro -f evaluate@{CELL}"),
    (RECORD, lambda r: r.pop("weights"), f"dvc repro -f evaluate@{CELL}"),
    (RECORD, "[" * 100_000, f"dvc repro -f evaluate@{CELL}"),
    (RECORD, "null", f"dvc repro -f evaluate@{CELL}"),
    (RUN, "{", f"dvc checkout --force train@{CELL}"),
    (RUN, "[]", f"dvc checkout --force train@{CELL}"),
    (RUN, lambda r: r.update(seeds=[1]), f"dvc checkout --force train@{CELL}"),
    (HISTORY, "seed,step,epoch,train/loss\n0,one,0,0.5\n", "dvc checkout --force"),
    (HISTORY, "seed,step,epoch,train/loss\n0,20,0,0.5,extra,words\n", "dvc checkout --force"),
    (HISTORY, "seed,epoch,train/loss\n0,0,0.5\n", "dvc checkout --force"),
    (CLASSES, "seed,protocol,class,IoU\n0,single_scale,circle,high\n", f"dvc repro -f evaluate@{CELL}"),
    (CLASSES, "seed,class\n", f"dvc repro -f evaluate@{CELL}"),
    (CLASSES, "", f"dvc repro -f evaluate@{CELL}"),
    (f"reports/plots/{CELL}/confusion.csv", "seed,protocol,truth\n0,single_scale,nobody\n", f"dvc repro -f evaluate@{CELL}"),
    ("reports/data/shapes/card.json", "{}", "dvc repro -f prepare@shapes"),
]  # fmt: skip


@tried.RESULTS
@pytest.mark.parametrize(("path", "edit", "remedy"), FILES)
def test_tables_names_the_damaged_file_and_the_command_that_brings_it_back(folder, path, edit, remedy):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    change(Path(path), edit)
    before = {file: file.read_bytes() for file in Path("reports").rglob("*") if file.is_file()}
    code, said = outcome(folder.tables)
    lines = [line for line in said if not line.startswith(("warning: ", "shapes_"))]
    assert (code, len(lines)) == (65, 1), said
    assert path.rpartition("/")[0] in lines[0]
    assert remedy in lines[0]
    assert before == {file: file.read_bytes() for file in Path("reports").rglob("*") if file.is_file()}


@tried.RESULTS
@pytest.mark.parametrize(
    "content", ["{", "[]", '{"seeds": {"0": 3}}', '{"seeds": {"0": {"device": "cpu", "images_per_second": "x"}}}']
)
def test_plan_names_the_facts_of_a_training_that_it_cannot_read(folder, content):
    Path(RUN).write_text(content)
    code, said = outcome(lambda: plan.plan(folder.params, {f"train@{CELL}": "new"}) and None)
    assert (code, len(said)) == (65, 1), said
    assert "dvc checkout --force" in said[0]


@tried.RESULTS
@pytest.mark.parametrize("content", ["{", '{"samples": 3}', "[]"])
def test_plan_names_a_manifest_that_it_cannot_read(folder, content):
    Path("data/shapes/manifest.json").write_text(content)
    code, said = outcome(lambda: plan.plan(folder.params, {f"train@{CELL}": "new"}) and None)
    assert (code, len(said)) == (65, 1), said
    assert "dvc repro -f prepare@shapes" in said[0]


@tried.RESULTS
@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"stages": []}', '{"stages": {"a": 1}}', '{"engine": "x", "stages": {}, "odd": 1}']
)
def test_the_board_of_the_runner_may_be_damaged(tmp_path, content):
    (tmp_path / "board.json").write_text(content)
    with pytest.raises(DataError, match=r"board\.json: damaged, or edited by hand .* Remove it: the next run"):
        Board.read(tmp_path / "board.json")


def test_undamaged_files_are_read(folder):
    assert outcome(folder.tables)[0] == 0
