import json
from dataclasses import asdict, replace

import pytest

from pipeline.runner import plan
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.training.facts import Facts, flat_settings
from tests.tiny import tiny_params

CELL = "tiny_os8"
REASONS = {"prepare@tiny": "has not run yet", f"train@{CELL}": "after prepare@tiny"}


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "this_device", lambda: "cpu")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    tiny_params(tmp_path / "params.yaml")
    return Places(tmp_path)


@pytest.fixture
def params(places):
    return load_params(places.params)


def write_facts(places, params, **changes):
    settings = json.loads(json.dumps(flat_settings(params.cell(CELL), 0)))
    facts = {
        "cell": "other", "dataset": "tiny", "seed": 0, "started": "2000", "iterations": 1, "fingerprint": {},
        "device": changes.pop("device", "cpu"), "images_per_second": 2.0, "peak_memory": 3_000_000_000,
        "parameters": 1_000_000, "settings": {**settings, **changes},
    }  # fmt: skip
    assert Facts(**facts)
    places.run("other").mkdir(parents=True)
    places.facts("other").write_text(json.dumps({"cell": "other", "dataset": "tiny", "seeds": {"0": facts}}))


def cost(params, places):
    return plan.plan(params, {f"train@{CELL}": "why"}, places)[0].cost


def test_the_iterations_are_those_of_all_epochs_and_seeds(params, places):
    assert cost(replace(params, seeds=(0, 1, 2)), places).iterations == 3 * 2 * (12 // 4)


def test_hours_come_from_a_training_of_the_same_network_on_the_same_device_and_from_nothing_else(params, places):
    assert cost(params, places).hours is None
    write_facts(places, params, lr=0.5, epochs=99)  # these do not change the speed
    found = cost(params, places)
    assert found.hours == pytest.approx(6 * 4 / 2.0 / 3600)
    assert found.memory == 3_000_000_000
    assert found.disk == 4 * 1_000_000 * (5 + 2)


@pytest.mark.parametrize("changes", [{"device": "NVIDIA H100"}, {"crop": [64, 64]}, {"output_stride": 16}])
def test_a_training_of_something_else_says_nothing(params, places, changes):
    write_facts(places, params, **changes)
    assert (cost(params, places).hours, cost(params, places).disk) == (None, None)


def test_missing_data_and_weights_are_named(params, places):
    cell = params.cells[CELL]
    pretrained = replace(cell, model=replace(cell.model, pretrained=True))
    real = replace(params.datasets["tiny"], format="voc")
    asked = replace(params, cells={CELL: pretrained}, datasets={"tiny": real})
    weights = "ImageNet weights of resnet18, fetched by the first training"
    assert cost(asked, places).missing == (f"{places.raw('tiny')}", weights)
    places.raw("tiny").mkdir(parents=True)
    places.pretrained.mkdir()
    (places.pretrained / "resnet18.a1_in1k.safetensors").touch()
    assert cost(asked, places).missing == ("tiny is not prepared",)


def test_a_prepared_store_is_counted_as_it_is(params, places):
    places.store("tiny").mkdir(parents=True)
    samples = [{"split": "train"}] * 9 + [{"split": "val"}]
    places.manifest("tiny").write_text(json.dumps({"samples": samples, "classes": ["a", "b"]}))
    assert cost(params, places).iterations == 2 * (9 // 4)


def test_the_text_has_a_line_per_stage_and_the_sum_of_the_trainings(params, places):
    write_facts(places, params)
    lines = plan.as_text(plan.plan(params, REASONS, places), 7).splitlines()
    assert lines[0].split() == ["stage", "why", "iterations", "time", "disk", "GB", "memory", "GB"]
    assert lines[1].split() == ["prepare@tiny", "has", "not", "run", "yet"]
    assert lines[2].split() == [f"train@{CELL}", "after", "prepare@tiny", "6", "0:00:12", "0.0", "3.0"]
    assert lines[3].split() == ["1", "trainings", "on", "cpu", "6", "0:00:12", "0.0"]
    assert lines[4] == "2 of 7 stages to run"
    assert plan.as_text([], 7) == "up to date: 7 stages"


def test_what_is_unknown_is_called_so_and_is_null_in_json(params, places):
    lines = plan.plan(params, REASONS, places)
    assert "unknown" in plan.as_text(lines, 7).splitlines()[2]
    found = json.loads(plan.as_json(lines, 7))
    assert found["stages"] == 7
    assert found["to_run"][0] == {"stage": "prepare@tiny", "why": "has not run yet", "cost": None}
    assert found["to_run"][1]["cost"] == json.loads(json.dumps(asdict(lines[1].cost)))
    assert found["to_run"][1]["cost"]["hours"] is None
