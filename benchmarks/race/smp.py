"""segmentation_models.pytorch: examples/camvid_segmentation_multiclass.ipynb, made for this very data set.

From there: FPN, Dice loss, Adam at 2e-4, cosine to 1e-5, crop 320x320 and the changes below. Departures, in its favour:
a ResNet18 for the ResNeXt50, batches of 8 for 32, of which a core makes too few, and pixels in 0..1, to which the mean
that it subtracts belongs. Its 12th class, no label, is ignored as elsewhere.
"""

import math

import albumentations as a
import cv2
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file
from torchvision.transforms import Normalize

from benchmarks.race.job import CLASSES, IGNORE, Job, fit, main

CHANGES = a.Compose(
    [
        a.HorizontalFlip(p=0.5),
        a.Affine(scale=(0.5, 1.5), translate_percent=(-0.1, 0.1), p=1, fill_mask=IGNORE),  # once ShiftScaleRotate
        a.PadIfNeeded(320, 320, fill_mask=IGNORE),
        a.RandomCrop(320, 320),
        a.GaussNoise(p=0.2),
        a.Perspective(p=0.5, fill_mask=IGNORE),
        a.OneOf([a.CLAHE(p=1), a.RandomBrightnessContrast(p=1), a.RandomGamma(p=1)], p=0.9),
        a.OneOf([a.Sharpen(p=1), a.Blur(blur_limit=3, p=1), a.MotionBlur(blur_limit=3, p=1)], p=0.9),
        a.OneOf([a.RandomBrightnessContrast(p=1), a.HueSaturationValue(p=1)], p=0.9),
    ]
)


def load(image, mask):
    changed = CHANGES(image=cv2.imread(image, cv2.IMREAD_COLOR_RGB), mask=cv2.imread(mask, cv2.IMREAD_GRAYSCALE))
    return changed["image"].transpose(2, 0, 1).astype("float32") / 255, changed["mask"].astype("int64")


def run(job: Job):
    encoder = "tf_efficientnet_lite0" if job.weights else "resnet18"
    network = smp.FPN(f"tu-{encoder}", encoder_weights=None, classes=len(CLASSES))
    if job.weights:
        found = network.encoder.model.load_state_dict(load_file(job.weights), strict=False)
        assert not found.missing_keys, found
    values = smp.encoders.get_preprocessing_params(f"tu-{encoder}")
    model = torch.nn.Sequential(Normalize(values["mean"], values["std"]), network)
    loss = smp.losses.DiceLoss("multiclass", from_logits=True, ignore_index=IGNORE)
    adam = torch.optim.Adam(model.parameters(), lr=2e-4)
    trained = fit(job, load, 8, model, loss, adam, lambda share: 0.05 + 0.475 * (1 + math.cos(math.pi * share)))
    for path in job.images("val"):
        image = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
        height, width, _ = image.shape
        padded = cv2.copyMakeBorder(image, 0, -height % 32, 0, -width % 32, cv2.BORDER_REFLECT_101)
        with torch.inference_mode():
            logits = model(torch.from_numpy(padded / 255).float().permute(2, 0, 1)[None])
        job.write(path, logits[0, :, :height, :width].argmax(0))
    return {"network": f"FPN, {encoder}", "given": "480x360 times 0.5 to 1.5, crop 320x320, batch 8", **trained}


if __name__ == "__main__":
    main("segmentation-models-pytorch", run)
