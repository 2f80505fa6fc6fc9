import torch
import torch.nn.functional as F

from deeplab.loss import cross_entropy


def test_the_loss_is_the_mean_over_valid_pixels_at_full_resolution():
    logits = torch.randn(2, 3, 4, 4)
    masks = torch.randint(0, 3, (2, 16, 16), dtype=torch.uint8)
    masks[0, :5] = 255
    full = F.interpolate(logits, size=(16, 16), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(full, masks.long(), ignore_index=255)
    torch.testing.assert_close(cross_entropy(logits, masks), expected)


def test_a_batch_without_a_valid_pixel_gives_zero_and_no_gradient():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((2, 16, 16), 255, dtype=torch.uint8))
    loss.backward()
    assert loss == 0
    assert logits.grad.eq(0).all()


def test_half_precision_logits_are_compared_in_full_precision():
    logits = torch.randn(1, 3, 4, 4).bfloat16()
    assert cross_entropy(logits, torch.zeros(1, 8, 8, dtype=torch.uint8)).dtype == torch.float32
