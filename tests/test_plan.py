import json
from dataclasses import replace

import pytest

from deeplab.model import DeepLabV3
from pipeline.runner import plan
from pipeline.runner.plan import as_table, count_parameters, read_costs
from pipeline.settings.params import load_params
from tests.tiny import model_config, tiny_params


@pytest.fixture
def params(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "this_device", lambda: "cpu")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "reports").mkdir()
    return load_params(tiny_params(tmp_path / "params.yaml"))


def write_facts(params, device="cpu", **changes):
    facts = {
        "device": device, "images_per_second": 2.0, "peak_memory": 3_000_000_000,
        "settings": {**json.loads(json.dumps(plan.settings_of(params.cells["tiny_os8"]))), **changes},
    }  # fmt: skip
    (plan.RUNS / "other").mkdir(parents=True)
    (plan.RUNS / "other/run.json").write_text(json.dumps({"seeds": {"0": facts}}))


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50c", "resnet101c"])
@pytest.mark.parametrize("changes", [{}, {"auxiliary_channels": 0, "projection_kernel": 1, "aspp_rates": (6, 12)}])
def test_parameters_are_counted_as_the_network_has_them(backbone, changes):
    config = model_config(backbone=backbone, **changes)
    network = DeepLabV3(config, 6)
    assert count_parameters(config, 6) == sum(parameter.numel() for parameter in network.parameters())


def test_a_backbone_that_nobody_counted_is_unknown():
    assert count_parameters(model_config(backbone="resnet26"), 6) is None


def test_the_iterations_are_those_of_all_epochs_and_seeds(params):
    cost = read_costs(replace(params, seeds=(0, 1, 2)), ["tiny_os8"])["tiny_os8"]
    assert cost.iterations == 3 * 2 * (12 // 4)
    assert cost.disk == 4 * count_parameters(params.cells["tiny_os8"].model, 21) * (5 + 2 * 3)


def test_hours_come_from_a_training_of_the_same_network_on_the_same_device_and_from_nothing_else(params):
    assert read_costs(params, ["tiny_os8"])["tiny_os8"].hours is None
    write_facts(params, lr=0.5, epochs=99)  # no matter for the speed
    cost = read_costs(params, ["tiny_os8"])["tiny_os8"]
    assert cost.hours == pytest.approx(6 * 4 / 2.0 / 3600)
    assert cost.memory == 3_000_000_000


@pytest.mark.parametrize("changes", [{"device": "NVIDIA H100"}, {"crop": [64, 64]}, {"output_stride": 16}])
def test_a_training_of_something_else_says_nothing(params, changes):
    write_facts(params, **changes)
    assert read_costs(params, ["tiny_os8"])["tiny_os8"].hours is None
    table = as_table(read_costs(params, ["tiny_os8"]), "cpu")
    assert table[1].split()[:4] == ["tiny_os8", "6", "unknown", "unknown"]
    assert table[-1].startswith("1 to train")


def test_missing_data_and_weights_are_named(params):
    cell = params.cells["tiny_os8"]
    pretrained = replace(cell, model=replace(cell.model, pretrained=True))
    real = replace(params.datasets["tiny"], format="voc")
    asked = replace(params, cells={"tiny_os8": pretrained}, datasets={"tiny": real})
    assert read_costs(asked, ["tiny_os8"])["tiny_os8"].missing == (
        "data/raw/tiny", "ImageNet weights of resnet18, fetched by the first training",
    )  # fmt: skip
    (plan.DATA / "raw/tiny").mkdir(parents=True)
    (plan.DATA / "pretrained").mkdir()
    (plan.DATA / "pretrained/resnet18.a1_in1k.safetensors").touch()
    assert read_costs(asked, ["tiny_os8"])["tiny_os8"].missing == ("tiny is not prepared",)


def test_a_prepared_store_is_counted_as_it_is(params):
    (plan.DATA / "tiny").mkdir(parents=True)
    samples = [{"split": "train"}] * 9 + [{"split": "val"}]
    (plan.DATA / "tiny/manifest.json").write_text(json.dumps({"samples": samples, "classes": ["a", "b"]}))
    assert read_costs(params, ["tiny_os8"])["tiny_os8"].iterations == 2 * (9 // 4)
