"""What is done to a training batch after the geometry: one file per augmentation, applied in the order of the cell."""

from deeplab.augmentations.augmentation import Augmentation
from deeplab.augmentations.photometric import photometric

AUGMENTATIONS: dict[str, Augmentation] = {"photometric": photometric}
