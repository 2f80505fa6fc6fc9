"""torchvision: deeplabv3_resnet50 and deeplabv3_resnet101 (torchvision/models/segmentation/deeplabv3.py).

They fit a cell with the backbone resnet50 or resnet101 at output stride 8 and the settings
`model: {aspp_channels: 256, projection_kernel: 1, head_convolution: true}`.
"""

from pipeline.verify.toolboxes.toolbox import Toolbox

TOOLBOX = Toolbox(
    state=None,
    output_strides=(8,),
    keys={
        "backbone": "backbone",
        "classifier.0.convs.0": "aspp.point",
        "classifier.0.convs.1": "aspp.atrous.0",
        "classifier.0.convs.2": "aspp.atrous.1",
        "classifier.0.convs.3": "aspp.atrous.2",
        "classifier.0.convs.4.1": "aspp.image.0",
        "classifier.0.convs.4.2": "aspp.image.1",
        "classifier.0.project": "aspp.project",
        "classifier.1": "head.0",
        "classifier.2": "head.1",
        "classifier.4": "classifier",
        "aux_classifier.0": "auxiliary.0.0",
        "aux_classifier.1": "auxiliary.0.1",
        "aux_classifier.4": "auxiliary.2",
    },
)
