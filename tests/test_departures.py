import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.settings.params import load_params
from pipeline.settings.published import PUBLISHED, departs, departures
from pipeline.settings.yaml import read_yaml
from tests.tiny import tiny_cell, train_config

CELLS = load_params().cells
PUBLISHED_CELLS = [name for name, cell in CELLS.items() if cell.dataset in PUBLISHED]


def changed(section, **values):
    cell = CELLS["voc_resnet50_os8"]
    return replace(cell, **{section: replace(getattr(cell, section), **values)})


def test_the_three_published_sets_have_four_cells_each():
    assert len(PUBLISHED_CELLS) == 12


@pytest.mark.parametrize("name", PUBLISHED_CELLS)
def test_the_cells_of_this_repository_keep_to_their_recipe(name):
    assert departures(CELLS[name]) == ()


@pytest.mark.parametrize(("section", "values", "expected"), [
    ("train", {"precision": "bf16"}, ("precision bf16",)),
    ("train", {"tf32": True}, ("tf32",)),
    ("recipe", {"batch_size": 8, "epochs": 30}, ("batch_size 8 instead of 16", "epochs 30 instead of 60")),
    ("recipe", {"crop": (480, 480)}, ("crop [480, 480] instead of [512, 512]",)),
    ("recipe", {"train_split": "train"}, ("train_split train",)),
    ("model", {"aspp_channels": 256}, ("aspp_channels 256 instead of 512",)),
    ("model", {"head_convolution": True}, ("head_convolution",)),
    ("augment", {"hue": 9.0}, ("hue 9.0 instead of 18",)),
    ("train", {"loss": "cross_entropy+0.5*dice"}, ("loss cross_entropy+0.5*dice",)),
    ("train", {"class_weights": "median_frequency", "focal_gamma": 3.0}, ("class_weights median_frequency", "focal_gamma 3.0 instead of 2.0")),
    ("train", {"ema": 0.999}, ("ema 0.999",)),
    ("train", {"keep": "best", "patience": 3}, ("keep best", "patience 3", "chosen on val: optimistic")),
    ("train", {"threads": 7, "compile": True}, ()),
    ("model", {"backbone": "resnet18", "pretrained": False}, ()),
])  # fmt: skip
def test_a_departure_says_what_was_changed(section, values, expected):
    assert departures(changed(section, **values)) == expected


def test_weights_that_the_validation_split_chose_are_named_on_any_data_set():
    for settings in ({"keep": "best"}, {"patience": 2}):
        assert departs(tiny_cell(train=train_config(**settings))) == "chosen on val: optimistic"


def test_several_departures_are_one_text():
    assert departs(changed("recipe", lr=0.02, batch_size=8)) == "lr 0.02 instead of 0.01, batch_size 8 instead of 16"


def test_a_data_set_without_a_published_recipe_has_nothing_to_depart_from():
    assert departures(tiny_cell()) == ()
    assert departures(CELLS["shapes_resnet18_os8"]) == ()


def test_the_lines_for_a_gpu_in_the_docs_are_read_and_depart_in_their_precision_alone(tmp_path):
    root = Path(__file__).parents[1]
    params = read_yaml(root / "params.yaml")
    lines = re.findall(r"^    (train|runtime): +\{(.*)\}$", (root / "docs/training.md").read_text(), re.MULTILINE)
    for section, text in lines:
        params[section].update(YAML(typ="safe").load(f"{{{text}}}"))
    assert [section for section, _ in lines] == ["train", "runtime"]
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    found = load_params(tmp_path / "params.yaml")
    assert {departs(cell) for name, cell in found.cells.items() if "shapes" not in name} == {"precision bf16"}
    assert (found.runtime.workers, found.cell("voc_resnet50_os8").train.compile) == (4, True)
