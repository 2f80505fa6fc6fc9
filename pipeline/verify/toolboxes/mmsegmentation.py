"""mmsegmentation: ResNetV1c or ResNet, ASPPHead, FCNHead with one convolution (its configs/deeplabv3).

Compared with the classes of mmsegmentation 1.2.2. A published file holds `meta`, which is not used, and `state_dict`.
Its networks with `multi_grid` fit no cell: there the factors are the dilations, here they multiply that of layer4.
"""

from pipeline.verify.toolboxes.toolbox import Toolbox

TOOLBOX = Toolbox(
    state="state_dict",
    image_first=True,
    keys={
        "backbone": "backbone",
        "backbone.stem.0": "backbone.conv1.0",
        "backbone.stem.1": "backbone.conv1.1",
        "backbone.stem.3": "backbone.conv1.3",
        "backbone.stem.4": "backbone.conv1.4",
        "backbone.stem.6": "backbone.conv1.6",
        "backbone.stem.7": "backbone.bn1",
        "decode_head.aspp_modules.0.conv": "aspp.point.0",
        "decode_head.aspp_modules.0.bn": "aspp.point.1",
        "decode_head.aspp_modules.1.conv": "aspp.atrous.0.0",
        "decode_head.aspp_modules.1.bn": "aspp.atrous.0.1",
        "decode_head.aspp_modules.2.conv": "aspp.atrous.1.0",
        "decode_head.aspp_modules.2.bn": "aspp.atrous.1.1",
        "decode_head.aspp_modules.3.conv": "aspp.atrous.2.0",
        "decode_head.aspp_modules.3.bn": "aspp.atrous.2.1",
        "decode_head.image_pool.1.conv": "aspp.image.0",
        "decode_head.image_pool.1.bn": "aspp.image.1",
        "decode_head.bottleneck.conv": "aspp.project.0",
        "decode_head.bottleneck.bn": "aspp.project.1",
        "decode_head.conv_seg": "classifier",
        "auxiliary_head.convs.0.conv": "auxiliary.0.0",
        "auxiliary_head.convs.0.bn": "auxiliary.0.1",
        "auxiliary_head.conv_seg": "auxiliary.2",
    },
)
