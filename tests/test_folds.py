"""`folds` of a recipe: run k trains without fold k and is evaluated on it. And the seeds of one row."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import pytest

from deeplab.config import FoldConfig
from deeplab.counts import gather, read_counts, write_counts
from deeplab.errors import DataError, SettingsError
from deeplab.images import evaluation_images, training_images
from deeplab.intervals import comparable, difference, interval
from deeplab.metrics import score
from deeplab.store import Store
from deeplab.store_writer import StoreWriter
from deeplab.training import total_steps
from pipeline.errors import MismatchError, ParamsError
from pipeline.page.inputs import DatasetPage
from pipeline.page.verdicts import why_not
from pipeline.predict.weights import find_weights
from pipeline.results.model_card import make_cards
from pipeline.results.records import read_results
from pipeline.results.splits import SplitResult
from pipeline.results.statistics import describe
from pipeline.results.table import csv_row, make_rows, markdown, sheet
from pipeline.runner import trial
from pipeline.runner.plan import plan
from pipeline.settings.code import code_of, modules_of
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.settings.yaml import read_yaml
from pipeline.stages import compare, evaluate, train
from pipeline.tracking.models import best_of
from pipeline.training.reuse import take_trained
from pipeline.verify.bundle.check import check_record
from pipeline.verify.history import Measured, words
from pipeline.verify.recompute import recompute
from pipeline.verify.training import repeated
from tests.tiny import recipe_config, tiny_cell, tiny_params

pytestmark = pytest.mark.usefixtures("one_thread")
CELL, OTHER = "tiny_os8", "other_os16"
DRIVES = {"a": 3, "b": 4, "c": 3, "d": 2, "e": 4, "f": 2, "g": 3}  # group -> images
FOLDS = {"count": 3, "group": "^[a-z]"}


def write_drives(folder, drives, classes=3):
    """A store whose training images are named by their drive, a0, a1, b0 and so on."""
    rng = np.random.default_rng(0)
    with StoreWriter(folder, tuple(f"class {k}" for k in range(classes)), ((0, 0, 0), (9, 9, 9), (99, 9, 9))) as writer:
        names = [f"{drive}{index}" for drive, count in drives.items() for index in range(count)]
        for split, name in [*(("train", name) for name in names), ("val", "v0"), ("val", "v1")]:
            mask = np.kron(rng.integers(0, classes, (4, 4), np.uint8), np.ones((10, 12), np.uint8))
            image = np.stack([mask * 70 + rng.integers(0, 30, mask.shape, np.uint8)] * 3, axis=-1).astype(np.uint8)
            writer.add(split, name, image, mask)
    return Store(folder)


def names(split):
    return [record.id for record in split.records]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_drives(tmp_path_factory.mktemp("drives"), DRIVES)


def with_folds(count=3, group="^[a-z]"):
    return recipe_config(folds=FoldConfig(count=count, group=group))


def test_each_image_is_in_one_fold_and_no_training_sees_a_drive_of_its_fold(store):
    whole, seen, sizes = names(store.split("train")), [], []
    for fold in range(3):
        trained, held_out = (
            names(images(store, with_folds(), fold)) for images in (training_images, evaluation_images)
        )
        assert sorted(trained + held_out) == sorted(whole)
        assert not {name[0] for name in trained} & {name[0] for name in held_out}
        seen += held_out
        sizes.append(len(held_out))
    assert sorted(seen) == sorted(whole)
    assert sorted(sizes) == [6, 7, 8]  # whole drives


def test_without_folds_each_run_has_the_training_and_the_validation_split(store):
    assert names(training_images(store, recipe_config(), 5)) == names(store.split("train"))
    assert names(evaluation_images(store, recipe_config(), 5)) == ["v0", "v1"]


def test_without_a_group_images_are_drawn_one_by_one_and_copies_of_one_stay_together(tmp_path):
    names_ = [f"p{index // 2}_jpg.rf.{index}" for index in range(12)] + [f"q{index}" for index in range(8)]
    store = write_drives(tmp_path, dict.fromkeys(names_, 1))
    folds = [names(evaluation_images(store, with_folds(4, None), fold)) for fold in range(4)]
    assert [len(fold) for fold in folds] == [5, 5, 5, 5]
    assert [len({name[:2] for name in fold} & {name[:2] for name in other}) for fold in folds for other in folds] == [
        *(len({name[:2] for name in fold}) if fold == other else 0 for fold in folds for other in folds)
    ]
    assert [name[:2] for fold in folds for name in fold] != sorted(name[:2] for fold in folds for name in fold)


@pytest.mark.parametrize(
    ("count", "group", "said"),
    [
        (
            8,
            "^[a-z]",
            r"folds\.count is 8, but folds\.group '\^\[a-z\]' makes 7 groups of 21 images\. Choose fewer folds",
        ),
        (3, "^([a-f])", r"folds\.group '\^\(\[a-f\]\)' is not in 3 of 21 names of images, such as 'g0'"),
    ],
)
def test_folds_that_cannot_be_made_say_why(store, count, group, said):
    with pytest.raises(DataError, match=said):
        training_images(store, with_folds(count, group), 0)


def settings(place, **recipe):
    """A params.yaml with a network of 0.3 million parameters in three folds, and one beside it without folds."""

    def edit(params):
        small = {**params["grid"].pop(CELL), "backbone": "mobilenetv3_small_050", "output_stride": 16}
        params["grid"] = {CELL: {**small, "recipe": {"folds": FOLDS, **recipe}}, OTHER: small}
        params["datasets"]["tiny"]["images"] = {"train": 21, "val": 2}

    (place / "params.yaml").unlink(missing_ok=True)
    tiny_params(place / "params.yaml", edit)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """A folder whose cell was trained and evaluated in three folds, and a second one as usual."""
    place = tmp_path_factory.mktemp("folds")
    settings(place)
    write_drives(place / "data/tiny", DRIVES)
    for name in (CELL, OTHER):
        train.run(name, Places(place))
        evaluate.run(name, Places(place))
    return place


def test_a_cell_has_a_training_for_each_fold_whose_number_is_its_seed(trained_once):
    params, places = load_params(trained_once / "params.yaml"), Places(trained_once)
    assert params.runs == {CELL: (0, 1, 2), OTHER: (0,)}
    seeds = json.loads(places.facts(CELL).read_text())["seeds"]
    steps = total_steps(14, params.cell(CELL).recipe)
    assert {seed: (facts["seed"], facts["iterations"]) for seed, facts in seeds.items()} == {
        str(fold): (fold, steps) for fold in range(3)
    }
    assert total_steps(21, params.cell(OTHER).recipe) > steps


def test_the_table_has_mean_and_spread_over_the_folds_each_on_its_own_images(trained_once):
    params, places, store = (
        load_params(trained_once / "params.yaml"),
        Places(trained_once),
        Store(trained_once / "data/tiny"),
    )
    counts = read_counts(places.counts("tiny", CELL))
    held_out = [names(evaluation_images(store, params.cell(CELL).recipe, fold)) for fold in range(3)]
    assert [list(each.images) for each in counts.values()] == held_out
    own = [score(each.matrix).mean_iou for each in counts.values()]
    row, other = make_rows("tiny", read_results("tiny", params, places)[0], {}, params, places)
    line = csv_row(row)
    assert line["mIoU"] == pytest.approx(np.mean(own), abs=1e-6)
    assert line["mIoU_std"] == pytest.approx(np.std(own, ddof=1), abs=1e-6)
    assert (line["train_images"], line["eval_images"], line["seeds"]) == (21, 21, "0 1 2")
    ends = [[result.scores[end] for result in row.results] for end in ("mIoU_low", "mIoU_high")]
    apart = [np.sqrt(np.sum((np.array(end) - own) ** 2)) / 3 for end in ends]
    assert [line["mIoU"] - line["mIoU_low"], line["mIoU_high"] - line["mIoU"]] == pytest.approx(apart, abs=1e-5)
    text = markdown([row, other]).splitlines()
    assert "folds=3/" in text[2]
    assert "| train in 3 folds |" in text[2]
    assert " ± " in text[2]
    assert "| train/val |" in text[3]


def test_the_interval_of_folds_is_that_of_their_mean_and_pairs_on_other_images_are_left_out(trained_once):
    places = Places(trained_once)
    compare.run("tiny", places)
    found = json.loads(places.statistics("tiny").read_text())
    cell = found["cells"][CELL]
    assert (cell["images"], cell["folds"], found["cells"][OTHER]["images"]) == (21, 3, 2)
    assert cell["low"] < cell["mIoU"] < cell["high"]
    assert cell["low_seeds"] is None
    assert found["pairs"] == []


def test_folds_are_drawn_apart_in_a_bootstrap():
    """The error of the mean of k independent folds is that of one by the root of k."""
    rng = np.random.default_rng(0)

    def counts(names_):
        truth = rng.integers(1, 400, (len(names_), 3))
        right = np.rint(truth * rng.uniform(0.3, 0.9, (len(names_), 1))).astype(int)
        matrices = [
            np.diag(hit) + np.roll(np.diag(all_ - hit), 1, axis=1) for hit, all_ in zip(right, truth, strict=True)
        ]
        return gather(matrices, names_, ["a", "b", "c"])

    folds = [counts([f"{fold}-{index}" for index in range(80)]) for fold in range(4)]
    alone = [interval([fold]).error for fold in folds]
    assert interval(folds).error == pytest.approx(np.sqrt(np.sum(np.square(alone))) / 4, rel=0.1)
    others = [replace(fold, pixels=fold.pixels + 1) for fold in folds]
    assert comparable(folds, others)
    assert not comparable(folds, folds[:3])
    with pytest.raises(DataError, match="different images"):
        difference(folds, folds[:3])
    assert difference(folds, others).error < interval(folds).error / 10  # paired


def test_cells_with_the_same_folds_are_compared(tmp_path):
    cell = tiny_cell(recipe=with_folds())
    rng = np.random.default_rng(0)
    runs = [
        gather([np.diag(rng.integers(1, 9, 3)) for _ in range(5)], [f"{fold}{index}" for index in range(5)], "abc")
        for fold in range(3)
    ]
    write_counts(tmp_path / "counts.npz", {(fold, "single"): run for fold, run in enumerate(runs)})
    held = list(read_counts(tmp_path / "counts.npz").values())
    assert [list(run.images) for run in held] == [list(run.images) for run in runs]
    found = describe({"one": runs, "other": held}, {"one": cell, "other": cell})
    assert [(pair["difference"], pair["low_seeds"], pair["high_seeds"]) for pair in found["pairs"]] == [
        (0.0, None, None)
    ]


def test_verify_repeats_each_fold_on_its_own_images(trained_once, monkeypatch):
    places = Places(trained_once)
    params = load_params(places.params)
    results = read_results("tiny", params, places)[0]
    own = [results[CELL, fold] for fold in range(3)]
    recompute(CELL, own, params, places)
    assert all("the same bits" in line for line in repeated([CELL], places))
    monkeypatch.setattr("deeplab.images.DIVISIONS", {"folds": lambda split, *_: (split, split)})
    with pytest.raises(MismatchError, match="but the record says"):
        recompute(CELL, own, params, places)


def test_the_plan_counts_the_trainings_and_images_of_folds(trained_once):
    params = load_params(trained_once / "params.yaml")
    costs = [
        line.cost
        for line in plan(params, dict.fromkeys((f"train@{CELL}", f"train@{OTHER}"), "-"), Places(trained_once)).to_run
    ]
    assert [cost.iterations for cost in costs] == [3 * 2 * (14 // 4), 2 * (21 // 4)]


def test_the_code_of_folds_is_that_of_cells_with_folds_alone(trained_once):
    params, places = load_params(trained_once / "params.yaml"), Places(trained_once)
    for stage in ("train", "evaluate"):
        assert code_of(stage, params, places, CELL) != code_of(stage, params, places, OTHER)
        assert "deeplab.folds" in modules_of(stage, frozenset({"folds"}), Path(__file__).parents[1])
        assert "deeplab.folds" not in modules_of(stage, frozenset(), Path(__file__).parents[1])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"recipe": {"folds": {"count": 1}}}, r"grid\.tiny_os8\.recipe\.folds\.count: got 1"),
        ({"recipe": {"folds": {"count": 3, "group": "("}}}, r"folds\.group: got '\(', expected a regular expression"),
        ({"recipe": {"folds": 5}}, r"grid\.tiny_os8\.recipe\.folds: got 5"),
        ({"recipe": {"folds": FOLDS}, "seeds": [0, 1]}, r"grid\.tiny_os8\.seeds: got \[0, 1\] beside folds"),
        ({"recipe": {"folds": FOLDS}, "train": {"keep": "best"}}, r"folds: expected without keep: best and patience"),
        ({"seeds": [1, 1]}, r"seeds: got \[1, 1\], expected each seed once"),
        ({"seeds": []}, r"grid\.tiny_os8\.seeds"),
        ({"seeds": [-1]}, r"grid\.tiny_os8\.seeds\.0: got -1"),
        (
            {"init": {"cell": "parent"}, "seeds": [0, 3]},
            r"starts from the cell parent, which has no seed 3, only \[0\]",
        ),
        ({"init": {"cell": "parent"}, "recipe": {"folds": FOLDS}}, r"starts from the cell parent, which has no seed 1"),
        (
            {"init": {"cell": "many"}, "recipe": {"folds": FOLDS}},
            r"trained on the images of its folds\. Give both the same",
        ),
    ],
)
def test_folds_and_seeds_that_do_not_fit_are_refused_with_place_and_remedy(tmp_path, row, said):
    def edit(params):
        plain = dict(params["grid"][CELL])
        params["grid"] |= {"parent": plain, "many": {**plain, "seeds": [0, 1, 2]}}
        params["grid"][CELL] |= row

    with pytest.raises(ParamsError, match=said):
        load_params(tiny_params(tmp_path / "params.yaml", edit))


def test_a_child_in_folds_starts_from_the_same_fold_of_its_parent(tmp_path):
    def edit(params):
        plain = {**params["grid"][CELL], "recipe": {"folds": FOLDS}}
        params["grid"] = {"parent": plain, "child": {**plain, "init": {"cell": "parent"}}}

    assert load_params(tiny_params(tmp_path / "params.yaml", edit)).runs["child"] == (0, 1, 2)


def test_a_row_can_have_seeds_of_its_own(tmp_path):
    def edit(params):
        params["grid"][OTHER] = dict(params["grid"][CELL])
        params["grid"][CELL]["seeds"] = [2, 0]

    params = load_params(tiny_params(tmp_path / "params.yaml", edit))
    assert params.runs == {CELL: (2, 0), OTHER: (0,)}
    assert params.cell(CELL).fingerprint == params.cell(OTHER).fingerprint  # more seeds train no finished one again


def rows_of(place):
    """The rows of the table, and its settings."""
    params, places = load_params(place / "params.yaml"), Places(place)
    return make_rows("tiny", read_results("tiny", params, places)[0], {}, params, places), params


def test_a_bundle_has_the_interval_of_folds(trained_once):
    rows, _ = rows_of(trained_once)
    for line in csv.DictReader(io.StringIO(sheet(rows))):
        check_record(line, "tiny", Places(trained_once))
        with pytest.raises(MismatchError, match="mIoU_low is 0.0, expected 0.[0-9]+"):
            check_record(line | {"mIoU_low": "0.0"}, "tiny", Places(trained_once))


def test_a_cell_with_a_fold_of_one_image_is_left_out_of_the_statistics_and_no_other_is(
    trained_once, monkeypatch, capsys
):
    def short(results, params, places):
        runs = read_runs(results, params, places)
        return [*runs[:-1], gather([runs[-1].matrix], ["a0"], "abc")] if len(runs) > 1 else runs

    read_runs = compare.read_runs
    monkeypatch.setattr(compare, "read_runs", short)
    compare.run("tiny", Places(trained_once))
    assert list(json.loads(Places(trained_once).statistics("tiny").read_text())["cells"]) == [OTHER]
    assert f"{CELL}: left out: fold 2 has 1 images with labelled pixels" in capsys.readouterr().err


def test_on_a_further_split_all_folds_have_the_same_images(trained_once):
    (row, _), params = rows_of(trained_once)
    results = tuple(
        replace(each, splits={"train": SplitResult(images=21, data="d", scores=each.scores)}) for each in row.results
    )
    row = replace(row, splits=("train",), results=results)
    line = csv_row(row)
    for end in ("mIoU_low", "mIoU_high"):
        assert line[f"train.{end}"] == pytest.approx(fmean(each.scores[end] for each in results))
    assert line["train.mIoU_high"] - line["train.mIoU_low"] > line["mIoU_high"] - line["mIoU_low"]
    card = make_cards("tiny", [row], params)[f"{CELL}.md"]
    assert card.count("split: train in 3 folds\n") == card.count("split: train\n") > 0


def test_folds_have_no_verdict_beside_a_published_number(trained_once):
    rows, params = rows_of(trained_once)
    lines = csv.DictReader(io.StringIO(sheet(rows)))
    reasons = [why_not(line, params.cell(line["cell"]), "", params) for line in lines]
    assert ["evaluated on train in 3 folds" in reason for reason in reasons] == [True, False]


def test_a_fold_has_the_alias_best_only_among_folds():
    results = [SimpleNamespace(cell=cell, scores={"mIoU": miou}) for cell, miou in (("a", 0.9), ("b", 0.5), ("b", 0.6))]
    assert best_of(results, ["a"]) is results[2]
    assert best_of(results, []) is best_of(results, ["a", "b"]) is results[0]


def test_a_child_in_folds_has_no_ancestor_that_saw_their_images(tmp_path):
    def edit(params):
        plain = params["grid"][CELL]
        for section in ("datasets", "recipes"):
            params[section]["more"] = params[section]["tiny"]
        params["seeds"] = [0, 1, 2]
        params["grid"] = {
            "first": plain,
            "second": {**plain, "dataset": "more", "init": {"cell": "first"}},
            "third": {**plain, "recipe": {"folds": FOLDS}, "init": {"cell": "second"}},
        }

    with pytest.raises(ParamsError, match=r"grid\.third: starts from the cell first, which was trained on the images"):
        load_params(tiny_params(tmp_path / "params.yaml", edit))


def test_other_seeds_for_all_rows_train_no_fold_again(trained_once, tmp_path, monkeypatch):
    from dvc.repo import Repo

    place, outs = tmp_path / "copy", [f"runs/{CELL}/{name}" for name in ("weights", "run.json", "history.csv")]
    shutil.copytree(trained_once, place)
    monkeypatch.chdir(place)
    stage = {"cmd": "true", "params": ["seeds", f"grid.{CELL}"], "outs": outs}
    (place / "dvc.yaml").write_text(json.dumps({"stages": {"train": {"foreach": [CELL], "do": stage}}}))
    Repo.init(str(place), no_scm=True).close()
    with Repo(str(place)) as repo:
        repo.commit(f"train@{CELL}", force=True)
    shutil.rmtree(place / f"runs/{CELL}")

    def taken(seeds):
        raw = read_yaml(place / "params.yaml") | {"seeds": seeds}
        (place / "params.yaml").write_text(json.dumps(raw))
        places, folder = Places(place), place / f"taken{len(list(place.glob('taken*')))}"
        inputs = train.read_inputs(CELL, places, Store(places.store("tiny")).fingerprint)
        folder.mkdir()
        take_trained(CELL, (0, 1, 2), inputs, places, lambda seed: folder / str(seed))
        return sorted(path.name for path in folder.iterdir())

    assert taken([0]) == []  # as before: somebody wants them trained again
    assert taken([0, 1]) == ["0", "1", "2"]


def test_folds_can_be_tried(tmp_path):
    from dvc.utils.hydra import apply_overrides

    places, file = Places(tmp_path), tmp_path / "tried.yaml"
    tiny_params(places.params)
    key, folds = trial.parse(r"folds={count: 3, group: '^([A-ZÄ]\d+), \w{1,2}:'}")
    assert trial.check(CELL, [(key, folds)], places) == "tiny"
    file.write_text("grid: {}")
    apply_overrides(file, [f"++grid.{CELL}.{key}={trial.as_override(folds)}"])
    assert read_yaml(file) == {"grid": {CELL: {"recipe": {"folds": folds}}}}
    tiny_params(places.params, lambda params: params["grid"][CELL].update(seeds=[0, 1]))
    with pytest.raises(ParamsError, match=r"seeds: got \[0, 1\] beside folds"):
        trial.check(CELL, [(key, folds)], places)


def test_the_name_of_a_row_has_its_folds_as_written(tmp_path):
    def edit(params):
        params["recipes"]["tiny"]["folds"] = FOLDS
        for name, folds in (("some", {"count": 4, "group": "^[A-Z]"}), ("none", None)):
            params["grid"][name] = {**params["grid"][CELL], "recipe": {"folds": folds}}

    params = load_params(tiny_params(tmp_path / "params.yaml", edit))
    assert params.overrides == {CELL: "", "some": "folds=4/^[A-Z]", "none": "folds=none"}
    assert params.runs == {CELL: (0, 1, 2), "some": (0, 1, 2, 3), "none": (0,)}


def test_too_few_images_outside_a_fold_for_a_batch_are_named():
    with pytest.raises(SettingsError, match="got 4, but 'train' has only 3 images outside a fold; expected at most"):
        total_steps(3, with_folds())


def test_a_seed_that_a_row_does_not_have_is_named_with_those_that_it_has(tmp_path):
    places = Places(tmp_path)
    tiny_params(places.params, lambda params: params["grid"][CELL].update(seeds=[2, 5]))
    with pytest.raises(ParamsError, match="--seed: got 0, expected one of those of tiny_os8: 2, 5"):
        find_weights(CELL, 0, places)
    with pytest.raises(DataError, match=r"seed2\.safetensors: no such weights"):
        find_weights(CELL, 2, places)


def test_history_knows_the_settings_of_a_training_and_that_folds_choose_code():
    root, record = Path(__file__).parents[1], {"cell": "shapes_resnet18_os8", "dataset": "shapes"}
    measured = Measured("", "", record, Places(root))
    measured.__dict__["lock"] = (root / "dvc.lock").read_text()
    recipe = measured.settings["recipe"]
    assert recipe["folds"] is None
    assert "folds" not in words(recipe)
    assert "folds" in words(recipe | {"folds": FOLDS})


def test_a_cell_with_folds_is_the_best_on_the_page_only_among_such_cells():
    folds, plain = (
        SimpleNamespace(measured=True, cell=tiny_cell(recipe=recipe)) for recipe in (with_folds(), recipe_config())
    )

    def ranked(*cells):
        page = DatasetPage(name="tiny", title="Tiny", images={}, reference=None, cells=list(cells))
        return [page.ranked(cell) == 1 for cell in cells]

    assert ranked(folds, plain) == [False, True]
    assert ranked(folds, folds) == [True, True]
