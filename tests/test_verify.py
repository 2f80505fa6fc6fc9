"""Each number of the README is followed back, and whatever does not hold is named in one line."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from deeplab.inference import evaluate
from deeplab.metrics import score
from deeplab.model import DeepLabV3
from deeplab.store import Store
from pipeline.errors import MismatchError, ParamsError
from pipeline.results.records import Result
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.stages import compare, readme
from pipeline.verify import committed as verify
from pipeline.verify.recompute import check_runs, recompute
from tests.records import CELL, OTHER, ROOT, Folder, blank_database, measured
from tests.tiny import tiny_params, write_store

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own

RECORD, METRICS = f"reports/records/shapes/{CELL}.json", f"reports/metrics/{CELL}.json"
MD, CSV, TEX = (f"reports/tables/shapes.{kind}" for kind in ("md", "csv", "tex"))

VALUE = f"<!-- value: {CELL}.mIoU -->{{}}<!-- /value -->"


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
    readme.run("shapes")
    compare.run("shapes")
    lock(folder)


def lock(folder, without=None):
    """Write dvc.lock for the files as they are now, except for the stage `without`."""
    outs = {f"evaluate@{CELL}": (RECORD, METRICS, f"reports/plots/{CELL}/classes.csv"), "tables@shapes": (MD, CSV, TEX)}
    stages = {
        stage: {"outs": [{"path": path, "md5": hashlib.md5(Path(path).read_bytes()).hexdigest()} for path in paths]}
        for stage, paths in outs.items()
        if stage != without
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


def paper(folder):
    """A page with a value, listed in params.yaml and filled."""
    Path("docs").mkdir()
    Path("docs/paper.md").write_text(f"# Paper\n\nIt reaches {VALUE.format('')}.\n")
    folder.raw["prose"] = ["docs/paper.md"]
    folder.write_params()
    readme.run("shapes")


def better_by_hand():
    """Another number in the record and its metrics, and the table and README made from them."""
    edit_record(mIoU=0.9, mIoU_high=0.95)
    Path(METRICS).write_text(json.dumps({"mIoU": 0.9}))


def test_a_verified_number_is_one_line(folder):
    (line,) = verify.run([], Places(), fast=True)
    shown = json.loads(Path(RECORD).read_text())["seeds"]["0"]["single_scale"]["mIoU"]
    assert line == f"{CELL}: {100 * shown:.2f} %, as recorded"
    assert verify.run([CELL], Places(), fast=True) == [line]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: edit("README.md", "%", "9%"), "README.md: the block results:shapes is stale"),
        (lambda folder: (edit(MD, "%", "9%"), readme.run("shapes")), "shapes.md says .* expected"),
        (lambda folder: edit(TEX, "64x64", "65x65"), "shapes.tex: missing, or not what the records give"),
        (lambda folder: edit(TEX, r".mIoU\endcsname{66", r".mIoU\endcsname{76"), "shapes.tex: missing, or not what the records give"),
        (lambda folder: edit("README.md", "# Mine", f"# Mine {VALUE.format('99.00%')}"), f"README.md:1: value {CELL}.mIoU says '99.00%', expected '66.15%'"),
        (lambda folder: (paper(folder), edit("docs/paper.md", "66.15", "66.25")), f"docs/paper.md:3: value {CELL}.mIoU says '66.25%', expected '66.15%'"),
        (lambda folder: (paper(folder), edit("docs/paper.md", "<!-- /value -->", "")), "docs/paper.md:3: .* is half a pair, expected <!-- value: CELL.COLUMN -->"),
        (lambda folder: edit(CSV, "64x64", "65x65"), f"{CELL}: reports/tables/shapes.csv says .* expected"),
        (lambda folder: edit_record(mIoU=0.9, mIoU_high=0.95), "mIoU is 0.9, but 0.6615 in reports/metrics"),
        (lambda folder: better_by_hand(), f"{CELL}: reports/tables/shapes.md says .* expected"),
        (lambda folder: (better_by_hand(), folder.tables(), readme.run("shapes")), "not the file that evaluate@"),
        (lambda folder: edit(METRICS, "{", "{ "), f"{CELL}.json: not the file that evaluate@{CELL} wrote, by dvc.lock"),
        (lambda folder: edit(f"reports/plots/{CELL}/classes.csv", "0.75", "0.85"), "classes.csv: not the file that evaluate@"),
        (lambda folder: Path(METRICS).unlink(), f"reports/metrics/{CELL}.json: not found"),
        (lambda folder: Path("dvc.lock").unlink(), f"dvc.lock: does not list evaluate@{CELL}. Run: dvc repro -f evaluate@"),
        (lambda folder: folder.prepare("other data"), f"{CELL}: .* was made with different data"),
        (lambda folder: (folder.raw["recipes"]["shapes"].update(epochs=9), folder.write_params()), "was made with different settings"),
        (lambda folder: folder.write(f"runs/{CELL}/weights/seed0.safetensors", "others"), "another SHA-256 than the evaluated one"),
        (lambda folder: edit("reports/statistics/shapes.json", "0.6615", "0.7615"), "shapes.json says mIoU 0.7615"),
        (lambda folder: Path(f"reports/cards/shapes/{CELL}.md").unlink(), f"cards/shapes/{CELL}.md: missing, or not what the records give"),
        (lambda folder: edit(f"reports/cards/shapes/{CELL}.md", "epochs", "years"), f"cards/shapes/{CELL}.md: missing, or not what"),
        (lambda folder: edit("README.md", "# Mine", "# Mine\n<!-- results:old -->\n| 99.00% |\n<!-- /results:old -->"), "README.md:2: the block results:old is of no data set of params.yaml. Remove it"),
        (lambda folder: Path(TEX).write_bytes(b"\xff"), "shapes.tex: missing, or not what the records give"),
        (lambda folder: Path(f"reports/cards/shapes/{CELL}.md").write_bytes(b"\xff"), f"cards/shapes/{CELL}.md: missing, or not what"),
        (lambda folder: Path(CSV).write_bytes(Path(CSV).read_bytes().replace(b"64x64", b"64\xff64")), "shapes.csv says .* expected"),
        (lambda folder: shutil.rmtree("reports/tables"), "shapes.md: not found. Run: grid run tables@shapes"),
        (lambda folder: (folder.raw["grid"].pop(OTHER), folder.write_params()), "not the cells of params.yaml"),
    ],
)  # fmt: skip
def test_a_changed_file_is_found_alone_or_with_others(folder, spoil, message):
    spoil(folder)
    with pytest.raises(MismatchError, match=message) as caught:
        verify.run([], Places(), fast=True)
    assert "\n" not in str(caught.value)


def test_a_line_below_the_table_is_checked_too(tmp_path):
    table, text = (
        tmp_path / "shapes.md",
        "| mIoU |\n| :-: |\n| 1% |\n| 2% |\n\nMeasured with different versions: numpy 1.\n",
    )
    rows = [SimpleNamespace(name="a"), SimpleNamespace(name="b")]
    table.write_text(text)
    assert verify.compare_lines(table, text, rows, {}, set()) == set()
    table.write_text(text.replace("| 2% |", "| 3% |"))
    assert verify.compare_lines(table, text, rows, {}, {"b"}) == {"b"}
    table.write_text(text.replace("numpy 1", "numpy 2"))
    with pytest.raises(
        MismatchError, match=r"^\S+shapes\.md says Measured .* numpy 2\., expected Measured .* numpy 1\.$"
    ):
        verify.compare_lines(table, text, rows, {}, {"a", "b"})


def test_the_counts_of_the_images_disagree_even_with_a_new_lock(folder):
    better_by_hand()
    again(folder)
    with pytest.raises(MismatchError, match=r"\.npz: seed 0 has mIoU 0\.6615, but the record 0\.9"):
        verify.run([], Places(), fast=True)


def test_a_cell_without_a_number_and_an_unknown_cell_are_refused(folder):
    with pytest.raises(MismatchError, match=f"{OTHER}: README.md shows no number. Run: grid run readme@shapes"):
        verify.run([OTHER], Places(), fast=True)
    with pytest.raises(ParamsError, match=f"did you mean '{CELL}'"):
        verify.run([CELL + "x"], Places(), fast=True)


def test_the_run_of_a_number_is_found_with_its_commit_or_missed(folder):
    shown = verify.check_files("shapes", folder.params, Places(), fast=True)
    (result,) = shown[CELL]
    check_runs(CELL, [result], folder.params)
    with pytest.raises(MismatchError, match=f"{CELL}: no run in MLflow has the key"):
        check_runs(CELL, [replace(result, seed=1)], folder.params)
    from pipeline.tracking.client import open_experiment

    with open_experiment("shapes", timeout=5) as experiment:
        (run,) = experiment.runs(key=result.key)
        experiment.set_tags(run.info.run_id, {"commit": "unknown"})
    with pytest.raises(MismatchError, match="has no commit"):
        check_runs(CELL, [result], folder.params)
    with open_experiment("shapes", timeout=5) as experiment:
        experiment.set_tags(run.info.run_id, {"weights_sha256": "0" * 64})
    with pytest.raises(MismatchError, match=f"weights_sha256 {'0' * 64}, the record"):
        check_runs(CELL, [result], folder.params)


def test_a_number_of_somebody_else_is_accepted_fast_and_looked_up_in_full(folder, monkeypatch):
    """Its run is in MLflow, and nothing else is here."""
    Path(RECORD).unlink()
    folder.tables()
    readme.run("shapes")
    lock(folder, f"evaluate@{CELL}")
    (line,) = verify.run([], Places(), fast=True)
    assert line == f"{CELL}: measured by somebody else; its run is in MLflow, where --fast does not look"
    (line,) = verify.run([], Places(), fast=False)
    assert line == f"{CELL}: measured by somebody else; its run is in MLflow"

    edit(MD, "%", "9%")
    readme.run("shapes")
    lock(folder, f"evaluate@{CELL}")
    assert verify.run([], Places(), fast=True)
    with pytest.raises(MismatchError, match=f"{CELL}: .* says .*9%.* expected"):
        verify.run([], Places(), fast=False)


def test_a_row_of_old_settings_without_a_number_is_not_that_of_somebody_else(folder):
    edit("params.yaml", f'"{OTHER}": {{', f'"{OTHER}": {{"train": {{"precision": "bf16"}}, ')
    with pytest.raises(MismatchError, match=f"{OTHER}: .*shapes.md: a row of other settings"):
        verify.run([], Places(), fast=True)


def test_the_weights_give_the_number_again_or_not(tmp_path):
    places = Places(tmp_path)
    params = load_params(tiny_params(places.params))
    cell, data, weights = params.cell("tiny_os8"), places.store("tiny"), places.weights("tiny_os8")
    store = Store(write_store(data))
    torch.manual_seed(0)
    network = DeepLabV3(cell.model, 3).eval()
    weights.mkdir(parents=True)
    save_file(network.state_dict(), weights / "seed0.safetensors")
    protocol = next(iter(params.protocols.values()))
    miou = score(evaluate(network, store.split("val"), 3, cell.inference, protocol, torch.device("cpu"))).mean_iou
    result = Result(
        cell="tiny_os8", seed=0, scores={"mIoU": round(miou, 6)}, images={}, fingerprint={"data": store.fingerprint},
        weights={"file": "seed0.safetensors", "sha256": ""},
    )  # fmt: skip
    recompute("tiny_os8", [result], params, places)
    with pytest.raises(
        MismatchError, match=rf"seed0\.safetensors gives mIoU {miou:.6f} on .*, but the record says 0.9"
    ):
        recompute("tiny_os8", [replace(result, scores={"mIoU": 0.9})], params, places)
    other = replace(result, scores={"mIoU": 0.9}, versions={"torch": "2.0.0"})
    with pytest.raises(
        MismatchError, match=r"^tiny_os8: measured with other versions \(torch 2\.0\.0, now .*\): .* gives mIoU"
    ):
        recompute("tiny_os8", [other], params, places)
    with pytest.raises(MismatchError, match="data/tiny is not the data of its record"):
        recompute("tiny_os8", [replace(result, fingerprint={"data": "other"})], params, places)
    (weights / "seed0.safetensors").unlink()
    with pytest.raises(MismatchError, match=r"seed0\.safetensors not found. Nobody has published them"):
        recompute("tiny_os8", [result], params, places)
    (weights / "seed0.safetensors").touch()
    shutil.rmtree(data)
    with pytest.raises(MismatchError, match="no data to compute it on"):
        recompute("tiny_os8", [result], params, places)


def test_the_numbers_of_this_repository_are_those_of_its_records():
    """Not so? Then a number belongs to other settings or code than the current ones: `make demo`, or `dvc repro`."""
    assert verify.run([], Places(ROOT), fast=True)
