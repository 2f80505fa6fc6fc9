import json
from dataclasses import replace

import huggingface_hub
import pytest
import torch

from pipeline.runner import estimate, plan
from pipeline.runner.estimate import train_flops
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.training.facts import Facts, flat_settings, forward_flops
from pipeline.training.speeds import Speed, pace_of_cell, page_of, write_speeds
from tests.tiny import tiny_params


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "this_device", lambda: "cpu")
    scan = huggingface_hub.scan_cache_dir
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan(tmp_path / "hub"))
    (tmp_path / "reports").mkdir()
    return Places(tmp_path)


@pytest.fixture
def params(places):
    return load_params(tiny_params(places.params))


def plan_of(params, places):
    return plan.plan(params, {"prepare@tiny": "new", "train@tiny_os8": "after prepare@tiny"}, places)


def cost(params, places):
    return plan_of(params, places).to_run[1].cost


def write_run(params, places, speeds=(2.0,), device="cpu", **changes):
    """The facts of trainings, one per speed."""
    settings = {**flat_settings(params.cells["tiny_os8"], 0), **changes}
    facts = {
        "cell": "other", "dataset": "tiny", "started": "now", "iterations": 6, "device": device, "parameters": 1_000_000,
        "peak_memory": 3_000_000_000, "fingerprint": {"cell": "a", "data": "b", "code": "c"}, "settings": settings,
    }  # fmt: skip
    places.run("other").mkdir(parents=True)
    seeds = {str(seed): {**facts, "seed": seed, "images_per_second": speed} for seed, speed in enumerate(speeds)}
    places.facts("other").write_text(json.dumps({"cell": "other", "dataset": "tiny", "seeds": seeds}))


def test_the_iterations_are_those_of_all_epochs_and_seeds(params, places):
    assert cost(replace(params, runs={"tiny_os8": (0, 1, 2)}), places).iterations == 3 * 2 * (12 // 4)


def test_costs_come_from_a_training_of_the_same_network_on_the_same_device_and_from_nothing_else(params, places):
    assert cost(params, places).within > 1
    write_run(params, places, lr=0.5, epochs=99)  # these do not change the speed
    found = cost(replace(params, runs={"tiny_os8": (0, 1, 2)}), places)
    assert found.hours == pytest.approx(18 * 4 / 2.0 / 3600)
    assert (found.images_per_second, found.memory, found.disk) == (2.0, 3_000_000_000, 4 * 1_000_000 * (11 + 2 * 14))
    assert found.within == 1


def test_the_training_of_median_speed_counts(params, places):
    write_run(params, places, speeds=(1.0, 9.0, 2.0))
    assert cost(params, places).images_per_second == 2.0


def test_hours_are_those_of_all_gpus_of_a_cell(params, places, monkeypatch):
    monkeypatch.setattr(plan, "this_device", lambda: "NVIDIA H100")
    write_run(params, places, device="NVIDIA H100")
    pair = replace(params, runtime=replace(params.runtime, gpus_per_cell=2))
    assert cost(pair, places).hours == 2 * cost(params, places).hours


@pytest.mark.parametrize("changes", [{"device": "NVIDIA H100"}, {"crop": [64, 64]}, {"output_stride": 16}])
def test_a_training_of_something_else_gives_an_estimate_at_most(params, places, changes):
    write_run(params, places, **changes)
    found = cost(params, places)
    assert (found.within, found.memory) == (2.5, None)
    assert found.hours == pytest.approx(6 * 4 / (25e9 / train_flops(params.cells["tiny_os8"])) / 3600)
    assert found.disk == pytest.approx(4 * (7 + 2 * 6) * 11_300_000, rel=0.01)


def test_the_table_has_a_row_per_cell_and_says_what_is_an_estimate(params, places):
    reasons = {
        "check": "new", "prepare@tiny": "new", "train@tiny_os8": "after prepare@tiny", "evaluate@tiny_os8": "after it",
        "evaluate@tiny_b": "metrics.py modified", "tables@tiny": "after it",
    }  # fmt: skip
    head, prepare, train, evaluate, total, counts = plan.as_text(plan.plan(params, reasons, places), 9).splitlines()
    assert head.split("  ")[0] == "cell"
    assert "hours on this CPU" in head
    assert prepare.split() == ["prepare@tiny", "new"]
    assert train.split() == [
        "tiny_os8",
        "after",
        "prepare@tiny",
        "6",
        "about",
        "0.0003",
        "(0.00012",
        "to",
        "0.00076)",
        "0.9",
    ]
    assert evaluate.split() == ["tiny_b", "evaluation:", "metrics.py", "modified"]
    assert total.startswith("1 trainings")
    assert counts == "6 of 9 stages to run; short ones: check, tables"


def test_estimates_learn_from_other_trainings_on_this_device(params, places):
    cell = params.cells["tiny_os8"]
    settings = {**flat_settings(cell, 0), "output_stride": 16, "threads": 2}
    facts = Facts(cell="a", dataset="b", seed=0, started="now", iterations=1, fingerprint={}, settings=settings)
    facts = facts.model_copy(update={"flops": 10**9, "images_per_second": 4.0})
    assert estimate.speed(cell, "cpu", [facts]) == pytest.approx(3 * 1e9 * 4 / 2 / train_flops(cell))
    assert estimate.speed(cell, "NVIDIA H100", [facts]) == pytest.approx(3 * 1e9 * 4 / train_flops(cell))
    pair = facts.model_copy(update={"gpus_per_cell": (2,)})
    assert estimate.speed(cell, "NVIDIA H100", [pair]) == pytest.approx(3 * 1e9 * 2 / train_flops(cell))
    assert estimate.speed(cell, "NVIDIA H100", []) is None
    odd = replace(cell, model=replace(cell.model, backbone="regnetx_002"))
    assert (estimate.speed(odd, "cpu", []), estimate.parameters(odd.model)) == (None, None)


def test_hours_without_an_estimate_are_unknown(params, places, monkeypatch):
    monkeypatch.setattr(plan, "this_device", lambda: "NVIDIA H100")
    head, _, train, *_ = plan.as_text(plan_of(params, places), 9).splitlines()
    assert "hours on NVIDIA H100" in head
    assert "  unknown  " in train


@pytest.mark.parametrize("backbone", estimate.BACKBONES)
@pytest.mark.parametrize("output_stride", [8, 16])
def test_flops_and_parameters_are_those_that_torch_counts(params, backbone, output_stride):
    from deeplab.model import DeepLabV3

    cell = params.cells["tiny_os8"]
    model = replace(cell.model, backbone=backbone, output_stride=output_stride, aspp_channels=64)
    cell = replace(cell, model=model, recipe=replace(cell.recipe, crop=(64, 128)))
    with torch.device("meta"):
        network = DeepLabV3(model, 3)
    assert train_flops(cell) == pytest.approx(3 * forward_flops(network, (64, 128)), rel=0.002)
    assert estimate.parameters(model) == pytest.approx(sum(p.numel() for p in network.parameters()), rel=0.002)


def test_a_plan_for_machines_has_null_for_what_is_unknown_and_bytes(params, places):
    write_run(params, places)
    found = json.loads(plan.as_json(plan_of(params, places), 9))
    assert (found["device"], found["stages"]) == ("cpu", 9)
    assert found["to_run"][0] == {"stage": "prepare@tiny", "why": "new", "cost": None}
    assert found["to_run"][1]["cost"]["memory"] == 3_000_000_000


def test_nothing_to_run_is_one_line(params, places):
    assert plan.as_text(plan.plan(params, {}, places), 9) == "up to date: 9 stages"


def test_missing_data_and_weights_are_named(params, places):
    cell = params.cells["tiny_os8"]
    pretrained = replace(cell, model=replace(cell.model, pretrained=True))
    real = replace(params.datasets["tiny"], format="voc")
    asked = replace(params, cells={"tiny_os8": pretrained}, datasets={"tiny": real})
    weights = "ImageNet weights of resnet18, fetched by the first training"
    assert cost(asked, places).missing == (str(places.raw("tiny")), weights)
    places.raw("tiny").mkdir(parents=True)
    assert cost(asked, places).missing == ("tiny is not prepared", weights)
    places.pretrained.mkdir()
    (places.pretrained / "resnet18.a1_in1k.safetensors").touch()
    assert cost(asked, places).missing == ("tiny is not prepared",)
    tagged = replace(pretrained, model=replace(pretrained.model, backbone="resnet18.a1_in1k"))
    assert cost(replace(asked, cells={"tiny_os8": tagged}), places).missing == ("tiny is not prepared",)


def test_weights_that_hugging_face_has_cached_are_found(places):
    snapshot = places.root / "hub/models--timm--resnet50c.gluon_in1k/snapshots/0123"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    assert plan.weights_at_hand(places) == {"resnet50c"}


def test_a_prepared_store_is_counted_as_it_is(params, places):
    places.store("tiny").mkdir(parents=True)
    samples = [{"split": "train"}] * 9 + [{"split": "val"}]
    places.manifest("tiny").write_text(json.dumps({"samples": samples, "classes": ["a", "b"]}))
    assert cost(params, places).iterations == 2 * (9 // 4)


def write_benchmark(params, places, **changes):
    settings = {**flat_settings(params.cells["tiny_os8"], 0), **changes}
    row = Speed("tiny_os8", "fp32", 4.0, 2_000_000_000, 1_000_000, pace_of_cell(settings))
    write_speeds(page_of(places.benchmarks, "NVIDIA H100"), "NVIDIA H100", "Measured.", [row])


def test_hours_come_from_the_benchmark_of_the_device_until_a_training_is_there(params, places, monkeypatch):
    write_benchmark(params, places)
    assert cost(params, places).within > 1  # on the CPU: an estimate
    monkeypatch.setattr(plan, "this_device", lambda: "NVIDIA H100")
    found = cost(params, places)
    assert found.hours == pytest.approx(6 * 4 / 4.0 / 3600)
    assert (found.memory, found.disk) == (2_000_000_000, 4 * 1_000_000 * (7 + 2 * 6))
    write_run(params, places, device="NVIDIA H100")
    assert cost(params, places).images_per_second == 2.0


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"dataset": "other"}])
def test_a_benchmark_of_something_else_is_not_used(params, places, monkeypatch, changes):
    monkeypatch.setattr(plan, "this_device", lambda: "NVIDIA H100")
    write_benchmark(params, places, **changes)
    assert cost(params, places).hours is None  # no training is there to estimate from


def test_a_run_of_an_older_version_lacks_what_is_off(params, places):
    write_run(params, places, deterministic=None)
    assert cost(params, places).hours is not None
