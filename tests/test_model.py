import pytest
import torch
from torchvision.models.segmentation.deeplabv3 import ASPP as TorchvisionASPP
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from deeplab.model import ASPP, AuxiliaryHead, DeepLabV3, conv_bn_relu, upsample
from tests.tiny import model_config

PUBLISHED = {"aspp_channels": 512, "auxiliary_channels": 512}


def copy_weights(theirs, *ours):
    """Give `ours`, in order, the weights of `theirs`."""
    values = iter(theirs.state_dict().values())
    for module in ours:
        module.load_state_dict({key: next(values) for key in module.state_dict()})
    assert next(values, None) is None


@pytest.mark.parametrize(
    ("backbone", "classes", "expected"),
    [
        ("resnet50c", 21, 70_479_754), ("resnet50c", 150, 70_612_108), ("resnet50c", 19, 70_477_702),
        ("resnet101c", 21, 89_471_882), ("resnet101c", 150, 89_604_236), ("resnet101c", 19, 89_469_830),
        ("resnet50", 21, 70_460_522), ("resnet50", 150, 70_592_876), ("resnet50", 19, 70_458_470),
        ("resnet101", 21, 89_452_650), ("resnet101", 150, 89_585_004), ("resnet101", 19, 89_450_598),
    ],
)  # fmt: skip
@pytest.mark.parametrize("output_stride", [8, 16])
def test_the_network_has_the_published_number_of_parameters(backbone, classes, expected, output_stride):
    with torch.device("meta"):
        network = DeepLabV3(model_config(backbone=backbone, output_stride=output_stride, **PUBLISHED), classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


@pytest.mark.parametrize("output_stride", [8, 16])
def test_logits_have_the_size_of_the_features_and_auxiliary_ones_come_only_in_training(output_stride):
    network = DeepLabV3(model_config(output_stride=output_stride), classes=5)
    images = torch.randn(2, 3, 65, 48)
    size = (2, 5, -(-65 // output_stride), 48 // output_stride)
    logits, auxiliary = network(images)
    assert logits.shape == size
    assert auxiliary.shape == size
    assert network.eval()(images).shape == size


def test_without_an_auxiliary_head_training_gives_logits_alone():
    network = DeepLabV3(model_config(auxiliary_channels=0), classes=5)
    assert isinstance(network(torch.randn(2, 3, 32, 32)), torch.Tensor)


@pytest.mark.parametrize(("output_stride", "rates"), [(8, [12, 24, 36]), (16, [6, 12, 18])])
def test_aspp_rates_double_at_output_stride_8(output_stride, rates):
    network = DeepLabV3(model_config(output_stride=output_stride), classes=2)
    assert [conv[0].dilation[0] for conv in network.aspp.atrous] == rates


def test_aspp_matches_torchvision():
    theirs = TorchvisionASPP(8, [6, 12, 18], 4).eval()
    ours = ASPP(8, 4, rates=(6, 12, 18)).eval()  # the paper's variant: a 1x1 projection
    copy_weights(theirs, ours)
    x = torch.randn(2, 8, 33, 33)
    torch.testing.assert_close(ours(x), theirs(x))


def test_the_head_matches_torchvision():
    """torchvision's head has one more 3x3 convolution after the paper's projection."""
    theirs = DeepLabHead(8, 5, atrous_rates=(12, 24, 36)).eval()
    aspp, extra = ASPP(8, 256, rates=(12, 24, 36)).eval(), conv_bn_relu(256, 256, kernel=3).eval()
    classifier = torch.nn.Conv2d(256, 5, 1)
    copy_weights(theirs, aspp, extra, classifier)
    x = torch.randn(2, 8, 17, 17)
    torch.testing.assert_close(classifier(extra(aspp(x))), theirs(x))


def test_a_head_convolution_is_that_of_torchvision_and_off_by_default():
    theirs, ours = (
        DeepLabHead(512, 5).eval(),
        DeepLabV3(model_config(aspp_channels=256, projection_kernel=1, head_convolution=True), 5).eval(),
    )
    copy_weights(theirs, ours.aspp, ours.head, ours.classifier)
    x = torch.randn(2, 512, 17, 17)
    torch.testing.assert_close(ours.classifier(ours.head(ours.aspp(x))), theirs(x))
    assert not [name for name in DeepLabV3(model_config(), 5).state_dict() if name.startswith("head.")]


def test_the_auxiliary_head_matches_torchvision():
    theirs, ours = FCNHead(32, 5).eval(), AuxiliaryHead(32, 8, 5, dropout=0.1).eval()
    copy_weights(theirs, ours)
    x = torch.randn(2, 32, 9, 9)
    torch.testing.assert_close(ours(x), theirs(x))


def test_upsampling_does_not_align_corners():
    values = upsample(torch.tensor([[[[0.0, 1.0]]]]), 1, 4)
    torch.testing.assert_close(values.flatten(), torch.tensor([0.0, 0.25, 0.75, 1.0]))
