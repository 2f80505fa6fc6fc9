import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from deeplab.backbone import build_backbone
from deeplab.errors import DataError, SettingsError
from tests.tiny import model_config


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


def test_imagenet_weights_are_taken_from_the_folder(tmp_path):
    torch.manual_seed(1)
    whole = timm.create_model("resnet18.a1_in1k")
    save_file(whole.state_dict(), tmp_path / "resnet18.a1_in1k.safetensors")
    backbone, _ = build_backbone(model_config(backbone="resnet18.a1_in1k", pretrained=True), tmp_path)
    torch.testing.assert_close(backbone["layer4"][1].conv2.weight, whole.layer4[1].conv2.weight, rtol=0, atol=0)
    torch.testing.assert_close(backbone["bn1"].running_mean, whole.bn1.running_mean, rtol=0, atol=0)


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "resnet18.a1_in1k.safetensors")
    with pytest.raises(DataError, match=r"resnet18.a1_in1k.safetensors: not the weights of"):
        build_backbone(model_config(backbone="resnet18.a1_in1k", pretrained=True), tmp_path)


def test_missing_weights_are_named_with_the_place_to_put_them(tmp_path, monkeypatch):
    def unreachable(*_, pretrained=False, **__):
        if pretrained:
            raise OSError("no network")
        return

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(DataError) as caught:
        build_backbone(model_config(backbone="resnet50c", pretrained=True), tmp_path)
    message = str(caught.value)
    assert "'timm/resnet50c.gluon_in1k'" in message
    assert f"Place that repository's model.safetensors at {tmp_path / 'resnet50c.gluon_in1k.safetensors'}" in message
    assert "pretrained: false" in message
