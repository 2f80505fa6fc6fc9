"""From a trained network to train ids at an image's own size, and to a data set's confusion matrix.

The logits are upsampled and compared a few classes at a time. All 150 classes of ADE20k at 1536x2048 would take 1.9 GB
and be slower. The result is the same except for ties.
"""

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab.config import Inference, Protocol
from deeplab.errors import DataError, NonFiniteError
from deeplab.metrics import Matrix, confusion_matrix
from deeplab.model import upsample
from deeplab.precision import autocast
from deeplab.store import Bytes, Split
from deeplab.transforms import fitted_size, normalise

CLASSES_AT_ONCE = 8
MOST_AT_ONCE = 2**27  # upsampled logits: half a gigabyte; fewer classes at once where an image is larger than 16 MP

Size = tuple[int, int]  # height, width


def evaluate(
    model: nn.Module,
    split: Split,
    classes: int,
    settings: Inference,
    protocol: Protocol,
    device: torch.device,
    progress: Callable[[range], Iterable[int]] = iter,
) -> Matrix:
    """The confusion matrix (K, K) of `model` over all images of `split`; `progress` goes around their indices, as tqdm.

    Predictions are counted one by one and not kept. The mode of the network is restored.
    Raises DataError for a label that is not a class, NonFiniteError for logits that are NaN or infinite.
    """
    matrix = np.zeros((classes, classes), np.int64)
    for each in evaluate_each(model, split, classes, settings, protocol, device, progress):
        matrix += each
    return matrix


def evaluate_each(
    model: nn.Module,
    split: Split,
    classes: int,
    settings: Inference,
    protocol: Protocol,
    device: torch.device,
    progress: Callable[[range], Iterable[int]] = iter,
) -> Iterator[Matrix]:
    """The same per image: one confusion matrix (K, K) each, in the order of the split."""
    return count(predict_each(model, split, settings, protocol, device, progress), classes)


class Prediction(NamedTuple):
    """A labelled image, and what a network says about it."""

    name: str  # for messages
    truth: Bytes  # (H, W) train ids
    labels: Bytes  # (H, W) predicted train ids
    confidence: Bytes | None  # float32 (H, W), the probability of each label; None if not asked for


def predict_each(
    model: nn.Module,
    split: Split,
    settings: Inference,
    protocol: Protocol,
    device: torch.device,
    progress: Callable[[range], Iterable[int]] = iter,
    confidence: "Callable[[list[Pass], Size], Tensor] | None" = None,
) -> Iterator[Prediction]:
    """Segment the images of `split`, in its order; see `evaluate`."""
    training = model.training
    model.eval()
    try:
        for index in progress(range(len(split))):
            truth, name = split.mask(index), f"{split.folder}: image {split.records[index].id}"
            passes = passes_of(model, split.image(index)[None], settings, protocol, device)
            found = [each(passes, truth.shape).cpu().numpy()[0] for each in (likeliest, confidence) if each]
            del passes  # before the next ones are made
            yield Prediction(name, truth, found[0], found[1] if confidence else None)
    finally:
        model.train(training)


def count(predictions: Iterable[Prediction], classes: int) -> Iterator[Matrix]:
    """The confusion matrix (K, K) of each. Raises DataError for a label that is not a class."""
    for each in predictions:
        try:
            yield confusion_matrix(each.truth, each.labels, classes)
        except DataError as error:
            raise DataError(f"{each.name}: {error}") from None


def predict(model: nn.Module, image: Bytes, settings: Inference, protocol: Protocol, device: torch.device) -> Bytes:
    """Segment one image: (H, W, 3) RGB -> train ids (H, W).

    The image is resized into the recipe's box, exactly as mmsegmentation does it; `model`, in evaluation mode and on
    `device`, gives logits (1, K, h, w), and these go bilinearly to the image's own size, in one step.
    """
    labels: Bytes = predict_batch(model, image[None], settings, protocol, device)[0]
    return labels


@torch.inference_mode()
def predict_batch(
    model: nn.Module, images: Bytes, settings: Inference, protocol: Protocol, device: torch.device
) -> Bytes:
    """The same for several images of one size: (N, H, W, 3) RGB -> train ids (N, H, W)."""
    return likeliest(passes_of(model, images, settings, protocol, device), images.shape[1:3]).cpu().numpy()


@torch.inference_mode()
def passes_of(
    model: nn.Module, images: Bytes, settings: Inference, protocol: Protocol, device: torch.device
) -> list["Pass"]:
    """What the network says about images, (N, H, W, 3) RGB, and their mirror images at each scale."""
    assert not model.training
    height, width = images.shape[1:3]
    passes = []
    for scale in protocol.scales:
        fitted = fitted_size(height, width, settings.resize, scale)
        resized = np.stack([cv2.resize(image, fitted[::-1], interpolation=cv2.INTER_LINEAR) for image in images])
        x = as_input(resized, settings, device)
        passes += [
            one_pass(model, x, settings, protocol, is_flipped) for is_flipped in (False, True)[: 1 + protocol.flip]
        ]
    return passes


@torch.inference_mode()
def predict_tiles(
    model: nn.Module, image: Bytes, settings: Inference, window: Size, stride: Size, device: torch.device
) -> Bytes:
    """Segment one image in windows, at its own scale: (H, W, 3) RGB -> train ids (H, W).

    Where two windows overlap, each decides up to the middle of the overlap: a pixel is labelled by the window that sees
    more of its surroundings. Only the labels are held for the whole image, which may have any size.
    """
    assert not model.training
    whole = Protocol(scales=(1.0,), flip=False, window=None, stride=None)
    height, width = image.shape[:2]
    labels = np.zeros((height, width), np.uint8)
    rows, columns = (starts(*each) for each in zip((height, width), window, stride, strict=True))
    for top in rows:
        for left in columns:
            part = image[top : top + window[0], left : left + window[1]]
            only = one_pass(model, as_input(part[None], settings, device), settings, whole)
            found = likeliest([only], part.shape[:2]).cpu().numpy()[0]
            skipped = [shared(rows, top, window[0]) // 2, shared(columns, left, window[1]) // 2]
            place = slice(top + skipped[0], top + window[0]), slice(left + skipped[1], left + window[1])
            labels[place] = found[skipped[0] :, skipped[1] :]
    return labels


def shared(places: list[int], start: int, window: int) -> int:
    """How many pixels the window at `start` shares with the one before it."""
    index = places.index(start)
    return places[index - 1] + window - start if index else 0


def as_input(images: Bytes, settings: Inference, device: torch.device) -> Tensor:
    """(N, H, W, 3) RGB -> normalised (N, 3, H, W), channels last, on `device`."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    return normalise(pixels, settings.model.mean, settings.model.std)


class Pass(NamedTuple):
    """What the network says about a scale of an image, or about its mirror image."""

    logits: Tensor  # (N, K, h, w)
    covered: tuple[float, float]  # the share of h and w that the image covers; the rest is padding
    is_flipped: bool

    def upsampled(self, part: slice, size: Size) -> Tensor:
        """The logits of the classes `part` at `size`, in one bilinear step: (N, part, H, W)."""
        logits = self.logits[:, part]
        if self.covered == (1.0, 1.0):
            large = upsample(logits, *size)
        else:
            full = zip(size, self.covered, logits.shape[2:], strict=True)
            factors = tuple(own / share / low * (1 + 1e-12) for own, share, low in full)  # never a row too few
            large = F.interpolate(logits, scale_factor=factors, mode="bilinear", align_corners=False)
            large = large[..., : size[0], : size[1]]
        return large.flip(-1) if self.is_flipped else large


def one_pass(model: nn.Module, x: Tensor, settings: Inference, protocol: Protocol, is_flipped: bool = False) -> Pass:
    """Send x, (N, 3, H, W), or its mirror image, through the network."""
    if is_flipped:
        x = x.flip(-1)
    height, width = x.shape[2:]
    if settings.align or protocol.align:
        x = pad_to_multiple(x, protocol.output_stride or settings.model.output_stride)
    return Pass(
        logits=logits_of(model, x, settings, protocol),
        covered=(height / x.shape[2], width / x.shape[3]),
        is_flipped=is_flipped,
    )


def pad_to_multiple(x: Tensor, stride: int) -> Tensor:
    """Add zeros, the mean colour, at the right and at the bottom: (N, C, H, W) -> sides that are multiples of `stride`.

    A network computes features for ceil(H / stride) rows. Unless that is exact, stretching them over H rows shifts
    them against where they were in training, and so does "same" padding at odd sides.
    """
    return F.pad(x, (0, -x.shape[3] % stride, 0, -x.shape[2] % stride))


def logits_of(model: nn.Module, x: Tensor, settings: Inference, protocol: Protocol) -> Tensor:
    """One pass: (N, 3, H, W) -> float32 (N, K, h, w); with a window (N, K, H, W)."""
    with autocast(settings.precision, x.device):
        if protocol.window and protocol.stride:
            logits = slide(model, x, protocol.window, protocol.stride)
        else:
            logits = model(x).float()
    require_finite(logits)
    return logits.contiguous()


def require_finite(logits: Tensor) -> None:
    """Raise NonFiniteError for logits that are NaN or infinite. The host waits for the device here."""
    if not logits.isfinite().all():
        raise NonFiniteError("the network's logits are NaN or infinite: its weights are damaged, or overflow in fp16")


def slide(model: nn.Module, x: Tensor, window: Size, stride: Size) -> Tensor:
    """Average the logits of overlapping windows: (N, 3, H, W) -> (N, K, H, W).

    All classes are held at the resized image's size: 160 MB for Cityscapes at scale 1.
    """
    height, width = x.shape[2:]
    total: Tensor | None = None
    count = x.new_zeros(height, width)
    for top in starts(height, window[0], stride[0]):
        for left in starts(width, window[1], stride[1]):
            place = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            logits = upsample(model(x[place]).float(), *count[place].shape)
            if total is None:
                total = x.new_zeros(*logits.shape[:2], height, width)
            total[place] += logits
            count[place] += 1
    assert total is not None
    return total.div_(count)


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start. The last one ends at `length`; a window longer than the image starts at 0."""
    last = max(length - window, 0)
    return [min(step * stride, last) for step in range(math.ceil(last / stride) + 1)]


def likeliest(passes: list[Pass], size: Size) -> Tensor:
    """The class of each pixel, from one pass or several: uint8 (N, H, W).

    The largest upsampled logit of a single pass, which has the largest probability too; the largest mean of the
    probabilities of several.
    """
    first = passes[0].logits
    device, count = first.device, len(first)
    parts = parts_of(first, size)
    totals = [log_sum_exp(each, parts, size) for each in passes] if len(passes) > 1 else []
    best = torch.full((count, *size), -math.inf, device=device)
    labels = torch.zeros((count, *size), dtype=torch.uint8, device=device)
    for part in parts:
        scores = (each.upsampled(part, size) for each in passes)
        if totals:
            scores = ((score - total[:, None]).exp_() for score, total in zip(scores, totals, strict=True))
        value, index = reduce(operator.add, scores).max(dim=1)
        labels = torch.where(value > best, (index + part.start).to(torch.uint8), labels)
        best = torch.maximum(value, best)
    return labels


def parts_of(logits: Tensor, size: Size) -> list[slice]:
    """The classes of `logits`, (N, K, h, w), in parts that are upsampled to `size` at once."""
    at_once = max(1, min(CLASSES_AT_ONCE, MOST_AT_ONCE // (len(logits) * size[0] * size[1])))
    return [slice(start, start + at_once) for start in range(0, logits.shape[1], at_once)]


def log_sum_exp(each: Pass, parts: list[slice], size: Size) -> Tensor:
    """The logarithm of softmax's denominator at each pixel, (N, H, W)."""
    total = torch.full((len(each.logits), *size), -math.inf, device=each.logits.device)
    for part in parts:
        total = torch.logaddexp(total, each.upsampled(part, size).logsumexp(dim=1))
    return total
