"""Columns that params.yaml asks for: what they show, what they cost, and what nobody may read from them."""

import csv
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import ResNet50_Weights, resnet50

from deeplab.errors import DataError
from deeplab.model import DeepLabV3
from pipeline.errors import ParamsError
from pipeline.predict.measure import run as measure
from pipeline.results.columns import EXTRAS
from pipeline.results.costs import HEAD, inputs
from pipeline.results.latex import latex
from pipeline.results.readme import put
from pipeline.results.records import read_results
from pipeline.results.table import make_rows, markdown, sheet
from pipeline.settings import code
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.stages import check
from pipeline.stages.evaluate import run as evaluate
from tests.records import CELL, OTHER, Folder
from tests.test_evaluate import CELL as TINY
from tests.test_evaluate import Place

COST = {
    "parameters": "1234567", "macs": "500000000", "flops": "1000000000", "latency": "0.0123", "memory": "345600000",
    "size": "64x96", "device": "A | B, threads: 1", "torch": "2.15.0",
}  # fmt: skip


class Asking(Folder):
    """A folder whose cell CELL is measured and OTHER is not."""

    def __init__(self, path):
        super().__init__(path)
        self.places = Places(path)
        self.measure(CELL, 0.5)
        self.evaluate(CELL)

    def ask(self, *columns):
        self.raw["columns"] = list(columns)
        self.write_params()

    def rows(self):
        results, reasons = read_results("shapes", self.params, self.places)
        return make_rows("shapes", results, reasons, self.params, self.places)

    def shown(self, cell=CELL):
        """The entries of a cell in the columns between mIoU and Download."""
        lines = [re.split(r" (?<!\\)\| ", line.strip("| \n")) for line in markdown(self.rows()).splitlines()]
        line = lines[2 if cell == CELL else 3]
        assert lines[0][:5] == ["Backbone", "Crop Size", "Schedule", "Train/Eval Set", "mIoU"]
        assert lines[0][-1] == "Download"
        return dict(zip(lines[0][5:-1], line[5:-1], strict=True))

    def cost(self, **changed):
        row = {"cell": CELL, **COST, "inputs": inputs(CELL, self.params, self.places), "data": self.data} | changed
        self.write_csv("reports/records/shapes/costs.csv", list(HEAD), [[row[key] for key in HEAD]])


@pytest.fixture
def folder(tmp_path):
    return Asking(tmp_path)


def test_columns_stand_between_miou_and_download_and_come_from_the_record_of_today(folder):
    """IoU and recall are 0.25 and 0.75 for 80 and 20 pixels."""
    folder.ask("recall", "dice", "precision", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")
    assert folder.shown() == {
        "Recall": "50.00%",
        "Dice": f"{50 * (0.5 / 1.25 + 1.5 / 1.75):.2f}%",
        "Precision": "100.00%",  # IoU equals recall: no wrong pixel
        "Pixel accuracy": "90.00%",
        "Mean accuracy": "80.00%",
        "Frequency weighted IoU": "35.00%",
    }
    assert set(folder.shown(OTHER).values()) == {"-"}


def test_without_the_key_or_with_an_empty_list_every_file_is_as_before(folder):
    before = markdown(folder.rows()), sheet(folder.rows()), latex("shapes", folder.rows())
    hashes = code.entries(folder.params, folder.places)
    folder.ask()
    assert (markdown(folder.rows()), sheet(folder.rows()), latex("shapes", folder.rows())) == before
    assert code.entries(folder.params, folder.places) == hashes


def test_a_record_without_the_images_of_a_split_is_damaged(folder):
    record = folder.places.record("shapes", CELL)
    value = json.loads(record.read_text())
    record.write_text(json.dumps(value | {"images": {"train": 320}}))
    message = (
        rf"{CELL}\.json: damaged, .* images: got those of \['train'\], expected \['train', 'val'\]\)\. Run: dvc repro"
    )
    with pytest.raises(DataError, match=message):
        folder.rows()


def test_another_protocol_is_a_column_of_its_name(folder):
    folder.raw["protocols"]["flip"] = {"scales": [1.0], "flip": True, "window": None, "stride": None}
    folder.ask("mIoU_flip")
    folder.measure(CELL, 0.5)
    record = folder.places.record("shapes", CELL)
    value = json.loads(record.read_text())
    value["seeds"]["0"]["flip"] = value["seeds"]["0"]["flip"] | {"mIoU": 0.512}
    record.write_text(json.dumps(value))
    assert folder.shown() == {"mIoU (flip)": "51.20%"}
    folder.raw["protocols"]["flip"]["scales"] = [0.5, 1.0]  # measured with another one of this name
    folder.write_params()
    assert folder.shown() == {"mIoU (flip)": "-"}


def test_a_new_protocol_leaves_the_number_of_the_first_one(folder):
    folder.measure(CELL, 0.5)
    folder.raw["protocols"]["flip"] = {"scales": [1.0], "flip": True, "window": None, "stride": None}
    folder.ask("mIoU_flip")
    (row,) = [row for row in folder.rows() if row.name == CELL]
    assert row.mean("mIoU") == 0.5
    assert folder.shown() == {"mIoU (flip)": "-"}


def test_a_measure_is_that_of_the_first_protocol_of_today(folder):
    """A record holds all protocols, so another order of them in params.yaml does not make it out of date."""
    flip = {"scales": [1.0], "flip": True, "window": None, "stride": None}
    first = folder.raw["protocols"]
    folder.raw["protocols"] = first | {"flip": flip}
    folder.ask("boundary_iou")
    folder.measure(CELL, 0.5)
    record = folder.places.record("shapes", CELL)
    value = json.loads(record.read_text())
    scores = value["seeds"]["0"]
    for name, share in zip(scores, (0.4, 0.6), strict=True):
        scores[name] = scores[name] | {"measures": {"boundary_iou": share}}
    record.write_text(json.dumps(value))
    assert folder.shown() == {"Boundary IoU": "40.00%"}
    folder.raw["protocols"] = {"flip": flip} | first
    folder.write_params()
    assert folder.shown() == {"Boundary IoU": "60.00%"}


def test_several_seeds_show_their_spread_in_every_form_of_the_table(folder):
    folder.raw["seeds"] = [0, 1]
    folder.ask("dice", "boundary_iou")
    folder.measure(CELL, 0.5, 0.5)
    folder.evaluate(CELL, 0, 1)
    record = folder.places.record("shapes", CELL)
    value = json.loads(record.read_text())
    for seed, share in (("0", 0.4), ("1", 0.5)):
        value["seeds"][seed]["single_scale"] |= {"measures": {"boundary_iou": share}}
    record.write_text(json.dumps(value))
    assert folder.shown() == {"Dice": "62.86% ± 0.00", "Boundary IoU": "45.00% ± 7.07"}
    row = next(csv.DictReader(StringIO(sheet(folder.rows()))))
    assert float(row["boundary_iou"]) == pytest.approx(0.45)
    assert float(row["boundary_iou_std"]) == pytest.approx(0.0707107, abs=1e-6)
    paper = latex("shapes", folder.rows())
    assert f"gridvalue:{CELL}.boundary_iou\\endcsname{{45.00\\% $\\pm$ 7.07}}" in paper
    assert r"mIoU & Dice & Boundary IoU \\" in paper
    assert r"\begin{tabular}{llllrrr}" in paper


def test_a_measure_on_a_further_split_moves_no_number(folder):
    """Records of before have it there too; the table has it of the validation split."""
    folder.raw["eval_splits"] = {"shapes": ["val", "train"]}
    folder.ask("boundary_iou")
    record = folder.places.record("shapes", CELL)
    value = json.loads(record.read_text())
    scores = value["seeds"]["0"]["single_scale"]
    own, there = scores | {"measures": {"boundary_iou": 0.4}}, scores | {"measures": {"boundary_iou": 0.9}}
    value["seeds"] = {"0": dict.fromkeys(folder.params.protocols, own)}
    value["splits"] = {
        "train": {"images": 320, "data": folder.data, "seeds": {"0": dict.fromkeys(folder.params.protocols, there)}}
    }
    record.write_text(json.dumps(value))
    assert folder.shown() == {"mIoU (train)": "50.00%", "Boundary IoU": "40.00%"}


def test_a_record_without_the_measure_shows_a_dash_and_the_command(folder, monkeypatch):
    from pipeline.stages import tables

    monkeypatch.setattr(tables, "synchronise", lambda dataset, local, params, places: (local, ""))
    folder.ask("calibration_error", "latency", "dice")
    (folder.path / f"reports/plots/{CELL}/classes.csv").unlink()
    with redirect_stderr(StringIO()) as said, redirect_stdout(StringIO()):
        tables.run("shapes", folder.places)
    assert set(folder.shown().values()) == {"-"}
    assert f"{CELL}: calibration_error, dice: shown as -. Run: dvc repro evaluate@{CELL}\n" in said.getvalue()
    assert f"{CELL}: latency: shown as -. Run: grid measure {CELL}\n" in said.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text + "x" * 200_000,
        lambda text: text.replace("0.25", "nan"),
        lambda text: text.replace(",80\n", ",0\n").replace(",20\n", ",0\n"),
    ],
)
def test_a_damaged_table_of_classes_is_a_dash(folder, damage):
    folder.ask("dice", "recall")
    classes = folder.path / f"reports/plots/{CELL}/classes.csv"
    classes.write_text(damage(classes.read_text()))
    assert set(folder.shown().values()) == {"-"}


def test_a_number_in_prose_may_be_that_of_a_column(folder):
    folder.ask("dice", "latency")
    folder.cost()
    folder.places.tables.mkdir(parents=True)
    folder.places.table("shapes").write_text("| the table |\n")
    folder.places.sheet("shapes").write_text(sheet(folder.rows()))
    folder.places.readme.write_text(
        f"<!-- results:shapes -->\n<!-- /results:shapes -->\n<!-- value: {CELL}.dice --><!-- /value --> "
        f"<!-- value: {CELL}.latency --><!-- /value -->\n"
    )
    put("shapes", folder.places)
    assert ">62.86%<" in folder.places.readme.read_text()
    assert ">12.3 ms (A | B, threads: 1)<" in folder.places.readme.read_text()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["dise"], "params.yaml: columns: unknown name 'dise'; did you mean 'dice'?"),
        (["mIoU_flip"], "columns: unknown name 'mIoU_flip'; known: dice, .*, mIoU_single_scale"),
        (["mIoU_low"], "columns: unknown name 'mIoU_low'"),
        (["mIoU_flip_std"], "columns: unknown name 'mIoU_flip_std'"),  # the spread of mIoU_flip
        (["recal"], "columns: unknown name 'recal'; did you mean 'recall'"),
        (["Dice"], "columns: unknown name 'Dice'; did you mean 'dice'"),
        (["dice", "dice"], r"columns: got \['dice', 'dice'\], expected each column once"),
        ("dice", "columns: got 'dice', expected a valid array"),
        ([1], r"columns.*: got 1, expected a valid string"),
        ({"dice": 1}, "columns: got .*, expected a valid array"),
        (None, "columns: got None, expected a valid array"),
    ],
)
def test_a_wrong_column_is_one_line_with_the_nearest_name(folder, columns, message):
    folder.raw["columns"] = columns
    if columns == ["mIoU_flip_std"]:
        folder.raw["protocols"]["flip_std"] = folder.raw["protocols"]["single_scale"]
    folder.write_params()
    with pytest.raises(ParamsError, match=message) as error:
        check.run(folder.places)
    assert "\n" not in str(error.value)


def test_a_column_trains_nothing_and_evaluates_only_what_no_record_has(folder):
    def stale(*columns):
        folder.ask(*columns)
        now = code.entries(folder.params, folder.places)
        return {entry.partition(".")[0] for entry in now if now[entry] != before[entry]}

    before = code.entries(folder.params, folder.places)
    assert stale("dice", "precision", "latency", "flops") == {"tables"}
    assert stale("boundary_iou") == stale("dice", "calibration_error") == {"tables", "evaluate"}
    folder.ask("dice", "recall")
    before = code.entries(folder.params, folder.places)
    assert stale("recall", "dice") == {"tables"}  # the order of columns


def test_the_code_of_a_measure_counts_where_it_is_asked_for():
    assert not {"deeplab.boundary", "deeplab.calibration"} & code.modules_of("evaluate", frozenset(), code.ROOT).keys()
    found = code.modules_of("evaluate", frozenset({"boundary_iou"}), code.ROOT)
    assert "deeplab.boundary" in found
    assert "deeplab.calibration" not in found


def test_every_column_has_a_name_a_heading_and_a_definition_in_the_documentation():
    text = (Path(__file__).parents[1] / "docs/results.md").read_text(encoding="utf-8")
    assert not [name for name in EXTRAS if f"| `{name}` |" not in text]
    assert len({column.heading for column in EXTRAS.values()}) == len(EXTRAS)


def test_a_cost_names_its_size_or_device_and_a_column_may_hold_two_machines(folder):
    folder.ask("parameters", "flops", "macs", "latency", "memory")
    folder.cost()
    assert folder.shown() == {
        "Parameters": "1.23 M",
        "FLOPs": "1.00 G (64x96)",
        "MACs": "0.50 G (64x96)",
        "Latency": r"12.3 ms (A \| B, threads: 1)",
        "Peak memory": r"346 MB (A \| B, threads: 1)",
    }
    row = next(csv.DictReader(StringIO(sheet(folder.rows()))))
    assert (row["latency"], row["latency_device"]) == ("0.0123", "A | B, threads: 1")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"device": ""}, f"{CELL} has no device"),
        ({"size": ""}, f"{CELL} has no size"),
        ({"latency": "fast"}, "could not convert string to float"),
    ],
)
def test_a_number_without_its_device_or_size_is_refused(folder, changed, message):
    folder.ask("latency")
    folder.cost(**changed)
    with pytest.raises(DataError, match=rf"costs\.csv: damaged.*{message}.*\. Remove the line, and run grid measure"):
        folder.rows()


def test_a_cost_of_other_settings_data_or_code_is_not_shown_and_moves_no_result(folder):
    folder.ask("latency")
    before = read_results("shapes", folder.params, folder.places)
    folder.cost()
    assert read_results("shapes", folder.params, folder.places) == before
    folder.raw["seeds"] = [0]
    folder.raw["recipes"]["shapes"]["lr"] = 0.5  # moves no cost, but the result
    folder.write_params()
    assert folder.shown()["Latency"] != "-"
    for changed in ({"inputs": "0" * 64}, {"data": "0" * 64}, {"cell": "another"}):
        folder.cost(**changed)
        assert folder.shown() == {"Latency": "-"}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A cell that was evaluated without and with measures: the place, both records, and what else was written."""
    place = Place(tmp_path_factory.mktemp("columns"))
    place.run()
    files = {path: path.read_bytes() for path in place.places.reports.rglob("*") if path.is_file()}
    text = place.places.params.read_text()
    place.places.params.write_text(f"{text}\ncolumns: [calibration_error, dice, boundary_iou]\n")
    with redirect_stdout(StringIO()):
        evaluate(TINY, place.places)
    return place, files


def test_an_evaluation_adds_the_measures_to_the_record_and_nothing_else_moves(evaluated):
    place, before = evaluated
    path = place.places.record("shapes", TINY)
    now = json.loads(path.read_text())
    for scores in now["seeds"].values():
        for found in scores.values():
            measures = found.pop("measures")
            assert set(measures) == {"boundary_iou", "calibration_error"}
            assert all(0 < value < 1 for value in measures.values())
    assert now == json.loads(before.pop(path))
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_calibration_error_of_the_record_is_that_of_the_network(evaluated):
    from torchmetrics.classification import MulticlassCalibrationError

    from deeplab.inference import passes_of

    place, _ = evaluated
    params = load_params(place.places.params)
    network = DeepLabV3(place.cell.model, 3).eval()
    network.load_state_dict(load_file(place.weights / "seed0.safetensors"))
    split, oracle = place.store.split("val"), MulticlassCalibrationError(3, n_bins=15, ignore_index=255)
    for index in range(len(split)):
        truth = torch.from_numpy(split.mask(index).astype("int64"))[None]
        protocol = params.protocols["single_scale"]
        (one,) = passes_of(network, split.image(index)[None], place.cell.inference, protocol, torch.device("cpu"))
        oracle.update(one.upsampled(slice(0, 3), truth.shape[1:]).softmax(dim=1).clone(), truth)
    said = json.loads(place.places.record("shapes", TINY).read_text())["seeds"]["0"]["single_scale"]["measures"]
    assert said["calibration_error"] == pytest.approx(float(oracle.compute()), abs=1e-5)  # it adds in float32


def test_parameters_and_flops_are_those_counted_by_hand_and_the_device_is_named(evaluated):
    """The first protocol mirrors, so there are two passes."""
    place, _ = evaluated
    said = measure(TINY, "cpu", place.places)
    with place.places.costs("shapes").open() as file:
        (row,) = csv.DictReader(file)
    network = DeepLabV3(place.cell.model, 3).eval()
    network.auxiliary = None
    counted = 0

    def add(layer, _, out):
        nonlocal counted
        height, width = layer.kernel_size
        counted += 2 * layer.in_channels // layer.groups * height * width * out.numel()

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(add)
    size = [int(side) for side in row["size"].split("x")]
    with torch.no_grad():
        network(torch.zeros(1, 3, *size))
    assert place.cell.recipe.align
    assert all(side % 16 == 0 for side in size)
    assert int(row["flops"]) == 2 * counted == 2 * int(row["macs"])
    assert int(row["parameters"]) == sum(each.numel() for each in network.parameters())
    assert row["device"].endswith(f"threads: {place.cell.train.threads}")
    assert row["device"] in said
    assert float(row["latency"]) > 0
    assert int(row["memory"]) > 50e6


def test_the_counter_gives_the_published_multiply_adds_of_resnet50_and_those_of_one_convolution():
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        nn.Conv2d(3, 8, 5, padding=2, bias=False)(torch.empty(1, 3, 10, 12))
    assert counter.get_total_flops() == 2 * 3 * 8 * 5 * 5 * 10 * 12
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        resnet50().eval()(torch.empty(1, 3, 224, 224))
    published = ResNet50_Weights.IMAGENET1K_V1.meta
    assert counter.get_total_flops() / 2e9 == pytest.approx(published["_ops"], abs=0.01)
    assert published["_ops"] == 4.089  # 4.1 in the papers, which call multiply-adds FLOPs
    assert published["num_params"] == sum(each.numel() for each in resnet50().parameters())


def test_a_cost_needs_the_data_and_a_known_cell(folder):
    with pytest.raises(ParamsError, match="did you mean"):
        measure(f"{CELL}x", None, folder.places)
    folder.places.manifest("shapes").unlink()
    with pytest.raises(DataError, match="Prepare the data set"):
        measure(CELL, None, folder.places)
