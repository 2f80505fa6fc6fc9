"""A table shows the numbers of the current settings, data and code, and where they come from."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from deeplab.errors import DataError
from pipeline.results.records import Inputs, Record, Scores, Weights, current_fingerprint
from pipeline.settings import published as departures
from pipeline.settings.links import LOG, Published, write_published
from pipeline.settings.places import Places
from pipeline.stages import tables
from pipeline.tracking import sync
from pipeline.tracking.client import open_experiment
from tests.faults import tried
from tests.records import CELL, OTHER, ROOT, Folder

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own

HEAD = "| Backbone | Crop Size | Schedule | Train/Eval Set | mIoU | Download |\n| :-: | :-: | :-: | :-: | :-: | :-: |\n"
DEMO = "ResNet18 (OS=8, PRE=none) | 64x64 | LR/POLICY/BS/EPOCH: 0.02/poly/16/4"
FILES = f"local · [card](reports/cards/shapes/{CELL}.md)"


def recorded():
    """The runs of the demo data set, the newest first."""
    with open_experiment("shapes", timeout=5) as experiment:
        return experiment.runs()


@pytest.mark.parametrize(
    ("dataset", "crop", "schedule", "sets"),
    [
        ("voc", "512x512", "0.01/poly/16/60", "trainaug/val"),
        ("ade20k", "512x512", "0.01/poly/16/130", "train/val"),
        ("cityscapes", "512x1024", "0.01/poly/8/220", "train/val"),
    ],
)
def test_before_any_run_the_official_tables_are_the_ones_to_be_filled(tmp_path, dataset, crop, schedule, sets, capsys):
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    tables.run(dataset, Places(tmp_path))
    assert (tmp_path / f"reports/tables/{dataset}.md").read_text() == HEAD + "".join(
        f"| {backbone} (OS={stride}, PRE=ImageNet) | {crop} | LR/POLICY/BS/EPOCH: {schedule} | {sets} | - | - |\n"
        for backbone in ("ResNet50", "ResNet101")
        for stride in (8, 16)
    )
    said = capsys.readouterr()
    assert (
        f"{dataset}_resnet50_os8: shown as -: not measured yet. Run: dvc repro evaluate@{dataset}_resnet50_os8\n"
        in said.err
    )
    assert not (tmp_path / "mlflow.db").exists()


def test_a_measured_cell_shows_percent_and_links_and_the_second_time_nothing_changes(folder, capsys):
    folder.train(CELL)
    folder.evaluate(CELL)
    folder.measure(CELL, 0.777249)
    table = folder.tables()
    unmeasured = DEMO.replace("OS=8", "OS=16")
    assert table == HEAD + f"| {DEMO} | train/val | 77.72% | {FILES} |\n| {unmeasured} | train/val | - | - |\n"
    said = capsys.readouterr()
    assert said.err == f"{OTHER}: shown as -: not measured yet. Run: dvc repro evaluate@{OTHER}\n"
    assert said.out.startswith("Demo: synthetic shapes\n")
    assert f"{CELL}          77.72%  [76.72, 79.72]\n" in said.out
    assert said.out.endswith("the runs: grid ui\n")

    (run,) = recorded()
    sheet = Path("reports/tables/shapes.csv").read_text()
    row = pd.read_csv("reports/tables/shapes.csv").iloc[0]
    assert (row["cell"], row["mIoU"], row["train_images"], row["keys"]) == (CELL, 0.777249, 320, run.data.tags["key"])
    assert (row["mIoU_low"], row["mIoU_high"]) == pytest.approx((0.767249, 0.797249))
    assert run.data.metrics["final/mIoU_high"] == row["mIoU_high"]
    assert row["data_fingerprint"] == folder.data
    assert row["weights_sha256"] == folder.weights(CELL, 0)["sha256"]
    assert "departs" not in run.data.tags

    assert folder.tables() == table
    assert Path("reports/tables/shapes.csv").read_text() == sheet
    assert [again.info.run_id for again in recorded()] == [run.info.run_id]


def test_a_measured_cell_has_a_model_card_that_the_hub_can_read(folder):
    from huggingface_hub import ModelCard

    folder.measure(CELL, 0.777249)
    folder.tables()
    path = Path(f"reports/cards/shapes/{CELL}.md")
    card = ModelCard.load(path)
    (result,) = [each for each in card.data.eval_results if each.metric_type == "mean_iou"]
    assert (result.metric_value, result.dataset_split, card.data.model_name) == (0.777249, "val", CELL)
    assert card.data.pipeline_tag == "image-segmentation"
    assert "mIoU 77.72 % [76.72, 79.72] on 64 images of `val`" in card.text
    (run,) = recorded()
    for traced in (folder.weights(CELL, 0)["sha256"], run.data.tags["key"], folder.data):
        assert f"`{traced}`" in card.text
    before = path.read_bytes()
    assert sorted(file.name for file in path.parent.iterdir()) == ["README.md", path.name]
    folder.tables()
    assert path.read_bytes() == before

    folder.prepare("prepared anew")
    folder.tables()
    assert [file.name for file in path.parent.iterdir()] == ["README.md"]
    assert "No cell has been measured yet" in (path.parent / "README.md").read_text()


def test_rows_that_were_measured_with_different_versions_are_named_below_the_table(folder):
    for cell, torch in ((CELL, "2.14.0"), (OTHER, "2.15.0")):
        folder.measure(cell, 0.7)
        record = Path(f"reports/records/shapes/{cell}.json")
        versions = {"torch": torch, "numpy": "2.4.6", "packages": f"list {torch}"}
        record.write_text(json.dumps(json.loads(record.read_text()) | {"versions": versions}))
    said = folder.tables()
    assert said.endswith(f"|\n\nMeasured with different versions: torch 2.14.0 ({CELL}) and 2.15.0 ({OTHER}).\n")
    (key,) = {run.data.tags["key"] for run in recorded() if run.info.run_name == CELL}
    folder.measure(OTHER, 0.7)  # as an older version recorded it
    assert folder.tables() == said.partition("\n\n")[0] + "\n"
    folder.measure(CELL, 0.7)
    folder.tables()
    assert {run.data.tags["key"] for run in recorded() if run.info.run_name == CELL} == {key}  # versions are no part


def test_several_seeds_show_mean_and_standard_deviation(folder):
    folder.raw["seeds"] = [0, 1, 2]
    folder.write_params()
    folder.measure(CELL, 0.70, 0.71, 0.72)
    row = folder.tables().splitlines()[2]
    assert "| 71.00% ± 1.00 |" in row
    weights = [folder.weights(CELL, seed) for seed in (0, 1, 2)]
    files = [Published(CELL, entry["file"], entry["sha256"], f"https://x/{entry['file']}") for entry in weights]
    write_published(Places().published("shapes"), [*files, Published(CELL, LOG, "0", "https://x/log")])
    assert (
        "[model 1](https://x/seed1.safetensors) · [model 2](https://x/seed2.safetensors) · [log](https://x/log) · [card"
        in folder.tables()
    )
    runs = recorded()
    assert {run.info.run_name for run in runs} == {CELL, f"{CELL}_seed1", f"{CELL}_seed2"}
    assert len({run.data.tags["mlflow.runColor"] for run in runs}) == 3


def test_a_cell_with_a_seed_missing_is_not_shown(folder, capsys):
    folder.measure(CELL, 0.7)
    folder.raw["seeds"] = [0, 1]
    folder.write_params()
    assert "%" not in folder.tables()
    assert (
        f"{CELL}: shown as -: reports/records/shapes/{CELL}.json was made with different seeds. Run:"
        in capsys.readouterr().err
    )


def test_a_cell_that_departs_from_its_recipe_is_marked_in_table_sheet_and_run(folder, monkeypatch):
    monkeypatch.setattr(departures, "SHARED", {"recipe": {"lr": 0.02}, "train": {"precision": "bf16"}})
    monkeypatch.setitem(departures.PUBLISHED, "shapes", {"batch_size": 8})
    folder.measure(CELL, 0.5)
    marked = DEMO + " (departs: batch_size 16 instead of 8, precision fp32)"
    assert f"| {marked} | train/val | 50.00% |" in folder.tables()
    assert set(pd.read_csv("reports/tables/shapes.csv")["departs"]) == {"batch_size 16 instead of 8, precision fp32"}
    assert recorded()[0].data.tags["departs"] == "batch_size 16 instead of 8, precision fp32"


def test_two_cells_that_differ_in_loss_or_rate_have_different_names_in_table_and_runs(folder):
    row = folder.raw["grid"][CELL]
    folder.raw["grid"] |= {
        "smooth": {**row, "train": {"loss": "label_smoothing"}},
        "fast": {**row, "recipe": {"lr": 0.1}},
    }
    folder.write_params()
    for cell in (CELL, "smooth", "fast"):
        folder.train(cell)
        folder.measure(cell, 0.7)
    names = [line.split(" | ")[0] for line in folder.tables().splitlines()[2:]]
    assert names == [
        "| ResNet18 (OS=8, PRE=none)",
        "| ResNet18 (OS=16, PRE=none)",
        "| ResNet18 (OS=8, PRE=none, loss=label_smoothing)",
        "| ResNet18 (OS=8, PRE=none, lr=0.1)",
    ]
    runs = {run.info.run_name: run.data.tags["mlflow.note.content"] for run in recorded()}
    assert runs.keys() == {CELL, "smooth (loss=label_smoothing)", "fast (lr=0.1)"}
    assert "lr=0.1" in runs["fast (lr=0.1)"]


def test_a_subset_is_named_as_one(folder):
    folder.measure(CELL, 0.5, images=(130, 64))
    assert "| train/val (subset: 130/64 of 320/64 images) | 50.00% |" in folder.tables()


def test_a_fresh_clone_with_metrics_alone_is_recorded_and_shows_the_same_table(folder):
    folder.measure(CELL, 0.5)
    assert f"| 50.00% | {FILES} |" in folder.tables()
    (run,) = recorded()
    assert run.info.status == "FINISHED"
    assert (run.data.tags["complete"], run.data.tags["current"]) == ("1", "1")
    assert run.data.params["backbone"] == "resnet18"


@pytest.mark.parametrize(
    ("section", "key", "value", "changed"),
    [("recipes", "shapes", {"epochs": 5}, "settings"), ("protocols", "single_scale", {"flip": True}, "protocol")],
)
def test_other_settings_show_no_number_and_the_old_ones_show_it_again(folder, capsys, section, key, value, changed):
    folder.measure(CELL, 0.5)
    table = folder.tables()
    before = folder.raw[section][key]
    folder.raw[section][key] = before | value
    folder.write_params()
    capsys.readouterr()
    assert "%" not in folder.tables()
    assert f"{CELL}.json was made with different {changed}. Run: dvc repro evaluate@{CELL}" in capsys.readouterr().err
    assert [run.data.tags["current"] for run in recorded()] == ["0"]

    folder.raw[section][key] = before
    folder.write_params()
    assert folder.tables() == table
    assert [run.data.tags["current"] for run in recorded()] == ["1"]


def test_other_data_shows_no_number(folder, capsys):
    folder.measure(CELL, 0.5)
    folder.prepare("prepared anew")
    assert "%" not in folder.tables()
    assert f"{CELL}.json was made with different data." in capsys.readouterr().err


def test_a_new_number_supersedes_the_old_run(folder):
    folder.measure(CELL, 0.5)
    folder.tables()
    folder.measure(CELL, 0.6)
    assert "60.00%" in folder.tables()
    assert {run.data.metrics["final/mIoU"]: run.data.tags["current"] for run in recorded()} == {0.5: "0", 0.6: "1"}


def test_a_cell_that_left_the_grid_leaves_the_table(folder):
    folder.measure(OTHER, 0.5)
    del folder.raw["grid"][OTHER]
    folder.write_params()
    table = folder.tables()
    assert len(table.splitlines()) == 3
    assert "%" not in table


def test_a_colleagues_run_of_the_same_recipe_data_and_code_fills_the_cell(folder, tmp_path, monkeypatch):
    colleague = Folder(tmp_path / "colleague")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(colleague.path)
    colleague.measure(CELL, 0.6)
    colleague.tables()
    monkeypatch.chdir(folder.path)
    assert f"| {DEMO} | train/val | 60.00% | - |" in folder.tables()

    folder.measure(CELL, 0.61)
    assert f"| 61.00% | {FILES} |" in folder.tables()  # one's own comes first


@pytest.mark.parametrize("part", ["cell", "data", "code", "protocol"])
def test_a_colleagues_run_that_differs_fills_nothing(folder, part, capsys):
    current = current_fingerprint(CELL, folder.params, Places(), folder.data)
    tags = {f"{name}_fingerprint": value for name, value in (current | {part: "0" * 64}).items()}
    with open_experiment("shapes", timeout=5) as experiment:
        run = experiment.create(CELL, {"cell": CELL, "seed": "0", **tags}, None)
        experiment.client.set_tag(run, "complete", "1")
    assert "%" not in folder.tables()
    assert f"{CELL}: shown as -: not measured yet." in capsys.readouterr().err


def test_without_a_server_the_metrics_fill_the_table_and_one_warning_says_so(folder, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    folder.measure(CELL, 0.5)
    folder.measure(OTHER, 0.4)
    table = folder.tables()
    assert f"| 50.00% | {FILES} |" in table
    assert "| 40.00% |" in table
    said = capsys.readouterr()
    assert said.err.startswith(
        "warning: no MLflow: reports/records/shapes alone fills the table, and is not recorded: http://"
    )
    assert said.err.count("\n") == 1
    assert "secret" not in said.err + said.out


def test_the_address_of_a_server_is_shown_without_the_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://someone:secret@server:5000")
    assert sync.address_of("#/experiments/7") == "https://server:5000/#/experiments/7"


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"fingerprint": {}})])
@tried.RESULTS
def test_a_broken_metrics_file_is_named(folder, content):
    path = Path(f"reports/records/shapes/{CELL}.json")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(DataError, match=rf"{path}: damaged, or edited by hand .* Run: dvc repro -f evaluate@{CELL}"):
        folder.tables()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("cell",), "another", "it is the record of the cell another"),
        (
            ("seeds", "0", "single_scale", "mIoU"),
            7.5,
            r"seeds\.0\.single_scale\.mIoU: Input should be less than or equal to 1",
        ),
        (
            ("seeds", "0", "single_scale", "mIoU"),
            float("nan"),
            r"seeds\.0\.single_scale\.mIoU: Input should be a finite number",
        ),
        (("seeds", "0", "single_scale", "mIoU_low"), 0.6, "mIoU is 0.5, and not between mIoU_low and mIoU_high"),
        (("images", "train"), "many", r"images\.train: Input should be a valid integer"),
        (("weights", "0"), None, r"weights\.0: Input should be an object"),
    ],
)
@tried.RESULTS
def test_a_record_that_evaluate_cannot_have_written_is_refused(folder, place, value, message):
    folder.measure(CELL, 0.5)
    path = Path(f"reports/records/shapes/{CELL}.json")
    record = json.loads(path.read_text())
    inner = record
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=message):
        folder.tables()


def test_a_record_that_is_read_and_written_again_has_the_same_bytes(folder):
    committed = [*(ROOT / "reports/records").rglob("*.json"), *(ROOT / "examples").rglob("records/*/*.json")]
    assert committed
    for path in committed:
        assert Record.read(path).text().encode() == path.read_bytes()
    scores = {"mIoU": 0.5, "pixel_accuracy": 0.9, "mean_accuracy": 0.8, "classes_evaluated": 3}
    assert '"mIoU_low"' not in record_of(Scores(**scores)).text()  # of one image there is no interval


def record_of(scores):
    return Record(
        cell=CELL,
        dataset="shapes",
        images={"train": 1, "val": 1},
        protocols={"single_scale": {}},
        seeds={"0": {"single_scale": scores}},
        fingerprint=Inputs(cell="", data="", code=""),
        weights={"0": Weights(file="seed0.safetensors", sha256="")},
    )


@tried.RESULTS
def test_a_record_edited_by_hand_disagrees_with_its_metrics(folder):
    folder.measure(CELL, 0.5)
    Path("reports/metrics").mkdir()
    Path(f"reports/metrics/{CELL}.json").write_text('{"mIoU": 0.4}')
    with pytest.raises(DataError, match="mIoU is 0.5, but 0.4 in reports/metrics"):
        folder.tables()


def test_a_number_of_other_code_is_not_shown_unless_that_code_is_accepted(folder, capsys):
    folder.measure(CELL, 0.5)
    path, current = Path(f"reports/records/shapes/{CELL}.json"), folder.fingerprint(CELL)["code"]
    record = json.loads(path.read_text())
    record["fingerprint"]["code"] = "0" * 64
    path.write_text(json.dumps(record))
    assert "50.00%" not in folder.tables()
    assert "was made with different code" in capsys.readouterr().err
    Path("reports/equivalent_code.txt").write_text(
        f"# accepted\n{'0' * 64} {current} a renamed variable, same loss bit for bit\n"
    )
    assert "50.00%" in folder.tables()
