import pickle

import numpy as np
import pytest
import torch

from deeplab.data import StepKeys, TrainingSamples, epoch_order, network_input, training_loader
from deeplab.store import Store
from tests.tiny import augment_config, model_config, recipe_config, write_store


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return Store(write_store(tmp_path_factory.mktemp("store"))).split("train")


def samples(split, seed=0, **changes):
    return TrainingSamples(split, recipe_config(**changes), augment_config(), seed)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_sample_depends_on_seed_epoch_and_index_alone(split):
    first, second = samples(split), samples(split)
    second[(3, 1)]  # what was drawn before does not matter
    assert same(first[(2, 5)], second[(2, 5)])
    assert not same(first[(2, 5)], first[(3, 5)])
    assert not same(first[(2, 5)], samples(split, seed=1)[(2, 5)])


def test_a_sample_survives_pickling(split):
    assert same(pickle.loads(pickle.dumps(samples(split)))[(0, 3)], samples(split)[(0, 3)])


def test_a_sample_is_padded_with_zeros_and_ignored_pixels(split):
    padded = next(s for s in (samples(split)[(0, i)] for i in range(10)) if s.size != (32, 32))
    height, width = padded.size
    assert padded.image.shape == (32, 32, 3)
    assert (padded.mask[height:] == 255).all()
    assert (padded.mask[:, width:] == 255).all()
    assert padded.image[height:].sum() == padded.image[:, width:].sum() == 0


def test_an_epoch_shows_each_sample_once_and_each_epoch_in_another_order():
    assert sorted(epoch_order(10, 0, 0)) == list(range(10))
    assert list(epoch_order(10, 0, 0)) != list(epoch_order(10, 0, 1))
    assert list(epoch_order(10, 0, 0)) != list(epoch_order(10, 1, 0))


def test_the_last_smaller_batch_of_an_epoch_is_dropped():
    keys = list(StepKeys(count=10, batch_size=4, seed=0, start=0, stop=4))
    assert [len(batch) for batch in keys] == [4, 4, 4, 4]
    assert [epoch for batch in keys for epoch, _ in batch] == [0] * 8 + [1] * 8
    assert len({index for batch in keys[:2] for _, index in batch}) == 8


@pytest.mark.parametrize("start", range(6))
def test_going_on_from_any_step_gives_the_batches_of_an_unbroken_run(start):
    unbroken = list(StepKeys(count=10, batch_size=4, seed=7, start=0, stop=6))
    assert list(StepKeys(count=10, batch_size=4, seed=7, start=start, stop=6)) == unbroken[start:]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_no_batch(split, workers):
    alone = list(training_loader(samples(split), 1, 4, workers=0, pin=False))
    shared = list(training_loader(samples(split), 1, 4, workers=workers, pin=False))
    for one, other in zip(alone, shared, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_network_input_is_normalised_channels_last_and_zero_in_the_padding(split):
    batch = next(iter(training_loader(samples(split), 0, 1, workers=0, pin=False)))
    images, masks = network_input(batch, model_config(), torch.device("cpu"))
    assert images.shape == (4, 3, 32, 32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert masks.dtype == torch.uint8
    for image, (height, width) in zip(images, batch.sizes.tolist(), strict=True):
        assert image[:, height:].abs().sum() == image[:, :, width:].abs().sum() == 0
    assert -2.2 < images.min() < 0 < images.max() < 2.7  # 0 and 255, normalised
