"""torchvision's references/segmentation, whose script is not in the wheel: its choices, and the file of each.

README.md: `train.py --model deeplabv3_mobilenet_v3_large --aux-loss --wd 0.000001 -b 4`, the smallest DeepLabv3 there.
train.py: SGD, lr 0.01, momentum 0.9, 10 times the rate for the auxiliary head, loss out + 0.5 aux, poly with power 0.9.
presets.py: base size 520, crop 480, transforms v2; evaluation at 520.
"""

import numpy as np
import torch
from PIL import Image
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large
from torchvision.transforms import v2
from torchvision.tv_tensors import Image as Pixels
from torchvision.tv_tensors import Mask

from benchmarks.race.job import CLASSES, IGNORE, Job, fit, main

TENSORS = v2.Compose(
    [
        v2.ToImage(),
        v2.ToDtype({Pixels: torch.float32, Mask: torch.int64, "others": None}, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)
CUT = v2.RandomCrop(480, pad_if_needed=True, fill={Mask: IGNORE, "others": 0})
CHANGES = v2.Compose([v2.RandomResize(260, 1040), v2.RandomHorizontalFlip(0.5), CUT, TENSORS])


def run(job: Job):
    def load(image, mask):
        return CHANGES(Image.open(image).convert("RGB"), Mask(np.array(Image.open(mask))))

    def loss(outputs, masks):
        return entropy(outputs["out"], masks) + 0.5 * entropy(outputs["aux"], masks)

    model = deeplabv3_mobilenet_v3_large(weights_backbone=None, num_classes=len(CLASSES), aux_loss=True)
    entropy = torch.nn.CrossEntropyLoss(ignore_index=IGNORE)
    groups = [{"params": part.parameters()} for part in (model.backbone, model.classifier)]
    groups += [{"params": model.aux_classifier.parameters(), "lr": 0.1}]
    sgd = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-6)
    trained = fit(job, load, 4, model, loss, sgd, lambda share: (1 - share) ** 0.9)
    for path in job.images("val"):
        image = Image.open(path).convert("RGB")
        with torch.inference_mode():
            logits = model(TENSORS(v2.functional.resize(image, 520))[None])["out"]
        logits = torch.nn.functional.interpolate(logits, (image.height, image.width), mode="bilinear")
        job.write(path, logits[0].argmax(0))
    given = "short side 260 to 1040, crop 480x480, batch 4"
    return {"network": "deeplabv3_mobilenet_v3_large", "given": given, **trained}


if __name__ == "__main__":
    main("torchvision", run)
