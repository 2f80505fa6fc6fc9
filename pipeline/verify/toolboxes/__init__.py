"""How other toolboxes name the tensors of a DeepLabv3 network; one file per toolbox."""

from pipeline.verify.toolboxes import mmsegmentation, sssegmentation, torchvision
from pipeline.verify.toolboxes.toolbox import Toolbox

TOOLBOXES: dict[str, Toolbox] = {
    "sssegmentation": sssegmentation.TOOLBOX,
    "mmsegmentation": mmsegmentation.TOOLBOX,
    "torchvision": torchvision.TOOLBOX,
}
