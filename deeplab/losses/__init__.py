"""What training minimizes: one file per loss, and their sum."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from deeplab.config import TrainConfig
from deeplab.errors import SettingsError
from deeplab.losses.class_weights import median_frequency
from deeplab.losses.cross_entropy import cross_entropy
from deeplab.losses.dice import dice
from deeplab.losses.focal import focal
from deeplab.losses.lovasz import lovasz
from deeplab.losses.ohem import ohem
from deeplab.losses.weighted_cross_entropy import weighted_cross_entropy
from deeplab.ranks import ALONE, Ranks
from deeplab.store import Record


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a loss may depend on beside logits and masks."""

    count: Tensor  # valid pixels of the whole batch
    train: TrainConfig
    ranks: Ranks
    weights: Tensor | None  # (K,) of the classes, if `train.class_weights` asks for them


# (logits (N, K, h, w), masks uint8 (N, H, W) of this process, given) -> scalar; over all processes they add up to the
# loss of the whole batch.
Loss = Callable[[Tensor, Tensor, Given], Tensor]

LOSSES: dict[str, Loss] = {
    "cross_entropy": lambda logits, masks, given: cross_entropy(logits, masks, given.count),
    "weighted_cross_entropy": lambda logits, masks, given: weighted_cross_entropy(
        logits, masks, given.weights, given.ranks
    ),
    "focal": lambda logits, masks, given: focal(
        logits, masks, given.count, gamma=given.train.focal_gamma, weights=given.weights
    ),
    "ohem": lambda logits, masks, given: ohem(
        logits,
        masks,
        given.count,
        threshold=given.train.ohem_threshold,
        min_share=given.train.ohem_min_share,
        ranks=given.ranks,
        weights=given.weights,
    ),
    "dice": lambda logits, masks, given: dice(logits, masks, ranks=given.ranks, weights=given.weights),
    "lovasz": lambda logits, masks, given: lovasz(logits, masks, ranks=given.ranks, weights=given.weights),
}

# (samples of the training split, number of classes) -> a weight for each class
CLASS_WEIGHTS: dict[str, Callable[[Sequence[Record], int], tuple[float, ...]]] = {"median_frequency": median_frequency}


class Criterion:
    """The loss of a training: `train.loss` with all that it needs."""

    def __init__(self, train: TrainConfig, ranks: Ranks = ALONE, weights: Tensor | None = None) -> None:
        """`weights` (K,) are those of `train.class_weights`. Raises SettingsError for an unknown loss."""
        for name in train.losses:
            if name not in LOSSES:
                raise SettingsError(f"train.loss: got {name!r}, expected one of {', '.join(LOSSES)}")
        if (weights is None) != (train.class_weights is None):
            raise SettingsError("train.class_weights: the weights of the classes are needed to compute this loss")
        self.train, self.ranks, self.weights = train, ranks, weights

    def __call__(self, logits: Tensor, masks: Tensor, count: Tensor) -> Tensor:
        """The part of this process: logits (N, K, h, w), masks uint8 (N, H, W), valid pixels of the batch -> scalar."""
        given = Given(count=count, train=self.train, ranks=self.ranks, weights=self.weights)
        first, *more = (factor * LOSSES[name](logits, masks, given) for name, factor in self.train.losses.items())
        return sum(more, start=first)
