import re
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from deeplab.backbone import build_backbone
from deeplab.errors import DataError, SettingsError
from deeplab.model import DeepLabV3
from tests.tiny import model_config

ROOT = Path(__file__).parents[1]


def dilations(backbone):
    """The dilation of each 3x3 convolution of a bottleneck, by layer."""
    return {
        layer: [block.conv2.dilation[0] for block in backbone[layer]]
        for layer in ("layer1", "layer2", "layer3", "layer4")
    }


def strides(backbone):
    return [max(m.stride[0] for m in backbone[f"layer{i}"].modules() if isinstance(m, nn.Conv2d)) for i in (1, 2, 3, 4)]


def test_output_stride_8_has_the_strides_and_dilations_of_the_recipe():
    with torch.device("meta"):
        backbone, channels = build_backbone(model_config(backbone="resnet50c", output_stride=8))
    assert channels == (1024, 2048)
    assert strides(backbone) == [1, 2, 1, 1]
    found = dilations(backbone)
    assert found["layer3"] == [1, 2, 2, 2, 2, 2]
    assert found["layer4"] == [2, 4, 4]


def test_output_stride_16_has_the_strides_and_dilations_of_the_recipe():
    with torch.device("meta"):
        backbone, _ = build_backbone(model_config(backbone="resnet101c", output_stride=16))
    assert strides(backbone) == [1, 2, 2, 1]
    found = dilations(backbone)
    assert set(found["layer3"]) == {1}
    assert found["layer4"] == [1, 2, 2]


def test_v1c_has_three_small_convolutions_in_its_stem_and_the_plain_network_one_large():
    with torch.device("meta"):
        v1c, _ = build_backbone(model_config(backbone="resnet50c"))
        plain, _ = build_backbone(model_config(backbone="resnet50"))
    assert [c.out_channels for c in v1c["conv1"] if isinstance(c, nn.Conv2d)] == [32, 32, 64]
    assert plain["conv1"].kernel_size == (7, 7)


def test_dilating_keeps_what_the_undilated_network_computes():
    """At output stride 8 every fourth value is that of the stride-32 network: dilation only adds the places between."""
    torch.manual_seed(0)
    dilated, _ = build_backbone(model_config(backbone="resnet18", output_stride=8))
    plain = timm.create_model("resnet18", features_only=True, out_indices=(3, 4))
    plain.load_state_dict(dilated.state_dict())
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        ours, theirs = dilated.eval()(images)[1], plain.eval()(images)[1]
    torch.testing.assert_close(ours[..., ::4, ::4], theirs, rtol=1e-4, atol=1e-5)


def test_multi_grid_multiplies_the_dilations_of_the_last_layer():
    with torch.device("meta"):
        backbone, _ = build_backbone(model_config(backbone="resnet50c", output_stride=16, multi_grid=(1, 2, 4)))
    assert dilations(backbone)["layer4"] == [2, 4, 8]
    assert [block.conv2.padding[0] for block in backbone["layer4"]] == [2, 4, 8]


def test_multi_grid_needs_one_factor_per_block():
    with pytest.raises(SettingsError, match=r"multi_grid: got \[1, 2\], expected 3 factors"):
        build_backbone(model_config(backbone="resnet50c", multi_grid=(1, 2)))


def test_an_unknown_backbone_is_answered_with_the_nearest_one():
    with pytest.raises(SettingsError, match="backbone: unknown name 'resnet50d_'; did you mean 'resnet50d'"):
        build_backbone(model_config(backbone="resnet50d_"))


def test_a_network_that_cannot_be_dilated_is_refused():
    with pytest.raises(SettingsError, match="backbone: 'vgg16' cannot be used at output stride 8"):
        build_backbone(model_config(backbone="vgg16"))


def test_multi_grid_needs_a_layer4():
    with pytest.raises(SettingsError, match=r"no layer4 as a ResNet has. Leave multi_grid at \[1, 1, 1\]"):
        build_backbone(model_config(backbone="mobilenetv2_050", multi_grid=(1, 2, 4)))


def families():
    """The rows of the table of backbones in docs/use-a-model.md: example, stride, "built", "inside"."""
    text = (ROOT / "docs" / "use-a-model.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| `(\w+)` \| ([a-z]+) \| ([a-z]+) \|", text, re.M)
    assert len(rows) >= 10
    return [(name, stride, inside) for name, *both in rows for stride, inside in zip((8, 16), both, strict=True)]


@pytest.mark.parametrize(("name", "stride", "said"), families())
def test_the_table_of_backbones_is_true(name, stride, said):
    """yes: the stride-32 features are found inside; nearly: the network trains, but they are not; no: refused."""
    torch.manual_seed(0)
    config = model_config(backbone=name, output_stride=stride)
    if said == "no":
        with pytest.raises(SettingsError, match="table in docs/use-a-model.md"):
            build_backbone(config)
        return
    network = DeepLabV3(config, 3)
    logits, _ = network(torch.randn(2, 3, 64, 96))
    assert logits.shape == (2, 3, 64 // stride, 96 // stride)
    logits.mean().backward()
    assert all(p.grad is not None for p in network.backbone.parameters() if p.requires_grad)
    assert said == ("yes" if stride_32_is_inside(name, network.backbone.eval(), 32 // stride) else "nearly")


@torch.no_grad()
def stride_32_is_inside(name, dilated, step):
    plain = timm.create_model(name, features_only=True, out_indices=(-2, -1))
    plain.load_state_dict(dilated.state_dict())
    images = torch.randn(1, 3, 64, 96)
    ours, theirs = dilated(images)[1], plain.eval()(images)[1]
    return any((ours[..., k::step, k::step] - theirs).abs().max() < 1e-5 * theirs.abs().max() for k in range(step))


BACKBONES_WITH_FILES = (
    "resnet18.a1_in1k",
    "mobilenetv2_050.lamb_in1k",
    "tf_efficientnet_lite0.in1k",
    "regnetx_002.pycls_in1k",
)


def own_normalisation(name):
    """The mean and std that timm names for `name`, in 0..255."""
    source = timm.models.get_pretrained_cfg(name)
    return {"mean": tuple(255 * v for v in source.mean), "std": tuple(255 * v for v in source.std)}


def place_weights(folder, name, change=lambda state: state):
    """The file of a network as timm names it, with `change` made to its tensors; returns the network."""
    torch.manual_seed(1)
    whole = timm.create_model(name)
    save_file(change(whole.state_dict()), folder / f"{name}.safetensors")
    return whole


@pytest.mark.parametrize("name", BACKBONES_WITH_FILES)
def test_imagenet_weights_are_taken_from_the_folder(name, tmp_path):
    whole = place_weights(tmp_path, name).state_dict()
    config = model_config(backbone=name, output_stride=16, pretrained=True, **own_normalisation(name))
    backbone, _ = build_backbone(config, tmp_path)
    taken = list(backbone.state_dict().values())  # in the order of the whole network, under other names for some
    assert len(taken) > 50
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(taken, whole.values(), strict=False))


def renamed(state):
    return {f"backbone.{key}": value for key, value in state.items()}


def without_one_layer(state):
    lost = [key for key in state if key.endswith("weight") and state[key].ndim == 4][-1]
    return {key: value for key, value in state.items() if key != lost}


def only_the_classifier(state):
    return dict(list(state.items())[-2:])


def with_nan(state):
    first = next(key for key in state if state[key].ndim == 4)
    return state | {first: state[first] * float("nan")}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (renamed, "tensors are missing"),
        (without_one_layer, ": 1 of its"),
        (only_the_classifier, "tensors are missing"),
        (with_nan, "holds NaN or infinity"),
    ],
)
@pytest.mark.parametrize("name", BACKBONES_WITH_FILES)
def test_a_file_that_leaves_a_layer_random_is_refused(name, change, said, tmp_path):
    place_weights(tmp_path, name, change)
    config = model_config(backbone=name, output_stride=16, pretrained=True, **own_normalisation(name))
    with pytest.raises(DataError, match=f"{name}.safetensors.*{said}"):
        build_backbone(config, tmp_path)


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    place_weights(tmp_path, "resnet18.a1_in1k")
    file = tmp_path / "resnet18.a1_in1k.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(DataError, match="safetensors: not a safetensors file, or cut short"):
        build_backbone(model_config(backbone="resnet18.a1_in1k", pretrained=True), tmp_path)


def test_weights_of_other_shapes_are_refused(tmp_path):
    place_weights(tmp_path, "resnet18.a1_in1k", lambda state: {k: torch.zeros(1) for k in state})
    with pytest.raises(DataError, match=r"resnet18.a1_in1k.safetensors: not the weights of"):
        build_backbone(model_config(backbone="resnet18.a1_in1k", pretrained=True), tmp_path)


def test_mean_and_std_belong_to_the_weights(tmp_path):
    place_weights(tmp_path, "tf_efficientnet_lite0.in1k")
    with pytest.raises(SettingsError, match=r"model.mean: got \[123.675.*expect \[127.5, 127.5, 127.5\]"):
        build_backbone(model_config(backbone="tf_efficientnet_lite0", pretrained=True), tmp_path)


def test_missing_weights_are_named_with_the_place_to_put_them_after_one_try(tmp_path, monkeypatch):
    tries = []

    def unreachable(*_, **__):
        tries.append(1)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(DataError) as caught:
        build_backbone(model_config(backbone="resnet50c", pretrained=True), tmp_path)
    message = str(caught.value)
    assert tries == [1]
    assert "'timm/resnet50c.gluon_in1k'" in message
    assert f"Place that repository's model.safetensors at {tmp_path / 'resnet50c.gluon_in1k.safetensors'}" in message
    assert "pretrained: false" in message
