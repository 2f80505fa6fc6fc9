import pytest
import torch
import torch.nn.functional as F

from deeplab.losses import chunks
from deeplab.losses.cross_entropy import UpsampledCrossEntropy, cross_entropy
from deeplab.step import valid_pixels
from tests.memory import LargestFloat


def plain(logits, masks):
    """What the loss stands for, written out."""
    full = F.interpolate(logits.float(), size=masks.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, masks.long(), ignore_index=255)


def draw(classes=5, small=(7, 9), size=(33, 40), batch=3):
    logits = torch.randn(batch, classes, *small)
    masks = torch.randint(0, classes, (batch, *size), dtype=torch.uint8)
    masks[0, :5] = 255
    return logits, masks


@pytest.mark.parametrize("budget", [1, 1000, 10**9], ids=["row by row", "in parts", "all at once"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(33, 40), (56, 72), (7, 9), (5, 6)])
def test_loss_and_gradient_are_those_of_interpolating_first(monkeypatch, budget, layout, size):
    monkeypatch.setitem(chunks.CHUNK, "cpu", budget)
    logits, masks = draw(size=size)
    masks[1, :2] = 255
    one, other = (logits.to(memory_format=layout).requires_grad_() for _ in range(2))
    ours, theirs = cross_entropy(one, masks, valid_pixels(masks)), plain(other, masks)
    torch.testing.assert_close(ours, theirs)
    (3 * ours).backward()
    (3 * theirs).backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)


def test_the_gradient_is_right_in_double_precision(monkeypatch):
    monkeypatch.setitem(chunks.CHUNK, "cpu", 60)
    logits, masks = draw(classes=3, small=(2, 3), size=(7, 8), batch=2)
    assert torch.autograd.gradcheck(UpsampledCrossEntropy.apply, (logits.double().requires_grad_(), masks))


def test_no_float_of_the_size_of_the_upsampled_logits_is_made():
    logits, masks = draw(classes=150, small=(32, 32), size=(256, 256), batch=2)
    full = 2 * 150 * 256 * 256
    with LargestFloat() as seen:
        cross_entropy(logits.requires_grad_(), masks, valid_pixels(masks)).backward()
    assert seen.largest <= max(logits.numel(), chunks.CHUNK["cpu"]) < full / 10
    with LargestFloat() as seen:
        plain(logits, masks)
    assert seen.largest == full


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inside", [False, True], ids=["outside of autocast", "under autocast"])
def test_half_precision_logits_are_compared_in_full_precision(kind, inside):
    logits, masks = draw()
    half = logits.to(kind).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
        value = cross_entropy(half, masks, valid_pixels(masks))
    value.backward()
    assert value.dtype == torch.float32
    assert half.grad.dtype == kind
    torch.testing.assert_close(value, plain(half.detach(), masks))


def test_a_batch_without_a_valid_pixel_gives_zero_and_no_gradient():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    masks = torch.full((2, 16, 16), 255, dtype=torch.uint8)
    value = cross_entropy(logits, masks, valid_pixels(masks))
    value.backward()
    assert value == 0
    assert logits.grad.eq(0).all()


def test_parts_of_a_batch_add_up_to_the_whole_when_all_divide_by_its_valid_pixels():
    logits, masks = draw(batch=4)
    count = valid_pixels(masks)
    parts = [cross_entropy(logits[part], masks[part], count) for part in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(sum(parts), cross_entropy(logits, masks, count))


class Switch:
    """Stands for torch.backends.cuda.matmul; notes what is written."""

    def __init__(self, tf32):
        self.__dict__.update(allow_tf32=tf32, written=[])

    def __setattr__(self, name, value):
        self.written.append(value)
        self.__dict__[name] = value


@pytest.mark.parametrize(("tf32", "written"), [(True, [False, True]), (False, [])])
def test_products_are_in_fp32_and_the_switch_is_moved_only_if_it_has_to(tf32, written, monkeypatch):
    """To torch.compile a switch that was written is another state, in which it compiles again."""
    switch = Switch(tf32)
    monkeypatch.setattr(torch.backends.cuda, "matmul", switch)
    with chunks.fp32_products():
        assert switch.allow_tf32 is False
    assert switch.written == written
