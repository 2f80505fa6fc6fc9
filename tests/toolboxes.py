"""DeepLabv3 as other toolboxes build it, written from their source: the same names, the same forward pass.

mmsegmentation 1.2.2: models/backbones/resnet.py, utils/res_layer.py, decode_heads/aspp_head.py and fcn_head.py.
sssegmentation 1.7.0: ssseg/modules/models/backbones/resnet.py, segmentors/deeplabv3 and segmentors/base.
test_adopt.py holds the hashes of the names that the real classes gave.
"""

import torch
import torch.nn.functional as F
from torch import nn

LAYERS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
PLAN = {8: ((1, 2, 1, 1), (1, 1, 2, 4)), 16: ((1, 2, 2, 1), (1, 1, 1, 2))}  # output stride -> strides, dilations


class Bottleneck(nn.Module):
    """A block in the style of pytorch: the stride is that of the 3x3 convolution."""

    def __init__(self, inplanes, planes, stride, dilation):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inplanes, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
        self.downsample = None
        if stride != 1 or inplanes != 4 * planes:
            conv = nn.Conv2d(inplanes, 4 * planes, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * planes))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + (x if self.downsample is None else self.downsample(x)))


class ResNetV1c(nn.Module):
    """The same in both toolboxes, with contract_dilation: the first block of a layer has half its dilation."""

    def __init__(self, depth, output_stride):
        super().__init__()
        parts, channels = [], (3, 32, 32, 64)
        for index in range(3):
            conv = nn.Conv2d(*channels[index : index + 2], 3, stride=1 + (index == 0), padding=1, bias=False)
            parts += [conv, nn.BatchNorm2d(channels[index + 1]), nn.ReLU()]
        self.stem = nn.Sequential(*parts)
        inplanes = 64
        for index, (blocks, stride, dilation) in enumerate(zip(LAYERS[depth], *PLAN[output_stride], strict=True)):
            planes, layer = 64 * 2**index, []
            for block in range(blocks):
                first = block == 0
                own = dilation // 2 if first and dilation > 1 else dilation
                layer.append(Bottleneck(inplanes, planes, stride if first else 1, own))
                inplanes = 4 * planes
            self.add_module(f"layer{index + 1}", nn.Sequential(*layer))

    def forward(self, x):
        x = F.max_pool2d(self.stem(x), 3, stride=2, padding=1)
        layer3 = self.layer3(self.layer2(self.layer1(x)))
        return layer3, self.layer4(layer3)


class ConvModule(nn.Module):
    """Of mmcv."""

    def __init__(self, inputs, outputs, kernel, dilation=1):
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Mmsegmentation(nn.Module):
    """EncoderDecoder with ResNetV1c, ASPPHead and FCNHead; `auxiliary` is the width of the latter, 0 for none."""

    def __init__(self, depth, output_stride, classes=21, width=512, auxiliary=256):
        super().__init__()
        rates = [1, *(rate * 16 // output_stride for rate in (6, 12, 18))]
        self.backbone = ResNetV1c(depth, output_stride)
        self.decode_head = head = nn.Module()
        head.conv_seg = nn.Conv2d(width, classes, 1)
        head.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(2048, width, 1))
        head.aspp_modules = nn.ModuleList(ConvModule(2048, width, 1 if rate == 1 else 3, rate) for rate in rates)
        head.bottleneck = ConvModule(5 * width, width, 3)
        if auxiliary:
            self.auxiliary_head = nn.Module()
            self.auxiliary_head.conv_seg = nn.Conv2d(auxiliary, classes, 1)
            self.auxiliary_head.convs = nn.Sequential(ConvModule(1024, auxiliary, 3))

    def forward(self, images):
        middle, x = self.backbone(images)
        head = self.decode_head
        pooled = F.interpolate(head.image_pool(x), size=x.shape[2:], mode="bilinear", align_corners=False)
        logits = head.conv_seg(head.bottleneck(torch.cat([pooled, *(part(x) for part in head.aspp_modules)], dim=1)))
        if not hasattr(self, "auxiliary_head"):
            return logits, None
        return logits, self.auxiliary_head.conv_seg(self.auxiliary_head.convs(middle))

    def checkpoint(self):
        meta = {
            "mmseg_version": "0.5.0+b1c2f1e",
            "config": "norm_cfg = dict()",
            "CLASSES": ("a",),
            "PALETTE": [[0, 0, 0]],
        }
        return {"meta": meta, "state_dict": self.state_dict()}


def conv_bn_relu(inputs, outputs, kernel, dilation=1):
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


class Sssegmentation(nn.Module):
    """Deeplabv3 of ssseg; `auxiliary` is the width of the auxiliary decoder, 0 for none."""

    def __init__(self, depth, output_stride, classes=21, width=512, auxiliary=512):
        super().__init__()
        rates = [1, *(rate * 16 // output_stride for rate in (6, 12, 18))]
        self.backbone_net = ResNetV1c(depth, output_stride)
        self.aspp_net = net = nn.Module()
        branches = (conv_bn_relu(2048, width, 1 if rate == 1 else 3, rate) for rate in rates)
        net.parallel_branches = nn.ModuleList(nn.Sequential(*branch) for branch in branches)
        net.global_branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(2048, width, 1))
        net.bottleneck = nn.Sequential(*conv_bn_relu(5 * width, width, 3))
        self.decoder = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(width, classes, 1))
        if auxiliary:
            last = [nn.Dropout2d(0.1), nn.Conv2d(auxiliary, classes, 1)]
            self.auxiliary_decoder = nn.Sequential(*conv_bn_relu(1024, auxiliary, 3), *last)

    def forward(self, images):
        middle, x = self.backbone_net(images)
        net = self.aspp_net
        pooled = F.interpolate(net.global_branch(x), size=x.shape[2:], mode="bilinear", align_corners=False)
        parts = [*(branch(x) for branch in net.parallel_branches), pooled]
        logits = self.decoder(net.bottleneck(torch.cat(parts, dim=1)))
        return logits, self.auxiliary_decoder(middle) if hasattr(self, "auxiliary_decoder") else None

    def checkpoint(self):
        return {"cur_epoch": 60, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "model": self.state_dict()}


def randomized(network):
    """`network` in evaluation mode, with statistics of batch normalisation that a wrong place would show."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.0)
            module.bias.data.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()
