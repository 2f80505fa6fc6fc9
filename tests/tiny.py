"""Settings and stores small enough for a test."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from deeplab.config import AugmentConfig, Cell, ModelConfig, RecipeConfig, TrainConfig
from deeplab.store_writer import StoreWriter


def model_config(**changes):
    """A ResNet18 with narrow heads."""
    settings = {
        "backbone": "resnet18", "output_stride": 8, "pretrained": False, "multi_grid": (1, 1, 1), "aspp_channels": 8,
        "aspp_rates": (6, 12, 18), "projection_kernel": 3, "auxiliary_channels": 8, "dropout": 0.1,
        "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375),
    }  # fmt: skip
    return ModelConfig(**{**settings, **changes})


def recipe_config(**changes):
    """Four epochs over small crops."""
    settings = {
        "train_split": "train", "val_split": "val", "crop": (32, 32), "resize": (48, 32), "lr": 0.01, "policy": "poly",
        "batch_size": 4, "epochs": 2,
    }  # fmt: skip
    return RecipeConfig(**{**settings, **changes})


def train_config(**changes):
    """The recipe's optimizer on one thread."""
    settings = {
        "momentum": 0.9, "weight_decay": 5e-4, "poly_power": 0.9, "min_lr": 1e-4, "loss": "cross_entropy",
        "auxiliary_weight": 0.4, "precision": "fp32", "tf32": False, "compile": False,
        "threads": 1,
    }  # fmt: skip
    return TrainConfig(**{**settings, **changes})


def augment_config(**changes):
    """The recipe's augmentation."""
    settings = {
        "scale": (0.5, 2.0), "crop_tries": 10, "max_class_share": 0.75, "flip": 0.5, "photometric": 0.5, "brightness": 32.0,
        "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": 18.0,
    }  # fmt: skip
    return AugmentConfig(**{**settings, **changes})


def tiny_cell(**changes):
    """A cell of all of the above."""
    cell = Cell(
        dataset="tiny", model=model_config(), recipe=recipe_config(), train=train_config(), augment=augment_config()
    )
    return replace(cell, **changes)


def write_store(folder, counts=None, classes=3, size=(40, 48), seed=0):
    """A store of random blocks; `counts` is split -> number of samples."""
    rng = np.random.default_rng(seed)
    palette = tuple((40 * k, 255 - 40 * k, 90) for k in range(classes))
    with StoreWriter(folder, tuple(f"class {k}" for k in range(classes)), palette) as writer:
        for split, count in (counts or {"train": 10, "val": 3}).items():
            for index in range(count):
                coarse = rng.integers(0, classes, (4, 4), dtype=np.uint8)
                mask = np.kron(coarse, np.ones((size[0] // 4, size[1] // 4), dtype=np.uint8))
                mask[0] = 255
                image = np.stack([mask * 70 + rng.integers(0, 30, mask.shape, dtype=np.uint8)] * 3, axis=-1)
                writer.add(split, f"{split}_{index}", image.astype(np.uint8), mask)
    return folder


def tiny_params(path, edit=None):
    """Write a params.yaml with one cell, `tiny_os8`, on the data set `tiny` with the shapes format; `edit` changes it."""
    params = YAML(typ="safe").load((Path(__file__).parents[1] / "params.yaml").read_text(encoding="utf-8"))
    params["grid"] = {"tiny_os8": {"dataset": "tiny", "backbone": "resnet18", "output_stride": 8, "pretrained": False}}
    params["datasets"] = {
        "tiny": {
            "title": "Tiny",
            "format": "shapes",
            "archives": [],
            "images": {"train": 12, "val": 4},
            "allow_subset": False,
            "store": "packed",
            "folder": None,
        }
    }
    recipe = {"train_split": "train", "val_split": "val", "crop": [32, 32], "resize": [48, 32], "lr": 0.01}
    small = {"model": {"aspp_channels": 8, "auxiliary_channels": 8}, "train": {"threads": 1}}
    params["recipes"] = {"tiny": {**recipe, "policy": "poly", "batch_size": 4, "epochs": 2, **small}}
    params["runtime"].update(device="cpu", workers=0, log_every=1, tracking_every=1000)
    if edit:
        edit(params)
    path.write_text(json.dumps(params, indent=1), encoding="utf-8")  # JSON is YAML
    return path


def write_weights(path, classes=3, seed=0, model=None, recipe=None, dataset="tiny", **changed):
    """A weights file of a tiny network that tells its classes apart, as training leaves it; `changed` is what it says."""
    import torch
    from safetensors.torch import save_file

    from deeplab.model import DeepLabV3

    changes = {"model": model_config(**(model or {})), "recipe": recipe_config(**(recipe or {}))}
    cell = tiny_cell(dataset=dataset, **changes)
    torch.manual_seed(seed)
    network = DeepLabV3(cell.model, classes).eval()
    with torch.inference_mode():
        usual = network(torch.randn(4, 3, 48, 48)).mean(dim=(0, 2, 3))
    network.classifier.bias.data -= usual.clone()  # no class is the largest everywhere
    network.classifier.weight.data *= 20
    about = {
        "classes": [f"class {k}" for k in range(classes)],
        "palette": [[40 * k % 256, (255 - 40 * k) % 256, 90] for k in range(classes)],
        "settings": asdict(cell),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), path, {"about": json.dumps(about | changed)})
    return path
