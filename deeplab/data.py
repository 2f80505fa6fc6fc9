"""Training batches. A sample is a function of (seed, epoch, index), and the samples of a step one of (seed, step).

The number of workers or devices, and the step at which a run was resumed, therefore change nothing, and there is no
state to save.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.random import Generator, Philox, SeedSequence
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from deeplab.augmentations import AUGMENTATIONS
from deeplab.config import AugmentConfig, Cell, ModelConfig, RecipeConfig
from deeplab.ring import Layout, Slot, Waiting, fill_in_turn
from deeplab.store import IGNORE, Bytes, Split
from deeplab.transforms import clear_padding, cut, draw_region, normalise

ORDER, AUGMENT = 0, 1  # purposes of random streams, which keep them independent

Key = tuple[int, int]  # epoch, index


class Sample(NamedTuple):
    """One training sample before its augmentations are applied."""

    image: Bytes  # (H, W, 3) RGB, padded below and to the right
    mask: Bytes  # (H, W), padded with 255
    size: tuple[int, int]  # height, width without the padding
    draws: NDArray[np.float32]  # (D,), what its augmentations drew, side by side
    sample: int  # its index in the split


class Batch(NamedTuple):
    """Samples of one step, still uint8."""

    images: Tensor  # (N, H, W, 3)
    masks: Tensor  # (N, H, W)
    sizes: Tensor  # (N, 2)
    draws: Tensor  # (N, D)
    samples: Tensor  # (N,)


class TrainingSamples(Dataset[Sample]):
    """The training samples of a split, by (epoch, index)."""

    def __init__(self, split: Split, recipe: RecipeConfig, augment: AugmentConfig, seed: int) -> None:
        self.split, self.recipe, self.augment, self.seed = split, recipe, augment, seed
        self.augmentations = [AUGMENTATIONS[name] for name in augment.transforms]

    def __getitem__(self, key: Key) -> Sample:
        image = np.empty((*self.recipe.crop, 3), dtype=np.uint8)
        mask = np.empty(self.recipe.crop, dtype=np.uint8)
        size, draws = self.write(key, image, mask)
        return Sample(image, mask, size, draws, key[1])

    def write(self, key: Key, image: Bytes, mask: Bytes) -> tuple[tuple[int, int], NDArray[np.float32]]:
        """Write a sample into `image` (H, W, 3) and `mask` (H, W), whatever they hold. Returns size and draws."""
        epoch, index = key
        rng = random_stream(self.seed, AUGMENT, epoch, index)
        region = draw_region(rng, self.split.mask(index), self.recipe, self.augment, out=mask)
        height, width = region.height, region.width
        cut(self.split.image(index), region, cv2.INTER_LINEAR, out=image)
        if rng.random() < self.augment.flip:
            for part in (image[:height, :width], mask[:height, :width]):
                cv2.flip(part, 1, dst=part)
        for padded, nothing in ((image, 0), (mask, IGNORE)):
            padded[height:] = nothing
            padded[:height, width:] = nothing
        draws = [value for each in self.augmentations for value in each.draw(rng, self.augment)]
        return (height, width), np.array(draws, np.float32)

    def write_batch(self, slot: Slot, keys: list[Key]) -> None:
        """Write the samples of `keys` into a slot of `batch_layout`."""
        images, masks, sizes, draws, indices = slot
        for place, key in enumerate(keys):
            sizes[place], draws[place] = self.write(key, images[place], masks[place])
            indices[place] = key[1]


class StepKeys(Sampler[list[Key]]):
    """The (epoch, index) keys of steps `start` to `stop`; of each step only the `part` of this process."""

    def __init__(
        self, count: int, batch_size: int, seed: int, start: int, stop: int, part: slice = slice(None)
    ) -> None:
        self.count, self.batch_size, self.seed, self.start, self.stop = count, batch_size, seed, start, stop
        self.part = part

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        per_epoch = steps_per_epoch(self.count, self.batch_size)
        order, order_epoch = np.empty(0, dtype=np.int64), -1
        for step in range(self.start, self.stop):
            epoch, position = divmod(step, per_epoch)
            if epoch != order_epoch:
                order, order_epoch = epoch_order(self.count, self.seed, epoch), epoch
            first = position * self.batch_size
            yield [(epoch, int(index)) for index in order[first : first + self.batch_size][self.part]]


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Batches in an epoch; a last, smaller one is dropped."""
    return count // batch_size


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order (count,) in which an epoch goes through the samples."""
    return random_stream(seed, ORDER, epoch, 0).permutation(count)


def random_stream(seed: int, purpose: int, epoch: int, index: int) -> Generator:
    """Random numbers that depend on the four arguments and nothing else."""
    return Generator(Philox(SeedSequence((seed, purpose, epoch, index))))


def training_loader(
    samples: TrainingSamples,
    start: int,
    stop: int,
    workers: int,
    pin: bool,
    part: slice = slice(None),
    waiting: Waiting = nullcontext,
) -> Iterator[Batch]:
    """Batches of steps `start` to `stop`, in order, from `workers` processes; 0 makes them in this one.

    Makes only the `part` of each batch that belongs to this process. A batch is valid until the next one is asked for,
    because its memory is used again. With `pin`, which needs CUDA, it is page-locked, and copies that were started on
    the current stream stay correct. `waiting` and errors are those of `fill_in_turn`.
    """
    keys = StepKeys(len(samples.split), samples.recipe.batch_size, samples.seed, start, stop, part)
    layout = batch_layout(len(range(samples.recipe.batch_size)[part]), samples.recipe.crop, samples.augment)
    for images, masks, sizes, draws, indices in fill_in_turn(layout, keys, samples.write_batch, workers, pin, waiting):
        yield Batch(
            torch.from_numpy(images),
            torch.from_numpy(masks),
            torch.from_numpy(sizes),
            torch.from_numpy(draws),
            torch.tensor(indices),  # copied: a report may name the samples of earlier steps
        )


def batch_layout(batch_size: int, crop: tuple[int, int], augment: AugmentConfig) -> Layout:
    """The arrays of a Batch, in its order."""
    return (
        ((batch_size, *crop, 3), np.uint8),
        ((batch_size, *crop), np.uint8),
        ((batch_size, 2), np.int64),
        ((batch_size, sum(AUGMENTATIONS[name].columns for name in augment.transforms)), np.float32),
        ((batch_size,), np.int64),
    )


def network_input(batch: Batch, cell: Cell, device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch as the network takes it: images float (N, 3, H, W), channels last, and masks uint8 (N, H, W).

    Colours are changed in floating point on any device; for the default the CPU has a faster way to the same numbers.
    """
    if device.type == "cpu" and cell.augment.transforms == ("photometric",):
        return input_on_cpu(batch, cell.model)
    return input_on_device(batch, cell, device)


def input_on_device(batch: Batch, cell: Cell, device: torch.device) -> tuple[Tensor, Tensor]:
    """The whole batch at once, by copies that the host does not wait for."""
    images, masks, sizes, draws = (column.to(device, non_blocking=True) for column in batch[:4])
    images = images.permute(0, 3, 1, 2).float()
    augmentations = [AUGMENTATIONS[name] for name in cell.augment.transforms]
    parts = torch.split(draws, [each.columns for each in augmentations], dim=1)
    for each, part in zip(augmentations, parts, strict=True):
        images = each.apply(images, part)
    images = clear_padding(normalise(images, cell.model.mean, cell.model.std), sizes)
    return images.contiguous(memory_format=torch.channels_last), masks


def input_on_cpu(batch: Batch, model: ModelConfig) -> tuple[Tensor, Tensor]:
    """The same for photometric distortion alone, one image after another; the masks are those of the batch."""
    # Imported late: it takes half a second, which a GPU does not need.
    from deeplab.augmentations.photometric_on_cpu import distort_and_normalise

    images = np.empty(batch.images.shape, dtype=np.float32)  # by numpy: it asks for large pages, torch does not
    columns = (batch.images.numpy(), batch.sizes.tolist(), batch.draws.numpy(), images)
    for image, size, draws, out in zip(*columns, strict=True):
        distort_and_normalise(image, size, draws, model.mean, model.std, out)
    return torch.from_numpy(images).permute(0, 3, 1, 2), batch.masks
