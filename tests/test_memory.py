"""What must not be held at once: all classes at full size."""

import torch

from deeplab.inference import CLASSES_AT_ONCE, Pass, likeliest
from deeplab.model import upsample
from tests.memory import LargestFloat


def test_labels_come_from_a_few_classes_at_a_time():
    logits = torch.randn(1, 150, 32, 64)
    with LargestFloat() as seen:
        (labels,) = likeliest([Pass(logits, (1.0, 1.0), is_flipped=False)], (256, 512))
    assert seen.largest == CLASSES_AT_ONCE * 256 * 512
    full = upsample(logits, 256, 512)[0]
    torch.testing.assert_close(full.gather(0, labels.long()[None])[0], full.amax(0))
