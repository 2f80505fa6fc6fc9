"""Training batches. What a sample looks like depends on (seed, epoch, index) alone, which samples a step sees on (seed,
step).

So the number of workers, of devices, and the step at which a run was resumed change nothing, and there is no state to
save.
"""

import signal
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.random import Generator, Philox, SeedSequence
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from deeplab.config import AugmentConfig, ModelConfig, RecipeConfig
from deeplab.store import IGNORE, Bytes, Split
from deeplab.transforms import clear_padding, cut, distort, draw_distortion, draw_region, normalise

ORDER, AUGMENT = 0, 1  # what a random stream is for: streams of different purposes never meet

Key = tuple[int, int]  # epoch, index


class Sample(NamedTuple):
    """One augmented sample before its colours are changed."""

    image: Bytes  # (H, W, 3) RGB, padded below and to the right
    mask: Bytes  # (H, W), padded with 255
    size: tuple[int, int]  # height, width without the padding
    distortion: NDArray[np.float32]  # (5,)
    sample: int  # its index in the split


class Batch(NamedTuple):
    """Samples of one step, still uint8."""

    images: Tensor  # (N, H, W, 3)
    masks: Tensor  # (N, H, W)
    sizes: Tensor  # (N, 2)
    distortions: Tensor  # (N, 5)
    samples: Tensor  # (N,)


class TrainingSamples(Dataset[Sample]):
    """The augmented samples of a split, by (epoch, index)."""

    def __init__(self, split: Split, recipe: RecipeConfig, augment: AugmentConfig, seed: int) -> None:
        self.split, self.recipe, self.augment, self.seed = split, recipe, augment, seed

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        rng = random_stream(self.seed, AUGMENT, epoch, index)
        mask = self.split.mask(index)
        region = draw_region(rng, mask, self.recipe, self.augment)
        image = cut(self.split.image(index), region, cv2.INTER_LINEAR)
        mask = cut(mask, region, cv2.INTER_NEAREST)
        if rng.random() < self.augment.flip:
            image, mask = image[:, ::-1], mask[:, ::-1]
        padded_image = np.zeros((*self.recipe.crop, 3), dtype=np.uint8)
        padded_image[: region.height, : region.width] = image
        padded_mask = np.full(self.recipe.crop, IGNORE, dtype=np.uint8)
        padded_mask[: region.height, : region.width] = mask
        distortion = draw_distortion(rng, self.augment)
        return Sample(padded_image, padded_mask, (region.height, region.width), distortion, index)


class StepKeys(Sampler[list[Key]]):
    """The (epoch, index) keys of steps `start` to `stop`; of each step only the `part` of a process that shares it."""

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
    """Whole batches in an epoch; a last, smaller one is dropped."""
    return count // batch_size


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order (count,) in which an epoch goes through the samples."""
    return random_stream(seed, ORDER, epoch, 0).permutation(count)


def random_stream(seed: int, purpose: int, epoch: int, index: int) -> Generator:
    """Random numbers that depend on the four arguments and nothing else."""
    return Generator(Philox(SeedSequence((seed, purpose, epoch, index))))


def training_loader(
    samples: TrainingSamples, start: int, stop: int, workers: int, pin: bool, part: slice = slice(None)
) -> DataLoader[Batch]:
    """Batches of steps `start` to `stop`, in order; of each only the `part` of a process that shares it."""
    keys = StepKeys(len(samples.split), samples.recipe.batch_size, samples.seed, start, stop, part)
    return DataLoader(
        samples,  # type: ignore[arg-type]  # torch types a data set's values, not its batches
        batch_sampler=keys,
        collate_fn=stack,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=start_worker,
        timeout=300 if workers else 0,  # a worker that hangs is an error, not a wait for ever
    )


def stack(samples: list[Sample]) -> Batch:
    """Samples -> a batch of tensors."""
    images, masks, sizes, distortions, indices = zip(*samples, strict=True)
    return Batch(
        torch.from_numpy(np.stack(images)),
        torch.from_numpy(np.stack(masks)),
        torch.tensor(sizes),
        torch.from_numpy(np.stack(distortions)),
        torch.tensor(indices),
    )


def start_worker(_: int) -> None:
    """One thread a worker; signals are the training process's business, which asks its workers to end."""
    cv2.setNumThreads(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def network_input(batch: Batch, model: ModelConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch as the network takes it: images float (N, 3, H, W), channels last, and masks uint8 (N, H, W)."""
    images = batch.images.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    images = normalise(distort(images, batch.distortions.to(device, non_blocking=True)), model.mean, model.std)
    images = clear_padding(images, batch.sizes.to(device, non_blocking=True))
    return images.contiguous(memory_format=torch.channels_last), batch.masks.to(device, non_blocking=True)
