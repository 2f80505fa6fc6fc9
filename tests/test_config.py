"""Fingerprints of cells, which results are found by."""

from dataclasses import replace

import pytest

from pipeline.settings.params import load_params
from tests.tiny import augment_config, tiny_cell, train_config


def test_the_fingerprint_of_a_cell_never_changes():
    """A change here makes every record, checkpoint and table stale."""
    assert tiny_cell().fingerprint == "c93d6033545d4d793b93643dc102bd59c72201296c9474ecea6b07f8523c02e3"


@pytest.mark.parametrize(
    ("name", "start"), [("voc_resnet50_os8", "c372f5b643d9"), ("ade20k_resnet101_os16", "b1f528b08cc5")]
)
def test_the_fingerprints_of_the_published_cells_never_change(name, start):
    assert load_params().cell(name).fingerprint.startswith(start)


def test_an_optional_setting_counts_only_when_it_is_not_at_its_default():
    cell = tiny_cell()
    assert replace(cell, augment=augment_config(transforms=("photometric",))).fingerprint == cell.fingerprint
    assert replace(cell, augment=augment_config(transforms=())).fingerprint != cell.fingerprint
    assert replace(cell, train=train_config(deterministic=True)).fingerprint != cell.fingerprint
    for settings in ({"class_weights": "median_frequency"}, {"ema": 0.9}, {"keep": "best"}, {"patience": 1}):
        assert replace(cell, train=train_config(**settings)).fingerprint != cell.fingerprint
