"""The published recipe, and where a cell departs from it: a number under another recipe says so wherever it is shown.

Backbone, output stride and pretraining distinguish the cells of a table, and the data has fingerprints of its own.
Threads and compilation move no more than the last bits, as a device does.
"""

import json
from dataclasses import asdict
from typing import Any

from deeplab.config import Cell

SHARED: dict[str, dict[str, Any]] = {
    "recipe": {"lr": 0.01, "policy": "poly", "align": False},
    "model": {
        "multi_grid": [1, 1, 1],
        "aspp_channels": 512,
        "aspp_rates": [6, 12, 18],
        "projection_kernel": 3,
        "head_convolution": False,
        "auxiliary_channels": 512,
        "dropout": 0.1,
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
    },
    "train": {
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "poly_power": 0.9,
        "min_lr": 1e-4,
        "loss": "cross_entropy",
        "auxiliary_weight": 0.4,
        "precision": "fp32",
        "tf32": False,
        "freeze": [],
        "freeze_norm": False,
        "backbone_lr": 1.0,
        "class_weights": None,
        "focal_gamma": 2.0,
        "ohem_threshold": 0.7,
        "ohem_min_share": 0.0625,
        "ema": None,
        "keep": "last",
        "patience": None,
        "validate_every": 1,
    },
    "augment": {
        "scale": [0.5, 2.0],
        "crop_tries": 10,
        "max_class_share": 0.75,
        "flip": 0.5,
        "transforms": ["photometric"],
        "photometric": 0.5,
        "brightness": 32,
        "contrast": [0.5, 1.5],
        "saturation": [0.5, 1.5],
        "hue": 18,
    },
}

# Data set -> its published recipe, beside what all share. Any other data set has none to depart from.
PUBLISHED: dict[str, dict[str, Any]] = {
    "voc": {
        "train_split": "trainaug", "val_split": "val", "crop": [512, 512], "resize": [2048, 512], "batch_size": 16,
        "epochs": 60,
    },
    "ade20k": {
        "train_split": "train", "val_split": "val", "crop": [512, 512], "resize": [2048, 512], "batch_size": 16,
        "epochs": 130,
    },
    "cityscapes": {
        "train_split": "train", "val_split": "val", "crop": [512, 1024], "resize": [2048, 1024], "batch_size": 8,
        "epochs": 220,
    },
}  # fmt: skip


def departures(cell: Cell) -> tuple[str, ...]:
    """Where a cell departs from its published recipe, as ("precision bf16", "batch_size 8 instead of 16").

    Weights chosen on the validation split are named on any data set: the number is the highest of several.
    """
    chosen = (f"chosen on {cell.recipe.val_split}: optimistic",) if cell.train.validates else ()
    if cell.dataset not in PUBLISHED:
        return chosen
    own = json.loads(json.dumps(asdict(cell)))  # tuples as lists
    published = {**SHARED, "recipe": {**SHARED["recipe"], **PUBLISHED[cell.dataset]}}
    departed = (
        describe(key, own[section][key], value)
        for section, values in published.items()
        for key, value in values.items()
        if own[section][key] != value
    )
    return (*departed, *chosen)


def describe(key: str, value: Any, published: Any) -> str:
    """One departure; a switch that is on needs no value."""
    if isinstance(value, bool):
        return key
    if published == []:
        return f"{key} {', '.join(value)}"
    return f"{key} {value}" + ("" if isinstance(value, str) or published is None else f" instead of {published}")


def departs(cell: Cell) -> str:
    """The same as one text; empty when the cell keeps to its recipe."""
    return ", ".join(departures(cell))
