"""Two cells are compared on the same images, and in words that do not claim more than was measured."""

import json
from pathlib import Path

import pytest

from pipeline.results import statistics
from pipeline.stages import compare
from tests.records import CELL, OTHER, Folder, measured


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Folder(tmp_path)


def compared():
    out = Path("reports/statistics/shapes.json")
    compare.run("shapes")
    return json.loads(out.read_text())


def test_a_clear_difference_has_an_interval_and_names_the_better_cell_first(folder, capsys):
    measured(folder, CELL, 0.80)
    measured(folder, OTHER, 0.82)
    found = compared()
    assert (found["level"], found["samples"]) == (0.95, 2000)
    cell = found["cells"][CELL]
    assert cell["low"] < cell["mIoU"] < cell["high"]
    assert (cell["images"], cell["seeds"], cell["seed_std"], cell["low_seeds"]) == (60, 1, None, None)
    (pair,) = found["pairs"]
    assert (pair["better"], pair["than"], pair["clear"]) == (OTHER, CELL, True)
    assert pair["difference"] == pytest.approx(found["cells"][OTHER]["mIoU"] - cell["mIoU"], abs=1e-6)
    assert pair["high"] - pair["low"] < (cell["high"] - cell["low"]) / 5  # what is hard is hard for both
    percent = [f"{100 * pair[key]:.1f}" for key in ("difference", "low", "high")]
    assert pair["sentence"] == f"resnet18: OS16 better than OS8 by {percent[0]} [{percent[1]}, {percent[2]}]"
    assert pair["sentence"] in capsys.readouterr().out


def test_a_difference_that_another_seed_could_turn_is_not_called_clear(folder):
    folder.raw["seeds"] = [0, 1]
    folder.write_params()
    measured(folder, CELL, 0.80, 0.84)
    measured(folder, OTHER, 0.81, 0.85)
    found = compared()
    (pair,) = found["pairs"]
    assert pair["low"] > 0 > pair["low_seeds"]
    assert not pair["clear"]
    assert pair["sentence"].startswith("resnet18: OS16 and OS8 do not differ clearly: ")
    cell = found["cells"][CELL]
    assert cell["seed_std"] > 0.01
    assert cell["high_seeds"] - cell["low_seeds"] > cell["high"] - cell["low"]


def test_cells_that_differ_in_more_are_called_by_their_names(folder):
    folder.raw["grid"][OTHER]["backbone"] = "resnet34"
    folder.write_params()
    measured(folder, CELL, 0.80)
    measured(folder, OTHER, 0.82)
    assert compared()["pairs"][0]["sentence"].startswith(f"{OTHER} better than {CELL} by ")
    folder.raw["grid"][OTHER] |= {"output_stride": 8}
    folder.write_params()
    measured(folder, OTHER, 0.82)
    assert compared()["pairs"][0]["sentence"].startswith("OS8: resnet34 better than resnet18 by ")


def test_of_many_pairs_those_that_differ_least_are_listed_and_a_note_counts_the_others(folder, monkeypatch):
    folder.raw["grid"]["third"] = folder.raw["grid"][OTHER] | {"backbone": "resnet34"}
    folder.write_params()
    for cell in (CELL, OTHER, "third"):
        measured(folder, cell, 0.80)
    assert len(compared()["pairs"]) == 3
    monkeypatch.setattr(statistics, "MAX_PAIRS", 2)
    found = compared()
    assert [{pair["better"], pair["than"]} for pair in found["pairs"]] == [{CELL, OTHER}, {OTHER, "third"}]
    assert found["note"].endswith("Only the 2 of 3 pairs are here that differ in the fewest settings.")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: None, "not measured yet"),
        (lambda folder: folder.measure(OTHER, 0.7), f"{OTHER}.npz: no such file"),
        (
            lambda folder: (measured(folder, OTHER, 0.8), folder.measure(OTHER, 0.7)),
            "but the record 0.7. Run: dvc repro",
        ),
    ],
    ids=["unmeasured", "without counts", "counts of other scores"],
)
def test_a_cell_without_counts_of_its_record_is_left_out_and_the_others_are_compared(folder, capsys, spoil, why):
    measured(folder, CELL, 0.80)
    spoil(folder)
    found = compared()
    assert (list(found["cells"]), found["pairs"]) == ([CELL], [])
    said = capsys.readouterr().err
    assert said.startswith(f"{OTHER}: left out: ")
    assert why in said


def test_the_same_results_give_the_same_bytes(folder):
    measured(folder, CELL, 0.80)
    measured(folder, OTHER, 0.82)
    compared()
    before = Path("reports/statistics/shapes.json").read_bytes()
    compared()
    assert Path("reports/statistics/shapes.json").read_bytes() == before
