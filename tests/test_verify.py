"""Each number of the README is followed back, and whatever does not hold is named in one line."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deeplab.inference import evaluate
from deeplab.metrics import score
from deeplab.model import DeepLabV3
from deeplab.store import Store
from pipeline.errors import ParamsError
from pipeline.results.records import Result
from pipeline.settings.params import load_params
from pipeline.stages import compare, readme
from pipeline.verify import committed as verify
from pipeline.verify.recompute import MismatchError, check_runs, recompute
from tests.records import CELL, OTHER, ROOT, Folder, blank_database, measured
from tests.tiny import tiny_params, write_store

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own

RECORD, METRICS = f"reports/records/shapes/{CELL}.json", f"reports/metrics/{CELL}.json"
MD, CSV = "reports/tables/shapes.md", "reports/tables/shapes.csv"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder as one cell has left it, with its run in MLflow."""
    here = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(here)
        folder = Folder(here, blank_database(tmp_path_factory.getbasetemp()))
        folder.train(CELL)
        folder.evaluate(CELL)
        measured(folder, CELL, 0.8)
        scores = json.loads(Path(RECORD).read_text())["seeds"]["0"]["single_scale"]
        folder.write(METRICS, {name: scores[name] for name in ("mIoU", "pixel_accuracy")})
        Path("README.md").write_text("# Mine\n<!-- results:shapes -->\n<!-- /results:shapes -->\n")
        again(folder)
    return here


def again(folder):
    """What the last stages do."""
    folder.tables()
    readme.run("shapes", Path(MD), Path("README.md"))
    reports = Path("reports")
    statistics = reports / "statistics/shapes.json"
    compare.run(
        "shapes", reports / "images/shapes", reports / "records/shapes", reports, Path("data/shapes"), statistics
    )
    lock(folder)


def lock(folder):
    """What DVC would say of the files as they are now."""
    outs = {f"evaluate@{CELL}": (RECORD, METRICS, f"reports/plots/{CELL}/classes.csv"), "tables@shapes": (MD, CSV)}
    stages = {
        stage: {"outs": [{"path": path, "md5": hashlib.md5(Path(path).read_bytes()).hexdigest()} for path in paths]}
        for stage, paths in outs.items()
    }
    folder.write("dvc.lock", {"schema": "2.0", "stages": stages})


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    """A copy of it, which is the working folder."""
    here = tmp_path / "copy"
    shutil.copytree(finished, here)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(here)
    restored = object.__new__(Folder)
    restored.path, restored.raw = here, json.loads((here / "params.yaml").read_text())
    restored.raw["datasets"] = {"shapes": restored.raw["datasets"]["shapes"]}
    restored.write_params()
    restored.data = hashlib.sha256((here / "data/shapes/manifest.json").read_bytes()).hexdigest()
    return restored


def edit(path, old, new):
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def edit_record(**scores):
    record = json.loads(Path(RECORD).read_text())
    record["seeds"]["0"]["single_scale"] |= scores
    Path(RECORD).write_text(json.dumps(record))


def better_by_hand():
    """Another number in the record and its metrics, and the table and README made from them."""
    edit_record(mIoU=0.9, mIoU_high=0.95)
    Path(METRICS).write_text(json.dumps({"mIoU": 0.9}))


def test_a_number_that_holds_is_told(folder):
    (line,) = verify.run([], verify.Place(), fast=True)
    shown = json.loads(Path(RECORD).read_text())["seeds"]["0"]["single_scale"]["mIoU"]
    assert line == f"{CELL}: {100 * shown:.2f} %, as recorded"
    assert verify.run([CELL], verify.Place(), fast=True) == [line]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: edit("README.md", "%", "9%"), "README.md: the block results:shapes is not"),
        (lambda folder: (edit(MD, "%", "9%"), readme.run("shapes", Path(MD), Path("README.md"))), "shapes.md says .* expected"),
        (lambda folder: edit(CSV, "64x64", "65x65"), "shapes.csv: not the file that tables@shapes wrote"),
        (lambda folder: edit_record(mIoU=0.9, mIoU_high=0.95), "mIoU is 0.9, but 0.6615 in reports/metrics"),
        (lambda folder: better_by_hand(), f"{CELL}: reports/tables/shapes.csv says keys"),
        (lambda folder: (better_by_hand(), folder.tables(), readme.run("shapes", Path(MD), Path("README.md"))), "not the file that evaluate@"),
        (lambda folder: edit(METRICS, "{", "{ "), f"{CELL}.json: not the file that evaluate@{CELL} wrote, says dvc.lock"),
        (lambda folder: edit(f"reports/plots/{CELL}/classes.csv", "0.75", "0.85"), "classes.csv: not the file that evaluate@"),
        (lambda folder: Path(METRICS).unlink(), f"reports/metrics/{CELL}.json: not there"),
        (lambda folder: Path("dvc.lock").unlink(), f"dvc.lock: knows no evaluate@{CELL}. Run: dvc repro -f evaluate@"),
        (lambda folder: folder.prepare("other data"), f"{CELL}: .* is of other data"),
        (lambda folder: (folder.raw["recipes"]["shapes"].update(epochs=9), folder.write_params()), "is of other settings"),
        (lambda folder: folder.write(f"runs/{CELL}/weights/seed0.safetensors", "others"), "not what was evaluated: other SHA-256"),
        (lambda folder: edit("reports/statistics/shapes.json", "0.6615", "0.7615"), "shapes.json says mIoU 0.7615"),
        (lambda folder: Path(f"reports/cards/shapes/{CELL}.md").unlink(), "README.md links to reports/cards/shapes"),
        (lambda folder: shutil.rmtree("reports/tables"), "shapes.md: not there. Run: dvc repro tables@shapes"),
        (lambda folder: (folder.raw["grid"].pop(OTHER), folder.write_params()), "not the cells of params.yaml"),
    ],
)  # fmt: skip
def test_whatever_was_changed_alone_or_together_is_found_in_the_files(folder, spoil, message):
    spoil(folder)
    with pytest.raises(MismatchError, match=message) as told:
        verify.run([], verify.Place(), fast=True)
    assert "\n" not in str(told.value)


def test_even_with_a_lock_made_anew_the_counts_of_the_images_disagree(folder):
    better_by_hand()
    again(folder)
    with pytest.raises(MismatchError, match=r"\.npz: seed 0 has mIoU 0\.6615, but the record 0\.9"):
        verify.run([], verify.Place(), fast=True)


def test_a_cell_without_a_number_and_an_unknown_one_are_told(folder):
    with pytest.raises(MismatchError, match=f"{OTHER}: README.md shows no number. Run: dvc repro readme@shapes"):
        verify.run([OTHER], verify.Place(), fast=True)
    with pytest.raises(ParamsError, match=f"did you mean '{CELL}'"):
        verify.run([CELL + "x"], verify.Place(), fast=True)


def test_the_run_of_a_number_is_found_with_its_commit_or_missed(folder):
    shown = verify.check_files("shapes", folder.params, verify.Place())
    (result,) = shown[CELL]
    check_runs(CELL, [result], folder.params)
    with pytest.raises(MismatchError, match=f"{CELL}: no run in MLflow has the key"):
        check_runs(CELL, [replace(result, seed=1)], folder.params)
    from pipeline.tracking.client import open_experiment

    with open_experiment("shapes", timeout=5) as experiment:
        (run,) = experiment.runs(key=result.key)
        experiment.set_tags(run.info.run_id, {"commit": "unknown"})
    with pytest.raises(MismatchError, match="knows no commit"):
        check_runs(CELL, [result], folder.params)
    with open_experiment("shapes", timeout=5) as experiment:
        experiment.set_tags(run.info.run_id, {"weights_sha256": "0" * 64})
    with pytest.raises(MismatchError, match=f"weights_sha256 {'0' * 64}, the record"):
        check_runs(CELL, [result], folder.params)


def test_the_weights_give_the_number_again_or_not(tmp_path):
    params = load_params(tiny_params(tmp_path / "params.yaml"))
    cell, data, weights = params.cell("tiny_os8"), tmp_path / "data", tmp_path / "weights"
    store = Store(write_store(data))
    torch.manual_seed(0)
    network = DeepLabV3(cell.model, 3).eval()
    weights.mkdir()
    save_file(network.state_dict(), weights / "seed0.safetensors")
    protocol = next(iter(params.protocols.values()))
    miou = score(evaluate(network, store.split("val"), 3, cell.inference, protocol, torch.device("cpu"))).mean_iou
    result = Result(
        cell="tiny_os8", seed=0, scores={"mIoU": round(miou, 6)}, images={}, fingerprint={"data": store.fingerprint},
        weights={"file": "seed0.safetensors", "sha256": ""},
    )  # fmt: skip
    recompute("tiny_os8", [result], params, weights, data)
    with pytest.raises(
        MismatchError, match=rf"seed0\.safetensors gives mIoU {miou:.6f} on .*, but the record says 0.9"
    ):
        recompute("tiny_os8", [replace(result, scores={"mIoU": 0.9})], params, weights, data)
    with pytest.raises(MismatchError, match="data is not the data of its record"):
        recompute("tiny_os8", [replace(result, fingerprint={"data": "other"})], params, weights, data)
    with pytest.raises(MismatchError, match="no data to compute it on"):
        recompute("tiny_os8", [result], params, weights, tmp_path / "none")
    with pytest.raises(MismatchError, match=r"seed0\.safetensors is not there. Run: dvc pull"):
        recompute("tiny_os8", [result], params, tmp_path / "none", data)


def test_the_numbers_of_this_repository_are_those_of_its_records():
    """Not so? Then a number belongs to other settings or code than there are now: `make demo`, or `dvc repro`."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.verify.committed", "--fast"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
