"""Other projects' training pipelines, doing the same work on the same files: decode, resize into the recipe's box times
a random scale, crop, flip, change colours, normalise, pad, and make tensors.

Each is built as its own documentation or reference script has it. What a project does not have is left out in its
favour: only mmsegmentation draws a crop again when one class fills it.
"""

import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from deeplab.config import ModelConfig, RecipeConfig
from deeplab.transforms import fitted_size

Pair = tuple[Path, Path]  # image and mask
Pipeline = Callable[[Pair], Any]
IGNORE = 255


def mmsegmentation(recipe: RecipeConfig, _: ModelConfig) -> Pipeline:
    """The train_pipeline of mmsegmentation's configs, up to what its DataLoader hands over: uint8, not yet padded.

    Its networks import compiled operators that mmcv-lite does not have and no transform uses: a stand-in takes their
    place.
    """
    operators = types.ModuleType("mmcv.ops")
    operators.__getattr__ = lambda _: None  # type: ignore[method-assign]
    sys.modules.setdefault("mmcv.ops", operators)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mmcv.transforms import Compose, LoadImageFromFile, RandomFlip, RandomResize
        from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, PhotoMetricDistortion, RandomCrop
    pipeline = Compose(
        [
            LoadImageFromFile(),
            LoadAnnotations(),
            RandomResize(scale=recipe.resize, ratio_range=(0.5, 2.0), keep_ratio=True),
            RandomCrop(crop_size=recipe.crop, cat_max_ratio=0.75),
            RandomFlip(prob=0.5),
            PhotoMetricDistortion(),
            PackSegInputs(),
        ]
    )

    def sample(pair: Pair) -> dict[str, Any]:
        image, mask = map(str, pair)
        return pipeline({"img_path": image, "seg_map_path": mask, "reduce_zero_label": False, "seg_fields": []})

    return sample


def mmsegmentation_to_the_end(recipe: RecipeConfig, model: ModelConfig) -> Pipeline:
    """With its data preprocessor, which normalises and pads; on the CPU, as the pipelines beside it."""
    pipeline = mmsegmentation(recipe, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mmseg.models import SegDataPreProcessor

    finish = SegDataPreProcessor(
        mean=model.mean, std=model.std, size=recipe.crop, bgr_to_rgb=True, pad_val=0, seg_pad_val=IGNORE
    )

    def sample(pair: Pair) -> Any:
        packed = pipeline(pair)
        return finish({"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]}, training=True)

    return sample


def torchvision(recipe: RecipeConfig, model: ModelConfig, backend: str) -> Pipeline:
    """Torchvision's segmentation reference with its transforms v2; `backend` is pil or tensor, as there."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    height, width = recipe.crop
    changes = v2.Compose(
        [
            v2.RandomCrop(
                (height, width), pad_if_needed=True, fill={Image.Image: 0, tv_tensors.Image: 0, tv_tensors.Mask: IGNORE}
            ),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomPhotometricDistort(
                brightness=(0.875, 1.125), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.1, 0.1), p=0.5
            ),
            v2.ToImage(),
            v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}, scale=True),
            v2.Normalize([m / 255 for m in model.mean], [s / 255 for s in model.std]),
        ]
    )

    def sample(pair: Pair) -> Any:
        image = Image.open(pair[0]).convert("RGB")
        mask = tv_tensors.Mask(np.array(Image.open(pair[1])))
        size = fitted_size(image.height, image.width, recipe.resize, float(torch.empty(1).uniform_(0.5, 2.0)))
        if backend == "tensor":
            image = v2.functional.to_image(image)
        return changes(v2.functional.resize(image, size), v2.functional.resize(mask, size))

    return sample


def albumentations(recipe: RecipeConfig, model: ModelConfig) -> Pipeline:
    """Albumentations, with a transform for each change of the recipe."""
    import os

    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as a
    from albumentations.pytorch import ToTensorV2

    height, width = recipe.crop
    short = min(recipe.resize)
    same = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0), "p": 0.5}
    changes = a.Compose(
        [
            a.SmallestMaxSize(list(range(short // 2, 2 * short + 1))),
            a.PadIfNeeded(height, width, position="top_left", fill=[round(m) for m in model.mean], fill_mask=IGNORE),
            a.RandomCrop(height, width),
            a.HorizontalFlip(p=0.5),
            a.ColorJitter(**{**same, "brightness": (0.875, 1.125)}),
            a.ColorJitter(**{**same, "contrast": (0.5, 1.5)}),
            a.ColorJitter(**{**same, "saturation": (0.5, 1.5)}),
            a.ColorJitter(**{**same, "hue": (-0.1, 0.1)}),
            a.Normalize(model.mean, model.std, max_pixel_value=1.0),
            ToTensorV2(),
        ]
    )

    def sample(pair: Pair) -> Any:
        return changes(image=cv2.imread(str(pair[0]), cv2.IMREAD_COLOR_RGB), mask=np.array(Image.open(pair[1])))

    return sample


PEERS: dict[str, Callable[[RecipeConfig, ModelConfig], Pipeline]] = {
    "mmsegmentation": mmsegmentation_to_the_end,
    "mmsegmentation, without normalise and pad": mmsegmentation,
    "torchvision v2, PIL": lambda recipe, model: torchvision(recipe, model, "pil"),
    "torchvision v2, tensors": lambda recipe, model: torchvision(recipe, model, "tensor"),
    "albumentations": albumentations,
}
