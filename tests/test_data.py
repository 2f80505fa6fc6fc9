import pickle

import numpy as np
import pytest
import torch

from deeplab.augmentations import AUGMENTATIONS, Augmentation
from deeplab.data import (
    Batch,
    StepKeys,
    TrainingSamples,
    epoch_order,
    input_on_device,
    network_input,
    training_loader,
)
from deeplab.store import Store
from deeplab.store_writer import StoreWriter
from deeplab.transforms import clear_padding, normalise
from tests.tiny import augment_config, recipe_config, tiny_cell, write_store


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


def batches(split, start, stop, workers=0):
    """Copies, for the loader writes its memory again."""
    loader = training_loader(samples(split), start, stop, workers, pin=False)
    return [Batch(*(column.clone() for column in batch)) for batch in loader]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_batches_are_the_samples_of_their_steps_for_any_number_of_workers_and_any_start(split, workers):
    for start in (0, 3):
        expected = list(StepKeys(len(split), 4, seed=0, start=start, stop=9))
        found = batches(split, start, 9, workers)
        assert len(found) == len(expected)
        for batch, keys in zip(found, expected, strict=True):
            for place, key in enumerate(keys):
                assert same((column[place] for column in batch), map(np.asarray, samples(split)[key]))


def test_a_batch_is_the_memory_of_the_ring_but_its_sample_numbers_may_be_kept(split):
    loader = training_loader(samples(split), 0, 9, 0, pin=False)
    kept = [(batch.images, batch.samples) for batch in loader]
    assert len({images.data_ptr() for images, _ in kept}) == 2
    assert [numbers.tolist() for _, numbers in kept] == [b.samples.tolist() for b in batches(split, 0, 9)]


def test_a_sample_does_not_depend_on_what_its_memory_held_before(split):
    source = samples(split)
    for index in range(10):
        image, mask = np.full((32, 32, 3), 0xAB, np.uint8), np.full((32, 32), 0xCD, np.uint8)
        source.write((0, index), image, mask)
        fresh = source[(0, index)]
        np.testing.assert_array_equal(image, fresh.image)
        np.testing.assert_array_equal(mask, fresh.mask)


def test_half_of_the_samples_are_mirrored_image_and_mask_together(tmp_path):
    """The picture and its classes grow from left to right: a mirrored sample shows it by falling."""
    columns = np.tile(np.arange(40, dtype=np.uint8) * 6, (40, 1))
    with StoreWriter(tmp_path, ("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2))) as writer:
        writer.add("train", "ramp", np.stack([columns] * 3, axis=-1), columns // 81)
    augment = augment_config(max_class_share=1.0)
    source = TrainingSamples(Store(tmp_path).split("train"), recipe_config(resize=(40, 40)), augment, 0)
    mirrored = []
    for epoch in range(600):
        sample = source[(epoch, 0)]
        image, mask = (part[: sample.size[0], : sample.size[1]].astype(int) for part in (sample.image, sample.mask))
        rising = image[0, -1, 0] > image[0, 0, 0]
        step = 1 if rising else -1
        assert (np.diff(image[0, :, 0]) * step >= 0).all()
        assert (np.diff(mask[0]) * step >= 0).all()
        mirrored.append(not rising)
    assert 0.44 < np.mean(mirrored) < 0.56  # three standard deviations


def test_the_cpu_makes_the_same_input_as_the_way_of_a_device(split):
    """That way on this machine: in it only the first test of the device is left out."""
    batch = next(training_loader(samples(split), 0, 1, workers=0, pin=False))
    images, masks = network_input(batch, tiny_cell(), torch.device("cpu"))
    theirs, their_masks = input_on_device(batch, tiny_cell(), torch.device("cpu"))
    torch.testing.assert_close(images, theirs, rtol=0, atol=1e-4)  # of a deviation; a grey level is 0.017
    assert torch.equal(masks, their_masks)
    assert theirs.is_contiguous(memory_format=torch.channels_last)


def test_network_input_is_normalised_channels_last_and_zero_in_the_padding(split):
    batch = next(iter(training_loader(samples(split), 0, 1, workers=0, pin=False)))
    images, masks = network_input(batch, tiny_cell(), torch.device("cpu"))
    assert images.shape == (4, 3, 32, 32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert masks.dtype == torch.uint8
    for image, (height, width) in zip(images, batch.sizes.tolist(), strict=True):
        assert image[:, height:].abs().sum() == image[:, :, width:].abs().sum() == 0
    assert -2.2 < images.min() < 0 < images.max() < 2.7  # 0 and 255, normalised


def test_augmentations_are_drawn_and_applied_in_the_order_of_the_cell(split, monkeypatch):
    """A new one is an entry: here inversion in half of the samples, before the default and after it."""
    flips = Augmentation(
        draw=lambda rng, _: np.float32([rng.random() < 0.5, 7]),
        apply=lambda images, draws: torch.where(draws[:, :1, None, None] > 0, 255 - images, images),
        columns=2,
    )
    monkeypatch.setitem(AUGMENTATIONS, "invert", flips)
    for transforms in (("invert", "photometric"), ("photometric", "invert")):
        cell = tiny_cell(augment=augment_config(transforms=transforms, photometric=1.0))
        source = TrainingSamples(split, cell.recipe, cell.augment, 0)
        batch = next(training_loader(source, 0, 1, workers=0, pin=False))
        places = {"invert": slice(0, 2), "photometric": slice(2, 7)}
        if transforms[0] == "photometric":
            places = {"photometric": slice(0, 5), "invert": slice(5, 7)}
        expected = batch.images.permute(0, 3, 1, 2).float()
        for name in transforms:
            expected = AUGMENTATIONS[name].apply(expected, batch.draws[:, places[name]])
        expected = clear_padding(normalise(expected, cell.model.mean, cell.model.std), batch.sizes)
        images, _ = network_input(batch, cell, torch.device("cpu"))
        torch.testing.assert_close(images, expected, rtol=0, atol=0)
        assert (batch.draws[:, places["invert"]][:, 1] == 7).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cell_may_leave_out_all_augmentations(split, workers):
    cell = tiny_cell(augment=augment_config(transforms=()))
    batch = next(training_loader(TrainingSamples(split, cell.recipe, cell.augment, 0), 0, 1, workers, pin=False))
    plain = normalise(batch.images.permute(0, 3, 1, 2).float(), cell.model.mean, cell.model.std)
    images, _ = network_input(batch, cell, torch.device("cpu"))
    torch.testing.assert_close(images, clear_padding(plain, batch.sizes), rtol=0, atol=0)
