"""`eval_splits` in params.yaml: further splits that cells are evaluated on. Their numbers decide nothing."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab.errors import DataError
from deeplab.store import Store
from pipeline.errors import MismatchError, ParamsError
from pipeline.page.results import split_number
from pipeline.results.records import Record, read_results
from pipeline.results.table import csv_row, make_rows
from pipeline.results.values import fill_values
from pipeline.runner.run import starts_after
from pipeline.settings.code import code_of, entries
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.settings.yaml import read_yaml
from pipeline.stages import evaluate, extend, prepare, tables
from pipeline.tracking import sync
from pipeline.tracking.client import open_experiment
from pipeline.verify.recompute import check_runs, recompute
from tests.records import CELL, OTHER, Folder, blank_database
from tests.tiny import tiny_params, write_weights

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # MLflow's own
]
NAME = "tiny_os8"
FOLDER = {"images": "{split}/images", "masks": "{split}/masks", "classes": "classes.txt", "ignore": [255]}


def on_folder(params):
    """Images of a folder, evaluated on val, on test, and on what they are trained on."""
    params["datasets"]["tiny"] |= {"format": "folder", "images": {"train": 4, "val": 2}, "folder": FOLDER}
    params["eval_splits"] = {"tiny": ["val", "test", "train"]}


def write_raw(raw, test=3):
    """Pictures of three classes. The first one of test is also in train."""
    rng = np.random.default_rng(0)
    raw.mkdir(parents=True)
    (raw / "classes.txt").write_text("0 class 0\n1 class 1\n2 class 2\n")
    for split, count in (("train", 4), ("val", 2), ("test", test)):
        for kind in ("images", "masks"):
            (raw / split / kind).mkdir(parents=True)
        for index in range(count):
            mask = np.kron(rng.integers(0, 3, (4, 4), np.uint8), np.ones((8, 12), np.uint8))
            image = np.stack([mask * 70 + rng.integers(0, 30, mask.shape, np.uint8)] * 3, axis=-1)
            Image.fromarray(image).save(raw / split / f"images/{split}{index}.png")
            Image.fromarray(mask).save(raw / split / f"masks/{split}{index}.png")
    for kind in ("images", "masks"):
        shutil.copyfile(raw / f"train/{kind}/train1.png", raw / f"test/{kind}/test0.png")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A project whose data set and further splits are prepared, and what that printed."""
    root = tmp_path_factory.mktemp("splits")
    places = Places(root)
    tiny_params(places.params, on_folder)
    write_raw(places.raw("tiny"))
    prepare.run("tiny", places)
    main = places.manifest("tiny").read_bytes()
    extend.run("tiny", places)
    assert places.manifest("tiny").read_bytes() == main
    return root


@pytest.fixture
def places(prepared, tmp_path, monkeypatch):
    """A copy of it, with weights that nobody trained, as the working folder."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    places = Places()
    cell, store = load_params().cell(NAME), Store(places.store("tiny"))
    about = {"cell": cell.fingerprint, "data": store.fingerprint, "code": code_of("train", load_params(), places, NAME)}
    write_weights(places.weights(NAME) / "seed0.safetensors", **about)
    return places


def rows_of(places):
    params = load_params(places.params)
    results, reasons = read_results("tiny", params, places)
    return make_rows("tiny", results, reasons, params, places)


def test_a_further_split_is_a_store_of_its_own_and_its_card_names_images_that_are_in_training(places, capsys):
    extend.run("tiny", places)
    assert (
        "tiny: WARNING: 1 of 3 images of test are also in train, which makes its number too good: "
        "for example test test/images/test0 = train train/images/train1; all are on the data card\n"
    ) in capsys.readouterr().out
    assert [record.id for record in Store(places.splits("tiny") / "test").records] == [
        f"test/images/test{k}" for k in range(3)
    ]
    assert not (places.splits("tiny") / "train").exists()  # the store of the data set has it
    card = json.loads((places.split_cards("tiny") / "test/card.json").read_text())
    assert card["splits"]["test"]["images"] == 3
    assert card["duplicates"] == [
        [{"split": "test", "id": "test/images/test0"}, {"split": "train", "id": "train/images/train1"}]
    ]


def test_an_evaluation_measures_every_split_and_val_alone_decides(places, capsys):
    evaluate.run(NAME, places)
    record = Record.read(places.record("tiny", NAME))
    assert record.images == {"train": 4, "val": 2}
    assert {split: each.images for split, each in record.splits.items()} == {"test": 3, "train": 4}
    assert record.splits["train"].data == record.fingerprint.data != record.splits["test"].data
    seen = [record.seeds["0"]["single_scale"], *(each.seeds["0"]["single_scale"] for each in record.splits.values())]
    assert len({scores.mIoU for scores in seen}) == 3
    assert json.loads(places.metrics(NAME).read_text())["mIoU"] == seen[0].mIoU
    said = capsys.readouterr().out
    assert said.index("on test:") < said.index("on train:")

    (row,) = rows_of(places)
    found = csv_row(row)
    assert (found["mIoU"], found["test.mIoU"], found["train.mIoU"]) == tuple(scores.mIoU for scores in seen)
    assert (found["test.eval_images"], found["test.data_fingerprint"]) == (3, record.splits["test"].data)


def test_the_measures_of_columns_are_those_of_the_validation_split_alone(places):
    places.params.write_text(json.dumps(read_yaml(places.params) | {"columns": ["boundary_iou"]}))
    evaluate.run(NAME, places)
    record = Record.read(places.record("tiny", NAME))
    assert record.seeds["0"]["single_scale"].measures.keys() == {"boundary_iou"}
    assert not any(each.seeds["0"]["single_scale"].measures for each in record.splits.values())


def test_a_number_on_other_images_is_not_shown_and_the_one_on_val_is(places, capsys, monkeypatch):
    monkeypatch.setattr(tables, "synchronise", lambda _, local, *__: (local, ""))
    evaluate.run(NAME, places)
    raw = places.raw("tiny") / "test"
    (raw / "images/test2.png").unlink()
    (raw / "masks/test2.png").unlink()
    extend.run("tiny", places)
    capsys.readouterr()
    tables.run("tiny", places)
    assert capsys.readouterr().err == (
        f"{NAME}: test shown as -: not measured on the current images. Run: dvc repro -f evaluate@{NAME}\n"
    )
    (row,) = rows_of(places)
    assert csv_row(row)["mIoU"]
    assert csv_row(row)["train.mIoU"]
    assert csv_row(row)["test.mIoU"] is None


def test_the_weights_give_the_number_on_a_further_split_again_or_not(places):
    evaluate.run(NAME, places)
    (row,) = rows_of(places)
    (result,) = row.results
    recompute(NAME, [result], load_params(), places)
    test = result.splits["test"]
    wrong = replace(test, scores=test.scores | {"mIoU": 0.987})
    with pytest.raises(MismatchError, match=r"gives mIoU 0\.\d+ on test of .*splits/test, but the record says 0\.987"):
        recompute(NAME, [replace(result, splits={"test": wrong})], load_params(), places)
    with pytest.raises(MismatchError, match=r"splits/test is not the data of its record"):
        recompute(NAME, [replace(result, splits={"test": replace(test, data="other")})], load_params(), places)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: shutil.rmtree(raw / "test"), r"test/images: not found. This is where folder.images"),
        (lambda raw: [path.unlink() for path in (raw / "test/masks").iterdir()], "test0.png: no mask of this"),
        (lambda raw: (raw / "test/masks/test1.png").write_bytes(b"no mask"), r"1 of 3 samples cannot be used"),
        (lambda raw: Image.new("L", (48, 32), 9).save(raw / "test/masks/test1.png"), r"1 of 3 samples cannot be used"),
        (
            lambda raw: (raw / "classes.txt").write_text("0 class 0\n1 class 1\n2 other\n"),
            "other classes than those of",
        ),
        (
            lambda raw: [Image.new("L", (48, 32), 255).save(path) for path in (raw / "test/masks").iterdir()],
            "the masks of test hold ignored pixels alone: nothing to measure",
        ),
    ],
    ids=["no folder", "no masks", "damaged", "unknown label", "classes", "all ignored"],
)
def test_a_split_that_cannot_be_used_is_refused_and_the_main_store_stays(places, spoil, message):
    main = places.manifest("tiny").read_bytes()
    spoil(places.raw("tiny"))
    with pytest.raises(DataError, match=message):
        extend.run("tiny", places)
    assert places.manifest("tiny").read_bytes() == main


def test_an_evaluation_without_the_split_names_what_prepares_it(places):
    shutil.rmtree(places.splits("tiny"))
    with pytest.raises(DataError, match=r"the split 'test' is not prepared. Run: dvc repro extend@tiny"):
        evaluate.run(NAME, places)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"tiny": ["test"]}, r"eval_splits\.tiny: got \['test'\], expected 'val' too, the val_split of its recipe"),
        ({"tiny": ["val", "test", "test"]}, r"eval_splits\.tiny: got .*, expected each split once"),
        ({"tinny": ["val"]}, r"eval_splits: unknown name 'tinny'; did you mean 'tiny'\?"),
        ({"tiny": ["val", "a/b"]}, r"eval_splits\.tiny\.1: got 'a/b'"),
        ({"tiny": ["val", 3]}, r"eval_splits\.tiny\.1: got 3"),
        ({"tiny": "val"}, r"eval_splits\.tiny: got 'val'"),
        (["val", "test"], r"eval_splits: got \['val', 'test'\]"),
        (None, r"eval_splits: got None"),
    ],
)
def test_a_mistake_in_eval_splits_is_one_line_with_its_place(tmp_path, value, message):
    path = tiny_params(tmp_path / "params.yaml", lambda params: params.update(eval_splits=value))
    with pytest.raises(ParamsError, match=message):
        load_params(path)


def test_an_unknown_split_of_a_format_is_named_with_those_that_exist(tmp_path):
    def edit(params):
        params["datasets"]["tiny"] |= {"format": "cityscapes"}
        params["eval_splits"] = {"tiny": ["val", "test"]}

    places = Places(tmp_path)
    params = load_params(tiny_params(places.params, edit))
    with pytest.raises(ParamsError, match=r"splits of the format cityscapes: unknown name 'test'"):
        extend.build("tiny", "test", None, params, places)


def test_a_further_split_changes_the_code_of_evaluations_alone(tmp_path):
    def hashes(*splits):
        chosen = {"eval_splits": {"tiny": list(splits)}} if splits else {}
        params = load_params(tiny_params(tmp_path / "params.yaml", lambda content: content.update(chosen)))
        return params, entries(params, Places(tmp_path))

    _, before = hashes()
    _, alone = hashes("val")
    params, after = hashes("val", "test")
    assert alone.items() - before.items() == {("extend.tiny", after["extend.tiny"])}
    assert {entry for entry in after if after[entry] != alone[entry]} == {f"evaluate.{NAME}"}
    assert starts_after(params) == {f"evaluate@{NAME}": "extend@tiny"}


@pytest.fixture
def folder(tmp_path, tmp_path_factory, monkeypatch):
    """Two cells of the demo: one that was measured on val and test, and one that was not."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    here = Folder(tmp_path, blank_database(tmp_path_factory.getbasetemp()))
    here.raw["eval_splits"] = {"shapes": ["val", "test"]}
    here.raw["datasets"]["shapes"]["images"]["test"] = 32
    here.raw["prose"] = ["paper.md"]
    here.write_params()
    (tmp_path / "paper.md").write_text(f"It has <!-- value: {CELL}.test.mIoU -->-<!-- /value --> on test.\n")
    here.train(CELL)
    here.measure(CELL, 0.7)
    path = Path(f"reports/records/shapes/{CELL}.json")
    record = json.loads(path.read_text())
    scores = record["seeds"]["0"]["single_scale"] | {"mIoU": 0.6, "mIoU_low": 0.55, "mIoU_high": 0.65}
    record["splits"] = {"test": {"images": 24, "data": "d4ta", "seeds": {"0": {"single_scale": scores}}}}
    path.write_text(json.dumps(record))
    return here


def test_every_form_of_the_table_has_the_number_of_the_split(folder):
    head, _, first, second, *_ = folder.tables().splitlines()
    assert "| mIoU | mIoU (test) |" in head
    assert "| 70.00% | 60.00% (subset: 24 of 32 images) |" in first
    assert "| train/val | - | - | - |" in second
    latex = Path("reports/tables/shapes.tex").read_text()
    assert r"mIoU & mIoU (test) \\" in latex
    assert rf"gridvalue:{CELL}.test.mIoU\endcsname{{60.00\%}}" in latex
    assert rf"gridvalue:{OTHER}.test.mIoU\endcsname{{-}}" in latex
    card = Path(f"reports/cards/shapes/{CELL}.md").read_text()
    assert "On 24 images of `test`, which decided nothing: mIoU 60.00 % [55.00, 65.00]." in card
    assert "split: test" in card
    text = fill_values(Path("paper.md").read_bytes(), "shapes", Path("paper.md"), folder.params, Places())
    assert b"-->60.00%<!--" in text


def test_the_page_shows_the_number_with_its_interval(folder):
    folder.tables()
    with Path("reports/tables/shapes.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (split_number(first, "test"), split_number(second, "test")) == ("60.00 [55.00, 65.00]", "-")


def test_mlflow_has_the_number_and_gives_it_back(folder):
    folder.tables()
    with open_experiment("shapes", timeout=5) as experiment:
        (run,) = experiment.runs()
    assert run.data.metrics["final/mIoU"] == 0.7
    assert run.data.metrics["final/test/mIoU"] == 0.6
    local, _ = read_results("shapes", folder.params, Places())
    ((_, result),) = local.items()
    again, _ = sync.synchronise("shapes", local, folder.params, Places())
    assert again[CELL, 0].splits == result.splits
    with open_experiment("shapes", timeout=5) as experiment:
        experiment.client.log_metric(run.info.run_id, "final/test/mIoU", 0.9)
    with pytest.raises(MismatchError, match="has the key|says test/mIoU 0.9, the record 0.6"):
        check_runs(CELL, [result], folder.params)
