"""sssegmentation: its ResNet, ASPP, decoder and auxiliary decoder (ssseg/modules/models).

A file that its training saves holds `model`, and beside it the optimizer and counters, which are not used.
"""

from pipeline.verify.toolboxes.toolbox import Toolbox

TOOLBOX = Toolbox(
    state="model",
    keys={
        "backbone_net": "backbone",
        "backbone_net.stem.0": "backbone.conv1.0",
        "backbone_net.stem.1": "backbone.conv1.1",
        "backbone_net.stem.3": "backbone.conv1.3",
        "backbone_net.stem.4": "backbone.conv1.4",
        "backbone_net.stem.6": "backbone.conv1.6",
        "backbone_net.stem.7": "backbone.bn1",
        "aspp_net.parallel_branches.0": "aspp.point",
        "aspp_net.parallel_branches.1": "aspp.atrous.0",
        "aspp_net.parallel_branches.2": "aspp.atrous.1",
        "aspp_net.parallel_branches.3": "aspp.atrous.2",
        "aspp_net.global_branch.1": "aspp.image.0",
        "aspp_net.global_branch.2": "aspp.image.1",
        "aspp_net.bottleneck": "aspp.project",
        "decoder.1": "classifier",
        "auxiliary_decoder.0": "auxiliary.0.0",
        "auxiliary_decoder.1": "auxiliary.0.1",
        "auxiliary_decoder.4": "auxiliary.2",
    },
)
